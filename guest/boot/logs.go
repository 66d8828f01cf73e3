package boot

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// openConsole opens the kernel's console, which the host captures.
func openConsole() (*os.File, error) {
	f, err := os.OpenFile("/dev/console", os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the console: %w", err)
	}
	return f, nil
}

// consoleHandler writes short text lines for people: no date, because the guest's clock means little to the reader.
func consoleHandler(w io.Writer, level slog.Leveler) slog.Handler {
	return slog.NewTextHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})
}

// Bounds of what LogHub keeps and of what one slow reader may have waiting.
const (
	logBacklog = 128 << 10
	logQueue   = 256
)

// LogHub keeps the latest log lines and gives them, and all later ones, to each reader of the log port.
type LogHub struct {
	mu      sync.Mutex
	backlog [][]byte
	size    int
	readers map[chan []byte]struct{}
}

// NewLogHub returns an empty hub.
func NewLogHub() *LogHub { return &LogHub{readers: map[chan []byte]struct{}{}} }

// Handler returns a slog handler that writes JSON lines in the kata agent's form into the hub.
func (h *LogHub) Handler(level slog.Leveler) slog.Handler {
	return slog.NewJSONHandler(h, &slog.HandlerOptions{Level: level, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) > 0 {
			return a
		}
		switch a.Key {
		case slog.TimeKey:
			a.Key = "ts"
		case slog.LevelKey:
			a.Value = slog.StringValue(strings.ToLower(a.Value.String()))
		}
		return a
	}}).WithAttrs([]slog.Attr{slog.String("name", "cloister-guest"), slog.String("source", "agent"), slog.Int("pid", os.Getpid())})
}

// Write takes one line; a reader that does not keep up loses lines, never the guest its speed.
func (h *LogHub) Write(line []byte) (int, error) {
	kept := bytes.Clone(line)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.backlog = append(h.backlog, kept)
	h.size += len(kept)
	for h.size > logBacklog && len(h.backlog) > 1 {
		h.size -= len(h.backlog[0])
		h.backlog = h.backlog[1:]
	}
	for r := range h.readers {
		select {
		case r <- kept:
		default:
		}
	}
	return len(line), nil
}

func (h *LogHub) subscribe() (old []byte, lines chan []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	lines = make(chan []byte, logQueue)
	h.readers[lines] = struct{}{}
	return bytes.Join(h.backlog, nil), lines
}

func (h *LogHub) unsubscribe(lines chan []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.readers, lines)
}

// Serve sends the log to everyone who connects, until the listener closes.
func (h *LogHub) Serve(ctx context.Context, l net.Listener) error {
	var conns sync.WaitGroup
	defer conns.Wait()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		c, err := l.Accept()
		if err != nil {
			return nil
		}
		conns.Go(func() { h.serveConn(ctx, c) })
	}
}

func (h *LogHub) serveConn(ctx context.Context, c net.Conn) {
	defer c.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// The stream is one-way; reading only tells when the peer has gone.
	go func() {
		defer cancel()
		_, _ = io.Copy(io.Discard, c)
	}()
	old, lines := h.subscribe()
	defer h.unsubscribe(lines)
	if _, err := c.Write(old); err != nil {
		return
	}
	for {
		select {
		case line := <-lines:
			if _, err := c.Write(line); err != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// fanout sends each record to several handlers.
type fanout []slog.Handler

func (f fanout) Enabled(ctx context.Context, l slog.Level) bool {
	for _, h := range f {
		if h.Enabled(ctx, l) {
			return true
		}
	}
	return false
}

func (f fanout) Handle(ctx context.Context, r slog.Record) error {
	var first error
	for _, h := range f {
		if !h.Enabled(ctx, r.Level) {
			continue
		}
		if err := h.Handle(ctx, r.Clone()); err != nil && first == nil {
			first = err
		}
	}
	return first
}

func (f fanout) WithAttrs(attrs []slog.Attr) slog.Handler {
	out := make(fanout, len(f))
	for i, h := range f {
		out[i] = h.WithAttrs(attrs)
	}
	return out
}

func (f fanout) WithGroup(name string) slog.Handler {
	out := make(fanout, len(f))
	for i, h := range f {
		out[i] = h.WithGroup(name)
	}
	return out
}
