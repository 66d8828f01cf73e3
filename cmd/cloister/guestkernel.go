package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/cloister/cloister/author/guestimage"
	"github.com/cloister/cloister/author/guestkernel"
	"github.com/cloister/cloister/internal/paths"
)

// The kernels of `guest build --kernel` that are no folder.
const (
	kernelStock = "stock"
	kernelSmall = "small"
)

func guestKernelCmd(a *app) *cobra.Command {
	return group("kernel", "Build a small kernel for guests", guestKernelBuildCmd(a), guestKernelConfigCmd(a))
}

func guestKernelBuildCmd(a *app) *cobra.Command {
	var (
		source, lock, pkg string
		options           []string
		jobs              int
	)
	c := &cobra.Command{
		Use:   "build",
		Short: "Build the small kernel from the distribution's source package",
		Long: "Builds a kernel without loadable modules from the locked source package (verified against the distribution's signatures)\n" +
			"and a list of options: see `cloister guest kernel config`. The same compiler makes the same bytes. It takes minutes, and\n" +
			"2 GB of disk meanwhile. `cloister guest build --kernel small` packs an image with it.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			dirs, err := paths.Default()
			if err != nil {
				return err
			}
			opts := guestimage.Options{CacheDir: dirs.Images()}
			if err := locateSource(&opts, dirs, source, lock); err != nil {
				return err
			}
			extra, err := readFragments(options)
			if err != nil {
				return err
			}
			r, err := guestkernel.Build(c.Context(), guestkernel.Options{Image: opts, Extra: extra, Package: pkg, Jobs: jobs, Progress: a.kernelProgress})
			if err != nil {
				return err
			}
			return a.printKernel(r)
		},
	}
	c.Flags().StringVar(&source, "source", "", "source tree with the lock file (default: the one this program or folder is in)")
	c.Flags().StringVar(&lock, "lock", "", "lock file with the versions (default: guest.lock of the source tree)")
	c.Flags().StringVar(&pkg, "package", "", "file of the locked source package, instead of fetching it")
	c.Flags().StringArrayVar(&options, "options", nil, "`FILE` with more options (lines CONFIG_NAME=y), which may replace ours; may be repeated")
	c.Flags().IntVar(&jobs, "jobs", 0, "compilers at a time (default: one for each processor)")
	return c
}

func guestKernelConfigCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "config",
		Short: "Print the options of the small kernel, and what they are for",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			own, err := guestkernel.Fragments()
			if err != nil {
				return err
			}
			if a.json {
				out := map[string]string{}
				for _, f := range own {
					out[f.Name] = string(f.Text)
				}
				return a.printJSON(out)
			}
			for i, f := range own {
				if i > 0 {
					fmt.Fprintln(a.stdout)
				}
				fmt.Fprintf(a.stdout, "%s", f.Text)
			}
			return nil
		},
	}
}

func (a *app) kernelProgress(step, detail string) {
	fmt.Fprintf(a.stderr, "guest kernel build: %s: %s\n", step, detail)
}

func (a *app) printKernel(r *guestkernel.Result) error {
	if a.json {
		return a.printJSON(map[string]any{"dir": r.Dir, "cached": r.Cached, "size": r.Size, "kernel": r.Kernel})
	}
	a.table("part|size|sha256", [][]string{
		{"kernel " + r.Kernel.Release, mega(r.Size), r.Kernel.Vmlinuz},
		{"configuration", "", r.Kernel.Config},
		{r.Kernel.Source.Package + " " + r.Kernel.Source.Version, "", r.Kernel.Source.SHA256},
	})
	fmt.Fprintf(a.stdout, "compiler: %s\n", r.Kernel.Compiler)
	for _, s := range r.Steps {
		fmt.Fprintf(a.stdout, "%-14s %6.1fs\n", s.Name, s.Took.Round(100*time.Millisecond).Seconds())
	}
	if r.Cached {
		fmt.Fprintln(a.stdout, "nothing changed, the kernel was in the cache")
	}
	fmt.Fprintln(a.stdout, r.Dir)
	return nil
}

// kernelDir is the folder of the kernel that an image shall have; empty is the distribution's.
func (a *app) kernelDir(ctx context.Context, kernel string, opts guestimage.Options) (string, error) {
	switch kernel {
	case kernelStock:
		return "", nil
	case kernelSmall:
		r, err := guestkernel.Build(ctx, guestkernel.Options{Image: opts, Progress: a.kernelProgress})
		if err != nil {
			return "", err
		}
		return r.Dir, nil
	case "":
		return "", usageError{errors.New("--kernel is empty, expected stock, small or a folder")}
	}
	return kernel, nil
}

// readFragments reads files with options.
func readFragments(files []string) ([]guestkernel.Fragment, error) {
	const most = 1 << 20
	var out []guestkernel.Fragment
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return nil, fmt.Errorf("reading options of the kernel: %w", err)
		}
		text, err := io.ReadAll(io.LimitReader(f, most+1))
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("reading options of the kernel: %w", err)
		}
		out = append(out, guestkernel.Fragment{Name: name, Text: text})
	}
	return out, nil
}
