package pod

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	client "github.com/cloister/cloister/host/agent"
)

// Bounds of what a guest can make the host store.
const (
	logFileLimit = 32 << 20 // then the file becomes <name>.1 and a new one begins
	logLineLimit = 16 << 10 // longer lines are stored in parts
	guestLogMax  = 8 << 20
)

// GuestLog is the file in a pod's log directory with what the guest's own services log.
const GuestLog = "guest.log"

// entry is one line of a container's log file.
type entry struct {
	Time   time.Time `json:"time"`
	Stream string    `json:"stream"`
	Log    string    `json:"log"`
}

// logFile is where a container's output is kept. Guest names cannot collide with it: the other logs have no such prefix.
func logFile(dir, container string) string { return filepath.Join(dir, "ctr-"+container+".log") }

// output hands out the places that containers write to.
type output struct {
	dir            string
	prefixed       bool
	mu             sync.Mutex // one writer at a time on the caller's streams
	stdout, stderr io.Writer
}

func newOutput(o *Options) *output {
	return &output{dir: o.LogDir, prefixed: len(o.Plan.Containers) > 1, stdout: o.Stdout, stderr: o.Stderr}
}

// open opens the log of a container, behind what an earlier run of it wrote.
func (o *output) open(container string) (*containerLog, error) {
	l := &containerLog{out: o, container: container, name: logFile(o.dir, container)}
	if err := l.openFile(); err != nil {
		return nil, err
	}
	return l, nil
}

type containerLog struct {
	out       *output
	container string
	name      string

	mu      sync.Mutex
	file    *os.File
	size    int64
	streams []*logStream
	lost    error // why lines could not be stored
}

func (l *containerLog) openFile() error {
	f, err := os.OpenFile(l.name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("opening the log of container %s: %w", l.container, err)
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return fmt.Errorf("opening the log of container %s: %w", l.container, err)
	}
	l.file, l.size = f, info.Size()
	return nil
}

// stream returns the writer for one of the container's streams.
func (l *containerLog) stream(name string) io.Writer {
	s := &logStream{log: l, name: name, live: l.out.stdout}
	if name == "stderr" {
		s.live = l.out.stderr
	}
	l.mu.Lock()
	l.streams = append(l.streams, s)
	l.mu.Unlock()
	return s
}

// close stores unfinished lines and closes the file, and says why lines were lost. The streams are at their end.
func (l *containerLog) close() error {
	for _, s := range l.streams {
		s.flush()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.file.Close()
	return l.lost
}

// store appends one entry. What cannot be stored, on a full disk for example, is lost: a container whose output nobody
// reads any more would hang.
func (l *containerLog) store(stream string, line []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.add(stream, line); err != nil && l.lost == nil {
		l.lost = err
	}
}

func (l *containerLog) add(stream string, line []byte) error {
	b, err := json.Marshal(entry{Time: time.Now().UTC(), Stream: stream, Log: string(line)})
	if err != nil {
		return err
	}
	if l.size > logFileLimit {
		l.file.Close()
		if err := os.Rename(l.name, l.name+".1"); err != nil {
			return err
		}
		if err := l.openFile(); err != nil {
			return err
		}
	}
	n, err := l.file.Write(append(b, '\n'))
	l.size += int64(n)
	return err
}

// logStream cuts a stream into lines for the log; the caller's writer gets the bytes as they come, or whole lines with a prefix.
type logStream struct {
	log  *containerLog
	name string
	live io.Writer
	part []byte
}

func (s *logStream) Write(p []byte) (int, error) {
	n := len(p)
	if s.live != nil && !s.log.out.prefixed {
		s.show(p)
	}
	for len(p) > 0 {
		cut := bytes.IndexByte(p, '\n') + 1
		whole := cut > 0
		if !whole {
			cut = len(p)
		}
		if room := logLineLimit - len(s.part); cut > room {
			cut, whole = room, false
		}
		s.part, p = append(s.part, p[:cut]...), p[cut:]
		if whole || len(s.part) >= logLineLimit {
			s.flush()
		}
	}
	return n, nil
}

func (s *logStream) flush() {
	if len(s.part) == 0 {
		return
	}
	if s.live != nil && s.log.out.prefixed {
		line := append([]byte("["+s.log.container+"] "), s.part...)
		if line[len(line)-1] != '\n' {
			line = append(line, '\n')
		}
		s.show(line)
	}
	s.log.store(s.name, s.part)
	s.part = s.part[:0]
}

// show writes to the caller. A caller that went away does not stop the pod: the log has everything.
func (s *logStream) show(p []byte) {
	s.log.out.mu.Lock()
	defer s.log.out.mu.Unlock()
	_, _ = s.live.Write(p)
}

// collectGuestLog keeps what the guest's own services log, up to a limit.
func (s *supervisor) collectGuestLog(ctx context.Context) {
	conn, err := s.vm.Dial(ctx, client.PortLog)
	if err != nil {
		s.opts.Logger.Debug("no guest log", "pod", s.opts.Plan.Name, "error", err)
		return
	}
	f, err := os.OpenFile(filepath.Join(s.opts.LogDir, GuestLog), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		conn.Close()
		s.opts.Logger.Warn("keeping the guest log", "error", err)
		return
	}
	s.logs.Go(func() {
		defer f.Close()
		defer conn.Close()
		// What is beyond the limit is read and dropped, so that the guest does not block on its log.
		if _, err := io.CopyN(f, conn, guestLogMax); err == nil {
			_, _ = io.Copy(io.Discard, conn)
		}
	})
}
