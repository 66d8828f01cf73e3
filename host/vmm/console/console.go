// Package console keeps the output of a guest's console and finds the reason of a fatal end in it.
package console

import (
	"io"
	"os"
	"strings"
	"sync"

	"github.com/cloister/cloister/host/process"
)

const (
	fatalMark = "cloister-guest: fatal: "
	panicMark = "Kernel panic - not syncing: "
	lineLimit = 4096
)

// Console takes the serial output: the end stays in memory, all of it goes to a file up to a limit, and the reason of a fatal end is
// picked out.
type Console struct {
	tail *process.Tail

	mu      sync.Mutex
	file    *os.File
	left    int64
	line    []byte
	reason  string
	panicAt string
}

const consoleFileLimit = 8 << 20

// New writes to file, which it closes; nil keeps no file.
func New(file *os.File) *Console {
	return &Console{tail: process.NewTail(64 << 10), file: file, left: consoleFileLimit}
}

// CopyFrom reads until the VM closes its end.
func (c *Console) CopyFrom(r io.Reader) {
	buf := make([]byte, 16<<10)
	for {
		n, err := r.Read(buf)
		c.Add(buf[:n])
		if err != nil {
			return
		}
	}
}

// Add takes the next bytes of the console.
func (c *Console) Add(p []byte) {
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

func (c *Console) scan() {
	line := string(c.line)
	c.line = c.line[:0]
	if _, after, ok := strings.Cut(line, fatalMark); ok && c.reason == "" {
		c.reason = process.Printable(after)
	}
	if _, after, ok := strings.Cut(line, panicMark); ok && c.panicAt == "" {
		c.panicAt = "kernel panic: " + process.Printable(after)
	}
}

// Fatal is the reason the guest gave for its end, or "".
func (c *Console) Fatal() string {
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

// Close closes the file.
func (c *Console) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.file != nil {
		c.file.Close()
		c.file = nil
	}
}

// Tail returns the last n lines, safe to print.
func (c *Console) Tail(n int) []string { return c.tail.Lines(n) }
