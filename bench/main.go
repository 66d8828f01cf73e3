// Command bench measures Cloister beside what a user would pick instead, in one run on one machine, and prints ratios.
// Absolute times mean nothing here: they are another machine's.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	bin := flag.String("bin", "bin", "folder of the built binaries")
	runs := flag.Int("runs", 3, "boots of each kind; the median counts")
	what := flag.String("what", "broker,verify,boot", "what to measure, of broker, beside, verify, policy, generate, boot, sandbox, kernel and layers, separated by commas")
	var pods sandboxOptions
	flag.StringVar(&pods.shim, "shim", "", "-what sandbox: `program` of the shim (default: the one in the folder of -bin)")
	flag.IntVar(&pods.pods, "pods", 50, "-what sandbox: pods that are started and deleted in a row")
	flag.Int64Var(&pods.bytes, "bytes", 64<<20, "-what sandbox: bytes that go through a process's streams")
	var o other
	flag.StringVar(&o.URL, "beside", "",
		"what is measured beside ours: for -what broker and beside the `URL` of another key broker on this machine, for -what generate the path of a genpolicy")
	flag.StringVar(&o.Certificate, "beside-certificate", "", "PEM `file` with its certificate")
	flag.StringVar(&o.Token, "beside-admin-token", "", "`file` with its administrator's token")
	flag.IntVar(&o.PID, "beside-pid", 0, "its process `id`")
	var g generateOptions
	flag.StringVar(&g.Files, "beside-files", "", "for -what generate: `folder` of the genpolicy-settings.json and rules.rego of the other program")
	step := flag.String("layer-step", "", "for -what layers, which starts itself with it: do `one thing` with two files")
	flag.Parse()
	if *step != "" {
		if err := layerStep(ctx, *step, flag.Args()); err != nil {
			fmt.Fprintf(os.Stderr, "bench: error: %v\n", err)
			os.Exit(1)
		}
		return
	}
	g.Program = o.URL
	if err := run(ctx, *bin, *runs, strings.Split(*what, ","), o, g, pods); err != nil {
		fmt.Fprintf(os.Stderr, "bench: error: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, bin string, runs int, what []string, o other, g generateOptions, pods sandboxOptions) error {
	if o.URL != "" && o.PID == 0 && (slices.Contains(what, "broker") || slices.Contains(what, "beside")) {
		return errors.New("-beside needs -beside-pid, the process whose time and memory are compared")
	}
	for _, name := range what {
		switch name {
		case "broker":
			w := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
			if err := runBroker(ctx, w); err != nil {
				return err
			}
			if o.URL != "" {
				if err := runBeside(ctx, w, bin, runs, o); err != nil {
					return err
				}
			}
			w.Flush()
		case "beside":
			if o.URL == "" {
				return errors.New("-what beside needs -beside")
			}
			w := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
			if err := runBeside(ctx, w, bin, runs, o); err != nil {
				return err
			}
			w.Flush()
		case "verify":
			w := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
			if err := runVerify(ctx, w, runs); err != nil {
				return err
			}
			w.Flush()
		case "policy":
			w := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
			if err := runPolicy(ctx, w, runs); err != nil {
				return err
			}
			w.Flush()
		case "generate":
			w := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
			if err := runGenerate(ctx, w, bin, runs, g); err != nil {
				return err
			}
			w.Flush()
		case "boot":
			if err := runBoot(ctx, bin, runs); err != nil {
				return err
			}
		case "sandbox":
			if pods.shim == "" {
				pods.shim = filepath.Join(bin, "containerd-shim-cloister-v2")
			}
			if err := runSandbox(ctx, bin, runs, pods); err != nil {
				return err
			}
		case "kernel":
			if err := runKernels(ctx, bin, runs); err != nil {
				return err
			}
		case "layers":
			w := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
			if err := runLayers(ctx, w, runs); err != nil {
				return err
			}
			w.Flush()
		default:
			return fmt.Errorf("there is no benchmark %q, want broker, beside, verify, policy, generate, boot, sandbox, kernel or layers", name)
		}
	}
	return nil
}

// runBoot measures from nothing to a ready sandbox, beside the same machine with a shell as init.
func runBoot(ctx context.Context, bin string, runs int) error {
	b, err := newBoots(ctx, bin)
	if err != nil {
		return err
	}
	defer b.close()
	var shell, guest []time.Duration
	for i := range runs { // alternating, so that both see the same machine
		s, err := b.shell(ctx)
		if err != nil {
			return fmt.Errorf("shell init, run %d: %w", i+1, err)
		}
		g, err := b.guest(ctx)
		if err != nil {
			return fmt.Errorf("guest, run %d: %w", i+1, err)
		}
		fmt.Printf("run %d: shell init %.1fs, sandbox ready %.1fs\n", i+1, s.Seconds(), g.total.Seconds())
		shell, guest = append(shell, s), append(guest, g.total)
		b.last = g
	}
	base, ready := median(shell), median(guest)
	w := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "\nwhat\ttime\tratio\tbudget")
	fmt.Fprintf(w, "same QEMU, firmware, TPM and kernel, a shell as init\t%.2fs\t1.00\t\n", base.Seconds())
	fmt.Fprintf(w, "Cloister sandbox ready\t%.2fs\t%.2f\t1.15\n", ready.Seconds(), ready.Seconds()/base.Seconds())
	fmt.Fprintln(w, "\nstep of the last boot\ttime\tshare\t")
	for _, s := range b.last.steps {
		fmt.Fprintf(w, "%s\t%.2fs\t%.2f\t\n", s.name, s.took.Seconds(), s.took.Seconds()/b.last.total.Seconds())
	}
	fmt.Fprintln(w, "\nidle guest\tsize\tbudget\t")
	m := b.last.memory
	fmt.Fprintf(w, "memory in use, kernel and all services\t%.1f MiB\t120 MiB\t\n", mib(m.used))
	fmt.Fprintf(w, "  of which root file system\t%.1f MiB\t\t\n", mib(m.files))
	fmt.Fprintf(w, "  of which agent with all services, resident\t%.1f MiB\t\t\n", mib(m.agent))
	fmt.Fprintf(w, "reserved by firmware and kernel in a VM of %d MiB\t%.1f MiB\t\t\n", b.config.MemoryMiB, mib(m.reserved))
	fmt.Fprintf(w, "initrd\t%.1f MB\t40 MB\t\n", float64(b.initrd)/1e6)
	fmt.Fprintf(w, "guest binary\t%.1f MB\t23 MB\t\n", float64(b.binary)/1e6)
	return w.Flush()
}

func mib(n uint64) float64 { return float64(n) / (1 << 20) }

func median(d []time.Duration) time.Duration {
	s := slices.Sorted(slices.Values(d))
	return s[len(s)/2]
}
