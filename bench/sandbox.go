package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/cloister/cloister/host/runtimeconfig"
	"github.com/cloister/cloister/host/sandbox"
	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/host/vmm/qemu"
)

// sandboxConfig is what the shim and the sandbox are configured with. There is no network, so that it is not the CNI plugins that are measured.
const sandboxConfig = `
[timeouts]
boot = "5m"
create_container = "5m"

[network]
model = "none"

[sandbox]
template = "off"
`

// templateConfig is the same with templates.
var templateConfig = strings.Replace(sandboxConfig, `"off"`, `"on"`, 1)

// sandboxOptions are the flags of -what sandbox.
type sandboxOptions struct {
	shim  string // program of the shim
	pods  int    // pods in a row
	bytes int64  // what goes through a process's streams
}

// runSandbox measures sandboxes of the container runtime, without a TEE: their start beside the same VM with a shell as init, containers
// and processes in them, streams, the shim's memory, and pods in a row.
func runSandbox(ctx context.Context, bin string, runs int, o sandboxOptions) error {
	b, err := newBoots(ctx, bin)
	if err != nil {
		return err
	}
	defer b.close()
	s, err := newShims(o.shim, sandboxConfig)
	if err != nil {
		return err
	}
	defer s.close()

	warm, err := newShims(o.shim, templateConfig)
	if err != nil {
		return err
	}
	defer warm.close()
	if err := b.prepareTemplate(ctx, warm); err != nil {
		return err
	}

	var restored, warmPods, shellCPU, madeCPU, restoredCPU []time.Duration
	var shell, made, pods, containers, execs []time.Duration
	var memory []uint64
	var out, in float64   // MB/s
	for i := range runs { // alternating, so that all see the same machine
		vm, took, err := b.sandbox(ctx, s.config, nil)
		if err != nil {
			return fmt.Errorf("sandbox, run %d: %w", i+1, err)
		}
		madeCPU = append(madeCPU, b.cpu)
		base, err := b.shellIn(ctx, *vm)
		if err != nil {
			return fmt.Errorf("shell init, run %d: %w", i+1, err)
		}
		shellCPU = append(shellCPU, b.cpu)
		fromTemplate, err := b.templated(ctx, warm)
		if err != nil {
			return fmt.Errorf("sandbox from a template, run %d: %w", i+1, err)
		}
		restoredCPU = append(restoredCPU, b.cpu)
		began := time.Now()
		p, err := warm.start(ctx)
		if err != nil {
			return fmt.Errorf("pod from a template, run %d: %w", i+1, err)
		}
		warmPod := time.Since(began)
		if err := p.stop(ctx); err != nil {
			return fmt.Errorf("pod from a template, run %d: %w", i+1, err)
		}
		began = time.Now()
		p, err = s.start(ctx)
		if err != nil {
			return fmt.Errorf("pod, run %d: %w", i+1, err)
		}
		pod := time.Since(began)
		err = func() error {
			id, start, err := p.add(ctx, "app")
			if err != nil {
				return err
			}
			containers = append(containers, start)
			for n := range 10 {
				began := time.Now()
				if err := p.exec(ctx, id, fmt.Sprint("true", n), "", "", "/bin/true"); err != nil {
					return err
				}
				execs = append(execs, time.Since(began))
			}
			n, took, err := p.read(ctx, id, "out", "/bin/head", "-c", fmt.Sprint(o.bytes), "/dev/zero")
			if err != nil || n != o.bytes {
				return errors.Join(err, fmt.Errorf("%d of %d bytes came out", n, o.bytes))
			}
			out = max(out, float64(n)/1e6/took.Seconds())
			if took, err = p.write(ctx, id, "in", o.bytes, "/bin/wc", "-c"); err != nil {
				return err
			}
			in = max(in, float64(o.bytes)/1e6/took.Seconds())
			m, err := pss(p.pid)
			memory = append(memory, m)
			return errors.Join(err, p.remove(ctx, id))
		}()
		if err := errors.Join(err, p.stop(ctx)); err != nil {
			return fmt.Errorf("pod, run %d: %w", i+1, err)
		}
		fmt.Printf("run %d: shell init %.2fs, sandbox %.2fs, from a template %.2fs, pod by the shim %.2fs, from a template %.2fs\n", i+1,
			base.Seconds(), took.Seconds(), fromTemplate.Seconds(), pod.Seconds(), warmPod.Seconds())
		restored, warmPods = append(restored, fromTemplate), append(warmPods, warmPod)
		shell, made, pods = append(shell, base), append(made, took), append(pods, pod)
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
	base := median(shell).Seconds()
	fmt.Fprintln(w, "\nwhat\ttime\tratio\tbudget")
	fmt.Fprintf(w, "same VMM, devices and kernel, a shell as init\t%.2fs\t1.00\t\n", base)
	for _, row := range []struct {
		what, budget string
		took         []time.Duration
	}{
		{"sandbox ready for containers, booted", "1.15", made}, {"sandbox ready for containers, from a template", "1.15", restored},
		{"pod: shim started, sandbox made, pause container runs; booted", "", pods}, {"the same from a template", "", warmPods},
	} {
		fmt.Fprintf(w, "%s\t%.2fs\t%.2f\t%s\n", row.what, median(row.took).Seconds(), median(row.took).Seconds()/base, row.budget)
	}
	fmt.Fprintf(w, "container started in a sandbox that is there\t%.3fs\t%.2f\t\n", median(containers).Seconds(), median(containers).Seconds()/base)
	fmt.Fprintf(w, "exec of true, until its exit code is there\t%.3fs\t%.3f\t\n", median(execs).Seconds(), median(execs).Seconds()/base)
	fmt.Fprintln(w, "\nprocessor time until ready, which other work changes less\ttime\tratio\t")
	cpu := median(shellCPU).Seconds()
	for _, row := range []struct {
		what string
		took []time.Duration
	}{{"a shell as init", shellCPU}, {"sandbox, booted", madeCPU}, {"sandbox, from a template", restoredCPU}} {
		fmt.Fprintf(w, "%s\t%.2fs\t%.2f\t\n", row.what, median(row.took).Seconds(), median(row.took).Seconds()/cpu)
	}
	fmt.Fprintln(w, "\nwhat\tfigure\t\t")
	fmt.Fprintf(w, "standard output of a process\t%.1f MB/s\t\t\n", out)
	fmt.Fprintf(w, "standard input of a process\t%.1f MB/s\t\t\n", in)
	fmt.Fprintf(w, "shim with a container, its own memory (Pss)\t%.1f MiB\t\t\n", mib(slices.Max(memory)))
	if err := w.Flush(); err != nil {
		return err
	}
	if err := warm.row(ctx, o.pods); err != nil {
		return err
	}
	for _, s := range []*shims{s, warm} {
		if left := s.belongings(); len(left) > 0 {
			return fmt.Errorf("left behind are %d things, such as %v", len(left), left[:min(len(left), 10)])
		}
	}
	fmt.Println("nothing is left of any of them")
	return nil
}

// row starts and deletes pods one after the other.
func (s *shims) row(ctx context.Context, n int) error {
	if n == 0 {
		return nil
	}
	var first, last uint64
	var took []time.Duration
	for i := range n {
		began := time.Now()
		p, err := s.start(ctx)
		if err != nil {
			return fmt.Errorf("pod %d of %d: %w", i+1, n, err)
		}
		last, err = pss(p.pid)
		if first == 0 {
			first = last
		}
		if err := errors.Join(err, p.stop(ctx)); err != nil {
			return fmt.Errorf("pod %d of %d: %w", i+1, n, err)
		}
		took = append(took, time.Since(began))
		if left := s.belongings(); len(left) > 0 {
			return fmt.Errorf("pod %d of %d has left %v", i+1, n, left[:min(len(left), 10)])
		}
	}
	fmt.Printf("\n%d pods in a row: %.2fs each from start to gone, the slowest %.2fs; memory of the shim %.1f MiB, of the last one %.1f MiB\n",
		n, median(took).Seconds(), slices.Max(took).Seconds(), mib(first), mib(last))
	return nil
}

// sandbox makes a sandbox in this process, and returns the VM that it used. look, unless nil, is called with its folder before it ends.
func (b *boots) sandbox(ctx context.Context, config string, look func(dir string) error) (*vmm.Config, time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, bootDeadline)
	defer cancel()
	e, err := runtimeconfig.Load(runtimeconfig.Request{File: config, Getenv: func(string) string { return "" }})
	if err != nil {
		return nil, 0, err
	}
	b.n++
	id := fmt.Sprintf("bench-%d-in-%d", os.Getpid(), b.n)
	var used vmm.Config
	spent := spentHere()
	began := time.Now()
	s, err := sandbox.Create(ctx, sandbox.Config{
		Namespace: shimNamespace, ID: id, Runtime: e,
		Spec: podOf(id),
		StartVM: func(ctx context.Context, c vmm.Config) (vmm.Machine, error) {
			used = c
			vm, err := qemu.Start(ctx, c)
			if err != nil {
				return nil, err
			}
			return vm, nil
		},
	})
	if err != nil {
		return nil, 0, err
	}
	took := time.Since(began)
	b.spent(spent, s.PID())
	clean, end := context.WithTimeout(context.WithoutCancel(ctx), bootDeadline)
	defer end()
	if look != nil {
		err = look(s.Dir())
	}
	return &used, took, errors.Join(err, s.Stop(clean))
}

// shellIn boots the VM of a sandbox with a shell as init. It has no shared directory, whose server ended with the sandbox.
func (b *boots) shellIn(ctx context.Context, c vmm.Config) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, bootDeadline)
	defer cancel()
	b.n++
	c.Name = fmt.Sprintf("bench-shell-%d", b.n)
	c.Dir = filepath.Join(b.dirs.Run, c.Name)
	c.ConsoleLog, c.Started, c.Share, c.NICs = "", nil, nil, nil
	c.Initrd = filepath.Join(b.tmp, "shell.img")
	spent := spentHere()
	began := time.Now()
	vm, err := qemu.Start(ctx, c)
	if err != nil {
		return 0, err
	}
	defer stop(vm)
	if _, err := consoleLine(ctx, vm, shellReady); err != nil {
		return 0, err
	}
	took := time.Since(began)
	b.spent(spent, vm.PID())
	return took, nil
}
