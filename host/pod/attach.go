package pod

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"time"

	client "github.com/cloister/cloister/host/agent"

	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/internal/paths"
	"github.com/cloister/cloister/wire/agent"
	"github.com/cloister/cloister/wire/launch"
)

// Attach connects to the agent of a running pod through its supervisor.
func Attach(ctx context.Context, dirs paths.Dirs, name string) (*client.Client, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	conn, err := dialControl(ctx, dirs.Run, name, fmt.Sprintf("CONNECT %d", client.PortAgent))
	if err != nil {
		return nil, err
	}
	return client.New(conn, nil), nil
}

// Stop ends a pod and waits until nothing is left of it. A negative grace leaves the pod's own grace period.
func Stop(ctx context.Context, dirs paths.Dirs, name string, grace time.Duration) error {
	if err := checkName(name); err != nil {
		return err
	}
	seconds := int64((grace + time.Second - 1) / time.Second)
	if grace < 0 {
		seconds = -1
	}
	conn, err := dialControl(ctx, dirs.Run, name, fmt.Sprintf("STOP %d", seconds))
	if errors.Is(err, ErrNotFound) {
		if s, lerr := Lookup(dirs, name); lerr == nil && s.Done() {
			return fmt.Errorf("stopping: pod %s: %w", name, ErrEnded)
		}
	}
	if err != nil {
		return fmt.Errorf("stopping: %w", err)
	}
	defer conn.Close()
	if err := waitClosed(ctx, conn); err != nil {
		return fmt.Errorf("waiting for the end of pod %s: %w", name, err)
	}
	return nil
}

// TermSize is the size of a terminal.
type TermSize struct{ Rows, Columns uint16 }

// ExecOptions is a program to run in a container.
type ExecOptions struct {
	// Container may be empty: then it is the first that is not an init container.
	Container string
	Argv      []string
	TTY       bool
	// Sizes delivers the size of the terminal, first and after each change; it may be nil.
	Sizes <-chan TermSize
	// Stdin may be nil. A reader that blocks is left behind when the program has ended.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Exec runs a program in a container of a running pod and returns its exit code. The guest's policy decides whether it may; see
// IsDenied.
func Exec(ctx context.Context, dirs paths.Dirs, name string, o ExecOptions) (int, error) {
	if len(o.Argv) == 0 {
		return 0, errors.New("running a program in a container: no program was given")
	}
	s, err := Lookup(dirs, name)
	if err != nil {
		return 0, fmt.Errorf("running a program in a container: %w", err)
	}
	if s.Done() {
		return 0, fmt.Errorf("running a program in pod %s: the pod has ended", name)
	}
	c, err := s.pick(o.Container)
	if err != nil {
		return 0, fmt.Errorf("running a program in pod %s: %w", name, err)
	}
	if c.State != ContainerRunning {
		return 0, fmt.Errorf("running a program in container %s of pod %s: the container is %s, expected running", c.Name, name, c.State)
	}
	process, err := execProcess(filepath.Join(dirs.Run, name), c.Name, &o)
	if err != nil {
		return 0, err
	}
	a, err := Attach(ctx, dirs, name)
	if err != nil {
		return 0, err
	}
	defer a.Close()
	var id [16]byte
	if _, err := rand.Read(id[:]); err != nil {
		return 0, err
	}
	x := &execution{a: a, container: c.ID, exec: hex.EncodeToString(id[:]), opts: &o}
	doing := fmt.Sprintf("running %q in container %s of pod %s", strings.Join(o.Argv, " "), c.Name, name)
	return x.run(ctx, doing, process)
}

// execProcess is the container's own process with other arguments: same user, directory, environment and rights.
func execProcess(dir, container string, o *ExecOptions) (*agent.Process, error) {
	b, err := readLimited(filepath.Join(dir, planFile), 64<<20)
	if err != nil {
		return nil, fmt.Errorf("reading the plan of the pod: %w", err)
	}
	plan, err := launch.Parse(b)
	if err != nil {
		return nil, fmt.Errorf("reading the plan of the pod: %w", err)
	}
	for i := range plan.Containers {
		if plan.Containers[i].Name != container {
			continue
		}
		p := proto.CloneOf(plan.Containers[i].Create.GetOCI().GetProcess())
		if p == nil {
			p = &agent.Process{Cwd: "/"}
		}
		p.Args, p.Terminal, p.ConsoleSize = o.Argv, o.TTY, nil
		if o.TTY && !hasEnv(p.Env, "TERM") {
			p.Env = append(p.Env, "TERM=xterm")
		}
		return p, nil
	}
	return nil, fmt.Errorf("the plan of the pod has no container %q", container)
}

func hasEnv(env []string, name string) bool {
	for _, e := range env {
		if strings.HasPrefix(e, name+"=") {
			return true
		}
	}
	return false
}

type execution struct {
	a               *client.Client
	container, exec string
	opts            *ExecOptions
}

func (x *execution) run(ctx context.Context, doing string, process *agent.Process) (int, error) {
	err := x.a.Call(ctx, client.CallTimeout, doing, func(c context.Context) error {
		_, err := x.a.ExecProcess(c, &agent.ExecProcessRequest{ContainerId: x.container, ExecId: x.exec, Process: process})
		return err
	})
	if err != nil {
		return 0, err
	}
	rctx, stop := context.WithCancel(ctx)
	defer stop()
	var readers sync.WaitGroup
	readers.Go(func() { readStream(rctx, x.a.ReadStdout, x.container, x.exec, orDiscard(x.opts.Stdout)) })
	if !x.opts.TTY {
		readers.Go(func() { readStream(rctx, x.a.ReadStderr, x.container, x.exec, orDiscard(x.opts.Stderr)) })
	}
	if x.opts.Stdin != nil {
		go x.feed(rctx)
	}
	if x.opts.Sizes != nil {
		go x.resize(rctx)
	}
	var code int
	err = x.a.Call(ctx, 0, doing, func(c context.Context) error {
		r, err := x.a.WaitProcess(c, &agent.WaitProcessRequest{ContainerId: x.container, ExecId: x.exec})
		code = int(r.GetStatus())
		return err
	})
	if err != nil {
		if ctx.Err() != nil {
			x.kill(context.WithoutCancel(ctx))
		}
		stop()
		readers.Wait()
		return 0, err
	}
	drain := time.AfterFunc(drainTimeout, stop)
	defer drain.Stop()
	readers.Wait()
	return code, nil
}

// feed gives the pod's input to a container that has started, if it is the one that takes it. One that is started again gets no input: what
// the first run was given is gone.
func (s *supervisor) feed(ctx context.Context, c *managed) {
	if s.opts.Stdin == nil || s.opts.stdinTaker().Name != c.Name {
		return
	}
	s.stdin.Do(func() {
		x := &execution{a: s.agent, container: c.id(), exec: c.execID(), opts: &ExecOptions{Stdin: s.opts.Stdin}}
		go x.feed(ctx)
	})
}

// feed copies our input to the program and then closes it.
func (x *execution) feed(ctx context.Context) {
	buf := make([]byte, readSize)
	for {
		n, err := x.opts.Stdin.Read(buf)
		for off := 0; off < n; {
			r, werr := x.a.WriteStdin(ctx, &agent.WriteStreamRequest{ContainerId: x.container, ExecId: x.exec, Data: buf[off:n]})
			if werr != nil || r.GetLen() == 0 {
				return
			}
			off += int(r.GetLen())
		}
		if err != nil {
			break
		}
	}
	// Without an answer the program keeps waiting for input, which its user will notice; there is nothing else to do.
	_, _ = x.a.CloseStdin(ctx, &agent.CloseStdinRequest{ContainerId: x.container, ExecId: x.exec})
}

func (x *execution) resize(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case size, ok := <-x.opts.Sizes:
			if !ok {
				return
			}
			_, _ = x.a.TtyWinResize(ctx, &agent.TtyWinResizeRequest{
				ContainerId: x.container, ExecId: x.exec, Row: uint32(size.Rows), Column: uint32(size.Columns),
			})
		}
	}
}

// kill ends a program whose caller went away.
func (x *execution) kill(ctx context.Context) {
	kctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	_, _ = x.a.SignalProcess(kctx, &agent.SignalProcessRequest{ContainerId: x.container, ExecId: x.exec, Signal: sigKill})
}

func orDiscard(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}
