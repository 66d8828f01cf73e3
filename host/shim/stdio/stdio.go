// Package stdio moves what a process in the guest reads and writes between the guest and the places that containerd names: fifos as a rule,
// files (file://), or logging programs (binary://).
//
// Rules it keeps:
//
//   - Opening never waits. containerd may open its end of a fifo later, or be restarting.
//   - Our own end of a fifo stays open both ways. A reader that goes away, as containerd in a restart, is neither an error nor an end, and a
//     writer of stdin that goes away is not the end of input: that is what CloseStdin, containerd's CloseIO, says.
//   - A reader that does not read stops the process in the guest, as a full pipe does, and not this program: no more than three chunks are
//     kept per stream.
//   - A place that cannot be written to loses output; it does not stop the process.
package stdio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// chunk is how much is asked of the guest, and given to it, at once.
const chunk = 64 << 10

// Config says where the streams of a process go.
type Config struct {
	// Stdin, Stdout and Stderr are paths of fifos or files; the outputs may be file:// or binary:// too. "" is nothing: no input, and output
	// that is read and thrown away.
	Stdin, Stdout, Stderr string
	Terminal              bool // a terminal has no stderr
	// ContainerID and Namespace are told to a logging program.
	ContainerID, Namespace string
	ReadyTime              time.Duration // how long a logging program may take to be ready; 0 is 10 s
}

// Source is a process in the guest. Reads return data, at most max bytes, or io.EOF at the end; any other error is an end too. The data is the
// caller's.
type Source interface {
	ReadStdout(ctx context.Context, max int) ([]byte, error)
	ReadStderr(ctx context.Context, max int) ([]byte, error)
	WriteStdin(ctx context.Context, p []byte) (int, error)
	CloseStdin(ctx context.Context) error
}

// Streams are the open ends on the host.
type Streams struct {
	terminal       bool
	stdin          *input // nil: none
	stdout, stderr output
	logger         *logger // nil: none

	read     chan struct{} // see Read
	readOnce sync.Once

	mu       sync.Mutex
	end      context.CancelFunc // ends Copy; nil before
	exited   bool
	deadline time.Time
}

// output takes what a process writes. finish closes it so that a reader gets what was written and its end of file; interrupt ends a Write or
// finish that waits.
type output interface {
	io.WriteCloser
	finish() error
	interrupt()
}

// Open opens all ends, without waiting for anybody but a logging program's word that it is ready. What it opens Close closes.
func Open(ctx context.Context, c Config) (_ *Streams, err error) {
	s := &Streams{terminal: c.Terminal, stdout: discard{}, stderr: discard{}, read: make(chan struct{})}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if c.Stdin != "" {
		if s.stdin, err = openInput(c.Stdin); err != nil {
			return nil, fmt.Errorf("opening stdin: %w", err)
		}
	}
	if c.Terminal {
		c.Stderr = ""
	}
	if isBinary(c.Stdout) || isBinary(c.Stderr) {
		// One program takes both streams, as of the runc shim; what stderr says is not looked at then.
		if s.logger, err = startLogger(ctx, c); err != nil {
			return nil, fmt.Errorf("starting the logging program: %w", err)
		}
		s.stdout, s.stderr = s.logger.stdout, s.logger.stderr
		return s, nil
	}
	if s.stdout, err = openOutput(c.Stdout); err != nil {
		s.stdout = discard{}
		return nil, fmt.Errorf("opening stdout: %w", err)
	}
	if s.stderr, err = openOutput(c.Stderr); err != nil {
		s.stderr = discard{}
		return nil, fmt.Errorf("opening stderr: %w", err)
	}
	return s, nil
}

// Copy moves all streams until both outputs have ended, or ctx has, or the time that Exited gave is over. Each place gets its end of file as
// soon as its stream ends. An error says what was lost; the process is not affected by it. Copy is called once.
func (s *Streams) Copy(ctx context.Context, src Source) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.mu.Lock()
	s.end = cancel
	if s.exited {
		s.limit()
	}
	s.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { // a write that waits for a reader ends too
		s.stdout.interrupt()
		s.stderr.interrupt()
	})
	defer stop()

	var input sync.WaitGroup
	input.Go(func() { s.feed(ctx, src) })
	var outputs, sources sync.WaitGroup
	var outErr, errErr error
	copyOutput := func(name string, read readFunc, to output, err *error) {
		sources.Add(1)
		outputs.Go(func() { *err = drain(ctx, name, read, to, sources.Done, s.endRead) })
	}
	copyOutput("stdout", src.ReadStdout, s.stdout, &outErr)
	if s.terminal {
		s.stderr.Close()
	} else {
		copyOutput("stderr", src.ReadStderr, s.stderr, &errErr)
	}
	sources.Wait()
	s.endRead()
	outputs.Wait()
	cancel()
	if s.stdin != nil {
		s.stdin.close()
	}
	input.Wait()
	return errors.Join(outErr, errErr)
}

// Read is closed when all output of the process has been read from the guest, or nobody has taken output for stuckTime. Guests may throw
// away what a process has written once somebody has waited for its end, so that who waits for it waits for this first.
func (s *Streams) Read() <-chan struct{} { return s.read }

func (s *Streams) endRead() { s.readOnce.Do(func() { close(s.read) }) }

// stuckTime is how long a place may take no output before Read does not wait for it any longer.
const stuckTime = 10 * time.Second

type readFunc = func(ctx context.Context, max int) ([]byte, error)

// drain copies one output. Reading ahead while the place takes the last chunk hides the way to the guest and back. ended is called when
// nothing more is read, stuck when the place takes nothing for stuckTime.
func drain(ctx context.Context, name string, read readFunc, to output, ended, stuck func()) error {
	chunks := make(chan []byte, 1)
	var readErr error
	go func() {
		defer close(chunks)
		defer ended()
		for {
			p, err := read(ctx, chunk)
			if len(p) > 0 {
				t := time.AfterFunc(stuckTime, stuck)
				select {
				case chunks <- p:
					t.Stop()
				case <-ctx.Done():
					t.Stop()
					readErr = ctx.Err()
					return
				}
			}
			if err != nil {
				if !errors.Is(err, io.EOF) {
					readErr = err
				}
				return
			}
		}
	}()
	var writeErr error
	for p := range chunks {
		// After an error the next chunk is tried again: a full disk may have room. The process must go on either way.
		if _, err := to.Write(p); err != nil && writeErr == nil {
			writeErr = fmt.Errorf("writing %s: %w", name, err)
		}
	}
	if err := to.finish(); err != nil && writeErr == nil {
		writeErr = fmt.Errorf("closing %s: %w", name, err)
	}
	if readErr != nil {
		readErr = fmt.Errorf("reading %s of the process: %w", name, readErr)
	}
	return errors.Join(writeErr, readErr)
}

// feed copies stdin until its end and tells the process. A process without stdin gets the end at once, as from /dev/null. Errors end the
// feeding only: who does not read its input is no failure.
func (s *Streams) feed(ctx context.Context, src Source) {
	if s.stdin != nil {
		buf := make([]byte, chunk/2)
		for {
			n, err := s.stdin.Read(buf)
			for p := buf[:n]; len(p) > 0; {
				w, err := src.WriteStdin(ctx, p)
				if err != nil || w <= 0 || w > len(p) {
					return
				}
				p = p[w:]
			}
			if err != nil {
				if !errors.Is(err, io.EOF) {
					return
				}
				break
			}
		}
	} else if s.terminal {
		return
	}
	if ctx.Err() == nil {
		_ = src.CloseStdin(ctx) // a process that has ended has no stdin to close
	}
}

// CloseStdin says that no more input comes, besides what is in the fifo and what others that have it open still write: containerd's CloseIO.
func (s *Streams) CloseStdin() {
	if s.stdin != nil {
		s.stdin.last()
	}
}

// Exited says that the process has ended: Copy then has so much time for what is left to read and to write. A grandchild that keeps an output
// open, or a reader that does not read, does not delay it further.
func (s *Streams) Exited(grace time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.exited, s.deadline = true, time.Now().Add(grace)
	s.limit()
}

// limit arms the end; s.mu is held.
func (s *Streams) limit() {
	if s.end == nil {
		return
	}
	end := s.end
	time.AfterFunc(time.Until(s.deadline), end) // ending what has ended does nothing
}

// Close closes all ends. A logging program gets its end of file, and some time to finish, which Close does not wait for.
func (s *Streams) Close() error {
	s.mu.Lock()
	end := s.end
	s.mu.Unlock()
	if end != nil {
		end()
	}
	var errs []error
	if s.stdin != nil {
		s.stdin.close()
	}
	for _, o := range []output{s.stdout, s.stderr} {
		if err := o.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if s.logger != nil {
		s.logger.release()
	}
	return errors.Join(errs...)
}
