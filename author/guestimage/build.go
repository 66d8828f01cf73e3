package guestimage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	wire "github.com/cloister/cloister/wire/guestimage"
)

// Budgets of the image. In an initrd every byte is guest memory. The guest's target is 23 MB (docs/limits.md).
const (
	GuestBudget  = 23_500_000
	InitrdBudget = 40_000_000
)

// BaseCmdline is the kernel command line an image is measured with. Under emulation on a busy host the kernel may not see its timer tick in the
// time that it looks for, and would panic: with KVM it does not look, and no_timer_check says so here.
const BaseCmdline = "console=ttyS0 quiet panic=-1 oops=panic no_timer_check cloister.initdata=required"

// buildSchema is part of every key: raise it when the same inputs should give
// another image.
const buildSchema = "4"

// Options say what to build from and where. Zero values take the defaults.
type Options struct {
	// CacheDir holds downloads, parts and finished images.
	CacheDir string
	// LockPath is the lock file, normally guest.lock in the repository.
	LockPath string
	// RepoDir is the source tree the guest binary is built from.
	RepoDir string
	// GuestBinary is a ready guest binary to use instead of RepoDir.
	GuestBinary string
	// KernelDir holds a kernel that package guestkernel has built, to take
	// instead of the distribution's.
	KernelDir string
	// Cmdline is recorded in the manifest; BaseCmdline by default.
	Cmdline string
	// Suites are asked in this order for a kernel when the lock is refreshed
	// or its version is gone.
	Suites []string
	// Mirror is the Debian mirror; by default the one of this machine.
	Mirror string
	// Keyring holds the distribution's signing keys.
	Keyring string
	// FirmwareCode and FirmwareVars are the OVMF files the guest boots with.
	FirmwareCode, FirmwareVars string
	// Strict refuses any kernel but the locked one.
	Strict bool
	// Progress is told of each step as it begins.
	Progress func(step, detail string)
}

// Default firmware of Debian's ovmf package.
const (
	defaultFirmwareCode = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	defaultFirmwareVars = "/usr/share/OVMF/OVMF_VARS_4M.fd"
)

func (o Options) withDefaults() (Options, error) {
	var errs []error
	if o.CacheDir == "" {
		errs = append(errs, errors.New("guest build: option CacheDir is empty"))
	}
	def := func(p *string, v string) {
		if *p == "" {
			*p = v
		}
	}
	def(&o.Cmdline, BaseCmdline)
	def(&o.Keyring, debianKeyring)
	def(&o.FirmwareCode, defaultFirmwareCode)
	def(&o.FirmwareVars, defaultFirmwareVars)
	def(&o.Mirror, machineMirror("/etc/apt"))
	if len(o.Suites) == 0 {
		o.Suites = []string{"bookworm-backports", "trixie"}
	}
	if o.Progress == nil {
		o.Progress = func(string, string) {}
	}
	for _, p := range []*string{&o.CacheDir, &o.LockPath, &o.RepoDir, &o.GuestBinary, &o.KernelDir} {
		if *p == "" {
			continue
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		*p = abs
	}
	return o, errors.Join(errs...)
}

// Result is a finished image.
type Result struct {
	// Dir holds vmlinuz, initrd.img, initrd.cpio, manifest.json and sbom.spdx.json.
	Dir      string
	Manifest *wire.Manifest
	// Cached says that nothing had to be built.
	Cached bool
	// Notice is set when the image is not made of what the lock says.
	Notice string
	// Steps are the times of what was done.
	Steps []Step
}

// Step is one timed part of a build.
type Step struct {
	Name string
	Took time.Duration
}

type builder struct {
	opts  Options
	cache cache
	apts  map[string]*apt
	steps []Step
	began time.Time
}

// progress announces a step and notes how long the one before it took.
func (b *builder) progress(step, detail string) {
	b.endStep()
	b.steps = append(b.steps, Step{Name: step})
	b.began = time.Now()
	b.opts.Progress(step, detail)
}

func (b *builder) endStep() {
	if n := len(b.steps); n > 0 && b.steps[n-1].Took == 0 {
		b.steps[n-1].Took = time.Since(b.began)
	}
}

func newBuilder(o Options) (*builder, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := hostCheck(); err != nil {
		return nil, err
	}
	return &builder{opts: o, cache: cache{o.CacheDir}, apts: map[string]*apt{}}, nil
}

// openBuilder checks the options and takes the cache for itself.
func openBuilder(ctx context.Context, o Options) (*builder, func(), error) {
	b, err := newBuilder(o)
	if err != nil {
		return nil, nil, err
	}
	release, err := b.cache.lock(ctx, func() {
		b.progress("wait", "another guest build uses "+b.cache.dir)
	})
	if err != nil {
		return nil, nil, err
	}
	return b, release, nil
}

// Build makes the image, or finds it in the cache.
func Build(ctx context.Context, o Options) (*Result, error) {
	if o.LockPath == "" || (o.RepoDir == "" && o.GuestBinary == "") {
		return nil, errors.New("guest build: options LockPath and RepoDir (or GuestBinary) are needed")
	}
	b, release, err := openBuilder(ctx, o)
	if err != nil {
		return nil, err
	}
	defer release()
	lock, err := LoadLock(b.opts.LockPath)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			err = fmt.Errorf("%w (hint: cloister guest build --update-lock)", err)
		}
		return nil, err
	}
	return b.build(ctx, *lock)
}

func (b *builder) build(ctx context.Context, lock Lock) (*Result, error) {
	b.progress("inputs", "looking at what the image is made of")
	kernel, built, lock, notice, err := b.kernel(ctx, lock)
	if err != nil {
		return nil, err
	}
	in, err := b.inputs(ctx, lock)
	if err != nil {
		return nil, err
	}
	in.built = built
	dir, cached, err := b.cache.get("image", in.imageKey(), func(dir string) error {
		return b.fill(ctx, dir, kernel, in)
	})
	if err != nil {
		return nil, err
	}
	m, err := wire.Load(dir)
	if err == nil {
		err = m.Verify(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("%w (hint: remove %s)", err, dir)
	}
	now := time.Now()
	if err := os.Chtimes(dir, now, now); err != nil {
		return nil, err
	}
	if err := b.cache.pointCurrent(dir); err != nil {
		return nil, err
	}
	for _, kind := range []string{"image", "runc", "deb"} {
		if err := b.cache.sweep(kind, 4); err != nil {
			return nil, fmt.Errorf("cleaning the guest cache: %w", err)
		}
	}
	b.endStep()
	return &Result{Dir: dir, Manifest: m, Cached: cached, Notice: notice, Steps: b.steps}, nil
}

// kernel finds the kernel of the image: a way to read it, what marks one that
// was built from source, and the lock with the package it comes from.
func (b *builder) kernel(ctx context.Context, lock Lock) (read func() (*kernelTree, error), built string, holds Lock, notice string, err error) {
	if b.opts.KernelDir == "" {
		deb, holds, notice, err := b.obtainKernel(ctx, lock)
		return func() (*kernelTree, error) { return readKernelPackage(ctx, deb) }, "", holds, notice, err
	}
	tree, k, err := readBuiltKernel(b.opts.KernelDir)
	if err != nil {
		return nil, "", lock, "", err
	}
	lock.Kernel = KernelLock{
		Series: strings.TrimPrefix(k.Source.Package, "linux-source-"), Package: k.Source.Package, Version: k.Source.Version,
		Suite: k.Source.Suite, SHA256: k.Source.SHA256,
	}
	return func() (*kernelTree, error) { return tree, nil }, k.Vmlinuz + k.Config + k.Builtin, lock, "", nil
}

// inputs are the keys of everything that goes in.
type inputs struct {
	lock       Lock
	built      string // the digests of a kernel built from source
	goVersion  string
	guest      string // sources or binary
	toolchain  string // C side of runc
	cmdline    string
	roots      []byte
	code, vars firmwareFile
}

type firmwareFile struct{ path, sha256 string }

func (in inputs) imageKey() string {
	parts := []string{
		"image", buildSchema, in.goVersion, in.guest, in.runcKey(), in.cmdline, hexSHA256(in.roots),
		in.lock.Kernel.Package, in.lock.Kernel.Version, in.lock.Kernel.SHA256,
		in.code.path, in.code.sha256, in.vars.path, in.vars.sha256,
	}
	for _, w := range wantedModules() {
		parts = append(parts, fmt.Sprint(w))
	}
	if in.built != "" {
		parts = append(parts, "built kernel", in.built)
	}
	return key(parts...)
}

func (in inputs) runcKey() string {
	return key("runc", buildSchema, in.goVersion, in.toolchain, in.lock.Runc.Version, in.lock.Runc.Sum, runcTags)
}

func (b *builder) inputs(ctx context.Context, lock Lock) (inputs, error) {
	in := inputs{lock: lock, cmdline: b.opts.Cmdline}
	var err error
	dir := b.opts.RepoDir
	if dir == "" {
		dir = b.cache.dir
	}
	if in.goVersion, err = goVersion(ctx, dir); err != nil {
		return in, err
	}
	if in.toolchain, err = cToolchain(ctx); err != nil {
		return in, err
	}
	if in.roots, err = publicRoots(); err != nil {
		return in, err
	}
	if b.opts.GuestBinary != "" {
		in.guest, _, err = fileSHA256(b.opts.GuestBinary)
	} else {
		in.guest, err = guestSourceKey(ctx, b.opts.RepoDir)
	}
	if err != nil {
		return in, err
	}
	for _, f := range []struct {
		dst  *firmwareFile
		path string
	}{{&in.code, b.opts.FirmwareCode}, {&in.vars, b.opts.FirmwareVars}} {
		sum, _, err := fileSHA256(f.path)
		if err != nil {
			return in, fmt.Errorf("the guest's firmware is needed to record its measurement: %w (hint: apt-get install ovmf)", err)
		}
		*f.dst = firmwareFile{f.path, sum}
	}
	return in, nil
}

// requiredConfig is what the image relies on without a module of its own.
var requiredConfig = []string{
	"CONFIG_RD_ZSTD=y", "CONFIG_EFI_STUB=y", "CONFIG_DEVTMPFS=y", "CONFIG_TMPFS=y", "CONFIG_SECURITYFS=y",
	"CONFIG_CGROUP_PIDS=y", "CONFIG_SECCOMP=y", "CONFIG_SERIAL_8250_CONSOLE=y", "CONFIG_UNIX=y",
}

func (b *builder) fill(ctx context.Context, dir string, kernel func() (*kernelTree, error), in inputs) error {
	guestData, err := b.guestBinary(ctx)
	if err != nil {
		return err
	}
	runcData, err := b.runcBinary(ctx, in)
	if err != nil {
		return err
	}

	b.progress("kernel", "reading "+in.lock.Kernel.Package+", resolving modules")
	tree, err := kernel()
	if err != nil {
		return err
	}
	if err := tree.requireConfig(requiredConfig...); err != nil {
		return err
	}
	mods, err := selectModules(tree, wantedModules())
	if err != nil {
		return err
	}

	b.progress("initrd", "packing")
	plain, err := packInitrd(initrdInput{Release: tree.Release, Guest: guestData, Runc: runcData, Roots: in.roots, Modules: mods})
	if err != nil {
		return err
	}
	initrd, err := compressInitrd(plain)
	if err != nil {
		return err
	}
	if err := checkBudgets(len(guestData), len(runcData), mods, len(initrd)); err != nil {
		return err
	}
	sbom, err := makeSBOM(sbomInput{Kernel: in.lock.Kernel, Runc: in.lock.Runc, Guest: guestData, RuncBinary: runcData, Roots: in.roots, InitrdSHA256: hexSHA256(initrd)})
	if err != nil {
		return err
	}
	m, err := newManifest(in, tree, mods, guestData, runcData, initrd, plain).Marshal()
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{
		"vmlinuz": tree.Kernel, "initrd.img": initrd, "initrd.cpio": plain, "sbom.spdx.json": sbom, wire.ManifestName: m,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return fmt.Errorf("writing the guest image: %w", err)
		}
	}
	return nil
}

func (b *builder) guestBinary(ctx context.Context) ([]byte, error) {
	if b.opts.GuestBinary != "" {
		return os.ReadFile(b.opts.GuestBinary)
	}
	b.progress("guest", "building the guest binary")
	tmp, err := os.MkdirTemp(b.cache.dir, ".new-guest-")
	if err != nil {
		return nil, fmt.Errorf("making room in the guest cache: %w", err)
	}
	defer os.RemoveAll(tmp)
	out := filepath.Join(tmp, "cloister-guest")
	if err := buildGuest(ctx, b.opts.RepoDir, out); err != nil {
		return nil, err
	}
	return os.ReadFile(out)
}

func (b *builder) runcBinary(ctx context.Context, in inputs) ([]byte, error) {
	dir, _, err := b.cache.get("runc", in.runcKey(), func(dir string) error {
		b.progress("runc", "building runc "+in.lock.Runc.Version)
		return buildRunc(ctx, in.lock.Runc, filepath.Join(dir, "runc"))
	})
	if err != nil {
		return nil, err
	}
	return os.ReadFile(filepath.Join(dir, "runc"))
}

// checkBudgets names everything that is too big.
func checkBudgets(guest, runc int, mods *moduleSet, initrd int) error {
	var errs []error
	if guest > GuestBudget {
		errs = append(errs, fmt.Errorf("the guest binary has %s, its budget is %s", megabytes(guest), megabytes(GuestBudget)))
	}
	if initrd > InitrdBudget {
		parts := []struct {
			name string
			size int
		}{{"guest binary", guest}, {"runc", runc}}
		for p, data := range mods.Files {
			parts = append(parts, struct {
				name string
				size int
			}{p, len(data)})
		}
		sort.Slice(parts, func(i, j int) bool { return parts[i].size > parts[j].size })
		var biggest []string
		for _, p := range parts[:min(5, len(parts))] {
			biggest = append(biggest, p.name+" "+megabytes(p.size))
		}
		errs = append(errs, fmt.Errorf("the initrd has %s, its budget is %s; biggest parts before compression: %s",
			megabytes(initrd), megabytes(InitrdBudget), strings.Join(biggest, ", ")))
	}
	return errors.Join(errs...)
}

func megabytes(n int) string {
	return fmt.Sprintf("%.1f MB", float64(n)/1e6)
}

// UpdateLock writes a lock with the newest kernel of the first suite that has
// one, and the given runc version; an empty version keeps the locked one.
func UpdateLock(ctx context.Context, o Options, runcVersion string) (*Lock, error) {
	if o.LockPath == "" {
		return nil, errors.New("updating the guest lock: option LockPath is empty")
	}
	b, release, err := openBuilder(ctx, o)
	if err != nil {
		return nil, err
	}
	defer release()
	if runcVersion == "" {
		runcVersion = DefaultRuncVersion
		if old, err := LoadLock(b.opts.LockPath); err == nil {
			runcVersion = old.Runc.Version
		}
	}
	b.progress("kernel", "looking for the newest kernel")
	k, err := b.newestKernel(ctx, kernelSeriesWanted)
	if err != nil {
		return nil, err
	}
	b.progress("runc", "fetching runc "+runcVersion)
	m, err := fetchRunc(ctx, runcVersion)
	if err != nil {
		return nil, err
	}
	source, err := b.sourceOf(ctx, k)
	if err != nil {
		return nil, err
	}
	l := &Lock{Kernel: k, Source: source, Runc: RuncLock{Version: runcVersion, Sum: m.Sum}}
	if err := l.Save(b.opts.LockPath); err != nil {
		return nil, err
	}
	return l, nil
}

// DefaultRuncVersion is taken when there is no lock yet.
const DefaultRuncVersion = "v1.5.2"

// kernelSeriesWanted is the series whose cloud kernels have the TEE drivers.
const kernelSeriesWanted = "6.12"
