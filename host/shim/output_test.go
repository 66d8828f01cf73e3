package shim

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	task "github.com/containerd/containerd/api/runtime/task/v3"

	"github.com/cloister/cloister/test/fakeguest"
)

// TestOutput loses nothing of what a process writes last, to files and to fifos, however often.
func TestOutput(t *testing.T) {
	e := newEnv(t)
	e.pod()
	e.run("c1", untilKilled)
	const size = 300_000
	e.guest.Exec = func(_ context.Context, p *fakeguest.Process) int {
		fmt.Fprint(p.Stdout, strings.Repeat("o", size))
		fmt.Fprint(p.Stderr, strings.Repeat("e", size))
		return 1
	}
	for i := range 10 {
		id := fmt.Sprintf("e%d", i)
		out, errs := filepath.Join(e.dir, id+".out"), filepath.Join(e.dir, id+".err")
		_, err := e.service.Exec(testContext(t), &task.ExecProcessRequest{
			ID: "c1", ExecID: id, Spec: processSpec(t), Stdout: "file://" + out, Stderr: "file://" + errs,
		})
		e.must(err, e.start("c1", id))
		if code := e.wait("c1", id); code != 1 {
			t.Errorf("exit code %d", code)
		}
		_, err = e.delete("c1", id) // which waits for the output
		e.must(err)
		for _, file := range []string{out, errs} {
			if st, err := os.Stat(file); err != nil || st.Size() != size {
				t.Errorf("%s: %v, %v", file, st, err)
			}
		}
	}
}

// TestNobodyReads kills a process whose output nobody takes: its end is told all the same, and others go on meanwhile.
func TestNobodyReads(t *testing.T) {
	e := newEnv(t)
	e.pod()
	flood := func(ctx context.Context, p *fakeguest.Process) int {
		for ctx.Err() == nil {
			if _, err := p.Stdout.Write(make([]byte, 1<<16)); err != nil {
				break
			}
		}
		return 137
	}
	e.guest.SetProgram("c1", flood)
	f := e.fifos(false)
	_, err := e.service.Create(testContext(t), &task.CreateTaskRequest{
		ID: "c1", Bundle: e.bundle(specOf("container")), Stdout: f.outPath, Stderr: f.errPath,
	})
	e.must(err, e.start("c1", ""))
	var all sync.WaitGroup
	for i := range 10 {
		all.Go(func() {
			id := fmt.Sprintf("c%d", i+10)
			e.guest.SetProgram(id, exitWith(i))
			if err := e.create(id); err != nil {
				t.Error(err)
				return
			}
			if err := e.start(id, ""); err != nil {
				t.Error(err)
			}
			if code := e.waiter(id, "")(); code != uint32(i) {
				t.Errorf("%s ended with %d", id, code)
			}
		})
	}
	all.Wait()
	e.must(e.kill("c1", "", syscall.SIGKILL))
	if code := e.wait("c1", ""); code != 137 {
		t.Errorf("exit code %d", code)
	}
	_, err = e.delete("c1", "")
	e.must(err)
	e.wantEvents("c1", "create c1", "start c1", "exit c1/c1 137", "delete c1 137")
}

// TestManyPods makes and removes pods one after the other: newEnv sees that memory, files and processes of each have gone.
func TestManyPods(t *testing.T) {
	e := newEnv(t)
	for i := range 50 {
		e.must(e.create("pod"), e.start("pod", ""))
		<-e.machine
		e.must(e.create("c1"), e.start("c1", ""))
		e.wait("c1", "")
		e.wait("pod", "")
		for _, id := range []string{"c1", "pod"} {
			if _, err := e.delete(id, ""); err != nil {
				t.Fatalf("pod %d: %v", i, err)
			}
		}
	}
	for _, ev := range []string{"exit c1/c1 0", "exit pod/pod 0", "delete pod 0"} {
		if n := e.count(ev); n != 50 {
			t.Errorf("%d events %q", n, ev)
		}
	}
}
