package gate

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// difference is one place where two values are not equal. A nil value is absent.
type difference struct {
	path      string
	got, want ast.Value
}

const maxDifferences = 64

// differ finds the places where two values differ.
type differ struct{ found []difference }

func (d *differ) diff(path string, got, want ast.Value) {
	if len(d.found) >= maxDifferences {
		return
	}
	if got != nil && want != nil {
		if got.Compare(want) == 0 {
			return
		}
		switch g := got.(type) {
		case ast.Object:
			if w, ok := want.(ast.Object); ok {
				d.objects(path, g, w)
				return
			}
		case *ast.Array:
			if w, ok := want.(*ast.Array); ok {
				d.arrays(path, g, w)
				return
			}
		case ast.Set:
			if w, ok := want.(ast.Set); ok {
				g.Diff(w).Foreach(func(x *ast.Term) { d.diff(path, x.Value, nil) })
				w.Diff(g).Foreach(func(x *ast.Term) { d.diff(path, nil, x.Value) })
				return
			}
		}
	}
	d.found = append(d.found, difference{path, got, want})
}

func (d *differ) objects(path string, got, want ast.Object) {
	got.Foreach(func(k, v *ast.Term) {
		var w ast.Value
		if t := want.Get(k); t != nil {
			w = t.Value
		}
		d.diff(joinPath(path, k.Value), v.Value, w)
	})
	want.Foreach(func(k, v *ast.Term) {
		if got.Get(k) == nil {
			d.diff(joinPath(path, k.Value), nil, v.Value)
		}
	})
}

func (d *differ) arrays(path string, got, want *ast.Array) {
	for i := range max(got.Len(), want.Len()) {
		var g, w ast.Value
		if i < got.Len() {
			g = got.Elem(i).Value
		}
		if i < want.Len() {
			w = want.Elem(i).Value
		}
		d.diff(fmt.Sprintf("%s[%d]", path, i), g, w)
	}
}

// difference describes one difference without showing what must not be shown.
func (r *report) difference(d difference) string {
	if isEnv(d.path) {
		g, w := variableName(d.got), variableName(d.want)
		switch {
		case d.got == nil:
			return fmt.Sprintf("%s: got nothing, expected variable %s", d.path, w)
		case d.want == nil:
			return fmt.Sprintf("%s: got variable %s, expected nothing", d.path, g)
		case g == w:
			return fmt.Sprintf("%s: variable %s has another value than expected (values are not shown)", d.path, g)
		}
		return fmt.Sprintf("%s: got variable %s, expected variable %s", d.path, g, w)
	}
	return fmt.Sprintf("%s: got %s, expected %s", d.path, r.show(d.got, d.path), r.show(d.want, d.path))
}

var (
	envPath = regexp.MustCompile(`(^|\.|\])Env(\[|$|\.)`)
	argPath = regexp.MustCompile(`(^|\.|\])(Args|exec_commands|allowed_commands)(\[|$)`)
	argZero = regexp.MustCompile(`Args\[0\]$`)
)

func isEnv(path string) bool { return envPath.MatchString(path) }

// show prints a value for a message: scalars shortened, composites by their size,
// environment values and arguments after the program name not at all.
func (r *report) show(v ast.Value, path string) string {
	switch v := v.(type) {
	case nil:
		return "nothing"
	case ast.String:
		switch {
		case isEnv(path):
			return "variable " + variableName(v)
		case argPath.MatchString(path) && !argZero.MatchString(path):
			return "an argument (not shown)"
		}
		if !argZero.MatchString(path) {
			if s, hidden := r.input.secrets.redact(string(v)); hidden {
				return s
			}
		}
		return shorten(fmt.Sprintf("%q", string(v)), 160)
	case ast.Object:
		return fmt.Sprintf("an object of %d members", v.Len())
	case *ast.Array:
		return r.showArray(v, path)
	case ast.Set:
		return fmt.Sprintf("a set of %d members", v.Len())
	}
	return shorten(v.String(), 80)
}

func (r *report) showArray(v *ast.Array, path string) string {
	if v.Len() == 0 {
		return "an empty list"
	}
	if argPath.MatchString(path + "[") {
		if prog, ok := v.Elem(0).Value.(ast.String); ok {
			return fmt.Sprintf("%s with %d arguments", shorten(fmt.Sprintf("%q", string(prog)), 120), v.Len()-1)
		}
	}
	return fmt.Sprintf("a list of %d", v.Len())
}

// variableName is the name part of NAME=value.
func variableName(v ast.Value) string {
	s, ok := v.(ast.String)
	if !ok {
		return "(none)"
	}
	name, _, found := strings.Cut(string(s), "=")
	if !found {
		return "(no name)"
	}
	return shorten(name, 64)
}

// secrets are the strings that no message may carry: values of environment
// variables and arguments, of the request and of the policy.
type secrets struct {
	names map[string]string // text -> what may be said instead
	long  []string          // texts worth searching for inside other text
}

// minSearch is the length from which a secret is also removed from running text;
// shorter ones would blot out unrelated words.
const minSearch = 4

func (s *secrets) add(text, instead string) {
	if text == "" {
		return
	}
	if s.names == nil {
		s.names = map[string]string{}
	}
	if _, ok := s.names[text]; ok {
		return
	}
	s.names[text] = instead
	if len(text) >= minSearch {
		s.long = append(s.long, text)
	}
}

func (s *secrets) addAll(from *secrets) {
	for text, instead := range from.names {
		s.add(text, instead)
	}
	// The longest first, so that a part never spoils the whole.
	slices.SortFunc(s.long, func(a, b string) int { return len(b) - len(a) })
}

// redact reports what to say instead of text.
func (s *secrets) redact(text string) (string, bool) {
	if s == nil {
		return text, false
	}
	instead, ok := s.names[text]
	if ok {
		return instead, true
	}
	if clean := s.redactText(text); clean != text {
		return fmt.Sprintf("%q", shorten(clean, 120)), true
	}
	return text, false
}

// redactText removes secrets from running text.
func (s *secrets) redactText(text string) string {
	if s == nil || text == "" {
		return text
	}
	for _, secret := range s.long {
		if strings.Contains(text, secret) {
			text = strings.ReplaceAll(text, secret, "(not shown)")
		}
	}
	return text
}

// redactSource removes secrets from a line of the policy. Outside of its literals are names of rules, of which a short value
// such as "default" may be a part: there it has to stand alone.
func (s *secrets) redactSource(line string) string {
	if s == nil || line == "" {
		return line
	}
	var out strings.Builder
	for line != "" {
		code := line
		if i := strings.IndexAny(line, "\"`"); i >= 0 {
			code = line[:i]
		}
		out.WriteString(s.redactWords(code))
		line = line[len(code):]
		literal := literalAt(line)
		out.WriteString(s.redactText(literal))
		line = line[len(literal):]
	}
	return out.String()
}

// literalAt is the literal that text begins with, up to the end of the text if it has none.
func literalAt(text string) string {
	for i := 1; i < len(text); i++ {
		switch {
		case text[i] == text[0]:
			return text[:i+1]
		case text[i] == '\\' && text[0] == '"':
			i++
		}
	}
	return text
}

// redactWords removes secrets that are whole words.
func (s *secrets) redactWords(code string) string {
	for _, secret := range s.long {
		var out strings.Builder
		rest := code
		for {
			i := strings.Index(rest, secret)
			if i < 0 {
				break
			}
			end := i + len(secret)
			out.WriteString(rest[:i])
			if (i > 0 && wordByte(rest[i-1])) || (end < len(rest) && wordByte(rest[end])) {
				out.WriteString(secret)
			} else {
				out.WriteString("(not shown)")
			}
			rest = rest[end:]
		}
		code = out.String() + rest
	}
	return code
}

func wordByte(c byte) bool {
	return c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// collectSecrets gathers what must not be shown from policy and request.
func (r *report) collectSecrets() {
	if r.policy.secrets == nil {
		r.policy.secrets = &secrets{}
		for _, v := range r.policy.constants {
			gatherSecrets(r.policy.secrets, v, "")
		}
	}
	r.input.secrets.addAll(r.policy.secrets)
	own := &secrets{}
	gatherSecrets(own, r.input.term.Value, "")
	r.input.secrets.addAll(own)
}

func gatherSecrets(s *secrets, v ast.Value, key string) {
	switch v := v.(type) {
	case ast.Object:
		v.Foreach(func(k, x *ast.Term) {
			name := key
			if ks, ok := k.Value.(ast.String); ok {
				name = string(ks)
			}
			gatherSecrets(s, x.Value, name)
		})
	case *ast.Array:
		for i := range v.Len() {
			x := v.Elem(i).Value
			text, ok := x.(ast.String)
			switch {
			case !ok:
				gatherSecrets(s, x, key)
			case key == "Env":
				name, value, _ := strings.Cut(string(text), "=")
				instead := "variable " + shorten(name, 64)
				s.add(string(text), instead)
				if value != name && !ordinary(value) {
					s.add(value, "the value of "+instead)
				}
			case (key == "Args" || key == "exec_commands" || key == "allowed_commands") && i > 0 && !ordinary(string(text)):
				s.add(string(text), "an argument (not shown)")
			}
		}
	}
}

// ordinary texts appear everywhere and hide nothing.
func ordinary(s string) bool {
	return len(s) < minSearch || strings.HasPrefix(s, "/") || s == "true" || s == "false" || s == "xterm"
}
