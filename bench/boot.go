package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/containerd/ttrpc"
	"github.com/klauspost/compress/zstd"
	"github.com/u-root/u-root/pkg/cpio"

	"github.com/cloister/cloister/host/doctor"
	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/internal/paths"
	"github.com/cloister/cloister/wire/agent"
	"github.com/cloister/cloister/wire/guestimage"
	"github.com/cloister/cloister/wire/initdata"
)

const (
	bootDeadline = 5 * time.Minute
	benchPolicy  = "package agent_policy\n\ndefault GuestDetailsRequest := true\n"
)

// boots starts VMs that differ in nothing but the initrd.
type boots struct {
	dirs   paths.Dirs
	config vmm.Config
	tmp    string
	n      int
	last   boot
}

type boot struct {
	total time.Duration
	steps []stepTime
}

type stepTime struct {
	name string
	took time.Duration
}

func newBoots(ctx context.Context, bin string) (*boots, error) {
	build := exec.CommandContext(ctx, filepath.Join(bin, "cloister"), "guest", "build")
	build.Stdout, build.Stderr = os.Stdout, os.Stderr
	if err := build.Run(); err != nil {
		return nil, fmt.Errorf("building the guest: %w", err)
	}
	dirs, err := paths.Default()
	if err != nil {
		return nil, err
	}
	image, err := filepath.EvalSymlinks(filepath.Join(dirs.Cache, "current-guest"))
	if err != nil {
		return nil, err
	}
	m, err := guestimage.Load(image)
	if err != nil {
		return nil, err
	}
	report := doctor.Probe(ctx, doctor.Host{Home: dirs.Home})
	if err := report.Err(); err != nil {
		return nil, err
	}
	doc, err := (&initdata.Document{Version: "0.1.0", Algorithm: "sha256", Data: map[string]string{"policy.rego": benchPolicy}}).Marshal()
	if err != nil {
		return nil, err
	}
	tmp, err := os.MkdirTemp("", "cloister-bench-")
	if err != nil {
		return nil, err
	}
	b := &boots{dirs: dirs, tmp: tmp, config: vmm.Config{
		Kernel: guestimage.Path(image, m.Kernel.Path), Initrd: guestimage.Path(image, m.Initrd.Path), Cmdline: m.Cmdline,
		FirmwareCode: m.Firmware.CodePath, FirmwareVars: m.Firmware.VarsPath, VCPUs: 2, MemoryMiB: 2048,
		InitdataImage: initdata.EncodeDevice(doc), Accel: report.Accel, TPM: &vmm.TPM{CADir: dirs.TPMCA()}, QEMU: report.QEMU,
	}}
	if err := b.writeShellInitrd(); err != nil {
		b.close()
		return nil, err
	}
	return b, nil
}

func (b *boots) close() { os.RemoveAll(b.tmp) }

func (b *boots) next(kind string) vmm.Config {
	b.n++
	c := b.config
	c.Name = fmt.Sprintf("bench-%s-%d", kind, b.n)
	c.Dir = filepath.Join(b.dirs.Run, c.Name)
	return c
}

// shell boots a shell as init, which ends at once: the kernel panics, and with panic=-1 and no reboot the VM is gone.
func (b *boots) shell(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, bootDeadline)
	defer cancel()
	c := b.next("shell")
	c.Initrd = filepath.Join(b.tmp, "shell.img")
	start := time.Now()
	vm, err := vmm.Start(ctx, c)
	if err != nil {
		return 0, err
	}
	select {
	case <-vm.Exited():
		return time.Since(start), nil
	case <-ctx.Done():
		return 0, errors.Join(ctx.Err(), vm.Stop(context.WithoutCancel(ctx)))
	}
}

// guest boots the guest until its agent answers the first request.
func (b *boots) guest(ctx context.Context) (boot, error) {
	ctx, cancel := context.WithTimeout(ctx, bootDeadline)
	defer cancel()
	start := time.Now()
	vm, err := vmm.Start(ctx, b.next("guest"))
	if err != nil {
		return boot{}, err
	}
	started := time.Now()
	defer vm.Stop(context.WithoutCancel(ctx))
	conn, err := vm.Dial(ctx, 1024)
	if err != nil {
		return boot{}, err
	}
	client := ttrpc.NewClient(conn)
	defer client.Close()
	if _, err := agent.NewHealthClient(client).Check(ctx, &agent.CheckRequest{}); err != nil {
		return boot{}, err
	}
	end := time.Now()
	return boot{total: end.Sub(start), steps: []stepTime{
		{"TPM made and endorsed, VM process started", started.Sub(start)},
		{"firmware, kernel, guest until the agent answers", end.Sub(started)},
	}}, nil
}

// writeShellInitrd makes an initrd of this machine's static-as-possible shell: /init is /bin/sh with its libraries.
func (b *boots) writeShellInitrd() error {
	var raw bytes.Buffer
	w := cpio.Newc.Writer(&raw)
	for _, dir := range []string{"dev", "proc", "lib", "lib64", "lib/x86_64-linux-gnu"} {
		if err := w.WriteRecord(cpio.Directory(dir, 0o755)); err != nil {
			return err
		}
	}
	for to, from := range map[string]string{
		"init": "/bin/sh", "lib64/ld-linux-x86-64.so.2": "/lib64/ld-linux-x86-64.so.2", "lib/x86_64-linux-gnu/libc.so.6": "/lib/x86_64-linux-gnu/libc.so.6",
	} {
		data, err := os.ReadFile(from)
		if err != nil {
			return fmt.Errorf("making the shell initrd: %w", err)
		}
		if err := w.WriteRecord(cpio.StaticFile(to, string(data), 0o755)); err != nil {
			return err
		}
	}
	if err := cpio.WriteTrailer(w); err != nil {
		return err
	}
	z, err := zstd.NewWriter(nil)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(b.tmp, "shell.img"), z.EncodeAll(raw.Bytes(), nil), 0o644)
}
