package vmm

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

// child is a process that cannot outlive this one.
type child struct {
	cmd    *exec.Cmd
	stderr *tail
	done   chan struct{} // closed when the process has been waited for
	err    error         // result of Wait; valid after done
}

// startChild starts a program with the given inherited files.
//
// The parent-death signal is tied to the thread that forked, not to the process. The goroutine that starts the child therefore keeps its
// thread until the child has ended.
func startChild(program string, args, env []string, files ...*os.File) (*child, error) {
	c := &child{stderr: newTail(16 << 10), done: make(chan struct{})}
	c.cmd = exec.Command(program, args...)
	c.cmd.Env = env
	c.cmd.Stdout = c.stderr
	c.cmd.Stderr = c.stderr
	c.cmd.ExtraFiles = files
	c.cmd.WaitDelay = 2 * time.Second // a grandchild that keeps stderr open does not hold us
	c.cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: syscall.SIGKILL,
		Setpgid:   true, // an interrupt typed at the terminal is for us alone
	}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := c.cmd.Start()
		started <- err
		if err == nil {
			c.err = c.cmd.Wait()
			close(c.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting %s: %w", program, err)
	}
	return c, nil
}

func (c *child) pid() int { return c.cmd.Process.Pid }

// kill ends the process and everything in its group, and waits for it.
func (c *child) kill() {
	select {
	case <-c.done:
		return
	default:
	}
	// The process is our unreaped child or still running, so that its number cannot have been given to another one.
	_ = unix.Kill(-c.pid(), unix.SIGKILL)
	_ = c.cmd.Process.Kill()
	<-c.done
}

// wait waits for the end of the process; when ctx ends first the process is killed.
func (c *child) wait(ctx context.Context) error {
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		c.kill()
		return ctx.Err()
	}
}

// childEnv is the whole environment of the children: what is in ours stays with us.
func childEnv(tmp string) []string {
	return []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin", "LANG=C.UTF-8", "HOME=" + tmp, "TMPDIR=" + tmp}
}
