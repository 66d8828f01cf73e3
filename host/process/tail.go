package process

import (
	"bytes"
	"strings"
	"sync"
)

// Tail keeps the last bytes written to it.
type Tail struct {
	mu   sync.Mutex
	buf  []byte
	max  int
	lost bool
}

// NewTail keeps up to limit bytes.
func NewTail(limit int) *Tail { return &Tail{max: limit} }

func (t *Tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := len(p)
	if len(p) > t.max {
		p, t.lost = p[len(p)-t.max:], true
	}
	if over := len(t.buf) + len(p) - t.max; over > 0 {
		t.buf, t.lost = append(t.buf[:0], t.buf[over:]...), true
	}
	t.buf = append(t.buf, p...)
	return n, nil
}

func (t *Tail) bytes() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return bytes.Clone(t.buf)
}

// Lines returns the last n non-empty lines, made safe to print: firmware and guest choose these bytes.
func (t *Tail) Lines(n int) []string {
	var out []string
	for _, l := range strings.Split(string(t.bytes()), "\n") {
		if l = Printable(l); strings.TrimSpace(l) != "" {
			out = append(out, l)
		}
	}
	if len(out) > n {
		out = out[len(out)-n:]
	}
	return out
}

// Printable drops terminal escape sequences and control characters.
func Printable(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == 0x1b {
			i = escapeEnd(s, i)
			continue
		}
		if c >= 0x20 && c != 0x7f || c == '\t' {
			b.WriteByte(c)
		}
	}
	return strings.ToValidUTF8(b.String(), "?")
}

// escapeEnd returns the index of the last byte of the escape sequence that starts at i.
func escapeEnd(s string, i int) int {
	if i+1 >= len(s) || s[i+1] != '[' {
		return min(i+1, len(s)-1)
	}
	for j := i + 2; j < len(s); j++ {
		if s[j] >= 0x40 && s[j] <= 0x7e {
			return j
		}
	}
	return len(s) - 1
}
