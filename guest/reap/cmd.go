package reap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"
)

// DefaultCapture bounds what Run keeps of each output stream.
const DefaultCapture = 64 << 10

// lingerForOutput is how long Run reads on after the process ended while something else still holds its output open.
const lingerForOutput = 500 * time.Millisecond

// Cmd describes a helper program that runs to its end.
type Cmd struct {
	// Path is the absolute path of the program; Args are its arguments without the program's name.
	Path string
	Args []string
	// Env is the whole environment; nothing is inherited.
	Env []string
	Dir string
	// Stdin is written to the program; nil means no input.
	Stdin []byte
	// Files, when set, become descriptors 0, 1 and 2 instead of captured pipes, and Stdin is ignored.
	Files []*os.File
	Sys   *syscall.SysProcAttr
	// Capture bounds the bytes kept of each stream; zero means DefaultCapture.
	Capture int
}

// Result is what a program left behind.
type Result struct {
	Status Status
	// Stdout and Stderr hold the first Capture bytes of each stream.
	Stdout, Stderr []byte
}

// ExitError reports a program that ran and failed.
type ExitError struct {
	Path   string
	Status Status
	Stderr string
}

func (e *ExitError) Error() string {
	if e.Stderr == "" {
		return fmt.Sprintf("%s: %s", e.Path, e.Status)
	}
	return fmt.Sprintf("%s: %s: %s", e.Path, e.Status, e.Stderr)
}

// Run runs cmd to its end and returns its bounded output. A non-zero exit is an *ExitError beside the result. When ctx
// ends first the program is killed and its status still collected.
func (r *Reaper) Run(ctx context.Context, cmd Cmd) (Result, error) {
	limit := cmd.Capture
	if limit <= 0 {
		limit = DefaultCapture
	}
	io3, err := openStdio(cmd, limit)
	if err != nil {
		return Result{}, fmt.Errorf("preparing %s: %w", cmd.Path, err)
	}
	defer io3.close()
	argv := append([]string{cmd.Path}, cmd.Args...)
	env := cmd.Env
	if env == nil {
		env = []string{}
	}
	p, err := r.Start(cmd.Path, argv, &os.ProcAttr{Dir: cmd.Dir, Env: env, Files: io3.child, Sys: cmd.Sys})
	if err != nil {
		return Result{}, err
	}
	io3.start()

	status, waitErr := p.Wait(ctx)
	if waitErr != nil {
		if err := p.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return Result{}, err
		}
		<-p.Done()
		status = p.Status()
	}
	res := Result{Status: status}
	res.Stdout, res.Stderr = io3.finish()
	switch {
	case waitErr != nil:
		return res, fmt.Errorf("running %s: %w", cmd.Path, waitErr)
	case status != Status{}:
		return res, &ExitError{Path: cmd.Path, Status: status, Stderr: lastLine(res.Stderr)}
	}
	return res, nil
}

// lastLine returns the last non-empty line, where programs put the reason of their failure.
func lastLine(b []byte) string {
	end := len(b)
	for end > 0 && (b[end-1] == '\n' || b[end-1] == ' ' || b[end-1] == '\r') {
		end--
	}
	start := end
	for start > 0 && b[start-1] != '\n' {
		start--
	}
	return string(b[start:end])
}

// stdio is the parent's side of a helper's three streams.
type stdio struct {
	child       []*os.File // given to the child, closed here after the start
	ours        []*os.File
	owned       bool
	stdin       []byte
	limit       int
	wg          sync.WaitGroup
	out, errOut []byte
}

func openStdio(cmd Cmd, limit int) (*stdio, error) {
	if cmd.Files != nil {
		return &stdio{child: cmd.Files}, nil
	}
	s := &stdio{owned: true, stdin: cmd.Stdin, limit: limit}
	for fd := range 3 {
		if fd == 0 && cmd.Stdin == nil {
			null, err := os.Open(os.DevNull)
			if err != nil {
				s.close()
				return nil, err
			}
			s.child, s.ours = append(s.child, null), append(s.ours, nil)
			continue
		}
		rd, wr, err := os.Pipe()
		if err != nil {
			s.close()
			return nil, err
		}
		if fd == 0 {
			rd, wr = wr, rd
		}
		s.child, s.ours = append(s.child, wr), append(s.ours, rd)
	}
	return s, nil
}

func (s *stdio) start() {
	if !s.owned {
		return
	}
	for _, f := range s.child {
		f.Close()
	}
	s.child = nil
	if s.ours[0] != nil {
		s.wg.Go(func() {
			// The program may end without reading all; its exit status tells whether that matters.
			_, _ = s.ours[0].Write(s.stdin)
			s.ours[0].Close()
		})
	}
	s.wg.Go(func() { s.out = capture(s.ours[1], s.limit) })
	s.wg.Go(func() { s.errOut = capture(s.ours[2], s.limit) })
}

// finish waits for the rest of the output, but not for a stranger that inherited the descriptors.
func (s *stdio) finish() (out, errOut []byte) {
	if !s.owned {
		return nil, nil
	}
	deadline := time.Now().Add(lingerForOutput)
	for _, f := range s.ours {
		if f != nil {
			_ = f.SetDeadline(deadline)
		}
	}
	s.wg.Wait()
	return s.out, s.errOut
}

func (s *stdio) close() {
	if !s.owned {
		return
	}
	for _, f := range append(s.child, s.ours...) {
		if f != nil {
			f.Close()
		}
	}
}

// capture keeps the first limit bytes and reads on so that the writer never blocks.
func capture(f *os.File, limit int) []byte {
	kept, err := io.ReadAll(io.LimitReader(f, int64(limit)))
	if err == nil {
		_, _ = io.Copy(io.Discard, f)
	}
	return kept
}
