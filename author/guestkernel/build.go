package guestkernel

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/author/guestimage"
	"github.com/cloister/cloister/internal/paths"
)

// schema is part of every key: raise it when the same inputs should give another kernel.
const schema = "1"

// Options say what to build from and where.
type Options struct {
	// Image holds the cache, the lock file, the mirror and the keys of the distribution, as for guestimage.Build.
	Image guestimage.Options
	// Extra are added to the fragments of this program, and may replace what those say.
	Extra []Fragment
	// Package is the file of the source package, instead of fetching it; its digest must be that of the lock.
	Package string
	// Jobs is how many compilers run at a time; 0 is one for each processor.
	Jobs int
	// Progress is told of each step as it begins; nil tells nobody.
	Progress func(step, detail string)
}

// Result is a kernel that was built.
type Result struct {
	// Dir holds the kernel as guestimage.Options.KernelDir wants it.
	Dir    string
	Kernel *guestimage.BuiltKernel
	// Size is that of the kernel file, in bytes.
	Size int64
	// Cached says that nothing had to be built.
	Cached bool
	// Steps are the times of what was done.
	Steps []guestimage.Step
}

type build struct {
	opts    Options
	lock    *guestimage.Lock
	options []option
	steps   []guestimage.Step
	began   time.Time
}

func (b *build) progress(step, detail string) {
	b.endStep()
	b.steps, b.began = append(b.steps, guestimage.Step{Name: step}), time.Now()
	if b.opts.Progress != nil {
		b.opts.Progress(step, detail)
	}
}

func (b *build) endStep() {
	if n := len(b.steps); n > 0 && b.steps[n-1].Took == 0 {
		b.steps[n-1].Took = time.Since(b.began)
	}
}

// Build makes the kernel, or finds it in the cache. It takes minutes, and about 2 GB of disk meanwhile.
func Build(ctx context.Context, o Options) (*Result, error) {
	b := &build{opts: o}
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		return nil, fmt.Errorf("building a kernel: this is done on linux/amd64 only, this is %s/%s", runtime.GOOS, runtime.GOARCH)
	}
	own, err := Fragments()
	if err != nil {
		return nil, fmt.Errorf("building a kernel: %w", err)
	}
	if b.options, err = parse(own, o.Extra); err != nil {
		return nil, fmt.Errorf("building a kernel: its options: %w", err)
	}
	if b.lock, err = guestimage.LoadLock(o.Image.LockPath); err != nil {
		return nil, err
	}
	if b.lock.Source == (guestimage.SourceLock{}) {
		return nil, fmt.Errorf("building a kernel: %s names no source package (hint: cloister guest build --update-lock)", o.Image.LockPath)
	}
	compiler, err := b.tools(ctx)
	if err != nil {
		return nil, err
	}
	cache := filepath.Join(o.Image.CacheDir, "kernels")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, fmt.Errorf("building a kernel: %w", err)
	}
	lock, err := paths.TryLock(filepath.Join(cache, "lock"))
	if errors.Is(err, paths.ErrLocked) {
		b.progress("wait", "another kernel build uses "+cache)
		lock, err = paths.WaitLock(ctx, filepath.Join(cache, "lock"))
	}
	if err != nil {
		return nil, fmt.Errorf("building a kernel: %w", err)
	}
	defer lock.Unlock()
	dir := filepath.Join(cache, "kernel-"+b.key(compiler))
	cached := true
	if _, err := os.Stat(filepath.Join(dir, guestimage.BuiltKernelFile)); err != nil {
		cached = false
		if err := b.make(ctx, cache, dir, compiler); err != nil {
			return nil, fmt.Errorf("building a kernel: %w", err)
		}
	}
	b.endStep()
	k, err := guestimage.LoadBuiltKernel(dir)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(filepath.Join(dir, "vmlinuz"))
	if err != nil {
		return nil, fmt.Errorf("building a kernel: %w", err)
	}
	return &Result{Dir: dir, Kernel: k, Size: info.Size(), Cached: cached, Steps: b.steps}, nil
}

func (b *build) key(compiler string) string {
	h := sha256.New()
	for _, part := range []string{schema, b.lock.Source.Package, b.lock.Source.Version, b.lock.Source.SHA256, compiler, string(wishes(b.options))} {
		fmt.Fprintf(h, "%d:%s\n", len(part), part)
	}
	return fmt.Sprintf("%x", h.Sum(nil))[:32]
}

// tools looks for what a build needs, and says which compiler it will be.
func (b *build) tools(ctx context.Context) (compiler string, err error) {
	var missing []error
	for tool, pkg := range map[string]string{
		"make": "make", "gcc": "gcc", "ld": "binutils", "flex": "flex", "bison": "bison", "bc": "bc", "zstd": "zstd", "xz": "xz-utils",
		"tar": "tar", "dpkg-deb": "dpkg", "perl": "perl",
	} {
		if _, err := exec.LookPath(tool); err != nil {
			missing = append(missing, fmt.Errorf("%s is missing (hint: apt-get install %s)", tool, pkg))
		}
	}
	if len(missing) > 0 {
		return "", fmt.Errorf("building a kernel: %w", errors.Join(missing...))
	}
	var versions []string
	for _, tool := range []string{"gcc", "ld"} {
		out, err := b.command(ctx, ".", tool, "--version").Output()
		if err != nil {
			return "", fmt.Errorf("building a kernel: %s --version: %w", tool, err)
		}
		first, _, _ := strings.Cut(string(out), "\n")
		versions = append(versions, first)
	}
	return strings.Join(versions, "; "), nil
}

// command runs in an environment of our own: what the machine sets must not reach the kernel.
func (b *build) command(ctx context.Context, dir, name string, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, name, args...)
	c.Dir = dir
	c.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "TMPDIR=" + os.TempDir(), "LC_ALL=C", "TZ=UTC", "ARCH=x86_64",
		"KBUILD_BUILD_TIMESTAMP=Thu Jan  1 00:00:00 UTC 1970", "KBUILD_BUILD_USER=cloister", "KBUILD_BUILD_HOST=cloister", "KBUILD_BUILD_VERSION=1",
		"CCACHE_DIR=" + filepath.Join(b.opts.Image.CacheDir, "ccache"), "CCACHE_MAXSIZE=1G",
	}
	// Compilers are children of make: all of them end with the context.
	c.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return unix.Kill(-c.Process.Pid, unix.SIGKILL) }
	c.WaitDelay = 10 * time.Second
	return c
}

// run keeps the end of what a tool says, for the error.
func (b *build) run(ctx context.Context, dir, name string, args ...string) error {
	var said tail
	c := b.command(ctx, dir, name, args...)
	c.Stdout, c.Stderr = &said, &said
	if err := c.Run(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("%s %s: %w: %s", name, args[len(args)-1], err, strings.TrimSpace(string(said)))
	}
	return nil
}

// tail is the end of a tool's output.
type tail []byte

func (t *tail) Write(p []byte) (int, error) {
	const most = 4 << 10
	*t = append(*t, p...)
	if over := len(*t) - most; over > 0 {
		*t = bytes.Clone((*t)[over:])
	}
	return len(p), nil
}

// make builds the kernel beside its place and moves it there.
func (b *build) make(ctx context.Context, cache, dir, compiler string) error {
	deb, err := b.source(ctx)
	if err != nil {
		return err
	}
	// Only one build runs at a time: what is here was left by one that was killed.
	old, err := filepath.Glob(filepath.Join(cache, ".new-*"))
	if err != nil {
		return err
	}
	for _, o := range old {
		if err := os.RemoveAll(o); err != nil {
			return err
		}
	}
	tmp, err := os.MkdirTemp(cache, ".new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	tree := filepath.Join(tmp, "linux")
	if err := b.unpack(ctx, deb, tmp, tree); err != nil {
		return err
	}

	b.progress("configure", fmt.Sprintf("%d options", len(b.options)))
	list := filepath.Join(tmp, "wishes")
	if err := os.WriteFile(list, wishes(b.options), 0o644); err != nil {
		return err
	}
	cc := []string{"CC=gcc", "HOSTCC=gcc"}
	if _, err := exec.LookPath("ccache"); err == nil {
		cc = []string{"CC=ccache gcc", "HOSTCC=ccache gcc"}
	}
	if err := b.run(ctx, tree, "make", append(cc, "-s", "KCONFIG_ALLCONFIG="+list, "allnoconfig")...); err != nil {
		return err
	}
	config, err := readBounded(filepath.Join(tree, ".config"))
	if err != nil {
		return err
	}
	if err := check(b.options, config); err != nil {
		return err
	}

	jobs := b.opts.Jobs
	if jobs <= 0 {
		jobs = runtime.NumCPU()
	}
	b.progress("compile", fmt.Sprintf("%s %s, %d at a time; this takes minutes", b.lock.Source.Package, b.lock.Source.Version, jobs))
	if err := b.run(ctx, tree, "make", append(cc, "-s", "-j"+strconv.Itoa(jobs), "bzImage")...); err != nil {
		if _, serr := os.Stat("/usr/include/libelf.h"); serr != nil {
			err = fmt.Errorf("%w (libelf.h is missing; hint: apt-get install libelf-dev)", err)
		}
		return err
	}
	return b.finish(tree, tmp, dir, compiler, config)
}

// finish takes the few files of the result out of the tree.
func (b *build) finish(tree, tmp, dir, compiler string, config []byte) error {
	vmlinuz, err := readBounded(filepath.Join(tree, "arch/x86/boot/bzImage"))
	if err != nil {
		return err
	}
	builtin, err := readBounded(filepath.Join(tree, "modules.builtin"))
	if err != nil {
		return err
	}
	release, err := readBounded(filepath.Join(tree, "include/config/kernel.release"))
	if err != nil {
		return err
	}
	out := filepath.Join(tmp, "out")
	if err := os.Mkdir(out, 0o755); err != nil {
		return err
	}
	k := guestimage.BuiltKernel{Release: strings.TrimSpace(string(release)), Source: b.lock.Source, Compiler: compiler}
	if err := guestimage.WriteBuiltKernel(out, k, vmlinuz, config, builtin); err != nil {
		return err
	}
	if _, err := guestimage.LoadBuiltKernel(out); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil { // one without its description, which is no kernel
		return err
	}
	return os.Rename(out, dir)
}

// source is the file of the source package.
func (b *build) source(ctx context.Context) (string, error) {
	if b.opts.Package == "" {
		o := b.opts.Image
		o.Progress = b.progress
		return guestimage.FetchSource(ctx, o, b.lock.Source)
	}
	f, err := os.Open(b.opts.Package)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("reading %s: %w", b.opts.Package, err)
	}
	if got := fmt.Sprintf("%x", h.Sum(nil)); got != b.lock.Source.SHA256 {
		return "", fmt.Errorf("%s has SHA-256 %s, the lock expects %s", b.opts.Package, got, b.lock.Source.SHA256)
	}
	return b.opts.Package, nil
}

// unpack makes the source tree. The package was checked: what is in it is the distribution's.
func (b *build) unpack(ctx context.Context, deb, tmp, tree string) error {
	b.progress("unpack", b.lock.Source.Package)
	pkg := filepath.Join(tmp, "package")
	if err := b.run(ctx, tmp, "dpkg-deb", "-x", deb, pkg); err != nil {
		return err
	}
	archive := filepath.Join(pkg, "usr/src", b.lock.Source.Package+".tar.xz")
	if err := os.Mkdir(tree, 0o755); err != nil {
		return err
	}
	if err := b.run(ctx, tmp, "tar", "-C", tree, "--strip-components=1", "--no-same-owner", "-xf", archive); err != nil {
		return err
	}
	return os.RemoveAll(pkg)
}

// maxResult bounds the files that a build leaves.
const maxResult = 256 << 20

func readBounded(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("the build left no %s: %w", filepath.Base(name), err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxResult+1))
	if err == nil && (len(data) == 0 || len(data) > maxResult) {
		err = fmt.Errorf("it has %d bytes, want 1 to %d", len(data), maxResult)
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s of the build: %w", filepath.Base(name), err)
	}
	return data, nil
}
