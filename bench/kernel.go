package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/cloister/cloister/host/trace"
	"github.com/cloister/cloister/wire/guestimage"
)

// guestKernel is an image with one of the kernels, and how it boots.
type guestKernel struct {
	name     string
	manifest *guestimage.Manifest
	config   string // file of the runtime's configuration
	sandbox  []time.Duration
	shell    []time.Duration
	kernel   []time.Duration // what the guest says that its kernel took
	init     []time.Duration
}

// runKernels boots sandboxes with the stock kernel and with the small one in turn, and each of the kernels with a shell as init.
func runKernels(ctx context.Context, bin string, runs int) error {
	small, err := newGuestKernel(ctx, bin, "small")
	if err != nil {
		return err
	}
	defer os.Remove(small.config)
	stock, err := newGuestKernel(ctx, bin, "stock") // the later one: its image is the current one afterwards
	if err != nil {
		return err
	}
	defer os.Remove(stock.config)
	b, err := newBoots(ctx, bin)
	if err != nil {
		return err
	}
	defer b.close()
	kernels := []*guestKernel{stock, small}
	for i := range runs {
		for _, k := range kernels {
			if err := k.boot(ctx, b); err != nil {
				return fmt.Errorf("%s kernel, run %d: %w", k.name, i+1, err)
			}
			fmt.Printf("run %d, %s kernel: shell init %.2fs, sandbox %.2fs\n", i+1, k.name, k.shell[i].Seconds(), k.sandbox[i].Seconds())
		}
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "\nwhat\tstock\tsmall\tratio\t")
	row := func(what string, of func(*guestKernel) time.Duration) {
		a, b := of(stock).Seconds(), of(small).Seconds()
		fmt.Fprintf(w, "%s\t%.2fs\t%.2fs\t%.2f\t\n", what, a, b, b/a)
	}
	row("sandbox ready for containers", func(k *guestKernel) time.Duration { return median(k.sandbox) })
	row("same VM, a shell as init", func(k *guestKernel) time.Duration { return median(k.shell) })
	row("kernel, as the guest says", func(k *guestKernel) time.Duration { return median(k.kernel) })
	row("init to ready, as the guest says", func(k *guestKernel) time.Duration { return median(k.init) })
	size := func(what string, of func(*guestimage.Manifest) int64) {
		a, b := float64(of(stock.manifest))/1e6, float64(of(small.manifest))/1e6
		fmt.Fprintf(w, "%s\t%.1f MB\t%.1f MB\t%.2f\t\n", what, a, b, b/a)
	}
	size("kernel file", func(m *guestimage.Manifest) int64 { return m.Kernel.Size })
	size("initrd", func(m *guestimage.Manifest) int64 { return m.Initrd.Size })
	return w.Flush()
}

// newGuestKernel builds an image and writes a configuration that boots it.
func newGuestKernel(ctx context.Context, bin, name string) (*guestKernel, error) {
	build := exec.CommandContext(ctx, filepath.Join(bin, "cloister"), "guest", "build", "--json", "--kernel", name)
	var out bytes.Buffer
	build.Stdout, build.Stderr = &out, os.Stderr
	if err := build.Run(); err != nil {
		return nil, fmt.Errorf("building the guest with the %s kernel: %w", name, err)
	}
	var built struct {
		Dir      string               `json:"dir"`
		Manifest *guestimage.Manifest `json:"manifest"`
	}
	if err := json.Unmarshal(out.Bytes(), &built); err != nil {
		return nil, fmt.Errorf("building the guest with the %s kernel: %w", name, err)
	}
	f, err := os.CreateTemp("", "cloister-bench-*.toml")
	if err != nil {
		return nil, err
	}
	_, err = fmt.Fprintf(f, "%s\n[guest]\nkernel = %q\ninitrd = %q\n", sandboxConfig,
		guestimage.Path(built.Dir, built.Manifest.Kernel.Path), guestimage.Path(built.Dir, built.Manifest.Initrd.Path))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return &guestKernel{name: name, manifest: built.Manifest, config: f.Name()}, err
}

func (k *guestKernel) boot(ctx context.Context, b *boots) error {
	var kernel, init time.Duration
	vm, took, err := b.sandbox(ctx, k.config, func(dir string) error {
		t, err := guestTimes(ctx, filepath.Join(dir, trace.FileName))
		kernel, init = t["kernel"], t["init"]
		return err
	})
	if err != nil {
		return err
	}
	shell, err := b.shellIn(ctx, *vm)
	if err != nil {
		return fmt.Errorf("shell init: %w", err)
	}
	k.sandbox, k.shell = append(k.sandbox, took), append(k.shell, shell)
	k.kernel, k.init = append(k.kernel, kernel), append(k.init, init)
	return nil
}

// guestTimes are the times that the guest has given for its boot. They come with its log, a moment after its first answer.
func guestTimes(ctx context.Context, file string) (map[string]time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		t, err := trace.Load(file)
		if err != nil {
			return nil, err
		}
		times := map[string]time.Duration{}
		for _, s := range t.Steps {
			if s.Claimed {
				times[s.Name] = s.Took
			}
		}
		if times["kernel"] > 0 && times["init"] > 0 {
			return times, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("the guest's log says nothing of its boot: %w", ctx.Err())
		}
	}
}
