package guestimage

import (
	"bufio"
	"bytes"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

// defaultMirror is used when the machine's own apt sources name no Debian
// mirror.
const defaultMirror = "http://deb.debian.org/debian"

// machineMirror finds the Debian mirror this machine uses, in its apt sources
// under etcApt (normally /etc/apt). Sources are read, never changed.
func machineMirror(etcApt string) string {
	files := []string{filepath.Join(etcApt, "sources.list")}
	more, err := filepath.Glob(filepath.Join(etcApt, "sources.list.d", "*"))
	if err == nil {
		sort.Strings(more)
		files = append(files, more...)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		var uris []string
		if strings.HasSuffix(f, ".sources") {
			uris = deb822URIs(data)
		} else if strings.HasSuffix(f, ".list") {
			uris = oneLineURIs(data)
		}
		for _, u := range uris {
			if isDebianArchive(u) {
				return u
			}
		}
	}
	return defaultMirror
}

// isDebianArchive tells the main archive from the security archive and from
// other people's repositories, by the path every Debian mirror has.
func isDebianArchive(uri string) bool {
	u, err := url.Parse(uri)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return false
	}
	return strings.HasSuffix(strings.TrimRight(u.Path, "/"), "/debian")
}

// oneLineURIs reads the one-line format: deb [options] uri suite components.
func oneLineURIs(data []byte) []string {
	var uris []string
	sc := bufio.NewScanner(bytes.NewReader(data))
	for sc.Scan() {
		line, _, _ := strings.Cut(sc.Text(), "#")
		line = strings.TrimSpace(line)
		rest, ok := strings.CutPrefix(line, "deb ")
		if !ok {
			continue
		}
		rest = strings.TrimSpace(rest)
		if strings.HasPrefix(rest, "[") {
			_, after, found := strings.Cut(rest, "]")
			if !found {
				continue
			}
			rest = after
		}
		if f := strings.Fields(rest); len(f) >= 2 {
			uris = append(uris, f[0])
		}
	}
	return uris
}

// deb822URIs reads the stanza format.
func deb822URIs(data []byte) []string {
	var uris []string
	for _, st := range parseStanzas(data) {
		if strings.EqualFold(st["Enabled"], "no") {
			continue
		}
		if !strings.Contains(" "+st["Types"]+" ", " deb ") {
			continue
		}
		uris = append(uris, strings.Fields(st["URIs"])...)
	}
	return uris
}

// parseStanzas reads the paragraphs of a Debian control file. Continuation
// lines are joined with a space; comments are dropped.
func parseStanzas(data []byte) []map[string]string {
	var out []map[string]string
	cur := map[string]string{}
	last := ""
	flush := func() {
		if len(cur) > 0 {
			out = append(out, cur)
			cur, last = map[string]string{}, ""
		}
	}
	for _, line := range strings.Split(string(data), "\n") {
		line = strings.TrimRight(line, "\r")
		switch {
		case strings.TrimSpace(line) == "":
			flush()
		case strings.HasPrefix(line, "#"):
		case line[0] == ' ' || line[0] == '\t':
			if last != "" {
				cur[last] += " " + strings.TrimSpace(line)
			}
		default:
			k, v, ok := strings.Cut(line, ":")
			if !ok {
				continue
			}
			last = k
			cur[k] = strings.TrimSpace(v)
		}
	}
	flush()
	return out
}

// aptSource renders the private source of one suite.
func aptSource(mirror, suite, keyring string) []byte {
	return fmt.Appendf(nil, "Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nArchitectures: amd64\nSigned-By: %s\n",
		mirror, suite, keyring)
}
