package kubernetes

import "strings"

// Expand replaces $(NAME) by the value of a known variable, as Kubernetes does in commands and variables: $$ gives $, unknown names stay
// as they are.
func Expand(s string, values map[string]string) string {
	return ExpandBy(s, func(name string) (string, bool) {
		v, ok := values[name]
		return v, ok
	})
}

// MaxText is the length of the longest argument or variable that Linux gives to a program, in bytes (MAX_ARG_STRLEN).
const MaxText = 128<<10 - 1

// ExpandBy is Expand with the values that a function knows. Of a result that is longer than MaxText, so that no program could be given it,
// the first MaxText+1 bytes are returned: variables that name each other many times would make any amount.
func ExpandBy(s string, value func(name string) (string, bool)) string {
	if !strings.Contains(s, "$") {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if b.Len() > MaxText {
			return b.String()[:MaxText+1]
		}
		if s[i] != '$' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		switch s[i+1] {
		case '$':
			b.WriteByte('$')
			i++
		case '(':
			end := strings.IndexByte(s[i+2:], ')')
			if end < 0 {
				b.WriteByte(s[i])
				continue
			}
			name := s[i+2 : i+2+end]
			if v, ok := value(name); ok {
				b.WriteString(v)
			} else {
				b.WriteString(s[i : i+3+end])
			}
			i += 2 + end
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String()
}
