package guestvm

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cloister/cloister/host/blockmount"
	"github.com/cloister/cloister/host/runtimeconfig"
	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/host/vmm/qemu"
	"github.com/cloister/cloister/host/volume"
	"github.com/cloister/cloister/layer"
	"github.com/cloister/cloister/wire/agent"
)

// snapshot builds a layer as the snapshotter does and has it.
func snapshot(t *testing.T, dir string, files map[string][]byte) {
	t.Helper()
	var archive bytes.Buffer
	tw := tar.NewWriter(&archive)
	var errs []error
	for _, d := range []string{"proc", "dev", "sys"} {
		errs = append(errs, tw.WriteHeader(&tar.Header{Name: d, Typeflag: tar.TypeDir, Mode: 0o755}))
	}
	for name, data := range files {
		errs = append(errs, tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Size: int64(len(data)), Mode: 0o755}))
		_, err := tw.Write(data)
		errs = append(errs, err)
	}
	errs = append(errs, tw.Close(), os.MkdirAll(filepath.Join(dir, blockmount.MountPoint), 0o755))
	f, err := os.Create(filepath.Join(dir, blockmount.LayerFile))
	if err := errors.Join(append(errs, err)...); err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := layer.Build(t.Context(), &archive, f, layer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	text, err := blockmount.Sidecar(r.Root, r.HashOffset)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, blockmount.SidecarFile), text, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestAttachedLayers lets the host's runtime attach a snapshotter's layers to a running machine, with room for hot plug and as confidential
// ones are made. Two containers of one image share a disk.
func TestAttachedLayers(t *testing.T) {
	img := image(t)
	program := filepath.Join(t.TempDir(), "probe")
	goBuild(t, "./probe", program)
	binary, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	big := make([]byte, 4<<20)
	rand.Read(big)
	dir := t.TempDir()
	root := blockmount.Root{Upper: filepath.Join(dir, "9/fs"), Work: filepath.Join(dir, "9/work")}
	for i, files := range []map[string][]byte{{"file": []byte("top"), ".wh.gone": nil}, {"file": []byte("below"), "gone": []byte("x")}, {"probe": binary, "big": big}} {
		d := filepath.Join(dir, fmt.Sprint(3-i))
		snapshot(t, d, files)
		root.Layers = append(root.Layers, d)
	}
	if err := os.MkdirAll(root.Upper, 0o755); err != nil {
		t.Fatal(err)
	}
	var mounts []volume.Mount
	for _, m := range root.Overlay() {
		mounts = append(mounts, volume.Mount{Type: m.Type, Source: m.Source, Options: m.Options})
	}
	for name, edit := range map[string]func(*vmm.Config){
		"hot plug": func(c *vmm.Config) { c.MaxMemoryMiB = 1024 },
		"late disks": func(c *vmm.Config) {
			c.FirmwareCode, c.FirmwareVars, c.LateDisks = "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd", true
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
			defer cancel()
			base, err := os.MkdirTemp("/tmp", "al")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(base) })
			cfg := vmm.Config{
				Name: "layers", Dir: base + "/vm", ConsoleLog: base + "/console.log", Kernel: img + "/vmlinuz", Initrd: img + "/initrd.img",
				Cmdline: "console=ttyS0 quiet panic=-1 cloister.sandboxed agent.hotplug_timeout=60", VCPUs: 1, MemoryMiB: 512, Accel: vmm.AccelTCG,
			}
			edit(&cfg)
			vm, err := qemu.Start(ctx, cfg)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("console:\n%s", strings.Join(vm.ConsoleTail(40), "\n"))
				}
				now, cancel := context.WithCancel(context.Background())
				cancel()
				if err := vm.Stop(now); err != nil {
					t.Error(err)
				}
			})
			var conn net.Conn
			if conn, err = vm.Dial(ctx, 1024); err != nil {
				t.Fatal(err)
			}
			client := ttrpc.NewClient(conn)
			t.Cleanup(func() { client.Close() })
			v := &machine{t: t, agent: agent.NewAgentServiceClient(client)}
			v.must(v.agent.CreateSandbox(ctx, &agent.CreateSandboxRequest{Hostname: "pod", SandboxId: "sandbox1", Storages: shm()}))
			config := runtimeconfig.Default()
			set, err := volume.New(volume.Options{Dir: base + "/volumes", SandboxID: "sandbox1", Config: &config, Disks: vm})
			if err != nil {
				t.Fatal(err)
			}
			for _, id := range []string{"one", "two"} {
				p, err := set.Container(ctx, volume.Request{ID: id, Spec: &specs.Spec{Root: &specs.Root{}}, Rootfs: mounts})
				if err != nil {
					t.Fatal(err)
				}
				out := v.run(ctx, layered(id, p.Storages, "cat=/file", "cat=/gone", "direct=/big", "write=/new", "ls=/sys/block"))
				if !strings.HasPrefix(out, "top <nil>\n open /gone: no such file") || !strings.Contains(out, fmt.Sprintf("direct %d <nil>\n<nil>\n", len(big))) ||
					strings.Count(out, "vd") != 1 {
					t.Errorf("%s: got %q", id, out)
				}
			}
			for _, id := range []string{"one", "two"} {
				v.remove(ctx, id)
				if err := set.Release(ctx, id); err != nil {
					t.Fatal(err)
				}
			}
			if err := set.Close(ctx); err != nil {
				t.Error(err)
			}
		})
	}
}
