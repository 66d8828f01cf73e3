package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/host/network"
	"github.com/cloister/cloister/host/runtimeconfig"
	"github.com/cloister/cloister/host/template"
	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/host/vmm/qemu"
	"github.com/cloister/cloister/internal/needs"
)

// podNetwork is a namespace with one interface, joined with a tap; vhost stands for the kernel's back end.
func podNetwork(t *testing.T, vhost string) *network.Network {
	t.Helper()
	needs.Root(t, "network namespaces")
	needs.Files(t, "/dev/net/tun")
	path := filepath.Join(t.TempDir(), "netns")
	if err := network.Create(path); err != nil {
		needs.Missing(t, "the right to make network namespaces: %v", err)
	}
	t.Cleanup(func() {
		if err := network.Remove(path); err != nil {
			t.Error(err)
		}
	})
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its namespace
		ns, err := os.Open(path)
		if err == nil {
			defer ns.Close()
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "far"}
			if err = netlink.LinkAdd(link); err == nil {
				err = netlink.LinkSetUp(link)
			}
		}
		made <- err
	}()
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	n, err := network.Attach(t.Context(), network.Config{NetNS: path, StateFile: filepath.Join(t.TempDir(), "network.json"), Vhost: vhost})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Detach(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return n
}

// TestBootAfterTemplate: what served the VM that could not start from its template serves no other one. The kernel's back end of a card belongs
// to the first process that uses it, until nobody has it open.
func TestBootAfterTemplate(t *testing.T) {
	vhost := filepath.Join(t.TempDir(), "vhost-net")
	if err := os.WriteFile(vhost, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	config := runtimeconfig.Default()
	s := &Sandbox{runtime: &config, log: slog.New(slog.DiscardHandler), net: podNetwork(t, vhost), cfg: Config{Self: "/shim"}}
	templates := filepath.Join(t.TempDir(), "templates")
	key := fmt.Sprintf("%032x", 1)
	if err := os.MkdirAll(filepath.Join(templates, key), 0o700); err != nil {
		t.Fatal(err)
	}
	first := s.nics()
	if len(first) == 0 || len(first[0].Vhosts) == 0 {
		t.Fatalf("cards %+v", first)
	}
	var tried []vmm.NIC
	vm, err := s.restore(t.Context(), func(_ context.Context, c vmm.Config) (vmm.Machine, error) {
		tried = c.NICs
		return nil, &qemu.TemplateError{Err: errors.New("it is damaged")}
	}, templated{store: template.New(templates), key: key, vm: vmm.Config{NICs: first}})
	if vm != nil || err != nil || len(tried) != len(first) {
		t.Fatalf("%v, %v; tried with %v", vm, err, tried)
	}
	for i, n := range s.nics() {
		if len(n.Vhosts) != len(first[i].Vhosts) || slices.Contains(first[i].Vhosts, n.Vhosts[0]) {
			t.Errorf("%s boots with the back end that another monitor has used", n.ID)
		}
		if len(n.Taps) != 1 || n.Taps[0] != first[i].Taps[0] {
			t.Errorf("%s has taps %v, want those it had", n.ID, n.Taps)
		}
	}
	for _, f := range first[0].Vhosts {
		if _, err := f.Stat(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("the first back end is still open: %v", err)
		}
	}
}

// TestTemplateRemoved: templates may be removed at any time. One that went while a sandbox wanted to start from it is not noted as bad.
func TestTemplateRemoved(t *testing.T) {
	config := runtimeconfig.Default()
	s := &Sandbox{runtime: &config, log: slog.New(slog.DiscardHandler), cfg: Config{Self: "/shim"}}
	root, key := filepath.Join(t.TempDir(), "templates"), fmt.Sprintf("%032x", 1)
	start := func(remove bool) string {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(root, key), 0o700); err != nil {
			t.Fatal(err)
		}
		vm, err := s.restore(t.Context(), func(_ context.Context, c vmm.Config) (vmm.Machine, error) {
			if remove {
				if err := os.RemoveAll(c.Template); err != nil {
					t.Error(err)
				}
			}
			return nil, &qemu.TemplateError{Err: fs.ErrNotExist}
		}, templated{store: template.New(root), key: key})
		if vm != nil || err != nil {
			t.Fatalf("%v, %v", vm, err)
		}
		left, err := filepath.Glob(filepath.Join(root, "*.failed"))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(left, " ")
	}
	if bad := start(true); bad != "" {
		t.Errorf("noted as bad: %s", bad)
	}
	if start(false) == "" { // without its files
		t.Error("one that is not whole is not noted as bad")
	}
}
