package guestimage

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// maxLockSize bounds a lock file; a real one has a few hundred bytes.
const maxLockSize = 64 << 10

// Lock pins what the build takes from elsewhere.
type Lock struct {
	Kernel KernelLock `toml:"kernel"`
	// Source is the source package of that kernel, from which a small kernel
	// can be built; empty when the distribution had none.
	Source SourceLock `toml:"kernel_source,omitempty"`
	Runc   RuncLock   `toml:"runc"`
}

// KernelLock pins the kernel package of the distribution.
type KernelLock struct {
	// Series is the upstream series ("6.12") a replacement must belong to.
	Series  string `toml:"series"`
	Package string `toml:"package"`
	Version string `toml:"version"`
	Suite   string `toml:"suite"`
	SHA256  string `toml:"sha256"`
}

// RuncLock pins the runc module. Sum is its go.sum hash; runc's own go.sum,
// which is part of the module, pins what it depends on.
type RuncLock struct {
	Version string `toml:"version"`
	Sum     string `toml:"sum"`
}

// Foreign text from the lock ends up in argument lists: these patterns keep
// it to what the tools expect, and never starting with a dash.
var (
	reSeries     = regexp.MustCompile(`^[0-9]{1,3}\.[0-9]{1,3}$`)
	rePackage    = regexp.MustCompile(`^linux-image-[0-9][a-z0-9.+~-]{0,100}$`)
	reSource     = regexp.MustCompile(`^linux-source-[0-9]{1,3}\.[0-9]{1,3}$`)
	reRelease    = regexp.MustCompile(`^[0-9][A-Za-z0-9.+~_-]{0,63}$`)
	reVersion    = regexp.MustCompile(`^[0-9][A-Za-z0-9.+~:-]{0,100}$`)
	reSuite      = regexp.MustCompile(`^[a-z][a-z0-9-]{0,40}$`)
	reModVersion = regexp.MustCompile(`^v[0-9]+\.[0-9]+\.[0-9]+[0-9A-Za-z.+-]{0,60}$`)
	reModSum     = regexp.MustCompile(`^h1:[A-Za-z0-9+/]{43}=$`)
)

// Validate reports every fault of the lock at once.
func (l *Lock) Validate() error {
	var errs []error
	check := func(name, got string, re *regexp.Regexp) {
		if !re.MatchString(got) {
			errs = append(errs, fmt.Errorf("%s = %q does not look like one (expected %s)", name, got, re))
		}
	}
	check("kernel.series", l.Kernel.Series, reSeries)
	check("kernel.package", l.Kernel.Package, rePackage)
	check("kernel.version", l.Kernel.Version, reVersion)
	check("kernel.suite", l.Kernel.Suite, reSuite)
	if !isSHA256(l.Kernel.SHA256) {
		errs = append(errs, fmt.Errorf("kernel.sha256 = %q is not a SHA-256 in hex", l.Kernel.SHA256))
	}
	if l.Source != (SourceLock{}) {
		errs = append(errs, l.Source.Validate())
	}
	check("runc.version", l.Runc.Version, reModVersion)
	check("runc.sum", l.Runc.Sum, reModSum)
	return errors.Join(errs...)
}

func isSHA256(s string) bool {
	sum, err := hex.DecodeString(s)
	return err == nil && len(sum) == 32
}

// ParseLock reads a lock; unknown keys are an error.
func ParseLock(data []byte) (*Lock, error) {
	if len(data) > maxLockSize {
		return nil, fmt.Errorf("lock has %d bytes, more than %d", len(data), maxLockSize)
	}
	var l Lock
	dec := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields()
	if err := dec.Decode(&l); err != nil {
		var strict *toml.StrictMissingError
		if errors.As(err, &strict) {
			return nil, fmt.Errorf("unknown keys:\n%s", strict.String())
		}
		return nil, err
	}
	if err := l.Validate(); err != nil {
		return nil, err
	}
	return &l, nil
}

// LoadLock reads the lock file at path.
func LoadLock(path string) (*Lock, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the guest lock: %w", err)
	}
	l, err := ParseLock(data)
	if err != nil {
		return nil, fmt.Errorf("guest lock %s: %w", path, err)
	}
	return l, nil
}

// Marshal writes the lock with the comment that tells a reader how it is
// refreshed.
func (l *Lock) Marshal() ([]byte, error) {
	body, err := toml.Marshal(l)
	if err != nil {
		return nil, fmt.Errorf("encoding the guest lock: %w", err)
	}
	var b strings.Builder
	b.WriteString("# What the guest image takes from elsewhere.\n")
	b.WriteString("# Refreshed by `cloister guest build --update-lock`.\n\n")
	b.Write(body)
	return []byte(b.String()), nil
}

// Save writes the lock so that a crash leaves the old or the new one.
func (l *Lock) Save(path string) error {
	if err := l.Validate(); err != nil {
		return fmt.Errorf("refusing to write a faulty guest lock: %w", err)
	}
	data, err := l.Marshal()
	if err != nil {
		return err
	}
	return writeFileAtomic(path, data, 0o644)
}

// writeFileAtomic replaces path by rename.
func writeFileAtomic(path string, data []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}
