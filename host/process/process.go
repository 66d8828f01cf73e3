// Package process starts helper programs that cannot outlive the program that started them, and keeps the end of what they print.
package process

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Child is a process that cannot outlive this one.
type Child struct {
	cmd    *exec.Cmd
	Output *Tail         // the end of what it printed
	done   chan struct{} // closed when the process has been waited for
	err    error         // result of Wait; valid after done
}

// Start starts a program with the given inherited files.
func Start(program string, args, env []string, files ...*os.File) (*Child, error) {
	return StartIn("", program, args, env, files...)
}

// StartIn starts a program in the network namespace at the path netns, for example /run/netns/NAME; empty is ours.
//
// The parent-death signal is tied to the thread that forked, not to the process. The goroutine that starts the child therefore keeps its
// thread until the child has ended. A thread that entered another namespace ends with its goroutine, so that nothing else runs there.
func StartIn(netns, program string, args, env []string, files ...*os.File) (*Child, error) {
	c := &Child{Output: NewTail(16 << 10), done: make(chan struct{})}
	c.cmd = exec.Command(program, args...)
	c.cmd.Env = env
	c.cmd.Stdout = c.Output
	c.cmd.Stderr = c.Output
	c.cmd.ExtraFiles = files
	c.cmd.WaitDelay = 2 * time.Second // a grandchild that keeps stderr open does not hold us
	c.cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: syscall.SIGKILL,
		Setpgid:   true, // an interrupt typed at the terminal is for us alone
	}
	started := make(chan error, 1)
	go c.run(netns, started)
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting %s: %w", program, err)
	}
	return c, nil
}

// run is the life of the child on a thread of its own.
func (c *Child) run(netns string, started chan<- error) {
	runtime.LockOSThread()
	if netns != "" {
		if unix.Gettid() == unix.Getpid() {
			// The first thread of a process cannot end, and /proc/self shows its namespace. While it is held here, another one
			// is taken.
			taken := make(chan struct{})
			go func() {
				runtime.LockOSThread()
				close(taken)
				c.run(netns, started)
			}()
			<-taken
			runtime.UnlockOSThread()
			return
		}
		if err := enter(netns); err != nil {
			started <- err
			return
		}
	}
	err := c.cmd.Start()
	started <- err
	if err == nil {
		c.err = c.cmd.Wait()
		close(c.done)
	}
}

func enter(netns string) error {
	f, err := os.Open(netns)
	if err != nil {
		return fmt.Errorf("entering its network namespace: %w", err)
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("entering the network namespace %s: %w", netns, err)
	}
	return nil
}

// PID is its process number.
func (c *Child) PID() int { return c.cmd.Process.Pid }

// Done is closed when the process has ended and has been waited for.
func (c *Child) Done() <-chan struct{} { return c.done }

// Err says how it ended: nil is exit status 0. It is valid once Done is closed.
func (c *Child) Err() error { return c.err }

// Kill ends the process and everything in its group, and waits for it.
func (c *Child) Kill() {
	select {
	case <-c.done:
		return
	default:
	}
	// The process is our unreaped child or still running, so that its number cannot have been given to another one.
	_ = unix.Kill(-c.PID(), unix.SIGKILL)
	_ = c.cmd.Process.Kill()
	<-c.done
}

// Wait waits for the end of the process; when ctx ends first the process is killed.
func (c *Child) Wait(ctx context.Context) error {
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		c.Kill()
		return ctx.Err()
	}
}

// Environment is the whole environment of the children: what is in ours stays with us.
func Environment(tmp string) []string {
	return []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin", "LANG=C.UTF-8", "HOME=" + tmp, "TMPDIR=" + tmp}
}
