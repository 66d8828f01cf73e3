package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/cloister/cloister"
	"github.com/cloister/cloister/author/guestimage"
	"github.com/cloister/cloister/internal/paths"
	manifest "github.com/cloister/cloister/wire/guestimage"
)

func guestCmd(a *app) *cobra.Command {
	return group("guest", "Build and look at the guest image", guestBuildCmd(a), guestKernelCmd(a), guestInspectCmd(a))
}

func guestBuildCmd(a *app) *cobra.Command {
	var (
		source, lock string
		strict       bool
		update       bool
		runc         string
		kernel, to   string
	)
	c := &cobra.Command{
		Use:   "build",
		Short: "Build the guest image: distribution kernel, measured initrd, manifest",
		Long: "Builds the guest image from the locked kernel package (verified against the distribution's signatures), the\n" +
			"static guest binary and runc. Two builds of the same inputs give the same bytes. Nothing is rebuilt that did not change.\n" +
			"With --kernel small it gets the kernel of `cloister guest kernel build`, which is built first when it is not there.\n" +
			"With --to DIR the image is copied there, too: containerd looks into /usr/share/cloister/guest.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			dirs, err := paths.Default()
			if err != nil {
				return err
			}
			opts := guestimage.Options{CacheDir: dirs.Images(), Strict: strict, Progress: func(step, detail string) {
				fmt.Fprintf(a.stderr, "guest build: %s: %s\n", step, detail)
			}}
			if err := locateSource(&opts, dirs, source, lock); err != nil {
				return err
			}
			if update {
				l, err := guestimage.UpdateLock(c.Context(), opts, runc)
				if err != nil {
					return err
				}
				fmt.Fprintf(a.stdout, "%s: %s %s\n", opts.LockPath, l.Kernel.Package, l.Kernel.Version)
				return nil
			}
			if opts.KernelDir, err = a.kernelDir(c.Context(), kernel, opts); err != nil {
				return err
			}
			r, err := guestimage.Build(c.Context(), opts)
			if err != nil && opts.GuestBinary != "" {
				return hint(err, "%s may not have been built as guests are; run it in the source tree, or name that with --source DIR", opts.GuestBinary)
			}
			if err != nil {
				return err
			}
			if err := pointTo(dirs.CurrentImage(), r.Dir); err != nil {
				return err
			}
			dir := r.Dir
			if to != "" {
				if err := copyImage(dir, to); err != nil {
					return err
				}
				dir = to
			}
			return a.printImage(dir, r.Notice, r.Cached, r.Steps)
		},
	}
	c.Flags().StringVar(&source, "source", "", "source tree to build the guest binary from (default: the one this program or folder is in)")
	c.Flags().StringVar(&lock, "lock", "", "lock file with the versions (default: guest.lock of the source tree)")
	c.Flags().BoolVar(&strict, "locked", false, "fail when the locked kernel is no longer offered, instead of taking the newest of its series")
	c.Flags().BoolVar(&update, "update-lock", false, "write a new lock file with the newest versions, and build nothing")
	c.Flags().StringVar(&kernel, "kernel", kernelStock, "stock, small, or a folder that guest kernel build has made")
	c.Flags().StringVar(&to, "to", "", "copy the image to DIR, in place of the image that is there")
	c.Flags().StringVar(&runc, "runc", "", "with --update-lock: the runc version to lock")
	return c
}

func guestInspectCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "inspect [DIR]",
		Short: "Print the manifest of a guest image after checking every file against it",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			dir, err := imageDir("")
			if len(args) == 1 {
				dir, err = args[0], nil
			}
			if err != nil {
				return err
			}
			return a.printImage(dir, "", false, nil)
		},
	}
}

func (a *app) printImage(dir, notice string, cached bool, steps []guestimage.Step) error {
	m, err := manifest.Load(dir)
	if err != nil {
		return err
	}
	if err := m.Verify(dir); err != nil {
		return err
	}
	if a.json {
		return a.printJSON(map[string]any{"dir": dir, "cached": cached, "manifest": m, "notice": notice})
	}
	if notice != "" {
		fmt.Fprintf(a.stdout, "notice: %s\n", notice)
	}
	a.table("part|size|sha256", [][]string{
		{"kernel " + m.Kernel.Version, mega(m.Kernel.Size), m.Kernel.SHA256},
		{"initrd", mega(m.Initrd.Size), m.Initrd.SHA256},
		{"guest binary", mega(m.Binaries.GuestSize), m.Binaries.GuestSHA256},
		{"runc " + m.Binaries.RuncVersion, "", m.Binaries.RuncSHA256},
		{"firmware", "", m.Firmware.CodeSHA256},
	})
	for _, s := range steps {
		fmt.Fprintf(a.stdout, "%-14s %6.1fs\n", s.Name, s.Took.Round(100*time.Millisecond).Seconds())
	}
	if cached {
		fmt.Fprintln(a.stdout, "nothing changed, the image was in the cache")
	}
	fmt.Fprintf(a.stdout, "%s\n", dir)
	return nil
}

func mega(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }

// imageDir is where the guest image is: the given folder, or the one that was built last.
func imageDir(given string) (string, error) {
	if given != "" {
		return given, nil
	}
	dirs, err := paths.Default()
	if err != nil {
		return "", err
	}
	dir, err := filepath.EvalSymlinks(dirs.CurrentImage())
	if err != nil {
		return "", hint(errors.New("there is no guest image yet"), "make one with `cloister guest build`")
	}
	return dir, nil
}

// locateSource finds what to build from: a source tree, or a guest binary that was installed beside this program with
// the lock that this program was built with.
func locateSource(o *guestimage.Options, dirs paths.Dirs, source, lock string) error {
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding this program: %w", err)
	}
	wd, err := os.Getwd()
	if err != nil {
		return fmt.Errorf("finding the working folder: %w", err)
	}
	o.LockPath = lock
	if source == "" {
		source = sourceTree(wd)
	}
	if source == "" {
		source = sourceTree(filepath.Dir(exe))
	}
	if source != "" {
		o.RepoDir = source
		if lock == "" {
			o.LockPath = filepath.Join(source, "guest.lock")
		}
		return nil
	}
	o.GuestBinary = filepath.Join(filepath.Dir(exe), "cloister-guest")
	if _, err := os.Stat(o.GuestBinary); err != nil {
		return hint(fmt.Errorf("finding the guest's source: there is neither a source tree here nor %s", o.GuestBinary),
			"name the tree with --source DIR; a node needs no tree, it can take the folder of an image that was built elsewhere")
	}
	if lock == "" {
		o.LockPath = filepath.Join(dirs.Cache, "guest.lock")
		return paths.WriteFile(o.LockPath, cloister.GuestLock, 0o644)
	}
	return nil
}

// sourceTree is the nearest folder at or above dir that holds this module, or "".
func sourceTree(dir string) string {
	for {
		if _, err := os.Stat(filepath.Join(dir, "cmd", "cloister-guest", "main.go")); err == nil {
			if _, err := os.Stat(filepath.Join(dir, "guest.lock")); err == nil {
				return dir
			}
		}
		up := filepath.Dir(dir)
		if up == dir {
			return ""
		}
		dir = up
	}
}

// copyImage puts the image in dir at to, in place of an image that is there. Machines that run have read theirs already; one that
// starts in the moment between finds none.
func copyImage(dir, to string) error {
	to, err := filepath.Abs(to)
	if err != nil {
		return fmt.Errorf("copying the guest image: %w", err)
	}
	entries, err := os.ReadDir(to)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("copying the guest image: %w", err)
	}
	if _, err := manifest.Load(to); err != nil && len(entries) > 0 {
		return hint(fmt.Errorf("copying the guest image to %s: the folder has other things in it", to), "name an empty folder, or one with a guest image")
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return fmt.Errorf("copying the guest image: %w", err)
	}
	tmp, err := os.MkdirTemp(filepath.Dir(to), ".guest-")
	if err != nil {
		return fmt.Errorf("copying the guest image: %w", err)
	}
	defer os.RemoveAll(tmp)
	fresh, old := filepath.Join(tmp, "new"), filepath.Join(tmp, "old")
	if err := os.CopyFS(fresh, os.DirFS(dir)); err != nil {
		return fmt.Errorf("copying the guest image: %w", err)
	}
	if err := os.Rename(to, old); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("replacing the guest image: %w", err)
	}
	if err := os.Rename(fresh, to); err != nil {
		return fmt.Errorf("replacing the guest image: %w", err)
	}
	return nil
}

// pointTo makes link a symbolic link to target, atomically.
func pointTo(link, target string) error {
	tmp := link + ".new"
	os.Remove(tmp)
	if err := os.Symlink(target, tmp); err != nil {
		return fmt.Errorf("remembering the guest image: %w", err)
	}
	if err := os.Rename(tmp, link); err != nil {
		return fmt.Errorf("remembering the guest image: %w", err)
	}
	return nil
}
