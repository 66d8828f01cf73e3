package cri

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func bind(t *testing.T, from, to string) {
	t.Helper()
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		t.Fatalf("bind-mounting %s: %v", to, err)
	}
}

// several containers of a pod have a network and System V memory together, but no processes, roots or host files.
func several(t *testing.T, p *Pod, main *Container) {
	server := p.RunContainer(t, Program("server", "serve"))
	server.Says("serving")
	client := p.RunContainer(t, Shell("client", Sleeper))
	client.ExpectSh("wget -q -O - http://127.0.0.1:8080/; echo hello | nc 127.0.0.1 7000", "one answers 127.0.0.1\nhello")
	client.ExpectSh("ps -o pid,comm | grep -c testprog || true", "0")
	client.Sh("touch /mine")
	main.ExpectSh("ls /mine 2>/dev/null; echo x > /dev/shm/shared", "")
	const namespaces = "for n in net ipc uts; do readlink /proc/self/ns/$n; done"
	client.ExpectSh("cat /dev/shm/shared; rm /dev/shm/shared", "x")
	if got, want := client.Sh(namespaces), main.Sh(namespaces); got != want {
		t.Errorf("namespaces of two containers: %s and %s", got, want)
	}
	server.Stop(60)
	server.ExpectExit(0)
	server.Says("ending")
	client.Stop(60)
	for _, k := range []*Container{server, client} {
		k.Remove()
	}
	// Many at once.
	var all []*Container
	for n := range 5 {
		all = append(all, p.Create(t, Shell(fmt.Sprint("many-", n), fmt.Sprint("echo this is ", n, "; exit ", n))))
	}
	for _, k := range all {
		k.Start()
	}
	for n, k := range all {
		k.ExpectExit(int32(n))
		k.Says(fmt.Sprint("this is ", n))
		k.Remove()
	}
}

// memory limits hold, and who passes them is reported.
func memory(t *testing.T, p *Pod, main *Container) {
	config := Program("greedy", "alloc", "200")
	config.Linux.Resources = &runtime.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, OomScoreAdj: 900}
	k := p.RunContainer(t, config)
	s := k.ExpectExit(137)
	if s.Reason != "OOMKilled" && p.Handler == "" {
		t.Logf("the reason is %q: with runc the event of the kill and that of the exit are not in order", s.Reason)
	} else if s.Reason != "OOMKilled" {
		t.Errorf("the reason is %q (%s), expected OOMKilled", s.Reason, s.Message)
	}
	k.Remove()
	config = Program("modest", "alloc", "20")
	config.Linux.Resources = &runtime.LinuxContainerResources{MemoryLimitInBytes: 64 << 20}
	k = p.RunContainer(t, config)
	k.Says("allocated 20 MiB")
	k.Stop(60)
	k.ExpectExit(0)
	k.Remove()
	main.ExpectSh("echo still here", "still here")
}

// stats are plausible.
func stats(t *testing.T, p *Pod, main *Container) {
	config := Program("used", "alloc", "30")
	config.Linux.Resources = &runtime.LinuxContainerResources{MemoryLimitInBytes: 256 << 20}
	k := p.RunContainer(t, config)
	k.Says("allocated 30 MiB")
	var got *runtime.ContainerStats
	wait(t, exitTimeout, "stats of the container show its memory", func() bool {
		r, err := p.c.ContainerStats(call(t), &runtime.ContainerStatsRequest{ContainerId: k.ID})
		if err != nil {
			t.Errorf("stats: %v", err)
			return true
		}
		got = r.Stats
		return got.GetMemory().GetWorkingSetBytes().GetValue() >= 30<<20
	})
	if used := got.GetMemory().GetWorkingSetBytes().GetValue(); used > 100<<20 {
		t.Errorf("a container that uses 30 MiB has %d bytes in its stats", used)
	}
	if got.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 || got.GetAttributes().GetMetadata().GetName() != "used" {
		t.Errorf("the stats are %v", got)
	}
	list, err := p.c.ListContainerStats(call(t), &runtime.ListContainerStatsRequest{Filter: &runtime.ContainerStatsFilter{PodSandboxId: p.ID}})
	if err != nil || len(list.Stats) < 2 {
		t.Errorf("stats of the pod's containers: %d, %v", len(list.GetStats()), err)
	}
	pod, err := p.c.PodSandboxStats(call(t), &runtime.PodSandboxStatsRequest{PodSandboxId: p.ID})
	if err != nil {
		t.Errorf("stats of the pod: %v", err)
	} else if l := pod.GetStats().GetLinux(); l.GetMemory().GetWorkingSetBytes().GetValue() < 30<<20 || l.GetNetwork().GetDefaultInterface().GetName() != "eth0" {
		t.Errorf("stats of the pod are memory %v, network %v", l.GetMemory(), l.GetNetwork())
	}
	k.Stop(60)
	k.Remove()
	if r, err := p.c.ContainerStats(call(t), &runtime.ContainerStatsRequest{ContainerId: main.ID}); err != nil || r.Stats == nil {
		t.Errorf("stats of a small container: %v", err)
	}
}

// cgroupFile reads a file of the container's own cgroup, of version 1 or 2, whichever there is.
const cgroupFile = "cat /sys/fs/cgroup/%s 2>/dev/null || cat /sys/fs/cgroup/%s"

// update changes the resources of a container that runs.
func update(t *testing.T, p *Pod, _ *Container) {
	config := Shell("updated", Sleeper)
	config.Linux.Resources = &runtime.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512}
	k := p.RunContainer(t, config)
	read := func(v2, v1 string) string { return k.Sh(fmt.Sprintf(cgroupFile, v2, v1)) }
	if got := read("memory.max", "memory/memory.limit_in_bytes"); got != strconv.Itoa(64<<20) {
		t.Errorf("the limit of memory is %s", got)
	}
	if got := read("cpu.max", "cpu/cpu.cfs_quota_us"); got != "50000" && got != "50000 100000" {
		t.Errorf("the limit of CPU is %s", got)
	}
	_, err := p.c.UpdateContainerResources(call(t), &runtime.UpdateContainerResourcesRequest{ContainerId: k.ID,
		Linux: &runtime.LinuxContainerResources{MemoryLimitInBytes: 96 << 20, CpuPeriod: 100000, CpuQuota: 75000, CpuShares: 256}})
	if err != nil {
		t.Fatalf("updating: %v", err)
	}
	if got := read("memory.max", "memory/memory.limit_in_bytes"); got != strconv.Itoa(96<<20) {
		t.Errorf("the limit of memory after an update is %s", got)
	}
	if got := read("cpu.max", "cpu/cpu.cfs_quota_us"); got != "75000" && got != "75000 100000" {
		t.Errorf("the limit of CPU after an update is %s", got)
	}
	k.Stop(60)
	k.Remove()
}

// zombies of a container go with it.
func zombies(t *testing.T, p *Pod, _ *Container) {
	k := p.RunContainer(t, Program("zombies", "zombies", "20"))
	k.Says("left 20")
	k.Stop(60)
	k.ExpectExit(0)
	k.Remove()
	k = p.RunContainer(t, Shell("orphans", `for n in 1 2 3; do sh -c 'sleep 1000 & sleep 1000 &'; done; echo made; exit 0`))
	k.ExpectExit(0)
	k.Remove()
}

// pidNamespaces are of a container, of the pod, or another container's.
func pidNamespaces(t *testing.T, w *world) {
	p := w.NewPod(t, w.handler, "pids")
	p.Config.Linux.SecurityContext.NamespaceOptions.Pid = runtime.NamespaceMode_POD
	p.Run()
	container := func(name string) *Container {
		config := Shell(name, ": "+name+"; "+Sleeper)
		config.Linux.SecurityContext.NamespaceOptions.Pid = runtime.NamespaceMode_POD
		return p.RunContainer(t, config)
	}
	a, b := container("first"), container("second")
	for _, k := range []*Container{a, b} {
		out := k.Sh("ps -o pid,args")
		for _, want := range []string{": first", ": second"} {
			if !strings.Contains(out, want) {
				t.Errorf("with the pod's processes shared, %s does not see %q:\n%s", k.Config.Metadata.Name, want, out)
			}
		}
	}
	if got := a.Sh("cat /proc/1/comm"); got != "pause" && !w.virtual() {
		t.Errorf("process 1 of a pod that shares processes is %q", got)
	}
	b.Sh("kill -TERM $(ps -o pid,args | awk '/: first/ && !/awk/ {print $1; exit}')")
	a.ExpectExit(0)
	b.ExpectSh("echo fine", "fine")
	p.Remove()
	if _, err := os.Stat(filepath.Join(w.Daemon.StateDir(), "io.containerd.runtime.v2.task", "k8s.io", p.ID)); err == nil {
		t.Error("the bundle of the pod is left")
	}
}
