package console

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"
)

func TestClip(t *testing.T) {
	for _, tc := range []struct {
		in   string
		most int
		want string
	}{
		{"plain ä €", 100, "plain ä €"}, {"abcdef", 3, "abc…"}, {"aä", 2, "a…"}, {"a\xffb", 9, "a\ufffdb"}, {"a\u202eb\u200bc", 99,
			`a\u{202e}b\u{200b}c`},
		{"bell\a\r\n\t", 99, "bell\\u{7}\\u{d}\n\t"},
	} {
		if got := clip(tc.in, tc.most); got != tc.want {
			t.Errorf("clip(%q, %d) = %q, want %q", tc.in, tc.most, got, tc.want)
		}
	}
}

func FuzzClip(f *testing.F) {
	f.Add("a\u202eb\xff", 3)
	f.Fuzz(func(t *testing.T, text string, most int) {
		most = max(0, min(most, 1<<16))
		got := clip(text, most)
		if !utf8.ValidString(got) || len(got) > 10*most+10 {
			t.Errorf("clip(%q, %d) = %q", text, most, got)
		}
		for _, r := range got {
			if unicode.In(r, unicode.Cc, unicode.Cf) && r != '\n' && r != '\t' {
				t.Errorf("clip(%q) left %U", text, r)
			}
		}
	})
}

func FuzzNextPage(f *testing.F) {
	f.Add("/console/audit?before=3")
	f.Add("//x/console/")
	f.Fuzz(func(t *testing.T, text string) {
		got := nextPage(text)
		if got != "" && (got != home && !strings.HasPrefix(got, root) && !strings.HasPrefix(got, home+"?") || strings.ContainsAny(got,
			"\\\r\n")) {
			t.Errorf("nextPage(%q) = %q", text, got)
		}
	})
}

func FuzzDiff(f *testing.F) {
	f.Add("a\nb\nc\n", "a\nx\nc")
	f.Fuzz(func(t *testing.T, old, text string) {
		if len(old)+len(text) > 2000 {
			return
		}
		a, b := splitLines(old), splitLines(text)
		var before, after []string
		for _, l := range middle(a, b, 0) {
			if l.Sign != "+" {
				before = append(before, l.Text)
			}
			if l.Sign != "-" {
				after = append(after, l.Text)
			}
		}
		if strings.Join(before, "\n") != strings.Join(a, "\n") || strings.Join(after, "\n") != strings.Join(b, "\n") {
			t.Errorf("the difference of %q and %q gives %q and %q", old, text, before, after)
		}
		if shown, added, removed := diff(old, text); (old == text) != (len(shown) == 0) || old != text && added+removed == 0 {
			t.Errorf("diff(%q, %q): %d lines, +%d -%d", old, text, len(shown), added, removed)
		}
	})
}

func FuzzValues(f *testing.F) {
	f.Add("abc\n42\n[1]\n\"x\"")
	f.Fuzz(func(t *testing.T, text string) {
		for _, v := range values(text) {
			if len(v) == 0 || pretty(v, true) == "" && string(v) != `""` {
				t.Errorf("values(%q) has %q", text, v)
			}
		}
	})
}

// TestFormValue makes sure that what "approve this value" fills in registers the very value.
func TestFormValue(t *testing.T) {
	for raw, want := range map[string]string{
		`"ab12"`: "ab12", `"1234"`: `"1234"`, `1234`: "1234", `"00"`: "00", `true`: "true", `"true"`: `"true"`, `"a\u003cb"`: "a<b",
		`" a"`:   `" a"`,
		`"a\nb"`: `"a\nb"`, `["a"]`: `["a"]`, `"1234567890123456"`: "1234567890123456",
	} {
		if got := formValue(json.RawMessage(raw)); got != want {
			t.Errorf("formValue(%s) = %s, want %s", raw, got, want)
		}
	}
}

func TestDiffOfMuch(t *testing.T) {
	old, text := strings.Repeat("a\nb\n", 5000), strings.Repeat("c\n", 9000)
	shown, added, removed := diff("same\n"+old, "same\n"+text)
	if added != 9000 || removed != 10000 || len(shown) > maxDiffLines+1 {
		t.Errorf("%d lines, +%d -%d", len(shown), added, removed)
	}
}

func TestWords(t *testing.T) {
	for got, want := range map[string]string{
		size(-1): "unknown", size(1023): "1023 B", size(int64(1536)): "1.5 KiB", grouped(1234567): "1\u202f234\u202f567", grouped("x"): "x",
		ago(0): "just now", ago(time.Second): "1 second ago", ago(90 * time.Minute): "1 hour ago", until(-time.Hour): "expired 1 hour ago",
		until(72 * time.Hour): "in 3 days",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestSessionsAreBounded(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	s := newSessions(func() time.Time { return now })
	var first string
	for i := range maxSessions + 10 {
		now = now.Add(time.Second)
		key, _, err := s.start(session{}.who, "ann", false)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = key
		}
	}
	if len(s.by) != maxSessions || s.find(first, true) != nil {
		t.Errorf("%d sessions", len(s.by))
	}
	now = now.Add(idleLife)
	if s.find(first, true) != nil || len(s.by) != 0 {
		t.Errorf("%d sessions are kept that are over", len(s.by))
	}
}
