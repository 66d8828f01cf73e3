package guestimage

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Files of a kernel that was built from source; see package guestkernel.
const (
	BuiltKernelFile = "kernel.json"
	builtVmlinuz    = "vmlinuz"
	builtConfig     = "config"
	builtBuiltin    = "modules.builtin"
)

// SourceLock pins the distribution's source package of the kernel.
type SourceLock struct {
	Package string `toml:"package" json:"package"`
	Version string `toml:"version" json:"version"`
	Suite   string `toml:"suite" json:"suite"`
	SHA256  string `toml:"sha256" json:"sha256"`
}

// BuiltKernel describes a folder with a kernel that was built from source: BuiltKernelFile says what the other files must be.
type BuiltKernel struct {
	// Release is what `uname -r` says.
	Release string     `json:"release"`
	Source  SourceLock `json:"source"`
	// Compiler is what made it. Another release of it makes another kernel.
	Compiler string `json:"compiler"`
	// The digests of the kernel, of its whole configuration, and of the list of what is built in.
	Vmlinuz string `json:"vmlinuz_sha256"`
	Config  string `json:"config_sha256"`
	Builtin string `json:"modules_builtin_sha256"`
}

// WriteBuiltKernel puts a kernel, its configuration and the list of what is built in into dir, and describes them.
func WriteBuiltKernel(dir string, k BuiltKernel, vmlinuz, config, builtin []byte) error {
	k.Vmlinuz, k.Config, k.Builtin = hexSHA256(vmlinuz), hexSHA256(config), hexSHA256(builtin)
	about, err := json.MarshalIndent(k, "", "  ")
	if err != nil {
		return fmt.Errorf("describing the kernel: %w", err)
	}
	for name, data := range map[string][]byte{
		builtVmlinuz: vmlinuz, builtConfig: config, builtBuiltin: builtin, BuiltKernelFile: append(about, '\n'),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return fmt.Errorf("writing the kernel: %w", err)
		}
	}
	return nil
}

// LoadBuiltKernel reads the description of a kernel that was built from source. It does not look at the kernel.
func LoadBuiltKernel(dir string) (*BuiltKernel, error) {
	const most = 64 << 10
	data, err := os.ReadFile(filepath.Join(dir, BuiltKernelFile))
	if err != nil {
		return nil, fmt.Errorf("reading a built kernel: %w (hint: cloister guest kernel build)", err)
	}
	if len(data) > most {
		return nil, fmt.Errorf("reading a built kernel: %s has %d bytes, more than %d", BuiltKernelFile, len(data), most)
	}
	var k BuiltKernel
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&k); err != nil {
		return nil, fmt.Errorf("reading a built kernel: %s: %w", BuiltKernelFile, err)
	}
	if !reRelease.MatchString(k.Release) {
		return nil, fmt.Errorf("reading a built kernel: release %q does not look like one", k.Release)
	}
	if err := k.Source.Validate(); err != nil {
		return nil, fmt.Errorf("reading a built kernel: %w", err)
	}
	return &k, nil
}

// readBuiltKernel is a kernel without module files, as the build of an image needs it.
func readBuiltKernel(dir string) (*kernelTree, *BuiltKernel, error) {
	k, err := LoadBuiltKernel(dir)
	if err != nil {
		return nil, nil, err
	}
	t := &kernelTree{Release: k.Release, Modules: map[string][]byte{}}
	for _, f := range []struct {
		name, sum string
		to        *[]byte
	}{{builtVmlinuz, k.Vmlinuz, &t.Kernel}, {builtConfig, k.Config, &t.Config}, {builtBuiltin, k.Builtin, &t.Builtin}} {
		info, err := os.Stat(filepath.Join(dir, f.name))
		if err == nil && info.Size() > maxKernelFile {
			err = fmt.Errorf("%s has %d bytes, more than %d", f.name, info.Size(), maxKernelFile)
		}
		if err == nil {
			*f.to, err = os.ReadFile(filepath.Join(dir, f.name))
		}
		if err == nil && hexSHA256(*f.to) != f.sum {
			err = fmt.Errorf("%s has SHA-256 %s, %s says %s (hint: remove %s)", f.name, hexSHA256(*f.to), BuiltKernelFile, f.sum, dir)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("reading a built kernel: %w", err)
		}
	}
	return t, k, nil
}

// Validate reports every fault.
func (s SourceLock) Validate() error {
	var errs []error
	for _, f := range []struct {
		name, got string
		ok        bool
	}{
		{"package", s.Package, reSource.MatchString(s.Package)}, {"version", s.Version, reVersion.MatchString(s.Version)},
		{"suite", s.Suite, reSuite.MatchString(s.Suite)}, {"sha256", s.SHA256, isSHA256(s.SHA256)},
	} {
		if !f.ok {
			errs = append(errs, fmt.Errorf("kernel_source.%s = %q does not look like one", f.name, f.got))
		}
	}
	return errors.Join(errs...)
}

// FetchSource gets exactly this source package, checked by apt and against its digest, and returns the file. It stays in the cache.
func FetchSource(ctx context.Context, o Options, s SourceLock) (deb string, err error) {
	if err := s.Validate(); err != nil {
		return "", err
	}
	b, release, err := openBuilder(ctx, o)
	if err != nil {
		return "", err
	}
	defer release()
	dir := b.cache.path("source", s.SHA256)
	deb = filepath.Join(dir, "source.deb")
	if got, _, err := fileSHA256(deb); err == nil && got == s.SHA256 {
		return deb, nil
	}
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	b.progress("source", fmt.Sprintf("fetching %s %s", s.Package, s.Version))
	_, _, err = b.cache.get("source", s.SHA256, func(dir string) error {
		file, err := b.downloadChecked(ctx, s.Suite, s.Package, s.Version, s.SHA256)
		if err != nil {
			return err
		}
		defer os.RemoveAll(filepath.Dir(file))
		return os.Rename(file, filepath.Join(dir, "source.deb"))
	})
	if errors.Is(err, errNotOffered) {
		err = fmt.Errorf("%w (hint: cloister guest build --update-lock)", err)
	}
	return deb, err
}

// sourceOf finds the source package of a kernel package in its suite; without one the result is empty.
func (b *builder) sourceOf(ctx context.Context, k KernelLock) (SourceLock, error) {
	a, err := b.apt(ctx, k.Suite)
	if err != nil {
		return SourceLock{}, err
	}
	list, _, err := a.offers(ctx, "linux-source-"+k.Series)
	if err != nil {
		return SourceLock{}, err
	}
	for _, o := range list {
		if o.Version == k.Version {
			s := SourceLock(o)
			return s, s.Validate()
		}
	}
	return SourceLock{}, nil
}
