package shim

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"syscall"
	"testing"

	task "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/cloister/cloister/test/fakeguest"
)

func (e *env) state(id, exec string) *task.StateResponse {
	e.t.Helper()
	r, err := e.service.State(testContext(e.t), &task.StateRequest{ID: id, ExecID: exec})
	e.must(err)
	return r
}

// TestLife is the whole life of a pod with two containers and a process beside one of them.
func TestLife(t *testing.T) {
	e := newEnv(t)
	ctx := testContext(t)
	e.pod()
	e.guest.SetProgram("c1", untilTerm)
	e.guest.Exec = func(_ context.Context, p *fakeguest.Process) int {
		in, _ := io.ReadAll(p.Stdin)
		fmt.Fprintf(p.Stdout, "got %s", in)
		fmt.Fprint(p.Stderr, "err")
		return 42
	}
	e.must(e.create("c1"))
	if st := e.state("c1", ""); st.GetStatus() != tasktypes.Status_CREATED || st.GetPid() == 0 || st.GetExitedAt() != nil {
		t.Errorf("after create: %v", st)
	}
	e.must(e.start("c1", ""))
	if st := e.state("c1", ""); st.GetStatus() != tasktypes.Status_RUNNING {
		t.Errorf("after start: %v", st)
	}
	f := e.fifos(false)
	_, err := e.service.Exec(ctx, &task.ExecProcessRequest{
		ID: "c1", ExecID: "e1", Spec: processSpec(t), Stdin: f.inPath, Stdout: f.outPath, Stderr: f.errPath,
	})
	e.must(err)
	if st := e.state("c1", "e1"); st.GetStatus() != tasktypes.Status_CREATED || st.GetExecID() != "e1" || st.GetStdin() != f.inPath {
		t.Errorf("a process that waits: %v", st)
	}
	e.must(e.start("c1", "e1"))
	_, err = io.WriteString(f.stdin, "input")
	e.must(err)
	f.stdin.Close()
	_, err = e.service.CloseIO(ctx, &task.CloseIORequest{ID: "c1", ExecID: "e1", Stdin: true})
	e.must(err)
	if got := readN(t, f.stdout, 9); got != "got input" {
		t.Errorf("output %q", got)
	}
	if got := readN(t, f.stderr, 3); got != "err" {
		t.Errorf("errors %q", got)
	}
	if code := e.wait("c1", "e1"); code != 42 {
		t.Errorf("exit code %d", code)
	}
	d, err := e.delete("c1", "e1")
	e.must(err)
	if d.GetExitStatus() != 42 || d.GetExitedAt() == nil {
		t.Errorf("deleted: %v", d)
	}
	_, err = e.service.Pause(ctx, &task.PauseRequest{ID: "c1"})
	e.must(err)
	if st := e.state("c1", ""); st.GetStatus() != tasktypes.Status_PAUSED {
		t.Errorf("paused: %v", st)
	}
	_, err = e.service.Pause(ctx, &task.PauseRequest{ID: "c1"})
	wantCode(t, err, codes.FailedPrecondition)
	_, err = e.service.Resume(ctx, &task.ResumeRequest{ID: "c1"})
	e.must(err)
	pids, err := e.service.Pids(ctx, &task.PidsRequest{ID: "c1"})
	e.must(err)
	if len(pids.GetProcesses()) != 1 || pids.GetProcesses()[0].GetPid() == 0 {
		t.Errorf("pids %v", pids)
	}
	stats, err := e.service.Stats(ctx, &task.StatsRequest{ID: "c1"})
	e.must(err)
	if len(stats.GetStats().GetValue()) == 0 {
		t.Error("no figures")
	}
	_, err = e.service.Stats(ctx, &task.StatsRequest{ID: "pod"})
	e.must(err)
	limits, err := json.Marshal(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: new(int64(64 << 20))}})
	e.must(err)
	_, err = e.service.Update(ctx, &task.UpdateTaskRequest{ID: "c1", Resources: &anypb.Any{Value: limits}})
	e.must(err)
	con, err := e.service.Connect(ctx, &task.ConnectRequest{ID: "c1"})
	e.must(err)
	if con.GetShimPid() == 0 || con.GetTaskPid() == 0 {
		t.Errorf("connect: %v", con)
	}
	_, err = e.delete("c1", "")
	wantCode(t, err, codes.FailedPrecondition, "runs")
	e.must(e.kill("c1", "", syscall.SIGTERM))
	if code := e.wait("c1", ""); code != 143 {
		t.Errorf("exit code %d", code)
	}
	wantCode(t, e.kill("c1", "", syscall.SIGKILL), codes.NotFound)
	d, err = e.delete("c1", "")
	e.must(err)
	if d.GetExitStatus() != 143 {
		t.Errorf("deleted: %v", d)
	}
	_, err = e.service.Shutdown(ctx, &task.ShutdownRequest{ID: "pod"})
	e.must(err)
	if len(e.exits) != 0 {
		t.Error("the shim ended while its pod ran")
	}
	e.must(e.kill("pod", "", syscall.SIGKILL))
	if code := e.wait("pod", ""); code != 137 {
		t.Errorf("exit code %d", code)
	}
	_, err = e.delete("pod", "")
	e.must(err)
	_, err = e.service.Shutdown(ctx, &task.ShutdownRequest{ID: "pod"})
	e.must(err)
	if len(e.exits) != 1 || e.service.Busy() {
		t.Errorf("%d exits, busy %v", len(e.exits), e.service.Busy())
	}
	e.wantEvents("", "create pod", "start pod", "create c1", "start c1", "exec-added c1/e1", "exec-started c1/e1", "exit c1/e1 42", "paused c1",
		"resumed c1", "exit c1/c1 143", "delete c1 143", "exit pod/pod 137", "delete pod 137")
}

// TestExitCodes passes on what can be an exit code, and makes of what cannot the code of a process that was lost.
func TestExitCodes(t *testing.T) {
	e := newEnv(t)
	e.pod()
	for code, want := range map[int]uint32{0: 0, 1: 1, 137: 137, 143: 143, 255: 255, 256: 255, -1: 255, 1 << 30: 255, -1 << 31: 255} {
		id := fmt.Sprintf("c%d", uint32(code))
		e.run(id, exitWith(code))
		if got := e.wait(id, ""); got != want {
			t.Errorf("a guest's code %d became %d, want %d", code, got, want)
		}
		d, err := e.delete(id, "")
		e.must(err)
		if d.GetExitStatus() != want {
			t.Errorf("a guest's code %d was deleted as %d, want %d", code, d.GetExitStatus(), want)
		}
		e.wantEvents(id, "create "+id, "start "+id, fmt.Sprintf("exit %s/%s %d", id, id, want), fmt.Sprintf("delete %s %d", id, want))
	}
}

// TestTerminal has a process with a terminal, whose size is set before and after its start.
func TestTerminal(t *testing.T) {
	e := newEnv(t)
	ctx := testContext(t)
	e.pod()
	e.run("c1", untilKilled)
	e.guest.Exec = func(ctx context.Context, p *fakeguest.Process) int {
		fmt.Fprint(p.Stdout, "$")
		select {
		case <-p.Signals:
			return 5
		case <-ctx.Done():
			return 137
		}
	}
	f := e.fifos(true)
	_, err := e.service.Exec(ctx, &task.ExecProcessRequest{
		ID: "c1", ExecID: "tty", Spec: processSpec(t), Terminal: true, Stdin: f.inPath, Stdout: f.outPath,
	})
	e.must(err)
	resize := func(id, exec string) error {
		_, err := e.service.ResizePty(ctx, &task.ResizePtyRequest{ID: id, ExecID: exec, Width: 80, Height: 25})
		return err
	}
	e.must(resize("c1", "tty"), e.start("c1", "tty"))
	if got := readN(t, f.stdout, 1); got != "$" {
		t.Errorf("output %q", got)
	}
	e.must(resize("c1", "tty"))
	if code := e.wait("c1", "tty"); code != 5 {
		t.Errorf("exit code %d", code)
	}
	wantCode(t, resize("c1", ""), codes.FailedPrecondition, "no terminal")
	if _, err := e.delete("c1", "tty"); err != nil {
		t.Error(err)
	}
}

// TestNames refuses what is there already, what is not there, and what is no name.
func TestNames(t *testing.T) {
	e := newEnv(t)
	e.pod()
	e.run("c1", untilKilled)
	wantCode(t, e.create("c1"), codes.AlreadyExists)
	wantCode(t, e.create("pod"), codes.AlreadyExists)
	_, err := e.service.Create(testContext(t), &task.CreateTaskRequest{ID: "pod2", Bundle: e.bundle(specOf("sandbox"))})
	wantCode(t, err, codes.Unknown, "serves no other")
	other := specOf("container")
	other.Annotations["io.kubernetes.cri.sandbox-id"] = "elsewhere"
	_, err = e.service.Create(testContext(t), &task.CreateTaskRequest{ID: "c2", Bundle: e.bundle(other)})
	wantCode(t, err, codes.Unknown, "elsewhere")
	for _, id := range []string{"", "a/b", "../../x", "..", ".", "a\x00b", "a b", "-x", string(bytes.Repeat([]byte("x"), 129)), "ä"} {
		wantCode(t, e.create(id), codes.InvalidArgument)
		wantCode(t, e.exec("c1", id), codes.InvalidArgument)
	}
	wantCode(t, e.exec("c1", "c1"), codes.InvalidArgument)
	e.guest.Exec = untilKilled
	e.must(e.exec("c1", "e"))
	wantCode(t, e.exec("c1", "e"), codes.AlreadyExists)
	e.must(e.start("c1", "e"))
	wantCode(t, e.start("c1", "e"), codes.FailedPrecondition)
	wantCode(t, e.start("c1", ""), codes.FailedPrecondition)
	wantCode(t, e.start("none", ""), codes.NotFound)
	wantCode(t, e.start("c1", "none"), codes.NotFound)
	wantCode(t, e.kill("none", "", 9), codes.NotFound)
	wantCode(t, e.kill("c1", "", 65), codes.InvalidArgument)
	_, err = e.delete("c1", "e")
	wantCode(t, err, codes.FailedPrecondition)
	e.must(e.kill("c1", "e", 9))
	if code := e.wait("c1", "e"); code != 137 {
		t.Errorf("exit code %d", code)
	}
	_, err = e.delete("c1", "e")
	e.must(err)
	e.must(e.exec("c1", "e")) // the name is free again
	_, err = e.service.Checkpoint(testContext(t), &task.CheckpointTaskRequest{ID: "c1"})
	wantCode(t, err, codes.Unimplemented)
}

// TestNeverStarted deletes and kills processes that only wait to be started: whoever waits for their end gets it.
func TestNeverStarted(t *testing.T) {
	e := newEnv(t)
	e.pod()
	e.run("c1", untilKilled)
	for _, id := range []string{"deleted", "killed"} {
		e.must(e.exec("c1", id))
	}
	deleted := e.waiter("c1", "deleted")
	_, err := e.delete("c1", "deleted")
	e.must(err)
	deleted()
	e.must(e.kill("c1", "killed", syscall.SIGTERM))
	if code := e.wait("c1", "killed"); code != 143 {
		t.Errorf("exit code %d", code)
	}
	wantCode(t, e.start("c1", "killed"), codes.FailedPrecondition)
	e.guest.SetProgram("c2", untilKilled)
	e.guest.SetProgram("c3", untilKilled)
	e.must(e.create("c2"), e.create("c3"), e.kill("c3", "", syscall.SIGKILL))
	if code := e.wait("c3", ""); code != 137 {
		t.Errorf("exit code %d", code)
	}
	wantCode(t, e.start("c3", ""), codes.FailedPrecondition)
	ended := e.waiter("c2", "")
	for _, id := range []string{"c2", "c3"} {
		d, err := e.delete(id, "")
		e.must(err)
		if d.GetExitStatus() != 137 {
			t.Errorf("%s was deleted with %d", id, d.GetExitStatus())
		}
		e.wantEvents(id, "create "+id, "exit "+id+"/"+id+" 137", "delete "+id+" 137")
	}
	if code := ended(); code != 137 {
		t.Errorf("the one that waited got %d", code)
	}
	e.must(e.exec("c1", "left"))
	left := e.waiter("c1", "left")
	e.must(e.kill("c1", "", syscall.SIGKILL))
	e.wait("c1", "")
	wantCode(t, e.start("c1", "left"), codes.FailedPrecondition, "does not run")
	_, err = e.delete("c1", "")
	e.must(err)
	left()
}

// TestSingle is a container with a VM of its own, as `ctr run` makes it.
func TestSingle(t *testing.T) {
	e := newEnv(t)
	spec := specOf("")
	delete(spec.Annotations, "io.kubernetes.cri.container-type")
	e.guest.Programs["pod"] = exitWith(3)
	_, err := e.service.Create(testContext(t), &task.CreateTaskRequest{ID: "pod", Bundle: e.bundle(spec)})
	e.must(err, e.start("pod", ""))
	if code := e.wait("pod", ""); code != 3 {
		t.Errorf("exit code %d", code)
	}
	d, err := e.delete("pod", "")
	e.must(err)
	if d.GetExitStatus() != 3 {
		t.Errorf("deleted: %v", d)
	}
	e.wantEvents("", "create pod", "start pod", "exit pod/pod 3", "delete pod 3")
	wantCode(t, e.create("later"), codes.Unknown, "does not run")
	if err := e.create("pod"); err != nil { // containerd may use the same shim again
		t.Error(err)
	}
}
