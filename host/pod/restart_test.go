package pod

import (
	"bytes"
	"context"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/test/fakeguest"
	"github.com/cloister/cloister/wire/agent"
	"github.com/cloister/cloister/wire/launch"
)

// testClock is a clock that moves only when somebody sleeps.
type testClock struct {
	mu     sync.Mutex
	now    time.Time
	sleeps []time.Duration
}

func (c *testClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *testClock) Sleep(ctx context.Context, d time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
	c.sleeps = append(c.sleeps, d)
	return ctx.Err()
}

// pass lets time go by.
func (c *testClock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func TestRestartOnFailure(t *testing.T) {
	clock := &testClock{}
	e := newEnv(t, container("setup", true, "Always"), container("app", false, "OnFailure"))
	e.opts.Clock = clock
	failures := map[string]int{"setup": 1, "app": 8}
	program := func(name string) fakeguest.Program {
		return func(_ context.Context, p *fakeguest.Process) int {
			left := failures[name]
			failures[name]--
			fmt.Fprintln(p.Stdout, name, left)
			if name == "app" && left == 1 {
				clock.pass(goodRun)
			}
			return min(left, 1)
		}
	}
	e.guest.Programs["id-setup"], e.guest.Programs["id-app"] = program("setup"), program("app")
	res, err := Run(t.Context(), e.opts)
	if err != nil || res.ExitCode != 0 {
		t.Fatalf("%+v, %v", res, err)
	}
	for i, want := range []struct {
		id       string
		restarts int
	}{{"id-setup-r1", 1}, {"id-app-r8", 8}} {
		if c := res.State.Containers[i]; c.ID != want.id || c.Restarts != want.restarts || *c.ExitCode != 0 {
			t.Errorf("got %+v, expected %+v", c, want)
		}
	}
	s := time.Second
	want := []time.Duration{10 * s, 10 * s, 20 * s, 40 * s, 80 * s, 160 * s, 300 * s, 300 * s, 10 * s}
	if !reflect.DeepEqual(clock.sleeps, want) {
		t.Errorf("pauses were %v, expected %v", clock.sleeps, want)
	}
	var log bytes.Buffer
	if err := Logs(t.Context(), e.dirs, "web", LogOptions{Container: "app", Stdout: &log}); err != nil {
		t.Fatal(err)
	}
	if log.String() != "app 8\napp 7\napp 6\napp 5\napp 4\napp 3\napp 2\napp 1\napp 0\n" {
		t.Errorf("the logs of all runs are %q", log.String())
	}
}

func TestStopBetweenRestarts(t *testing.T) {
	e := newEnv(t, container("app", false, "Always"))
	e.guest.Programs["id-app"] = say("x", 4)
	done := make(chan error, 1)
	var res Result
	go func() {
		var err error
		res, err = Run(context.Background(), e.opts)
		done <- err
	}()
	e.waitStep(t, "exit(app)")
	if err := Stop(t.Context(), e.dirs, "web", -1); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil || res.ExitCode != 4 {
		t.Errorf("exit code %d, %v", res.ExitCode, err)
	}
	e.gone(t)
}

func TestRenew(t *testing.T) {
	id := strings.Repeat("ab", 32)
	create := &agent.CreateContainerRequest{
		ContainerId: id, ExecId: id,
		OCI: &agent.Spec{
			Root: &agent.Root{Path: "/run/" + id + "/rootfs"}, Linux: &agent.Linux{CgroupsPath: "/x/" + id},
			Mounts: []*agent.Mount{{Source: "/shared/" + id + "-hosts"}}, Annotations: map[string]string{"id": id},
		},
		Storages: []*agent.Storage{{MountPoint: "/run/" + id + "/rootfs"}, {MountPoint: "/run/sandbox/e"}},
	}
	before := proto.CloneOf(create)
	m := manage(&launch.Container{Create: create})
	m.renew()
	m.renew()
	next := id + "-r2"
	want := proto.CloneOf(create)
	want.ContainerId, want.ExecId = next, next
	want.OCI.Root.Path, want.OCI.Linux.CgroupsPath = "/run/"+next+"/rootfs", "/x/"+next
	want.Storages[0].MountPoint = "/run/" + next + "/rootfs"
	if !proto.Equal(m.request(), want) {
		t.Errorf("got %v, expected %v", m.request(), want)
	}
	if !proto.Equal(create, before) {
		t.Error("the plan was changed")
	}
}
