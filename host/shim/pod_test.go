package shim

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	api "github.com/containerd/containerd/api/runtime/sandbox/v1"
	task "github.com/containerd/containerd/api/runtime/task/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	criapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func podOptions(t *testing.T) *anypb.Any {
	t.Helper()
	b, err := proto.Marshal(&criapi.PodSandboxConfig{
		Metadata: &criapi.PodSandboxMetadata{Name: "web", Namespace: "default", Uid: "1"}, Hostname: "web",
		DnsConfig: &criapi.DNSConfig{Servers: []string{"192.0.2.1"}, Searches: []string{"example.com"}, Options: []string{"ndots:5"}},
		Linux: &criapi.LinuxPodSandboxConfig{
			CgroupParent: "/kubepods/pod1", Resources: &criapi.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 50000, MemoryLimitInBytes: 64 << 20},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return &anypb.Any{TypeUrl: "runtime.v1.PodSandboxConfig", Value: b}
}

// TestPodService is the life of a pod without a container of its own.
func TestPodService(t *testing.T) {
	e := newEnv(t)
	ctx := testContext(t)
	p := &Pod{service: e.service}
	_, err := p.StartSandbox(ctx, &api.StartSandboxRequest{SandboxID: "pod"})
	wantCode(t, err, codes.NotFound)
	_, err = p.CreateSandbox(ctx, &api.CreateSandboxRequest{SandboxID: "other"})
	wantCode(t, err, codes.InvalidArgument)
	_, err = p.CreateSandbox(ctx, &api.CreateSandboxRequest{
		SandboxID: "pod", Options: &anypb.Any{TypeUrl: "runtime.v1.PodSandboxConfig", Value: []byte{0xff, 0xff}},
	})
	wantCode(t, err, codes.InvalidArgument, "configuration")
	_, err = p.CreateSandbox(ctx, &api.CreateSandboxRequest{SandboxID: "pod", Options: podOptions(t)})
	e.must(err)
	_, err = p.CreateSandbox(ctx, &api.CreateSandboxRequest{SandboxID: "pod"})
	wantCode(t, err, codes.FailedPrecondition)
	status := func() *api.SandboxStatusResponse {
		r, err := p.SandboxStatus(ctx, &api.SandboxStatusRequest{SandboxID: "pod", Verbose: true})
		e.must(err)
		return r
	}
	if st := status(); st.GetState() != "SANDBOX_NOTREADY" || st.GetPid() != 0 {
		t.Errorf("before the start: %v", st)
	}
	started, err := p.StartSandbox(ctx, &api.StartSandboxRequest{SandboxID: "pod"})
	e.must(err)
	if started.GetPid() == 0 || started.GetCreatedAt() == nil {
		t.Errorf("started: %v", started)
	}
	_, err = p.StartSandbox(ctx, &api.StartSandboxRequest{SandboxID: "pod"})
	wantCode(t, err, codes.FailedPrecondition)
	if st := status(); st.GetState() != "SANDBOX_READY" || st.GetPid() == 0 || st.GetInfo()["monitor"] != "qemu" {
		t.Errorf("while it runs: %v", st)
	}
	if pl, err := p.Platform(ctx, &api.PlatformRequest{SandboxID: "pod"}); err != nil || pl.GetPlatform().GetOS() != "linux" {
		t.Errorf("platform %v, %v", pl, err)
	}
	if m, err := p.SandboxMetrics(ctx, &api.SandboxMetricsRequest{SandboxID: "pod"}); err != nil || m.GetMetrics().GetData() == nil {
		t.Errorf("metrics %v, %v", m, err)
	}
	_, err = p.PingSandbox(ctx, &api.PingRequest{SandboxID: "pod"})
	e.must(err)
	e.run("c1", untilKilled)
	if code := func() uint32 { e.must(e.kill("c1", "", 9)); return e.wait("c1", "") }(); code != 137 {
		t.Errorf("exit code %d", code)
	}
	_, err = e.delete("c1", "")
	e.must(err)
	e.run("c2", untilKilled)
	ended := make(chan *api.WaitSandboxResponse, 2)
	for range 2 {
		go func() {
			r, _ := p.WaitSandbox(ctx, &api.WaitSandboxRequest{SandboxID: "pod"})
			ended <- r
		}()
	}
	c2 := e.waiter("c2", "")
	var all sync.WaitGroup
	for range 3 { // twice and at the same time
		all.Go(func() {
			if _, err := p.StopSandbox(ctx, &api.StopSandboxRequest{SandboxID: "pod", TimeoutSecs: 30}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for range 2 {
		if r := <-ended; r.GetExitStatus() != 0 || r.GetExitedAt() == nil {
			t.Errorf("a pod that was stopped: %v", r)
		}
	}
	code := c2() // the guest may still say that it has killed it
	if code != 255 && code != 137 {
		t.Errorf("a container in a pod that was stopped ended with %d", code)
	}
	if st := status(); st.GetState() != "SANDBOX_NOTREADY" || st.GetExitedAt() == nil {
		t.Errorf("after its end: %v", st)
	}
	_, err = p.StartSandbox(ctx, &api.StartSandboxRequest{SandboxID: "pod"})
	wantCode(t, err, codes.FailedPrecondition)
	_, err = e.delete("c2", "")
	e.must(err)
	_, err = e.service.Shutdown(ctx, &task.ShutdownRequest{ID: "pod"})
	e.must(err)
	if len(e.exits) != 0 {
		t.Error("a container's shutdown ended the pod's shim")
	}
	for range 2 {
		_, err = p.ShutdownSandbox(ctx, &api.ShutdownSandboxRequest{SandboxID: "pod"})
		e.must(err)
	}
	if len(e.exits) == 0 {
		t.Error("the shim has not ended")
	}
	e.wantEvents("c2", "create c2", "start c2", fmt.Sprint("exit c2/c2 ", code), fmt.Sprint("delete c2 ", code))
}

// TestPodDeath ends the VM: the pod's exit is that of a lost process, also when it is asked for later.
func TestPodDeath(t *testing.T) {
	e := newEnv(t)
	ctx := testContext(t)
	p := &Pod{service: e.service}
	_, err := p.CreateSandbox(ctx, &api.CreateSandboxRequest{SandboxID: "pod", Options: podOptions(t)})
	e.must(err)
	_, err = p.StartSandbox(ctx, &api.StartSandboxRequest{SandboxID: "pod"})
	e.must(err)
	e.run("c1", untilKilled)
	(<-e.machine).Kill()
	for range 2 {
		r, err := p.WaitSandbox(ctx, &api.WaitSandboxRequest{SandboxID: "pod"})
		e.must(err)
		if r.GetExitStatus() != 255 {
			t.Errorf("exit %v", r)
		}
		_, err = p.StopSandbox(ctx, &api.StopSandboxRequest{SandboxID: "pod"})
		e.must(err)
	}
	if code := e.waiter("c1", "")(); code != 255 {
		t.Errorf("exit code %d", code)
	}
}

// TestPodStopsWhileItStarts ends a start that takes too long for somebody.
func TestPodStopsWhileItStarts(t *testing.T) {
	for _, how := range []string{"stop", "shutdown", "task"} {
		t.Run(how, func(t *testing.T) {
			e := newEnv(t)
			ctx := testContext(t)
			p := &Pod{service: e.service}
			asked := make(chan struct{})
			var once sync.Once
			e.guest.Hook = func(c context.Context, name string) error {
				if name == "Check" {
					once.Do(func() { close(asked) })
					<-c.Done()
					return c.Err()
				}
				return nil
			}
			_, err := p.CreateSandbox(ctx, &api.CreateSandboxRequest{SandboxID: "pod", Options: podOptions(t)})
			e.must(err)
			done := make(chan error, 1)
			go func() {
				_, err := p.StartSandbox(ctx, &api.StartSandboxRequest{SandboxID: "pod"})
				done <- err
			}()
			<-asked
			_, err = p.StartSandbox(ctx, &api.StartSandboxRequest{SandboxID: "pod"})
			wantCode(t, err, codes.FailedPrecondition)
			switch how {
			case "stop":
				_, err = p.StopSandbox(ctx, &api.StopSandboxRequest{SandboxID: "pod"})
			case "shutdown":
				_, err = p.ShutdownSandbox(ctx, &api.ShutdownSandboxRequest{SandboxID: "pod"})
			case "task":
				_, err = e.service.Shutdown(ctx, &task.ShutdownRequest{ID: "pod", Now: true})
			}
			e.must(err)
			if err := <-done; err == nil || !strings.Contains(err.Error(), "creating sandbox pod") {
				t.Errorf("the start ended with %v", err)
			}
			r, err := p.WaitSandbox(ctx, &api.WaitSandboxRequest{SandboxID: "pod"})
			e.must(err)
			if r.GetExitStatus() != 0 {
				t.Errorf("exit %v", r)
			}
		})
	}
}

// TestTwoPods makes the pod by two requests at once: one wins, and its VM is the only one.
func TestTwoPods(t *testing.T) {
	e := newEnv(t)
	e.guest.Programs["pod"] = untilKilled
	var all sync.WaitGroup
	won := make(chan error, 4)
	for _, id := range []string{"pod", "a", "b", "d"} {
		bundle := e.bundle(specOf("sandbox"))
		all.Go(func() {
			_, err := e.service.Create(testContext(t), &task.CreateTaskRequest{ID: id, Bundle: bundle})
			won <- err
		})
	}
	all.Wait()
	close(won)
	n := 0
	for err := range won {
		if err == nil {
			n++
		}
	}
	if n != 1 || len(e.machine) != 1 {
		t.Errorf("%d of four won, %d machines", n, len(e.machine))
	}
}
