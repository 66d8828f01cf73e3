package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/ttrpc"
	"github.com/klauspost/compress/zstd"
	"github.com/u-root/u-root/pkg/cpio"

	"github.com/cloister/cloister/host/doctor"
	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/host/vmm/qemu"
	"github.com/cloister/cloister/internal/paths"
	"github.com/cloister/cloister/wire/agent"
	"github.com/cloister/cloister/wire/guestimage"
	"github.com/cloister/cloister/wire/initdata"
)

const (
	bootDeadline = 5 * time.Minute
	benchPolicy  = "package agent_policy\n\ndefault GetMetricsRequest := true\n"
	shellReady   = "shell-is-ready"
	shellInit    = "#!/bin/sh\necho " + shellReady + "\nread line\n"
)

// boots starts VMs that differ in nothing but the initrd.
type boots struct {
	dirs   paths.Dirs
	config vmm.Config
	tmp    string
	initrd int64 // bytes
	binary int64 // bytes
	n      int
	last   boot
	cpu    time.Duration // processor time of the last sandbox or shell until it was ready: the monitor, this process and those it has ended
}

type boot struct {
	total  time.Duration
	steps  []stepTime
	memory memory
}

// memory is in bytes.
type memory struct{ used, files, reserved, agent uint64 }

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
	b := &boots{dirs: dirs, tmp: tmp, initrd: m.Initrd.Size, binary: m.Binaries.GuestSize, config: vmm.Config{
		Kernel: guestimage.Path(image, m.Kernel.Path), Initrd: guestimage.Path(image, m.Initrd.Path), Cmdline: m.Cmdline,
		FirmwareCode: m.Firmware.CodePath, FirmwareVars: m.Firmware.VarsPath, VCPUs: 2, MemoryMiB: 2048,
		InitdataImage: initdata.EncodeDevice(doc), Accel: report.Accel, TPM: &vmm.TPM{CADir: dirs.TPMCA()}, UserNetwork: true, Program: report.QEMU,
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

// shell boots a shell as init until its script has printed a line on the console.
func (b *boots) shell(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, bootDeadline)
	defer cancel()
	c := b.next("shell")
	c.Initrd = filepath.Join(b.tmp, "shell.img")
	start := time.Now()
	vm, err := qemu.Start(ctx, c)
	if err != nil {
		return 0, err
	}
	defer stop(vm)
	if _, err := consoleLine(ctx, vm, shellReady); err != nil {
		return 0, err
	}
	return time.Since(start), nil
}

// guest boots the guest until its agent answers the first request.
func (b *boots) guest(ctx context.Context) (boot, error) {
	ctx, cancel := context.WithTimeout(ctx, bootDeadline)
	defer cancel()
	start := time.Now()
	vm, err := qemu.Start(ctx, b.next("guest"))
	if err != nil {
		return boot{}, err
	}
	started := time.Now()
	defer stop(vm)
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
	metrics, err := agent.NewAgentServiceClient(client).GetMetrics(ctx, &agent.GetMetricsRequest{})
	if err != nil {
		return boot{}, err
	}
	ready, err := consoleLine(ctx, vm, "guest ready")
	if err != nil {
		return boot{}, err
	}
	kernel, init := logDuration(ready, "kernel"), logDuration(ready, "took")
	steps := []stepTime{
		{"TPM made and endorsed, VM process started", started.Sub(start)},
		{"firmware, measuring, kernel unpacked; first answer", end.Sub(started) - kernel - init},
		{"kernel", kernel},
		{"guest: init to ready", init},
	}
	for _, line := range vm.ConsoleTail(200) {
		if m := bootStep.FindStringSubmatch(line); m != nil {
			took, _ := time.ParseDuration(m[2])
			steps = append(steps, stepTime{"  of which " + m[1], took})
		}
	}
	return boot{total: end.Sub(start), steps: steps, memory: b.memory(metrics.GetMetrics())}, nil
}

// stop ends a VM at once: nothing in it is worth a clean end.
func stop(vm *qemu.VM) {
	at, cancel := context.WithCancel(context.Background())
	cancel()
	_ = vm.Stop(at)
}

var (
	bootStep = regexp.MustCompile(`boot step done" step=(\S+) took=(\S+)`)
	gauge    = regexp.MustCompile(`(?m)^(\w+(?:\{item="\w+"\})?) (\d+)$`)
)

// memory splits the VM's memory by who has it, from the guest's own metrics. In use is all that the guest's kernel has given
// away, caches included; reserved is what firmware and kernel keep outside that count, mostly in proportion to the VM's size.
func (b *boots) memory(metrics string) memory {
	v := map[string]uint64{}
	for _, m := range gauge.FindAllStringSubmatch(metrics, -1) {
		v[m[1]], _ = strconv.ParseUint(m[2], 10, 64)
	}
	size := uint64(b.config.MemoryMiB) << 20
	return memory{
		used:     v[`kata_guest_meminfo{item="memtotal"}`] - v[`kata_guest_meminfo{item="memfree"}`],
		files:    v[`kata_guest_meminfo{item="shmem"}`],
		reserved: size - v[`kata_guest_meminfo{item="memtotal"}`],
		agent:    v["kata_agent_total_rss"],
	}
}

// consoleLine waits for the console line that has text in it.
func consoleLine(ctx context.Context, vm *qemu.VM, text string) (string, error) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		for _, line := range vm.ConsoleTail(200) {
			if strings.Contains(line, text) {
				return line, nil
			}
		}
		select {
		case <-tick.C:
		case <-vm.Exited():
			return "", fmt.Errorf("the VM ended before its console said %q; it said:\n%s", text, strings.Join(vm.ConsoleTail(10), "\n"))
		case <-ctx.Done():
			return "", fmt.Errorf("the console never said %q: %w; it said:\n%s", text, ctx.Err(), strings.Join(vm.ConsoleTail(10), "\n"))
		}
	}
}

// logDuration is the value of key in a line of the guest's log.
func logDuration(line, key string) time.Duration {
	_, rest, _ := strings.Cut(line, " "+key+"=")
	value, _, _ := strings.Cut(rest, " ")
	d, _ := time.ParseDuration(strings.TrimSpace(value))
	return d
}

// writeShellInitrd makes an initrd of this machine's static-as-possible shell: /init is /bin/sh with its libraries.
func (b *boots) writeShellInitrd() error {
	var raw bytes.Buffer
	w := cpio.Newc.Writer(&raw)
	for _, dir := range []string{"bin", "dev", "proc", "lib", "lib64", "lib/x86_64-linux-gnu"} {
		if err := w.WriteRecord(cpio.Directory(dir, 0o755)); err != nil {
			return err
		}
	}
	for to, from := range map[string]string{
		"bin/sh": "/bin/sh", "lib64/ld-linux-x86-64.so.2": "/lib64/ld-linux-x86-64.so.2", "lib/x86_64-linux-gnu/libc.so.6": "/lib/x86_64-linux-gnu/libc.so.6",
	} {
		data, err := os.ReadFile(from)
		if err != nil {
			return fmt.Errorf("making the shell initrd: %w", err)
		}
		if err := w.WriteRecord(cpio.StaticFile(to, string(data), 0o755)); err != nil {
			return err
		}
	}
	if err := w.WriteRecord(cpio.StaticFile("init", shellInit, 0o755)); err != nil {
		return err
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
