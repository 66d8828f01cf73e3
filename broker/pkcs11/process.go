package pkcs11

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is a helper that cannot outlive the broker.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has been waited for
	err  error         // result of Wait; valid after done
}

// launch starts the helper and returns the broker's end of the link.
//
// What the module prints goes nowhere: it may hold secrets. The check command shows it to an operator.
func launch(program string, args, env []string) (*process, net.Conn, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making the link to %s: %w", helperName, err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "link"), os.NewFile(uintptr(fds[1]), "link")
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	if err := errors.Join(err, ours.Close()); err != nil {
		return nil, nil, fmt.Errorf("making the link to %s: %w", helperName, err)
	}
	p := &process{done: make(chan struct{}), cmd: exec.Command(program, args...)}
	p.cmd.Env = env
	p.cmd.Dir = "/"
	p.cmd.ExtraFiles = []*os.File{theirs} // file descriptor 3
	p.cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: syscall.SIGKILL,
		Setpgid:   true, // an interrupt typed at the terminal is for the broker alone
	}
	started := make(chan error, 1)
	go func() {
		// The parent-death signal is tied to the thread that forked: this goroutine keeps it until the helper has ended.
		runtime.LockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.err = p.cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, nil, errors.Join(fmt.Errorf("starting %s: %w", program, err), conn.Close())
	}
	return p, conn, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// end waits for the process, kills it after grace, and returns how it ended.
func (p *process) end(grace time.Duration) error {
	if grace > 0 {
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-p.done:
			return p.err
		case <-timer.C:
		}
	}
	select {
	case <-p.done:
	default:
		// The process has not been waited for, so its number cannot have been given to another one; nor can its group's.
		_ = unix.Kill(-p.pid(), unix.SIGKILL)
		_ = p.cmd.Process.Kill()
		<-p.done
	}
	return p.err
}
