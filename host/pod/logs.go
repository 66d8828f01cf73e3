package pod

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/cloister/cloister/internal/paths"
)

// LogOptions says what of a log is wanted.
type LogOptions struct {
	// Container may be empty: then it is the first that is not an init container.
	Container string
	// Follow waits for more until the pod has ended or ctx ends.
	Follow bool
	// Timestamps puts the time before each line.
	Timestamps bool
	// Stdout and Stderr get the lines of the two streams; nil drops them.
	Stdout, Stderr io.Writer
}

// Logs writes out what a container has printed. It works on running pods and on ended ones.
func Logs(ctx context.Context, dirs paths.Dirs, name string, o LogOptions) error {
	s, err := Lookup(dirs, name)
	if err != nil {
		return fmt.Errorf("reading logs: %w", err)
	}
	c, err := s.pick(o.Container)
	if err != nil {
		return fmt.Errorf("reading logs of pod %s: %w", name, err)
	}
	l := &logReader{opts: o, name: logFile(s.LogDir, c.Name)}
	defer l.close()
	if !o.Follow {
		if err := l.readOld(); err != nil {
			return err
		}
		return l.drain()
	}
	// The watch begins before the first look, so that nothing that is written in between is missed.
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watching logs of pod %s: %w", name, err)
	}
	defer w.Close()
	if err := w.Add(s.LogDir); err != nil {
		return fmt.Errorf("watching logs of pod %s: %w", name, err)
	}
	if err := l.readOld(); err != nil {
		return err
	}
	for {
		now, err := readState(s.LogDir)
		if err != nil {
			return fmt.Errorf("watching logs of pod %s: %w", name, err)
		}
		if err := l.drain(); err != nil {
			return err
		}
		// The state was read before the drain: when it says that all is over, everything had been written.
		if now.Done() {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-w.Errors:
			return fmt.Errorf("watching logs of pod %s: %w", name, err)
		case <-w.Events:
		}
	}
}

// pick finds a container by name; without a name it is the first that is not an init container, as kubectl has it.
func (s *State) pick(name string) (*ContainerState, error) {
	var names []string
	for i := range s.Containers {
		c := &s.Containers[i]
		if c.Name == name || name == "" && !c.Init {
			return c, nil
		}
		names = append(names, c.Name)
	}
	return nil, fmt.Errorf("no container %q, there are: %s", name, strings.Join(names, ", "))
}

type logReader struct {
	opts LogOptions
	name string
	file *os.File
	r    *bufio.Reader
	part []byte
	// midLine remembers, per stream, that the last part had no line end.
	midLine map[string]bool
}

func (l *logReader) close() {
	if l.file != nil {
		l.file.Close()
	}
}

// readOld shows the file before the last change of files.
func (l *logReader) readOld() error {
	f, err := os.Open(l.name + ".1")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading logs: %w", err)
	}
	l.file, l.r = f, bufio.NewReaderSize(f, 64<<10)
	return l.lines()
}

// drain shows everything that is there now, across a change of files.
func (l *logReader) drain() error {
	for {
		if l.file != nil {
			if err := l.lines(); err != nil {
				return err
			}
			same, err := l.current()
			if err != nil || same {
				return err
			}
			// The old file got its last line before it was renamed, perhaps after the look above.
			if err := l.lines(); err != nil {
				return err
			}
			l.file.Close()
			l.file = nil
		}
		f, err := os.Open(l.name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // nothing was printed yet
		}
		if err != nil {
			return fmt.Errorf("reading logs: %w", err)
		}
		l.file, l.r, l.part = f, bufio.NewReaderSize(f, 64<<10), nil
	}
}

// current says whether the open file is the one that is being written.
func (l *logReader) current() (bool, error) {
	a, err := l.file.Stat()
	if err != nil {
		return false, fmt.Errorf("reading logs: %w", err)
	}
	b, err := os.Stat(l.name)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("reading logs: %w", err)
	}
	return os.SameFile(a, b), nil
}

func (l *logReader) lines() error {
	for {
		b, err := l.r.ReadSlice('\n')
		l.part = append(l.part, b...)
		switch {
		case errors.Is(err, bufio.ErrBufferFull) && len(l.part) < 16*logLineLimit:
			continue
		case errors.Is(err, io.EOF):
			return nil // an unfinished line is completed by the next look
		case err != nil:
			return fmt.Errorf("reading logs of %s: %w", filepath.Base(l.name), err)
		}
		e, err := parseEntry(l.part)
		l.part = l.part[:0]
		if err != nil {
			return err
		}
		if err := l.show(e); err != nil {
			return err
		}
	}
}

func parseEntry(b []byte) (entry, error) {
	var e entry
	if err := json.Unmarshal(b, &e); err != nil {
		return e, fmt.Errorf("reading a log line: %w", err)
	}
	return e, nil
}

func (l *logReader) show(e entry) error {
	w := l.opts.Stdout
	if e.Stream == "stderr" {
		w = l.opts.Stderr
	}
	if w == nil {
		return nil
	}
	if l.midLine == nil {
		l.midLine = map[string]bool{}
	}
	text := e.Log
	if l.opts.Timestamps && !l.midLine[e.Stream] {
		text = e.Time.Format(time.RFC3339Nano) + " " + text
	}
	l.midLine[e.Stream] = !strings.HasSuffix(e.Log, "\n")
	_, err := io.WriteString(w, text)
	return err
}
