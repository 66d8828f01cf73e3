package stdio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cloister/cloister/host/process"
)

const (
	readyTime = 10 * time.Second
	// finishTime is how long a logging program may work on what it has, after the end of its input.
	finishTime = 12 * time.Second
)

// logger is a logging program: it has the outputs as descriptors 3 and 4, and closes 5 when it is ready.
type logger struct {
	cmd            *exec.Cmd
	said           *process.Tail
	stdout, stderr output
	ended          chan struct{}
	once           sync.Once
}

// isBinary says whether a place is a logging program. binary-v2 (containerd 2.4) writes a byte before it closes descriptor 5, so that a program
// that crashed is not taken for one that is ready.
func isBinary(where string) bool {
	return strings.HasPrefix(where, "binary://") || strings.HasPrefix(where, "binary-v2://")
}

// parseBinary takes program and arguments from binary:///PATH?KEY=VALUE&…: each key and each value is an argument, in the order written.
func parseBinary(where string) (program string, args []string, byteReady bool, err error) {
	u, err := url.Parse(where)
	if err != nil {
		return "", nil, false, fmt.Errorf("%q: %w", clip(where), err)
	}
	if !filepath.IsAbs(u.Path) || u.Host != "" {
		return "", nil, false, fmt.Errorf("%q: want binary:// and the absolute path of a program", clip(where))
	}
	for pair := range strings.SplitSeq(u.RawQuery, "&") {
		if pair == "" {
			continue
		}
		key, value, _ := strings.Cut(pair, "=")
		for _, s := range []string{key, value} {
			arg, err := url.QueryUnescape(s)
			if err != nil {
				return "", nil, false, fmt.Errorf("%q: %w", clip(where), err)
			}
			if strings.ContainsRune(arg, 0) {
				return "", nil, false, fmt.Errorf("%q: an argument has a zero byte", clip(where))
			}
			args = append(args, arg)
		}
	}
	return u.Path, args, u.Scheme == "binary-v2", nil
}

// startLogger starts the program and waits until it is ready. It outlives this process if need be: its input ends then, and it can finish.
func startLogger(ctx context.Context, c Config) (_ *logger, err error) {
	where := c.Stdout
	if !isBinary(where) {
		where = c.Stderr
	}
	program, args, byteReady, err := parseBinary(where)
	if err != nil {
		return nil, err
	}
	var opened []*os.File
	pipe := func() (r, w *os.File) {
		if err == nil {
			if r, w, err = os.Pipe(); err == nil {
				opened = append(opened, r, w)
			}
		}
		return r, w
	}
	outR, outW := pipe()
	errR, errW := pipe()
	readyR, readyW := pipe()
	defer func() {
		for _, f := range opened {
			f.Close()
		}
	}()
	if err != nil {
		return nil, err
	}
	l := &logger{said: process.NewTail(4 << 10), ended: make(chan struct{})}
	l.cmd = exec.Command(program, args...)
	l.cmd.Env = []string{"CONTAINER_ID=" + c.ContainerID, "CONTAINER_NAMESPACE=" + c.Namespace}
	l.cmd.ExtraFiles = []*os.File{outR, errR, readyW}
	l.cmd.Stderr = l.said
	l.cmd.WaitDelay = time.Second
	l.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := l.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = l.cmd.Wait() // its exit code is its own business
		close(l.ended)
	}()
	readyW.Close() // ours; the program's is left
	wait := c.ReadyTime
	if wait <= 0 {
		wait = readyTime
	}
	if err := waitReady(ctx, readyR, wait, byteReady); err != nil {
		_ = l.cmd.Process.Kill()
		<-l.ended
		return nil, fmt.Errorf("%s %w%s", program, err, l.lastWords())
	}
	enlarge(outW)
	l.stdout, l.stderr = &file{f: outW}, &file{f: errW}
	opened = []*os.File{outR, errR, readyR} // the writing ends are kept
	return l, nil
}

func (l *logger) lastWords() string {
	if lines := l.said.Lines(3); len(lines) > 0 {
		return ", and said: " + strings.Join(lines, "; ")
	}
	return ""
}

// waitReady waits for the end of file, or a byte, of descriptor 5.
func waitReady(ctx context.Context, r *os.File, limit time.Duration, byteReady bool) error {
	if err := r.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Now()) })
	defer stop()
	n, err := r.Read(make([]byte, 1))
	switch {
	case n == 1:
		return nil
	case errors.Is(err, io.EOF) && !byteReady:
		return nil
	case errors.Is(err, io.EOF):
		return errors.New("ended before it was ready")
	case ctx.Err() != nil:
		return fmt.Errorf("was not ready: %w", ctx.Err())
	}
	return fmt.Errorf("was not ready after %s: %w\nhint: a logging program closes descriptor 5 when it is ready", limit, err)
}

// release ends the input of the program and lets it finish: SIGTERM after a time, then SIGKILL.
func (l *logger) release() {
	l.once.Do(func() {
		go func() {
			for _, sig := range []os.Signal{syscall.SIGTERM, os.Kill} {
				timer := time.NewTimer(finishTime)
				select {
				case <-l.ended:
					timer.Stop()
					return
				case <-timer.C:
					_ = l.cmd.Process.Signal(sig)
				}
			}
		}()
	})
}
