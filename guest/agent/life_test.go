package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/cloister/cloister/guest/container"
	"github.com/cloister/cloister/guest/gate"
	"github.com/cloister/cloister/guest/reap"
	"github.com/cloister/cloister/internal/needs"
	"github.com/cloister/cloister/wire/agent"
)

// fakeRunc stands for the container runtime: a container is a shell that ends with the code in the file "code" once it was started.
const fakeRunc = `#!/bin/sh
state=$2; shift 6; verb=$1
for last; do [ "$before" = --pid-file ] && pidfile=$last; before=$last; done
mkdir -p "$state"; fifo=$state/$last
case $verb in
create) mkfifo "$fifo"; sh -c 'read go <"$0"; exit $(cat "$1/code")' "$fifo" "$state" & echo $! >"$pidfile" ;;
start) [ -e "$state/broken" ] && exit 1; echo go >"$fifo" ;;
delete) rm -f "$fifo" ;;
esac
`

// lifePolicy follows containers as the generated ones do.
const lifePolicy = `package agent_policy
import rego.v1
UndoFailedRequests := true
default CreateContainerRequest := true
default RemoveContainerRequest := true
default SignalProcessRequest := true
default WaitProcessRequest := true
StartContainerRequest := {"allowed": true, "ops": [{"op": "add", "path": concat("", ["/pstate/started:", input.container_id]), "value": true}]}
ContainerExited := {"allowed": true, "ops": [
	{"op": "remove", "path": concat("", ["/pstate/started:", input.container_id])},
	{"op": "add", "path": concat("", ["/pstate/ended:", input.container_id]), "value": input.status},
]} if data.pstate[concat("", ["started:", input.container_id])]
`

// lives is an agent with a sandbox and a runtime that needs no kernel features.
func lives(t *testing.T) (a *Agent, e *gate.Engine, client agent.AgentServiceService, state string) {
	t.Helper()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		needs.Missing(t, "the right to become a subreaper: %v", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	reaper := reap.New(discard())
	var served sync.WaitGroup
	served.Go(func() { _ = reaper.Serve(ctx) })
	t.Cleanup(func() { stop(); served.Wait() })
	e, err := gate.New(lifePolicy, gate.Options{})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	runc := filepath.Join(dir, "runc")
	state = filepath.Join(dir, "state", "runc")
	if err := errors.Join(os.WriteFile(runc, []byte(fakeRunc), 0o700), os.MkdirAll(state, 0o700)); err != nil {
		t.Fatal(err)
	}
	layout := DefaultLayout()
	layout.Root = filepath.Join(dir, "root")
	a = New(Config{Gate: e, Log: discard(), Layout: layout,
		Runtime: container.NewRuntime(container.Config{Runc: runc, StateDir: filepath.Dir(state), CgroupRoot: dir}, reaper, discard())})
	a.sandbox = &sandbox{ready: true, join: map[string]string{}}
	return a, e, agent.NewAgentServiceClient(serve(t, e, a)), state
}

// makeContainer makes a container that will end with a code.
func makeContainer(t *testing.T, a *Agent, client agent.AgentServiceService, state, id, code string) *entry {
	t.Helper()
	err := errors.Join(os.MkdirAll(filepath.Join(a.cfg.Layout.Root, id, "rootfs"), 0o700), os.WriteFile(filepath.Join(state, "code"), []byte(code), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	oci := &agent.Spec{Version: "1.1.0", Process: &agent.Process{Args: []string{"/x"}, Cwd: "/", User: &agent.User{UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}},
		Root: &agent.Root{Path: filepath.Join(a.cfg.Layout.Root, id, "rootfs")}, Linux: &agent.Linux{}}
	if _, err := client.CreateContainer(t.Context(), &agent.CreateContainerRequest{ContainerId: id, OCI: oci}); err != nil {
		t.Fatal(err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.containers[id]
}

func ended(t *testing.T, e *entry, within time.Duration) {
	t.Helper()
	select {
	case <-e.noted:
	case <-time.After(within):
		t.Fatal("the end was not noted")
	}
}

func expectState(t *testing.T, e *gate.Engine, want map[string]string) {
	t.Helper()
	state, err := e.State(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for key, value := range want {
		if got := fmt.Sprint(state[key]); got != value {
			t.Errorf("%s is %s, expected %s (%v)", key, got, value, state)
		}
	}
}

// TestPolicyKnowsOfEnds has a host that never asks how its containers end.
func TestPolicyKnowsOfEnds(t *testing.T) {
	a, e, client, state := lives(t)
	for id, code := range map[string]string{"good": "0", "bad": "3"} {
		c := makeContainer(t, a, client, state, id, code)
		if _, err := client.StartContainer(t.Context(), &agent.StartContainerRequest{ContainerId: id}); err != nil {
			t.Fatal(err)
		}
		ended(t, c, time.Minute)
		expectState(t, e, map[string]string{"started:" + id: "<nil>", "ended:" + id: code})
		r, err := client.WaitProcess(t.Context(), &agent.WaitProcessRequest{ContainerId: id})
		if err != nil || r.GetStatus() != int32(code[0]-'0') {
			t.Errorf("waiting for %s: %v, %v", id, r, err)
		}
	}
	// One that is killed before it was started has not ended for the policy.
	c := makeContainer(t, a, client, state, "killed", "0")
	if _, err := client.SignalProcess(t.Context(), &agent.SignalProcessRequest{ContainerId: "killed", Signal: 9}); err != nil {
		t.Fatal(err)
	}
	ended(t, c, time.Minute)
	expectState(t, e, map[string]string{"ended:killed": "<nil>"})
}

// TestFailedStartEnds has a runtime that reports an error although the program may run: it is ended, so that "failed" is the truth.
func TestFailedStartEnds(t *testing.T) {
	a, e, client, state := lives(t)
	c := makeContainer(t, a, client, state, "c1", "0")
	if err := os.WriteFile(filepath.Join(state, "broken"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := client.StartContainer(t.Context(), &agent.StartContainerRequest{ContainerId: "c1"}); err == nil {
		t.Fatal("a start that failed was reported as done")
	}
	ended(t, c, time.Minute)
	expectState(t, e, map[string]string{"started:c1": "<nil>"})
	if _, err := client.StartContainer(t.Context(), &agent.StartContainerRequest{ContainerId: "c1"}); err == nil || !strings.Contains(err.Error(), "cannot become running") {
		t.Errorf("a second start: %v", err)
	}
}

// slow is an agent whose starts take their time.
type slow struct {
	agent.AgentServiceService
	entered, leave chan struct{}
	fail           error
}

func (s *slow) StartContainer(context.Context, *agent.StartContainerRequest) (*emptypb.Empty, error) {
	close(s.entered)
	<-s.leave
	return &emptypb.Empty{}, s.fail
}

func (s *slow) CreateContainer(context.Context, *agent.CreateContainerRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}

// TestCreateWaitsForStart makes a container that needs another to run while that one's start is under way, and fails.
func TestCreateWaitsForStart(t *testing.T) {
	policy := `package agent_policy
import rego.v1
UndoFailedRequests := true
default CreateContainerRequest := false
StartContainerRequest := {"allowed": true, "ops": [{"op": "add", "path": "/pstate/started", "value": true}]}
CreateContainerRequest if data.pstate.started
`
	for name, tc := range map[string]struct {
		fail    error
		allowed bool
	}{"fails": {errors.New("no such program"), false}, "works": {nil, true}} {
		t.Run(name, func(t *testing.T) {
			g, err := gate.New(policy, gate.Options{})
			if err != nil {
				t.Fatal(err)
			}
			svc := &slow{entered: make(chan struct{}), leave: make(chan struct{}), fail: tc.fail}
			client := agent.NewAgentServiceClient(serve(t, g, svc))
			var calls sync.WaitGroup
			calls.Go(func() { _, _ = client.StartContainer(t.Context(), &agent.StartContainerRequest{ContainerId: "first"}) })
			<-svc.entered
			created := make(chan error, 1)
			go func() {
				_, err := client.CreateContainer(t.Context(), &agent.CreateContainerRequest{ContainerId: "second"})
				created <- err
			}()
			select {
			case err := <-created:
				t.Errorf("the create was decided during the start: %v", err)
				created <- err
			case <-time.After(100 * time.Millisecond): // as long as an answer would take; the outcome below does not depend on it
			}
			close(svc.leave)
			calls.Wait()
			if err := <-created; (err == nil) != tc.allowed {
				t.Errorf("the create: %v", err)
			}
		})
	}
}

// TestSandboxMustBeReady has a host that makes containers while the sandbox is being made.
func TestSandboxMustBeReady(t *testing.T) {
	a := New(Config{Gate: &recordingGate{allow: true}, Log: discard()})
	a.sandbox = &sandbox{}
	if _, err := a.reserve("c1"); err == nil {
		t.Error("a container is made in a sandbox that is not ready")
	}
	a.sandbox.ready = true
	if _, err := a.reserve("c1"); err != nil {
		t.Error(err)
	}
}

// TestLastWordsAreTheContainersOwn has a host that lets the place of a termination message lead to another file.
func TestLastWordsAreTheContainersOwn(t *testing.T) {
	a, base := copier(t)
	for _, r := range []*agent.CopyFileRequest{request(base+"/own", unix.S_IFREG|0o644, "bye"), request(base+"/other/secret", unix.S_IFREG|0o644, "secret")} {
		if _, err := a.CopyFile(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{"link": "other/secret", "dir": "other"} {
		if _, err := a.CopyFile(t.Context(), request(base+"/"+name, unix.S_IFLNK|0o777, target)); err != nil {
			t.Fatal(err)
		}
	}
	for source, want := range map[string]string{"/own": "bye", "/link": "", "/dir/secret": ""} {
		a.containers["c1"] = &entry{c: &container.Container{}, oci: &agent.Spec{
			Annotations: map[string]string{"io.kubernetes.container.terminationMessagePath": "/dev/end"},
			Mounts:      []*agent.Mount{{Destination: "/dev/end", Source: base + source, Type: "bind"}},
		}}
		r, err := a.GetDiagnosticData(t.Context(), &agent.GetDiagnosticDataRequest{ContainerId: "c1", LogType: "termination_log"})
		if r.GetData() != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v", source, r.GetData(), err)
		}
	}
}

// TestStoragesAreReleasedOnce removes a container while it is being removed: what it shares with others stays theirs.
func TestStoragesAreReleasedOnce(t *testing.T) {
	a, _ := copier(t)
	ready := make(chan struct{})
	close(ready)
	a.storages["/shared"] = &storage{refs: 2, ready: ready, undo: func() error { t.Error("a storage in use was released"); return nil }}
	a.storages["/own"] = &storage{refs: 1, ready: ready, undo: func() error { return a.dropContainer("c1") }}
	a.containers["c1"] = &entry{storages: []string{"/own", "/shared"}}
	if err := a.dropContainer("c1"); err != nil {
		t.Fatal(err)
	}
	if st := a.storages["/shared"]; st == nil || st.refs != 1 {
		t.Errorf("the storage of another container: %+v", st)
	}
}
