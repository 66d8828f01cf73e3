package guestimage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// obtainKernel returns the file of the locked kernel package and the lock that
// holds. That is the given one, unless the mirror has dropped its version and
// the caller accepts the newest of the same series instead; then notice says
// so.
func (b *builder) obtainKernel(ctx context.Context, lock Lock) (deb string, holds Lock, notice string, err error) {
	if deb, ok := b.cachedDeb(lock.Kernel.SHA256); ok {
		return deb, lock, "", nil
	}
	b.progress("kernel", fmt.Sprintf("fetching %s %s", lock.Kernel.Package, lock.Kernel.Version))
	deb, err = b.fetchKernel(ctx, lock.Kernel)
	if err == nil {
		return deb, lock, "", nil
	}
	if !errors.Is(err, errNotOffered) {
		return "", lock, "", err
	}
	if b.opts.Strict {
		return "", lock, "", fmt.Errorf("%w (hint: cloister guest build --update-lock)", err)
	}

	// An earlier build may have met this already. Its choice stays, so that
	// the image does not change from one build to the next.
	memo := filepath.Join(b.cache.dir, "replaces-"+lock.Kernel.SHA256[:32]+".lock")
	if old, lerr := LoadLock(memo); lerr == nil && old.Runc == lock.Runc {
		if deb, ok := b.cachedDeb(old.Kernel.SHA256); ok {
			return deb, *old, replacedNotice(lock, *old, memo), nil
		}
	}
	k, ferr := b.newestKernel(ctx, lock.Kernel.Series)
	if ferr != nil {
		return "", lock, "", fmt.Errorf("%w; looking for another kernel of series %s: %w", err, lock.Kernel.Series, ferr)
	}
	holds = lock
	holds.Kernel = k
	if deb, err = b.fetchKernel(ctx, k); err != nil {
		return "", lock, "", err
	}
	if err := holds.Save(memo); err != nil {
		return "", lock, "", err
	}
	return deb, holds, replacedNotice(lock, holds, memo), nil
}

func replacedNotice(locked, used Lock, memo string) string {
	return fmt.Sprintf("the mirror no longer offers %s %s; used %s %s from %s instead (recorded in %s; refresh the lock with `cloister guest build --update-lock`)",
		locked.Kernel.Package, locked.Kernel.Version, used.Kernel.Package, used.Kernel.Version, used.Kernel.Suite, memo)
}

func (b *builder) debPath(sha string) string {
	return filepath.Join(b.cache.dir, "deb-"+sha, "kernel.deb")
}

// cachedDeb looks for a package by the digest it must have.
func (b *builder) cachedDeb(sha string) (string, bool) {
	p := b.debPath(sha)
	got, _, err := fileSHA256(p)
	return p, err == nil && got == sha
}

// fetchKernel downloads a package through apt and checks it against the lock.
func (b *builder) fetchKernel(ctx context.Context, k KernelLock) (string, error) {
	file, err := b.downloadChecked(ctx, k.Suite, k.Package, k.Version, k.SHA256)
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(filepath.Dir(file))
	// A package of that digest may be there, damaged: replace it.
	if err := os.RemoveAll(filepath.Dir(b.debPath(k.SHA256))); err != nil {
		return "", err
	}
	dir, _, err := b.cache.get("deb", k.SHA256, func(dir string) error {
		return os.Rename(file, filepath.Join(dir, "kernel.deb"))
	})
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "kernel.deb"), nil
}

// downloadChecked downloads a package through apt into a folder of its own
// and checks its digest. The caller removes the folder.
func (b *builder) downloadChecked(ctx context.Context, suite, pkg, version, sum string) (string, error) {
	a, err := b.apt(ctx, suite)
	if err != nil {
		return "", err
	}
	file, err := a.download(ctx, kernelPackage{Package: pkg, Version: version}, b.cache.dir)
	if err != nil {
		return "", err
	}
	got, _, err := fileSHA256(file)
	if err == nil && got != sum {
		err = fmt.Errorf("it has SHA-256 %s, the lock expects %s", got, sum)
	}
	if err != nil {
		os.RemoveAll(filepath.Dir(file))
		return "", fmt.Errorf("checking kernel package %s %s: %w", pkg, version, err)
	}
	return file, nil
}

// newestKernel asks each suite in turn for the newest kernel of a series.
func (b *builder) newestKernel(ctx context.Context, series string) (KernelLock, error) {
	var errs []error
	for _, suite := range b.opts.Suites {
		a, err := b.apt(ctx, suite)
		if err != nil {
			return KernelLock{}, err
		}
		k, err := a.newest(ctx, series)
		if err != nil {
			errs = append(errs, fmt.Errorf("suite %s: %w", suite, err))
			continue
		}
		return KernelLock{
			Series: kernelSeries(k.Package), Package: k.Package, Version: k.Version, Suite: k.Suite, SHA256: k.SHA256,
		}, nil
	}
	return KernelLock{}, errors.Join(errs...)
}

func (b *builder) apt(ctx context.Context, suite string) (*apt, error) {
	if a := b.apts[suite]; a != nil {
		return a, nil
	}
	a, err := newApt(ctx, filepath.Join(b.cache.dir, "apt"), b.opts.Mirror, suite, b.opts.Keyring)
	if err != nil {
		return nil, err
	}
	b.apts[suite] = a
	return a, nil
}

// NewestKernel finds the newest cloud kernel of a series ("6.1") that the
// suites of the options offer.
func NewestKernel(ctx context.Context, o Options, series string) (KernelLock, error) {
	if !reSeries.MatchString(series) {
		return KernelLock{}, fmt.Errorf("kernel series %q does not look like one", series)
	}
	b, release, err := openBuilder(ctx, o)
	if err != nil {
		return KernelLock{}, err
	}
	defer release()
	return b.newestKernel(ctx, series)
}

// FetchKernel gets exactly this kernel package and returns the file of the
// kernel in it. Files stay in the cache.
func FetchKernel(ctx context.Context, o Options, k KernelLock) (vmlinuz string, err error) {
	b, release, err := openBuilder(ctx, o)
	if err != nil {
		return "", err
	}
	defer release()
	deb, ok := b.cachedDeb(k.SHA256)
	if !ok {
		b.progress("kernel", fmt.Sprintf("fetching %s %s", k.Package, k.Version))
		if deb, err = b.fetchKernel(ctx, k); err != nil {
			return "", err
		}
	}
	dir, _, err := b.cache.get("kernel", k.SHA256, func(dir string) error {
		tree, err := readKernelPackage(ctx, deb)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, "vmlinuz"), tree.Kernel, 0o644)
	})
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "vmlinuz"), nil
}
