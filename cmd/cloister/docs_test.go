package main

import (
	"io"
	"io/fs"
	"os"
	"path"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// docs are the pages of the repository, by path.
func docs(t *testing.T) map[string]string {
	t.Helper()
	pages := map[string]string{}
	root := os.DirFS("../..")
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && name != "." || d.Name() == "testdata") {
			return fs.SkipDir
		}
		if path.Ext(name) == ".md" {
			text, err := fs.ReadFile(root, name)
			if err != nil {
				return err
			}
			pages[name] = string(text)
		}
		return nil
	})
	if err != nil || len(pages) < 30 {
		t.Fatalf("%d pages, %v", len(pages), err)
	}
	return pages
}

var (
	inline     = regexp.MustCompile("`(cloister [^`\n]*(?:\n[^`\n]*)?)`")
	indented   = regexp.MustCompile(`(?m)^(?:    )?(?:\S+=\S+ )*(cloister (?:[^\n]*\\\n)*[^\n]*)$`)
	piped      = regexp.MustCompile(`\| (cloister [^\n]*)`)
	flagWord   = regexp.MustCompile(`^--([a-z][a-z0-9-]*)`)
	commentEnd = regexp.MustCompile(`\s#\s.*|\s+[|>;&]{1,2}\s?.*|\s\s+[(#].*`)
	verb       = regexp.MustCompile(`^[a-z0-9][a-z0-9-]*$`)
)

// TestDocsNameCommands: each command line in the documentation names a command that there is, with flags that it has.
func TestDocsNameCommands(t *testing.T) {
	root := newRoot(&app{stdout: io.Discard, stderr: io.Discard})
	seen := 0
	for name, text := range docs(t) {
		var lines []string
		for _, form := range []*regexp.Regexp{inline, indented, piped} {
			for _, m := range form.FindAllStringSubmatch(text, -1) {
				lines = append(lines, m[1])
			}
		}
		for _, line := range lines {
			line = commentEnd.ReplaceAllString(strings.ReplaceAll(line, "\\\n", " "), "")
			words := strings.Fields(line)[1:]
			end := len(words)
			for i, w := range words {
				if !verb.MatchString(w) {
					end = i
					break
				}
			}
			if end == 0 || strings.HasPrefix(line, "cloister sealed layer") { // `cloister --help`; what is hashed
				continue
			}
			c, rest, err := root.Find(words[:end])
			if err != nil || c == root {
				t.Errorf("%s: `%s`: there is no such command", name, line)
				continue
			}
			if len(rest) > 0 && c.HasSubCommands() {
				t.Errorf("%s: `%s`: %s has no %q", name, line, c.CommandPath(), rest[0])
			}
			seen++
			c.InitDefaultHelpFlag()
			for _, w := range words[end:] {
				if w == "--" {
					break
				}
				m := flagWord.FindStringSubmatch(strings.TrimLeft(w, "[("))
				if m == nil {
					continue
				}
				var flag *pflag.Flag
				if flag = c.Flags().Lookup(m[1]); flag == nil {
					flag = c.InheritedFlags().Lookup(m[1])
				}
				if flag == nil {
					t.Errorf("%s: `%s`: %s has no flag --%s", name, line, c.CommandPath(), m[1])
				}
			}
		}
	}
	if seen < 150 {
		t.Errorf("only %d command lines were seen", seen)
	}
	t.Logf("%d command lines", seen)
}

var link = regexp.MustCompile(`\]\(([^)\s]+)\)`)

// TestDocsLinks: links within the repository lead to files, and to headings that they have.
func TestDocsLinks(t *testing.T) {
	pages := docs(t)
	for name, text := range pages {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			target, heading, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			file := name
			if target != "" {
				file = path.Join(path.Dir(name), target)
			}
			if _, err := os.Stat(path.Join("../..", file)); err != nil {
				t.Errorf("%s: link to %s: %v", name, m[1], err)
				continue
			}
			if heading != "" && !hasHeading(pages[file], heading) {
				t.Errorf("%s: link to %s: there is no such heading", name, m[1])
			}
		}
	}
}

// hasHeading knows headings by the names that GitHub gives them.
func hasHeading(text, want string) bool {
	for line := range strings.Lines(text) {
		if title := strings.TrimLeft(line, "#"); title != line {
			id := strings.Map(func(r rune) rune {
				switch {
				case r == ' ' || r == '-':
					return '-'
				case r == '_' || r >= 'a' && r <= 'z' || r >= '0' && r <= '9':
					return r
				}
				return -1
			}, strings.ToLower(strings.TrimSpace(title)))
			if id == want {
				return true
			}
		}
	}
	return false
}
