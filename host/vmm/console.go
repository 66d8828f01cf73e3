package vmm

import (
	"bytes"
	"io"
	"os"
	"strings"
	"sync"
)

// tail keeps the last bytes written to it.
type tail struct {
	mu   sync.Mutex
	buf  []byte
	max  int
	lost bool
}

func newTail(limit int) *tail { return &tail{max: limit} }

func (t *tail) Write(p []byte) (int, error) {
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

func (t *tail) bytes() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return bytes.Clone(t.buf)
}

// lines returns the last n non-empty lines, made safe to print: firmware and guest choose these bytes.
func (t *tail) lines(n int) []string {
	var out []string
	for _, l := range strings.Split(string(t.bytes()), "\n") {
		if l = printable(l); strings.TrimSpace(l) != "" {
			out = append(out, l)
		}
	}
	if len(out) > n {
		out = out[len(out)-n:]
	}
	return out
}

// printable drops terminal escape sequences and control characters.
func printable(s string) string {
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

const (
	fatalMark = "cloister-guest: fatal: "
	panicMark = "Kernel panic - not syncing: "
	lineLimit = 4096
)

// console takes the serial output: the end stays in memory, all of it goes to a file up to a limit, and the reason of a fatal end is
// picked out.
type console struct {
	tail *tail

	mu      sync.Mutex
	file    *os.File
	left    int64
	line    []byte
	reason  string
	panicAt string
}

const consoleFileLimit = 8 << 20

func newConsole(file *os.File) *console {
	return &console{tail: newTail(64 << 10), file: file, left: consoleFileLimit}
}

// copyFrom reads until the VM closes its end.
func (c *console) copyFrom(r io.Reader) {
	buf := make([]byte, 16<<10)
	for {
		n, err := r.Read(buf)
		c.add(buf[:n])
		if err != nil {
			return
		}
	}
}

func (c *console) add(p []byte) {
	_, _ = c.tail.Write(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.file != nil && c.left > 0 {
		q := p[:min(int64(len(p)), c.left)]
		c.left -= int64(len(q))
		_, _ = c.file.Write(q)
		if c.left == 0 {
			_, _ = c.file.WriteString("\n[console output after this point was not kept]\n")
		}
	}
	for _, b := range p {
		if b != '\n' {
			if len(c.line) < lineLimit {
				c.line = append(c.line, b)
			}
			continue
		}
		c.scan()
	}
}

func (c *console) scan() {
	line := string(c.line)
	c.line = c.line[:0]
	if _, after, ok := strings.Cut(line, fatalMark); ok && c.reason == "" {
		c.reason = printable(after)
	}
	if _, after, ok := strings.Cut(line, panicMark); ok && c.panicAt == "" {
		c.panicAt = "kernel panic: " + printable(after)
	}
}

// fatal is the reason the guest gave for its end, or "".
func (c *console) fatal() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.line) > 0 {
		c.scan()
	}
	if c.reason != "" {
		return c.reason
	}
	return c.panicAt
}

func (c *console) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.file != nil {
		c.file.Close()
		c.file = nil
	}
}
