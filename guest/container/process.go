package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/guest/reap"
)

// Errors of a process's streams.
var (
	ErrNoTTY       = errors.New("no tty")
	ErrStdinClosed = errors.New("standard input is closed")
	ErrNoStream    = errors.New("cannot get stream reader")
)

// keepOutput is how long the unread output of a waited-for process is kept.
const keepOutput = 30 * time.Second

// Process is one process of a container: its init or one that was executed in it.
type Process struct {
	// ExecID is the key of the process in its container.
	ExecID string
	init   bool
	proc   *reap.Process

	tty            *os.File // both directions of a terminal, nil without one
	stdout, stderr *reader  // stderr is nil with a terminal

	inMu  sync.Mutex // held while writing; closing does not wait for it
	stdin *os.File   // nil with a terminal
	once  sync.Once

	// over is called when the record of the process may go.
	over func()
}

// stdio is a process's streams while it is being started.
type stdio struct {
	child   []*os.File // for the process
	console *consoleSocket
	tty     *os.File
	in      *os.File
	out     *os.File
	err     *os.File
}

// openStdio prepares pipes of the given size, or a console socket.
func openStdio(terminal bool, socket string, pipeSize int) (s *stdio, err error) {
	s = &stdio{}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if terminal {
		if s.console, err = listenConsole(socket); err != nil {
			return nil, err
		}
		for range 3 {
			null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
			if err != nil {
				return nil, fmt.Errorf("opening streams: %w", err)
			}
			s.child = append(s.child, null)
		}
		return s, nil
	}
	for fd := range 3 {
		rd, wr, err := os.Pipe()
		if err != nil {
			return nil, fmt.Errorf("opening streams: %w", err)
		}
		if pipeSize > 0 {
			if _, err := unix.FcntlInt(rd.Fd(), unix.F_SETPIPE_SZ, pipeSize); err != nil {
				return nil, fmt.Errorf("setting the pipe size to %d: %w", pipeSize, err)
			}
		}
		switch fd {
		case 0:
			s.child, s.in = append(s.child, rd), wr
		case 1:
			s.child, s.out = append(s.child, wr), rd
		case 2:
			s.child, s.err = append(s.child, wr), rd
		}
	}
	return s, nil
}

// own gives the child's ends to the user of the pod, so that a program that reopens /dev/stdout may.
func (s *stdio) own(uid, gid uint32) error {
	if s.console != nil {
		return nil
	}
	for _, f := range s.child {
		if err := f.Chown(int(uid), int(gid)); err != nil {
			return fmt.Errorf("giving the streams to user %d: %w", uid, err)
		}
	}
	return nil
}

// started drops what only the child needs.
func (s *stdio) started() {
	for _, f := range s.child {
		f.Close()
	}
	s.child = nil
	if s.console != nil {
		s.console.close()
		s.console = nil
	}
}

func (s *stdio) close() {
	s.started()
	for _, f := range []*os.File{s.tty, s.in, s.out, s.err} {
		if f != nil {
			f.Close()
		}
	}
}

// newProcess takes over the streams; over runs once when the process has ended, was waited for and has been read.
func newProcess(execID string, init bool, proc *reap.Process, s *stdio, over func()) *Process {
	drained, done := context.WithCancel(context.Background())
	p := &Process{ExecID: execID, init: init, proc: proc, tty: s.tty, stdin: s.in, over: over}
	if s.tty != nil {
		p.stdout = newReader(s.tty, drained)
	} else {
		p.stdout, p.stderr = newReader(s.out, drained), newReader(s.err, drained)
	}
	go func() {
		<-proc.Done()
		time.AfterFunc(drainTime, done)
	}()
	return p
}

// Pid is the process id in the guest.
func (p *Process) Pid() int { return p.proc.Pid() }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.proc.Done() }

// ExitCode is that of a process that has ended: 128 plus the signal for a signalled one.
func (p *Process) ExitCode() int { return p.proc.Status().ExitCode() }

// Wait returns the exit code, 128 plus the signal for a signalled process. Any number of callers may wait.
func (p *Process) Wait(ctx context.Context) (int, error) {
	status, err := p.proc.Wait(ctx)
	if err != nil {
		return 0, err
	}
	p.once.Do(func() { go p.linger() })
	return status.ExitCode(), nil
}

// linger keeps the output of an ended process until it is read or nobody came for it.
func (p *Process) linger() {
	timer := time.NewTimer(keepOutput)
	defer timer.Stop()
	for _, r := range []*reader{p.stdout, p.stderr} {
		if r == nil {
			continue
		}
		select {
		case <-r.eof:
		case <-timer.C:
			p.over()
			return
		}
	}
	p.over()
}

// ReadStdout reads output as soon as there is some; io.EOF is its end. With a terminal this is all output.
func (p *Process) ReadStdout(ctx context.Context, buf []byte) (int, error) {
	return p.stdout.read(ctx, buf)
}

// ReadStderr reads error output; a terminal has none of its own, so its output serves both.
func (p *Process) ReadStderr(ctx context.Context, buf []byte) (int, error) {
	if p.stderr == nil {
		return p.stdout.read(ctx, buf)
	}
	return p.stderr.read(ctx, buf)
}

// Write writes to the process's input.
func (p *Process) Write(ctx context.Context, data []byte) (int, error) {
	p.inMu.Lock()
	defer p.inMu.Unlock()
	f := p.stdin
	if p.tty != nil {
		f = p.tty
	}
	n, err := writeAll(ctx, f, data)
	if errors.Is(err, os.ErrClosed) || errors.Is(err, unix.EPIPE) {
		return n, ErrStdinClosed
	}
	return n, err
}

// CloseStdin ends the process's input. A terminal's input has no end of its own.
func (p *Process) CloseStdin() error {
	if p.stdin == nil {
		return nil
	}
	if err := p.stdin.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("closing standard input: %w", err)
	}
	return nil
}

// Resize changes the terminal's size.
func (p *Process) Resize(rows, columns uint32) error {
	if p.tty == nil {
		return ErrNoTTY
	}
	raw, err := p.tty.SyscallConn()
	if err != nil {
		return ErrNoTTY
	}
	const most = 1<<16 - 1
	size := &unix.Winsize{Row: uint16(min(rows, most)), Col: uint16(min(columns, most))}
	var ioctlErr error
	if err := raw.Control(func(fd uintptr) { ioctlErr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, size) }); err != nil {
		return ErrNoTTY
	}
	if ioctlErr != nil {
		return fmt.Errorf("resizing the terminal: %w", ioctlErr)
	}
	return nil
}

// Signal sends sig. A process that has ended is no error. The init of a container would ignore a SIGTERM it has not
// prepared for, because the kernel protects the first process of a pid namespace; it gets SIGKILL instead.
func (p *Process) Signal(sig syscall.Signal) error {
	if sig == syscall.SIGTERM && p.init && !handlesSignal(p.Pid(), sig) {
		sig = syscall.SIGKILL
	}
	if err := p.proc.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// close releases the streams.
func (p *Process) close() {
	_ = p.CloseStdin()
	for _, r := range []*reader{p.stdout, p.stderr} {
		if r != nil {
			r.f.Close()
		}
	}
}
