package cri

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cloister/cloister/test/containerd"
)

// kills are the deaths of the processes behind a pod, after which nothing of it may stay.
func kills(t *testing.T, w *world) {
	victims := []string{"containerd-shim"}
	if w.virtual() {
		victims = append(victims, "qemu-system")
	}
	for _, victim := range victims {
		t.Run(victim, func(t *testing.T) {
			p := w.NewPod(t, w.handler, "victim").Run()
			k := p.RunContainer(t, Shell("main", Sleeper))
			stream := make(chan error, 1)
			out := newExpect(t)
			go func() {
				stream <- k.ExecStream(streamContext(t), StreamOptions{Stdout: out}, "sh", "-c", "echo ready; sleep 1000")
			}()
			out.wait("ready")
			killAll(t, victim, p.ID)
			wait(t, exitTimeout, "CRI sees that the container is gone", func() bool {
				return k.Status().State == runtime.ContainerState_CONTAINER_EXITED && p.Status().State == runtime.PodSandboxState_SANDBOX_NOTREADY
			})
			if code := k.Status().ExitCode; code == 0 {
				t.Error("a container that was killed with its pod has the exit code 0")
			}
			select {
			case err := <-stream:
				if err == nil {
					t.Error("an exec in a pod that was killed ended well")
				}
			case <-time.After(exitTimeout):
				t.Error("an exec in a pod that was killed does not end")
			}
			p.t = w.mayLeave(t)
			p.Remove()
			if left := w.Daemon.Sockets(p.ID); w.virtual() && len(left) > 0 { // runc's shim leaves its own
				t.Errorf("sockets are left: %v", left)
			}
		})
	}
	for _, step := range steps() {
		t.Run("containerd at "+step.name, func(t *testing.T) {
			killedAt(t, w, step)
		})
	}
}

// told is a test to which only what ends it counts: errors are written down.
type told struct{ testing.TB }

func (t told) Error(args ...any)            { t.Helper(); t.Log(args...) }
func (t told) Errorf(f string, args ...any) { t.Helper(); t.Logf(f, args...) }

// mayLeave is the test for what is left of a pod. That nothing is, is asked of our runtime with every version of containerd. runc and its shim
// leave processes, cgroups, containers and bundles, each version of containerd others, when it or the shim is killed at the wrong moment.
func (w *world) mayLeave(t testing.TB) testing.TB {
	if w.virtual() {
		return t
	}
	return told{t}
}

// killAll kills the processes of a pod whose command has the text in it, by SIGKILL.
func killAll(t *testing.T, what, id string) {
	t.Helper()
	n := 0
	for _, process := range containerd.Processes(id) {
		if program, _, _ := strings.Cut(process.Command, " "); strings.Contains(program, what) {
			if err := syscall.Kill(process.PID, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			n++
		}
	}
	if n == 0 {
		t.Fatalf("there is no %s of the pod to kill: %v", what, containerd.Processes(id))
	}
}

// step is a call during which containerd is killed.
type step struct {
	name   string
	before func(*testing.T, *Pod) *Container // what there has to be
	call   func(context.Context, *Pod, *Container)
}

func steps() []step {
	running := func(t *testing.T, p *Pod) *Container { return p.Run().RunContainer(t, Shell("main", Sleeper)) }
	return []step{
		{"run pod", func(*testing.T, *Pod) *Container { return nil }, func(ctx context.Context, p *Pod, _ *Container) {
			_, _ = p.c.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: p.Config, RuntimeHandler: p.Handler})
		}},
		{"create container", func(_ *testing.T, p *Pod) *Container { p.Run(); return nil }, func(ctx context.Context, p *Pod, _ *Container) {
			_, _ = p.c.CreateContainer(ctx, &runtime.CreateContainerRequest{PodSandboxId: p.ID, Config: Shell("main", Sleeper), SandboxConfig: p.Config})
		}},
		{"start container", func(t *testing.T, p *Pod) *Container { return p.Run().Create(t, Shell("main", Sleeper)) }, func(ctx context.Context, p *Pod, k *Container) {
			_, _ = p.c.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: k.ID})
		}},
		{"stop container", running, func(ctx context.Context, p *Pod, k *Container) {
			_, _ = p.c.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: k.ID, Timeout: 5})
		}},
		{"stop pod", running, func(ctx context.Context, p *Pod, _ *Container) {
			_, _ = p.c.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: p.ID})
		}},
	}
}

// killedAt kills containerd in the middle of a call, at a moment that differs from step to step, starts it again and removes the pod,
// as a kubelet does that finds a pod it does not know.
func killedAt(t *testing.T, w *world, s step) {
	p := w.NewPod(t, w.handler, "killed")
	k := s.before(t, p)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.call(ctx, p, k)
	}()
	select {
	case <-done:
	case <-time.After(delay(w)):
	}
	w.Daemon.Kill()
	cancel()
	<-done
	w.Restart(t)
	p.t = w.mayLeave(t)
	list, err := w.ListPodSandbox(call(t), &runtime.ListPodSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, pod := range list.Items {
		p.ID = pod.Id
		p.ids = append(p.ids, pod.Id)
		containers, err := w.ListContainers(call(t), &runtime.ListContainersRequest{Filter: &runtime.ContainerFilter{PodSandboxId: pod.Id}})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range containers.Containers {
			p.ids = append(p.ids, c.Id)
		}
		p.Remove()
	}
	if again, err := w.ListPodSandbox(call(t), &runtime.ListPodSandboxRequest{}); err != nil || len(again.Items) > 0 {
		t.Errorf("pods are left: %v, %v", again, err)
	}
	removeCgroup(p.t, p.cgroup())
	// The name is free and the next pod comes up.
	if s.name == "run pod" {
		n := w.NewPod(t, w.handler, "killed")
		n.Run().RunContainer(t, Shell("main", "echo fine")).ExpectExit(0)
		n.Remove()
	}
}

// delay is a moment in the middle of a call.
func delay(w *world) time.Duration {
	if w.virtual() {
		return 2 * time.Second
	}
	return 100 * time.Millisecond
}
