package cri

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// life is a pod from its start to its end, with containers that end in every way.
func life(t *testing.T, w *world) {
	p := w.NewPod(t, w.handler, "life").Run()
	s := p.Status()
	if s.State != runtime.PodSandboxState_SANDBOX_READY || s.Metadata.Name != "life" || s.Labels["app"] != "life" {
		t.Errorf("the status of the pod is %v", s)
	}
	k := p.Create(t, Shell("main", Sleeper))
	if got := k.Status().State; got != runtime.ContainerState_CONTAINER_CREATED {
		t.Errorf("a container that is not started is %s", got)
	}
	k.Start()
	if got := k.Status(); got.State != runtime.ContainerState_CONTAINER_RUNNING || got.StartedAt < got.CreatedAt || got.StartedAt == 0 {
		t.Errorf("a container that runs is %v", got)
	}
	exitCodes(t, p)
	grace(t, p)
	again(t, p)
	unknown(t, p)

	list, err := w.ListContainers(call(t), &runtime.ListContainersRequest{Filter: &runtime.ContainerFilter{PodSandboxId: p.ID,
		State: &runtime.ContainerStateValue{State: runtime.ContainerState_CONTAINER_RUNNING}}})
	if err != nil || len(list.Containers) != 1 || list.Containers[0].Id != k.ID {
		t.Errorf("of the pod there runs %v, %v; expected only main", list.GetContainers(), err)
	}
	p.Stop()
	if got := p.Status().State; got != runtime.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("a stopped pod is %s", got)
	}
	k.ExpectExit(137) // StopPodSandbox kills what still runs
	p.Stop()          // CRI wants it to be idempotent
	p.Remove()
	if _, err := w.PodSandboxStatus(call(t), &runtime.PodSandboxStatusRequest{PodSandboxId: p.ID}); status.Code(err) != codes.NotFound {
		t.Errorf("a removed pod: %v", err)
	}
}

// exitCodes are reported as they are.
func exitCodes(t *testing.T, p *Pod) {
	for name, want := range map[string]struct {
		script string
		code   int32
		reason string
	}{
		"zero":    {"exit 0", 0, "Completed"},
		"one":     {"exit 1", 1, "Error"},
		"odd":     {"exit 42", 42, "Error"},
		"high":    {"exit 255", 255, "Error"},
		"killed":  {"kill -KILL $$", 137, "Error"},
		"aborted": {"kill -ABRT $$", 134, "Error"},
	} {
		k := p.RunContainer(t, Shell("exit-"+name, "sh -c '"+want.script+"'; exit $?"))
		s := k.ExpectExit(want.code)
		if s.Reason != want.reason || s.FinishedAt < s.CreatedAt || s.StartedAt == 0 {
			t.Errorf("exit-%s: reason %q, started %d, finished %d", name, s.Reason, s.StartedAt, s.FinishedAt)
		}
		k.Remove()
	}
	k := p.Create(t, Shell("never-started", ""))
	k.Remove()
	config := Program("missing")
	config.Command = []string{"/no/such/program"}
	k = p.Create(t, config)
	err := k.TryStart()
	if err == nil || !strings.Contains(err.Error(), "no such file or directory") {
		t.Errorf("starting a program that is not there: %v", err)
	}
	k.ExpectExit(128)
	k.Remove()
}

// grace is the time between SIGTERM and SIGKILL.
func grace(t *testing.T, p *Pod) {
	polite := p.RunContainer(t, Shell("polite", `trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 1000 & wait; done`))
	polite.Says("ready")
	polite.Stop(60)
	polite.ExpectExit(3)
	polite.Says("bye")
	stubborn := p.RunContainer(t, Program("stubborn", "stubborn"))
	stubborn.Says("ready")
	from := time.Now()
	stubborn.Stop(1)
	stubborn.ExpectExit(137)
	stubborn.Says("got SIGTERM")
	if took := time.Since(from); took < time.Second || took > time.Minute {
		t.Errorf("a stubborn container with 1 s of grace took %s to stop", took)
	}
	term := p.RunContainer(t, Shell("term", "exec sleep 1000")) // as process 1 it gets no SIGTERM it has no handler for
	term.Stop(0)
	term.ExpectExit(137)
	self := p.RunContainer(t, Shell("self", "sh -c 'kill -TERM $$'; exit $?"))
	self.ExpectExit(143)
	for _, k := range []*Container{polite, stubborn, term, self} {
		k.Stop(0) // idempotent
		k.Remove()
	}
}

// again is what the kubelet does with a container that ended: a new one with the next attempt and log.
func again(t *testing.T, p *Pod) {
	for attempt, log := range []string{"crash/0.log", "crash/1.log"} {
		config := Shell("crash", "echo attempt; exit 1")
		config.Metadata.Attempt = uint32(attempt)
		config.LogPath = log
		config.Annotations = map[string]string{"io.kubernetes.container.restartCount": string(rune('0' + attempt))}
		k := p.RunContainer(t, config)
		s := k.ExpectExit(1)
		if s.Metadata.Attempt != uint32(attempt) {
			t.Errorf("attempt %d is reported as %d", attempt, s.Metadata.Attempt)
		}
		k.Says("attempt")
	}
}

// unknown things are errors of the right kind.
func unknown(t *testing.T, p *Pod) {
	if _, err := p.c.ContainerStatus(call(t), &runtime.ContainerStatusRequest{ContainerId: "nobody"}); status.Code(err) != codes.NotFound {
		t.Errorf("status of an unknown container: %v", err)
	}
	if _, err := p.c.StopContainer(call(t), &runtime.StopContainerRequest{ContainerId: "nobody"}); err != nil && status.Code(err) != codes.NotFound {
		t.Errorf("stopping an unknown container: %v", err)
	}
	config := Shell("image", "true")
	config.Image.Image = "registry.cloister.test/nothing:1"
	if _, err := p.TryCreate(t, config); status.Code(err) != codes.NotFound && !strings.Contains(err.Error(), "not found") {
		t.Errorf("a container of an unknown image: %v", err)
	}
}
