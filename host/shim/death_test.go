package shim

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	task "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/hashicorp/yamux"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/host/cgroup"
	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/test/fakeguest"
)

// reason is why the machines of these tests end.
const reason = "kernel panic: the test said so"

// dieAt ends the machine when the guest gets a request.
func (e *env) dieAt(request string) {
	start := e.cfg.StartVM
	e.cfg.StartVM = func(ctx context.Context, c vmm.Config) (vmm.Machine, error) {
		vm, err := start(ctx, c)
		if err != nil {
			return nil, err
		}
		m := vm.(*fakeguest.Machine)
		m.Reason = reason
		e.guest.Hook = func(ctx context.Context, name string) error {
			if name == request {
				m.Kill()
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}
		return m, nil
	}
	e.service.cfg.StartVM = e.cfg.StartVM
}

// TestDeathWhileCreating ends the VM at each request of a start: the error says why, with the end of the console, and a second try works.
func TestDeathWhileCreating(t *testing.T) {
	for _, request := range []string{"Check", "CreateSandboxRequest", "CreateContainerRequest"} {
		t.Run(request, func(t *testing.T) {
			e := newEnv(t)
			good := e.cfg.StartVM
			e.dieAt(request)
			wantCode(t, e.create("pod"), codes.Unknown, reason, "console line")
			if _, err := e.delete("pod", ""); err == nil {
				t.Error("a container that was never made was deleted")
			}
			e.wantEvents("")
			if e.service.Busy() {
				t.Error("the shim has something to serve")
			}
			e.guest.Hook, e.service.cfg.StartVM = nil, good
			e.must(e.create("pod"))
		})
	}
}

// TestDeath ends the VM under a pod: who waits gets 255, once, and everything can be deleted.
func TestDeath(t *testing.T) {
	e := newEnv(t)
	vm := e.pod()
	vm.Reason = reason
	e.run("c1", untilKilled)
	e.guest.Exec = untilKilled
	e.must(e.exec("c1", "e"), e.start("c1", "e"), e.create("c2"), e.exec("c1", "waits"))
	var waiters []func() uint32
	for _, x := range [][2]string{{"pod", ""}, {"c1", ""}, {"c1", "e"}, {"c2", ""}} {
		waiters = append(waiters, e.waiter(x[0], x[1]))
	}
	vm.Kill()
	for _, w := range waiters {
		if code := w(); code != 255 {
			t.Errorf("exit code %d, want 255", code)
		}
	}
	wantCode(t, e.start("c2", ""), codes.Unknown, reason, "console line")
	wantCode(t, e.kill("c1", "", syscall.SIGKILL), codes.NotFound)
	wantCode(t, e.start("c1", "waits"), codes.FailedPrecondition)
	for _, c := range []func() error{
		func() error { return e.create("c3") },
		func() error { _, err := e.service.Stats(testContext(t), &task.StatsRequest{ID: "c1"}); return err },
	} {
		wantCode(t, c(), codes.Unknown, reason)
	}
	d, err := e.delete("c1", "e")
	e.must(err)
	if d.GetExitStatus() != 255 {
		t.Errorf("deleted: %v", d)
	}
	for _, id := range []string{"c1", "c2", "pod"} {
		_, err := e.delete(id, "")
		e.must(err)
	}
	if n := e.count("exit c1/e 255"); n != 1 {
		t.Errorf("the end of the second process was told %d times", n)
	}
	e.forget("exit c1/e 255") // both processes of c1 end at the same time
	e.wantEvents("c1", "create c1", "start c1", "exec-added c1/e", "exec-started c1/e", "exec-added c1/waits", "exit c1/c1 255", "delete c1 255")
	e.wantEvents("c2", "create c2", "exit c2/c2 255", "delete c2 255")
	e.wantEvents("pod", "create pod", "start pod", "exit pod/pod 255", "delete pod 255")
}

// TestDeathDuring ends the VM while it is asked for something.
func TestDeathDuring(t *testing.T) {
	for request, do := range map[string]func(e *env) error{
		"StartContainerRequest":  func(e *env) error { return e.start("c2", "") },
		"ExecProcessRequest":     func(e *env) error { return e.start("c1", "e") },
		"CreateContainerRequest": func(e *env) error { return e.create("c3") },
		"PauseContainerRequest": func(e *env) error {
			_, err := e.service.Pause(testContext(e.t), &task.PauseRequest{ID: "c1"})
			return err
		},
		"StatsContainerRequest": func(e *env) error {
			_, err := e.service.Stats(testContext(e.t), &task.StatsRequest{ID: "c1"})
			return err
		},
	} {
		t.Run(request, func(t *testing.T) {
			e := newEnv(t)
			die := make(chan struct{})
			vm := make(chan *fakeguest.Machine, 1)
			e.guest.Hook = func(ctx context.Context, name string) error {
				select {
				case <-die:
					if name == request {
						(<-vm).Kill()
						<-ctx.Done()
						return ctx.Err()
					}
				default:
				}
				return nil
			}
			m := e.pod()
			m.Reason = reason
			vm <- m
			e.run("c1", untilKilled)
			e.must(e.exec("c1", "e"), e.create("c2"))
			close(die)
			wantCode(t, do(e), codes.Unknown, reason, "console line")
			for _, id := range []string{"pod", "c1", "c2"} {
				if code := e.waiter(id, "")(); code != 255 {
					t.Errorf("%s ended with %d", id, code)
				}
			}
			_, err := e.delete("c1", "e")
			e.must(err)
		})
	}
}

// TestSilence has guests that never answer, or late.
func TestSilence(t *testing.T) {
	e := newEnv(t)
	short := func(timeout string) { // one at a time: the others are to be kept on a busy machine, too
		for _, each := range []string{"boot", "request", "create_container"} {
			value := `"1m"`
			if each == timeout {
				value = `"1s"`
			}
			e.replace("timeouts."+each, value)
		}
	}
	var mu sync.Mutex
	silent := "Check"
	e.guest.Hook = func(ctx context.Context, name string) error {
		mu.Lock()
		hold := name == silent
		mu.Unlock()
		if hold {
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	}
	set := func(name string) {
		mu.Lock()
		defer mu.Unlock()
		silent = name
	}
	begin := time.Now()
	short("boot")
	wantCode(t, e.create("pod"), codes.Unknown, "did not answer within 1s", "console line")
	if d := time.Since(begin); d > 20*time.Second {
		t.Errorf("a silent guest was noticed after %s", d)
	}
	set("CreateSandboxRequest")
	short("request")
	wantCode(t, e.create("pod"), codes.DeadlineExceeded, "creating the sandbox in the guest")
	set("CreateContainerRequest")
	short("create_container")
	wantCode(t, e.create("pod"), codes.DeadlineExceeded, "creating container pod")
	set("")
	short("")
	e.replace("timeouts.request", `"4s"`) // of the exec that is not answered, and of all that is
	e.guest.Programs["pod"] = untilKilled
	e.must(e.create("pod"), e.start("pod", ""))
	e.run("c1", untilKilled)
	set("ExecProcessRequest")
	e.must(e.exec("c1", "e"))
	wantCode(t, e.start("c1", "e"), codes.DeadlineExceeded)
	if code := e.wait("c1", "e"); code != 255 {
		t.Errorf("exit code %d", code)
	}
	set("")
}

// TestServers are guests that speak no ttrpc, or too much of it.
func TestServers(t *testing.T) {
	frame := func(length uint32, kind byte, body []byte) []byte {
		b := binary.BigEndian.AppendUint32(nil, length)
		b = binary.BigEndian.AppendUint32(b, 1)
		return append(append(b, kind, 0), body...)
	}
	for name, serve := range map[string]func(net.Conn){
		"nothing": func(c net.Conn) { _, _ = io.Copy(io.Discard, c) },
		"closed":  func(c net.Conn) {},
		"random": func(c net.Conn) {
			_, _ = c.Write(bytes.Repeat([]byte{0xa5, 0x5a, 0xff}, 5000))
			_, _ = io.Copy(io.Discard, c)
		},
		"length": func(c net.Conn) {
			_, _ = c.Write(frame(0xffffffff, 2, make([]byte, 100)))
			_, _ = io.Copy(io.Discard, c)
		},
		"too short": func(c net.Conn) { _, _ = c.Write(frame(1000, 2, make([]byte, 10))); _, _ = io.Copy(io.Discard, c) },
		"flood": func(c net.Conn) {
			go func() { _, _ = io.Copy(io.Discard, c) }()
			for f := frame(1<<20, 2, make([]byte, 1<<20)); ; {
				if _, err := c.Write(f); err != nil {
					return
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t, `timeouts.boot = "1s"`)
			e.service.cfg.StartVM = func(context.Context, vmm.Config) (vmm.Machine, error) {
				return fakeguest.StartServer(func(conn net.Conn) {
					c := yamux.DefaultConfig()
					c.EnableKeepAlive, c.LogOutput = false, io.Discard
					session, err := yamux.Server(conn, c)
					if err != nil {
						return
					}
					for {
						s, err := session.Accept()
						if err != nil {
							return
						}
						go func() {
							if _, err := io.ReadFull(s, make([]byte, 4)); err == nil {
								serve(s)
							}
							s.Close()
						}()
					}
				})
			}
			begin := time.Now()
			if err := e.create("pod"); err == nil || !strings.Contains(err.Error(), "creating sandbox pod: ") {
				t.Errorf("error %v, want one about the sandbox", err)
			} else if len(err.Error()) > 2*maxErrorText {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
			if d := time.Since(begin); d > 20*time.Second {
				t.Errorf("it took %s", d)
			}
		})
	}
}

// TestFlood has a guest that says too much, everywhere.
func TestFlood(t *testing.T) {
	e := newEnv(t)
	oom := make(chan string)
	e.guest.OOM = oom
	quit := make(chan struct{})
	var flood sync.WaitGroup
	flood.Go(func() {
		for {
			select {
			case oom <- "unknown":
			case <-quit:
				return
			}
		}
	})
	e.guest.Log = strings.Repeat(`{"msg":"`+strings.Repeat("x", 50_000)+"\x1b[2J\"}\n", 50) + strings.Repeat("y", 1<<20)
	e.pod()
	e.run("c1", func(ctx context.Context, p *fakeguest.Process) int {
		chunk := bytes.Repeat([]byte("z"), 1<<16)
		for ctx.Err() == nil {
			if _, err := p.Stdout.Write(chunk); err != nil {
				break
			}
		}
		return 137
	})
	e.guest.SetDenied("ExecProcessRequest", strings.Repeat("ä\x1b[2J\x00", 200_000))
	e.must(e.exec("c1", "e"))
	err := e.start("c1", "e")
	wantCode(t, err, codes.PermissionDenied, "starting a process in container c1: ä")
	if text := err.Error(); len(text) > 2*maxErrorText || strings.ContainsAny(text, "\x1b\x00") {
		t.Errorf("the error has %d bytes: %.100q", len(text), text)
	}
	e.must(e.kill("c1", "", syscall.SIGKILL))
	if code := e.wait("c1", ""); code != 137 {
		t.Errorf("exit code %d", code)
	}
	_, err = e.delete("c1", "")
	e.must(err)
	e.run("c2", untilKilled)
	close(quit)
	flood.Wait()
	oom <- "c2"
	e.await("oom c2")
	e.wantEvents("unknown")
	// containerd asks the figures, too, why a container has ended.
	r, err := e.service.Stats(testContext(t), &task.StatsRequest{ID: "c2"})
	e.must(err)
	kills := uint64(0)
	if cgroup.Mode() != cgroup.ModeV2 {
		var m v1.Metrics
		e.must(proto.Unmarshal(r.Stats.Value, &m))
		kills = m.GetMemoryOomControl().GetOomKill()
	} else {
		var m v2.Metrics
		e.must(proto.Unmarshal(r.Stats.Value, &m))
		kills = m.GetMemoryEvents().GetOomKill()
	}
	if kills != 1 {
		t.Errorf("the figures count %d", kills)
	}
}

// TestDenials of requests that no pod needs do not fail it; those of others reach containerd with the policy's text.
func TestDenials(t *testing.T) {
	const text = "is blocked by policy: image got \"a\", expected \"b\""
	e := newEnv(t)
	for _, r := range []string{"GetOOMEventRequest", "StatsContainerRequest", "UpdateContainerRequest", "RemoveContainerRequest",
		"DestroySandboxRequest", "PauseContainerRequest", "OnlineCPUMemRequest"} {
		e.guest.SetDenied(r, r+" "+text)
	}
	e.pod()
	e.run("c1", untilKilled)
	ctx := testContext(t)
	_, err := e.service.Stats(ctx, &task.StatsRequest{ID: "c1"})
	wantCode(t, err, codes.PermissionDenied, "StatsContainerRequest "+text)
	_, err = e.service.Pause(ctx, &task.PauseRequest{ID: "c1"})
	wantCode(t, err, codes.PermissionDenied, "PauseContainerRequest "+text)
	e.guest.SetDenied("CreateContainerRequest", "CreateContainerRequest "+text)
	wantCode(t, e.create("c2"), codes.PermissionDenied, "creating container c2: CreateContainerRequest "+text)
	e.guest.SetDenied("CreateContainerRequest", "")
	e.must(e.create("c2"))
	e.guest.SetDenied("SignalProcessRequest", "SignalProcessRequest "+text)
	wantCode(t, e.kill("c1", "", syscall.SIGTERM), codes.PermissionDenied, text)
	e.guest.SetDenied("SignalProcessRequest", "")
	e.must(e.kill("c1", "", syscall.SIGKILL))
	e.wait("c1", "")
	_, err = e.delete("c1", "")
	e.must(err)
	e.wantEvents("c1", "create c1", "start c1", "exit c1/c1 137", "delete c1 137")
}

// TestCancel gives up the start of a pod in the middle, as the kubelet does: nothing is left, and the next try works.
func TestCancel(t *testing.T) {
	for _, request := range []string{"Check", "CreateSandboxRequest", "CreateContainerRequest"} {
		t.Run(request, func(t *testing.T) {
			e := newEnv(t)
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			var once sync.Once
			e.guest.Hook = func(c context.Context, name string) error {
				if name == request {
					once.Do(func() { cancel(); <-c.Done() })
					return c.Err()
				}
				return nil
			}
			_, err := e.service.Create(ctx, &task.CreateTaskRequest{ID: "pod", Bundle: e.bundle(specOf("sandbox"))})
			wantCode(t, err, codes.Canceled)
			e.wantEvents("")
			e.must(e.create("pod"))
		})
	}
}

// TestMany starts many processes at once, while others are refused, deleted and asked for.
func TestMany(t *testing.T) {
	e := newEnv(t)
	e.pod()
	e.run("c1", untilKilled)
	e.guest.Exec = exitWith(9)
	var all sync.WaitGroup
	errs := make(chan error, 1000)
	for i := range 60 {
		id := fmt.Sprintf("e%d", i)
		all.Go(func() {
			ctx := testContext(t)
			errs <- errors.Join(e.exec("c1", id), e.start("c1", id))
			if r, err := e.service.Wait(ctx, &task.WaitRequest{ID: "c1", ExecID: id}); err != nil || r.GetExitStatus() != 9 {
				errs <- fmt.Errorf("%s ended with %d, %w", id, r.GetExitStatus(), err)
			}
			_, err := e.delete("c1", id)
			errs <- err
		})
		all.Go(func() { // whatever comes of it
			ctx := testContext(t)
			_, _ = e.service.State(ctx, &task.StateRequest{ID: "c1", ExecID: id})
			_, _ = e.service.ResizePty(ctx, &task.ResizePtyRequest{ID: "c1", ExecID: id, Width: 1, Height: 1})
			_, _ = e.service.CloseIO(ctx, &task.CloseIORequest{ID: "c1", ExecID: id, Stdin: true})
			_, _ = e.service.Stats(ctx, &task.StatsRequest{ID: "c1"})
		})
	}
	all.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	counts := map[string]int{}
	for _, ev := range e.events {
		counts[strings.Fields(ev)[0]]++
	}
	if counts["exec-added"] != 60 || counts["exec-started"] != 60 || counts["exit"] != 60 {
		t.Errorf("events %v", counts)
	}
}

// TestRaces starts, kills and deletes the same at the same time, and makes a pod twice: one wins, and nothing is told twice.
func TestRaces(t *testing.T) {
	e := newEnv(t)
	e.pod()
	e.run("c1", untilKilled)
	e.guest.Exec = untilKilled
	for i := range 30 {
		id := fmt.Sprintf("e%d", i)
		e.must(e.exec("c1", id))
		ended := e.waiter("c1", id)
		var all sync.WaitGroup
		all.Go(func() { _ = e.start("c1", id) })
		for range 2 {
			all.Go(func() { _ = e.kill("c1", id, syscall.SIGKILL) })
		}
		all.Wait()
		_ = e.kill("c1", id, syscall.SIGKILL)
		if code := ended(); code != 137 {
			t.Errorf("exit code %d", code)
		}
	}
	e.must(e.kill("c1", "", syscall.SIGKILL))
	e.wait("c1", "")
	var all sync.WaitGroup
	won := make(chan bool, 10)
	for range 5 {
		all.Go(func() { _, err := e.delete("c1", ""); won <- err == nil })
		all.Go(func() { won <- e.create("c9") == nil })
	}
	all.Wait()
	close(won)
	n := 0
	for w := range won {
		if w {
			n++
		}
	}
	if n != 2 {
		t.Errorf("%d of ten won, want one deletion and one creation", n)
	}
	e.wantEvents("c9", "create c9")
}
