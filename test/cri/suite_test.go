package cri

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cloister/cloister/test/containerd"
	"github.com/cloister/cloister/test/vmtest"
)

// TestMain removes the kubelet's directory when the machine has no kubelet. Tests run two at a time: most of their time is one
// virtual processor's.
func TestMain(m *testing.M) {
	code := m.Run()
	_ = os.Remove(kubelet) // nothing happens when there is something in it
	_ = os.Remove(filepath.Dir(kubelet))
	os.Exit(code)
}

// world is what a scenario runs in: a daemon and the handler that pods ask for.
type world struct {
	*Client
	handler string
	runtime string // the type that ctr is told
}

// virtual says that pods are virtual machines.
func (w *world) virtual() bool { return w.handler != "runc" }

// scenario is one story, with its own pods.
type scenario struct {
	name  string
	run   func(*testing.T, *world)
	brief bool // is asked of virtual machines on the older containerd, too, which differs in few ways
}

// scenarios are all of them, the cheap before the disruptive.
func scenarios() []scenario {
	return []scenario{
		{"life", life, true},
		{"pod", onePod, false},
		{"network", network, false},
		{"pidNamespaces", pidNamespaces, false},
		{"restarts", restarts, true},
		{"kills", kills, false},
		{"ctr", ctrScenario, true},
	}
}

// start starts a daemon of a version with the images that scenarios use.
func start(t testing.TB, opts containerd.Options) *Client {
	t.Helper()
	d := containerd.Start(t, opts)
	root, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	d.Import(containerd.Pause(t), containerd.Busybox(t, BusyboxImage), containerd.Program(ProgramImage, containerd.GoProgram(t, root, "./testprog")))
	return Dial(t, d)
}

// TestRunc shows that the scenarios describe what runc does, so that they can be asked of another runtime.
func TestRunc(t *testing.T) {
	t.Parallel()
	for _, version := range containerd.Versions(t, containerd.V16, containerd.V2) {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			w := &world{Client: start(t, containerd.Options{Version: version, IPv6: true, MayLeave: true}), handler: "runc", runtime: "io.containerd.runc.v2"}
			for _, s := range scenarios() {
				t.Run(s.name, func(t *testing.T) { s.run(t, w) })
			}
		})
	}
}

// each runs a test of virtual machines on each version of containerd from a series on, one after the other.
func each(t *testing.T, series string, test func(*testing.T, string)) {
	t.Parallel()
	vmtest.Need(t)
	containerd.Need(t)
	for _, version := range containerd.VersionsFrom(t, series) {
		t.Run(version, func(t *testing.T) { test(t, version) })
	}
}
