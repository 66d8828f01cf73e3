package cri

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// kubelet is where the kubelet keeps pods' files. Runtimes know volumes by the paths below it.
const kubelet = "/var/lib/kubelet/pods"

// Pod is a running sandbox.
type Pod struct {
	ID      string
	UID     string
	Handler string
	Config  *runtime.PodSandboxConfig

	t       testing.TB
	c       *Client
	dir     string
	removed bool
	ids     []string // of the sandbox and all its containers
}

// NewPod prepares a pod's configuration and its directory at the kubelet's path.
func (c *Client) NewPod(t testing.TB, handler, name string) *Pod {
	t.Helper()
	var r [16]byte
	if _, err := rand.Read(r[:]); err != nil {
		t.Fatal(err)
	}
	uid := hex.EncodeToString(r[:4]) + "-" + hex.EncodeToString(r[4:6]) + "-4000-8000-" + hex.EncodeToString(r[6:12])
	p := &Pod{UID: uid, Handler: handler, t: t, c: c, dir: filepath.Join(kubelet, uid)}
	if handler == "runc" {
		p.Handler = ""
	}
	p.Config = &runtime.PodSandboxConfig{
		Metadata:     &runtime.PodSandboxMetadata{Name: name, Uid: uid, Namespace: "test", Attempt: 0},
		Hostname:     name,
		LogDirectory: filepath.Join(c.logs, uid),
		DnsConfig:    &runtime.DNSConfig{Servers: []string{"10.96.0.10"}, Searches: []string{"test.svc.cluster.local"}, Options: []string{"ndots:5"}},
		Labels:       map[string]string{"app": name},
		Annotations:  map[string]string{},
		Linux: &runtime.LinuxPodSandboxConfig{
			CgroupParent: p.cgroup(),
			SecurityContext: &runtime.LinuxSandboxSecurityContext{NamespaceOptions: &runtime.NamespaceOption{
				Network: runtime.NamespaceMode_POD, Pid: runtime.NamespaceMode_CONTAINER, Ipc: runtime.NamespaceMode_POD}},
		},
	}
	for _, dir := range []string{p.dir, p.Config.LogDirectory} {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(p.end)
	return p
}

// cgroup is the pod's cgroup, which the kubelet makes and removes.
func (p *Pod) cgroup() string { return "/" + p.c.Daemon.Network.Name + "-pod" + p.UID }

// Run starts the sandbox.
func (p *Pod) Run() *Pod {
	p.t.Helper()
	if err := p.TryRun(); err != nil {
		p.t.Fatalf("running the pod: %v", err)
	}
	return p
}

// TryRun is Run with the error of CRI.
func (p *Pod) TryRun() error {
	r, err := p.c.RunPodSandbox(call(p.t), &runtime.RunPodSandboxRequest{Config: p.Config, RuntimeHandler: p.Handler})
	if err != nil {
		return err
	}
	p.ID = r.PodSandboxId
	p.ids = append(p.ids, p.ID)
	return nil
}

// Status is what CRI says of the sandbox.
func (p *Pod) Status() *runtime.PodSandboxStatus {
	p.t.Helper()
	r, err := p.c.PodSandboxStatus(call(p.t), &runtime.PodSandboxStatusRequest{PodSandboxId: p.ID})
	if err != nil {
		p.t.Fatalf("status of the pod: %v", err)
	}
	return r.Status
}

// IP is the pod's first address.
func (p *Pod) IP() string {
	p.t.Helper()
	return p.Status().Network.Ip
}

// Stop stops the sandbox and all its containers at once.
func (p *Pod) Stop() {
	p.t.Helper()
	if _, err := p.c.StopPodSandbox(call(p.t), &runtime.StopPodSandboxRequest{PodSandboxId: p.ID}); err != nil {
		p.t.Errorf("stopping the pod: %v", err)
	}
}

// goneTimeout is how long what a pod had may take to go after CRI said that the pod is removed.
const goneTimeout = time.Minute

// Remove stops and removes the pod and checks that nothing of it is left on the machine.
func (p *Pod) Remove() {
	p.t.Helper()
	if p.removed || p.ID == "" {
		return
	}
	p.Stop()
	if _, err := p.c.RemovePodSandbox(call(p.t), &runtime.RemovePodSandboxRequest{PodSandboxId: p.ID}); err != nil {
		p.t.Errorf("removing the pod: %v", err)
	}
	p.removed = true
	p.c.Daemon.Gone(p.t, goneTimeout, p.ids...)
	removeCgroup(p.t, p.cgroup())
}

// end is the kubelet's housekeeping, also after a test that failed.
func (p *Pod) end() {
	p.Remove()
	_ = filepath.WalkDir(p.dir, func(name string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			unmount(name)
		}
		return nil
	})
	if err := os.RemoveAll(p.dir); err != nil {
		p.t.Error(err)
	}
}

// removeCgroup removes a cgroup that has nothing below it any more, in all hierarchies.
func removeCgroup(t testing.TB, path string) {
	t.Helper()
	hierarchies, err := filepath.Glob("/sys/fs/cgroup/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range append(hierarchies, "/sys/fs/cgroup") {
		if err := os.Remove(filepath.Join(h, path)); err != nil && !errors.Is(err, fs.ErrNotExist) && !strings.Contains(err.Error(), "not a directory") {
			t.Errorf("the pod's cgroup cannot be removed, there is something in it: %v", err)
		}
	}
}
