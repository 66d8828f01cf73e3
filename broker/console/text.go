package console

import (
	"bytes"
	"encoding/json"
	"fmt"
	"html/template"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/cloister/cloister/broker/rego"
)

// clip bounds a text, in bytes, and makes it fit to be looked at: control characters and those that change the direction or hide
// others become visible, as a guest could write text with them that reads as something else.
func clip(text string, most int) string {
	cut := len(text) > most
	if cut {
		text = text[:most]
	}
	var out strings.Builder
	for len(text) > 0 {
		r, size := utf8.DecodeRuneInString(text)
		text = text[size:]
		switch {
		case r == utf8.RuneError && size == 1:
			if len(text) > 0 || !cut { // else it is what the cut left
				out.WriteRune(utf8.RuneError)
			}
		case r == '\n' || r == '\t':
			out.WriteRune(r)
		case unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Co):
			fmt.Fprintf(&out, "\\u{%x}", r)
		default:
			out.WriteRune(r)
		}
	}
	if cut {
		out.WriteString("…")
	}
	return out.String()
}

// functions are those of the templates.
func functions(now func() time.Time) template.FuncMap {
	return template.FuncMap{
		"clip":   func(most int, text string) string { return clip(text, most) },
		"short":  func(text string) string { return clip(text, 120) },
		"text":   func(text string) string { return clip(text, 2000) },
		"json":   func(raw json.RawMessage) string { return clip(pretty(raw, false), 4000) },
		"pretty": func(raw json.RawMessage) string { return clip(pretty(raw, true), 64<<10) },
		"time":   func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05") },
		"stamp":  func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
		"day":    func(t time.Time) string { return t.UTC().Format("2006-01-02") },
		"ago":    func(t time.Time) string { return ago(now().Sub(t)) },
		"until":  func(t time.Time) string { return until(t.Sub(now())) },
		"over":   func(t time.Time) bool { return !now().Before(t) },
		"bytes":  size,
		"number": grouped,
		"tone":   tone,
		"mark":   mark,
		"worst":  worst,
		"form":   formValue,
		"allowed": func(f rego.Finding) []string {
			return accepted(f)
		},
		"dict": dict,
	}
}

// dict gives a template several values.
func dict(pairs ...any) (map[string]any, error) {
	if len(pairs)%2 != 0 {
		return nil, fmt.Errorf("dict has %d arguments", len(pairs))
	}
	m := map[string]any{}
	for i := 0; i < len(pairs); i += 2 {
		name, ok := pairs[i].(string)
		if !ok {
			return nil, fmt.Errorf("dict: argument %d is no name", i)
		}
		m[name] = pairs[i+1]
	}
	return m, nil
}

// pretty is JSON as a person reads it: a text without its quotes when it is all there is.
func pretty(raw json.RawMessage, indent bool) string {
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return s
	}
	var out bytes.Buffer
	if indent && json.Indent(&out, raw, "", "  ") == nil {
		return out.String()
	}
	return string(raw)
}

// accepted lists the values that would have satisfied an expression.
func accepted(f rego.Finding) []string {
	const most = 50
	if len(f.Expected) == 0 || string(f.Expected) == "null" {
		return nil
	}
	var list []json.RawMessage
	if json.Unmarshal(f.Expected, &list) != nil {
		return []string{clip(pretty(f.Expected, false), 4000)}
	}
	var out []string
	for i, v := range list {
		if i == most {
			return append(out, fmt.Sprintf("… and %d more", len(list)-most))
		}
		out = append(out, clip(pretty(v, false), 1000))
	}
	return out
}

// size is a number of bytes; -1 is unknown.
func size(n any) string {
	var b int64
	switch v := n.(type) {
	case int:
		b = int64(v)
	case int64:
		b = v
	default:
		return fmt.Sprint(n)
	}
	switch {
	case b < 0:
		return "unknown"
	case b < 1<<10:
		return fmt.Sprintf("%d B", b)
	case b < 1<<20:
		return fmt.Sprintf("%.1f KiB", float64(b)/(1<<10))
	default:
		return fmt.Sprintf("%.1f MiB", float64(b)/(1<<20))
	}
}

// grouped is a whole number with thin spaces between thousands.
func grouped(n any) string {
	s := fmt.Sprint(n)
	if _, err := strconv.ParseUint(s, 10, 64); err != nil {
		return s
	}
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "\u202f" + s[i:]
	}
	return s
}

func span(d time.Duration) string {
	unit := func(n int, name string) string {
		if n == 1 {
			return "1 " + name
		}
		return fmt.Sprintf("%d %ss", n, name)
	}
	switch {
	case d < time.Minute:
		return unit(int(d/time.Second), "second")
	case d < time.Hour:
		return unit(int(d/time.Minute), "minute")
	case d < 48*time.Hour:
		return unit(int(d/time.Hour), "hour")
	default:
		return unit(int(d/(24*time.Hour)), "day")
	}
}

func ago(d time.Duration) string {
	if d < time.Second {
		return "just now"
	}
	return span(d) + " ago"
}

func until(d time.Duration) string {
	if d <= 0 {
		return "expired " + ago(-d)
	}
	return "in " + span(d)
}
