package network

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/wire/agent"
)

func TestDNS(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) *agent.Spec {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return &agent.Spec{Mounts: []*agent.Mount{
			{Destination: "/etc/resolv.conf", Source: "/covered"}, {Destination: "/etc/hosts", Source: "/nowhere"},
			{Destination: "/etc/resolv.conf", Source: path},
		}}
	}
	got, err := DNS(file("good", "# made by kubelet\nsearch default.svc.cluster.local svc.cluster.local\r\n\n nameserver fd00::10%eth0\n;x\noptions ndots:5"))
	want := []string{"search default.svc.cluster.local svc.cluster.local", "nameserver fd00::10%eth0", "options ndots:5"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err := DNS(&agent.Spec{}); got != nil || err != nil {
		t.Errorf("without a mount: %q, %v", got, err)
	}
	for name, text := range map[string]string{
		"escape": "search \x1b[31mx", "nul": "search \x00", "long": "search " + strings.Repeat("x", maxDNSLine),
	} {
		if got, err := DNS(file(name, text)); err == nil {
			t.Errorf("%s was read as %q", name, got)
		}
	}
	for name, text := range map[string]string{"lines": strings.Repeat("options x\n", maxDNSLines+1), "file": strings.Repeat("\n", maxDNSFile+1)} {
		if _, err := DNS(file(name, text)); !errors.Is(err, ErrTooMany) {
			t.Errorf("%s: got %v, expected ErrTooMany", name, err)
		}
	}
	spec := file("gone", "")
	path := spec.Mounts[2].Source
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := DNS(spec); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is missing: %v", err)
	}
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := DNS(spec); err == nil {
		t.Error("a pipe was accepted")
	}
}

func TestBucket(t *testing.T) {
	for _, bits := range []uint64{minRate, 1e6, 1e9, 100e9, 1 << 50} {
		b := bucket(1, bits)
		if b.Rate != bits/8 || b.Buffer == 0 || b.Limit < burstMin+queueMin || b.Limit > burstMax+queueMax {
			t.Errorf("%d bits per second: %+v", bits, b)
		}
	}
}
