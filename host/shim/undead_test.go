package shim

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	task "github.com/containerd/containerd/api/runtime/task/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cloister/cloister/test/fakeguest"
)

// undead are programs that no signal ends, of a guest that says that it has sent it. They say when they run.
func undead(t *testing.T) (program fakeguest.Program, runs <-chan struct{}) {
	t.Helper()
	began, over := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(over) })
	return func(context.Context, *fakeguest.Process) int {
		close(began)
		<-over
		return 0
	}, began
}

// TestKillCounts ends the VM of a guest that does not end what was killed: a pod can always be stopped.
func TestKillCounts(t *testing.T) {
	for name, prepare := range map[string]func(*env){
		"a guest that lies":     func(*env) {},
		"a policy that forbids": func(e *env) { e.guest.SetDenied("SignalProcessRequest", "SignalProcessRequest is blocked by policy") },
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t)
			e.service.cfg.KillTime = 100 * time.Millisecond
			vm := e.pod()
			program, runs := undead(t)
			e.run("c1", program)
			<-runs
			prepare(e)
			_ = e.kill("c1", "", syscall.SIGTERM)
			if name == "a guest that lies" {
				e.must(e.kill("c1", "", syscall.SIGKILL))
			} else {
				wantCode(t, e.kill("c1", "", syscall.SIGKILL), codes.PermissionDenied)
			}
			for _, id := range []string{"c1", "pod"} {
				if code := e.wait(id, ""); code != lostCode {
					t.Errorf("%s has exit code %d", id, code)
				}
			}
			<-vm.Exited()
			e.mu.Lock()
			if log := e.logged.String(); !strings.Contains(log, "container c1 was killed") {
				t.Error("the log does not say why")
			}
			e.mu.Unlock()
			for _, id := range []string{"c1", "pod"} {
				_, err := e.delete(id, "")
				e.must(err)
			}
		})
	}
}

// TestKillIsEnough leaves the VM alone whose containers end when they are killed, and that of one that is asked to end by another signal.
func TestKillIsEnough(t *testing.T) {
	e := newEnv(t)
	e.service.cfg.KillTime = time.Hour // what still waits for it is seen below
	vm := e.pod()
	e.run("c1", untilKilled)
	program, runs := undead(t)
	e.run("c2", program)
	<-runs
	e.must(e.kill("c2", "", syscall.SIGTERM), e.kill("c1", "", syscall.SIGKILL))
	if code := e.wait("c1", ""); code != 137 {
		t.Errorf("exit code %d", code)
	}
	look, over := time.NewTicker(time.Millisecond), testContext(t)
	defer look.Stop()
	for stacks := make([]byte, 1<<20); bytes.Contains(stacks[:runtime.Stack(stacks, true)], []byte(").insist(")); {
		select {
		case <-look.C:
		case <-over.Done():
			t.Fatal("somebody waits to end the virtual machine")
		}
	}
	select {
	case <-vm.Exited():
		t.Error("the virtual machine was ended")
	default:
	}
}

// TestDeleteOfUndead deletes what was never started in a guest that neither ends it nor its output: no event of the guest is waited for.
func TestDeleteOfUndead(t *testing.T) {
	e := newEnv(t)
	e.pod()
	e.guest.SetProgram("c1", untilKilled)
	e.must(e.create("c1"))
	e.guest.SetDenied("SignalProcessRequest", "SignalProcessRequest is blocked by policy")
	e.guest.SetDenied("RemoveContainerRequest", "RemoveContainerRequest is blocked by policy")
	ctx, cancel := context.WithTimeout(t.Context(), 2*(discardTimeout+drainTimeout))
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := e.delete("c1", "")
		done <- err
	}()
	select {
	case err := <-done:
		e.must(err)
	case <-ctx.Done():
		t.Error("the deletion waits for the guest")
	}
}

// TestRemovalCounts ends the VM of a guest that keeps what is deleted, since containerd takes that for running until it is gone.
func TestRemovalCounts(t *testing.T) {
	e := newEnv(t)
	e.service.cfg.RemoveTime = 100 * time.Millisecond
	e.guest.Hook = func(_ context.Context, name string) error {
		if name == "RemoveContainerRequest" {
			return status.Error(codes.Internal, "not now")
		}
		return nil
	}
	vm := e.pod()
	e.run("c1", exitWith(3))
	e.wait("c1", "")
	_, err := e.delete("c1", "")
	wantCode(t, err, codes.Unknown, "not now")
	select {
	case <-vm.Exited():
		t.Fatal("the virtual machine was ended at once")
	default:
	}
	var d *task.DeleteResponse
	try, over := time.NewTicker(50*time.Millisecond), testContext(t)
	defer try.Stop()
	for ; ; <-try.C { // as containerd does
		if d, err = e.delete("c1", ""); err == nil || over.Err() != nil {
			break
		}
	}
	e.must(err)
	if d.GetExitStatus() != 3 {
		t.Errorf("deleted with %d", d.GetExitStatus())
	}
	<-vm.Exited()
	if code := e.wait("pod", ""); code != lostCode {
		t.Errorf("exit code %d of the pod", code)
	}
}

// TestStatsOfSilent: the figures of all containers of a node are asked one after the other. A guest that does not give its own costs the others
// little time, and not each time.
func TestStatsOfSilent(t *testing.T) {
	e := newEnv(t)
	e.service.cfg.StatsTime = 200 * time.Millisecond
	hold := make(chan struct{})
	e.guest.Block = map[string]chan struct{}{"StatsContainerRequest": hold}
	e.pod()
	e.run("c1", untilKilled)
	e.run("c2", untilKilled)
	ask := func(id string) (time.Duration, error) {
		from := time.Now()
		_, err := e.service.Stats(testContext(t), &task.StatsRequest{ID: id})
		return time.Since(from), err
	}
	if took, err := ask("c1"); status.Code(err) != codes.DeadlineExceeded || took > 20*time.Second {
		t.Errorf("the first time: %v after %s", err, took)
	}
	e.service.cfg.StatsTime = time.Minute // the pauses are that long, too, whatever the machine does meanwhile
	asked := len(e.guest.Calls())
	for _, id := range []string{"c1", "c2"} {
		if took, err := ask(id); status.Code(err) != codes.Unavailable {
			t.Errorf("%s after that: %v after %s", id, err, took)
		}
	}
	if calls := e.guest.Calls()[asked:]; slices.Contains(calls, "StatsContainerRequest") {
		t.Errorf("the silent guest was asked again: %q", calls)
	}
	e.service.cfg.StatsTime = 200 * time.Millisecond
	if _, err := ask("pod"); err != nil {
		t.Errorf("what the host knows: %v", err)
	}
	close(hold)
	try, over := time.NewTicker(50*time.Millisecond), testContext(t)
	defer try.Stop()
	for _, err := ask("c1"); err != nil; _, err = ask("c1") {
		select {
		case <-try.C:
		case <-over.Done():
			t.Fatal(err)
		}
	}
}

// TestKilledExec gives up a process beside the first that the guest does not end: it can be deleted, and the pod goes on. Without an end there
// is no room for more and more of them.
func TestKilledExec(t *testing.T) {
	e := newEnv(t)
	e.service.cfg.KillTime = 100 * time.Millisecond
	vm := e.pod()
	e.run("c1", untilKilled)
	program, runs := undead(t)
	e.guest.Exec = program
	e.must(e.exec("c1", "e"), e.start("c1", "e"))
	<-runs
	e.must(e.kill("c1", "e", syscall.SIGKILL))
	if code := e.wait("c1", "e"); code != lostCode {
		t.Errorf("exit code %d", code)
	}
	_, err := e.delete("c1", "e")
	e.must(err)
	for i := range maxExecs {
		e.must(e.exec("c1", fmt.Sprint("x", i)))
		e.forget(fmt.Sprint("exec-added c1/x", i)) // what fails shall be readable
	}
	wantCode(t, e.exec("c1", "one-more"), codes.ResourceExhausted, "512")
	_, err = e.delete("c1", "x0")
	e.must(err, e.exec("c1", "one-more"))
	select {
	case <-vm.Exited():
		t.Error("the virtual machine was ended")
	default:
	}
}
