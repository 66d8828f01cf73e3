package podnet

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister/cloister/host/network"
	"github.com/cloister/cloister/wire/agent"
)

// TestLate makes the namespace itself and starts the machine in it, and only then the network is set up, as by the hooks of nerdctl and
// docker.
func TestLate(t *testing.T) {
	need(t)
	ctx := testContext(t)
	spec := &agent.Spec{Linux: &agent.Linux{Namespaces: []*agent.LinuxNamespace{{Type: "pid"}, {Type: "network"}}}}
	if path, err := network.FromSpec(spec); path != "" || err != nil {
		t.Fatalf("got %q, %v", path, err)
	}
	path := filepath.Join(t.TempDir(), "netns")
	if err := network.Create(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for range 2 {
			if err := network.Remove(path); err != nil {
				t.Error(err)
			}
		}
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v, expected nothing", path, err)
		}
	})
	if err := network.Create(path); !errors.Is(err, os.ErrExist) {
		t.Errorf("a second one with the same path: %v", err)
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	ns := &netns{t: t, path: path, file: file}
	t.Cleanup(func() { file.Close() })
	if got := ns.run("ip -br link"); !strings.Contains(got, "LOOPBACK,UP") || strings.Count(got, "UP") == 0 {
		t.Errorf("the namespace has\n%s", got)
	}
	p := attachPod(t, ns, network.ModelTC, 1)
	p.guest.serve("late")
	node := newNetns(t, "node")
	newCNI(t, node, ptpNet).add(ns, "eth0")
	change, err := p.net.Rescan(ctx)
	if err != nil || len(change.Added) != 1 || !change.Routes {
		t.Fatalf("got %+v, %v", change, err)
	}
	p.guest.plug(change.Added[0])
	p.guest.configure(ctx, p.net.Guest())
	if got := node.get(ctx, "http://10.79.0.2"); !strings.HasPrefix(got, "late to ") {
		t.Errorf("got %q", got)
	}
}
