package guestimage

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/internal/needs"
)

// buildLimit is generous: two compilers may share a busy machine.
const buildLimit = 25 * time.Minute

// needBuildTools skips on a machine that cannot build an image.
func needBuildTools(t *testing.T) {
	t.Helper()
	needs.Long(t, "builds whole images")
	needs.Programs(t, "apt-get", "dpkg-deb", "gcc", "pkg-config", "go")
	needs.Files(t, debianKeyring, defaultFirmwareCode)
}

// TestTwoBuildsAreIdentical builds from two copies of the source in different
// folders, with different caches (of ours and of the Go tool), and compares
// every file.
func TestTwoBuildsAreIdentical(t *testing.T) {
	needBuildTools(t)
	ctx, cancel := context.WithTimeout(t.Context(), buildLimit)
	defer cancel()
	repo, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(t.TempDir(), "elsewhere", "tree")
	copySource(t, repo, copied)

	var dirs [2]string
	for i, source := range []string{repo, copied} {
		o := Options{CacheDir: t.TempDir(), LockPath: filepath.Join(repo, "guest.lock"), RepoDir: source}
		if i == 1 {
			t.Setenv("GOCACHE", t.TempDir())
			t.Setenv("GOFLAGS", "-gcflags=all=-N")
			t.Setenv("CGO_CFLAGS", "-O0 -g")
			t.Setenv("TZ", "Pacific/Apia")
			t.Setenv("LANG", "tr_TR.UTF-8")
		}
		began := time.Now()
		res, err := Build(ctx, o)
		if err != nil {
			if errors.Is(err, errNotOffered) || strings.Contains(err.Error(), "fetching the package index") {
				needs.Missing(t, "a Debian mirror: %v", err)
			}
			t.Fatal(err)
		}
		t.Logf("build %d: %v, initrd %s, guest %s, %s", i, time.Since(began).Round(time.Second),
			megabytes(int(res.Manifest.Initrd.Size)), megabytes(int(res.Manifest.Binaries.GuestSize)), res.Notice)
		dirs[i] = res.Dir

		again, err := Build(ctx, o)
		if err != nil {
			t.Fatal(err)
		}
		if !again.Cached || again.Dir != res.Dir {
			t.Errorf("build %d: nothing changed, and it was built again in %s", i, again.Dir)
		}
	}
	for _, name := range []string{"vmlinuz", "initrd.img", "initrd.cpio", "manifest.json", "sbom.spdx.json"} {
		a, err := os.ReadFile(filepath.Join(dirs[0], name))
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(dirs[1], name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(a, b) {
			t.Errorf("%s differs between the builds: %s and %s", name, hexSHA256(a), hexSHA256(b))
		}
	}
}

// copySource copies what the Go tool looks at.
func copySource(t *testing.T, from, to string) {
	t.Helper()
	err := filepath.WalkDir(from, func(p string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if strings.HasPrefix(d.Name(), ".") && rel != "." {
				return filepath.SkipDir
			}
			return os.MkdirAll(filepath.Join(to, rel), 0o755)
		}
		info, err := d.Info()
		if err != nil || !info.Mode().IsRegular() || info.Size() > 4<<20 {
			return err
		}
		data, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), data, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestKernelIsChecked runs apt for real, with a lock that is wrong in two ways.
func TestKernelIsChecked(t *testing.T) {
	needBuildTools(t)
	ctx, cancel := context.WithTimeout(t.Context(), buildLimit)
	defer cancel()
	lock, err := LoadLock("../../guest.lock")
	if err != nil {
		t.Fatal(err)
	}
	o := Options{CacheDir: t.TempDir(), Strict: true}
	if _, err := NewestKernel(ctx, o, "6.12"); err != nil {
		needs.Missing(t, "a Debian mirror: %v", err)
	}

	k := lock.Kernel
	k.SHA256 = strings.Repeat("00", 32)
	if _, err := FetchKernel(ctx, o, k); errors.Is(err, errNotOffered) {
		needs.Optional(t, "the locked kernel is gone from the mirror: %v", err)
	} else if err == nil || !strings.Contains(err.Error(), "the lock expects 0000") {
		t.Errorf("wrong digest: got %v", err)
	}

	gone := *lock
	gone.Kernel.Version = "6.12.1-1~bpo12+1"
	gone.Kernel.SHA256 = strings.Repeat("11", 32)
	b, err := newBuilder(o)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := b.obtainKernel(ctx, gone); err == nil || !strings.Contains(err.Error(), "--update-lock") {
		t.Errorf("a version that is gone, strict: got %v", err)
	}
	b.opts.Strict = false
	deb, holds, notice, err := b.obtainKernel(ctx, gone)
	if err != nil {
		t.Fatal(err)
	}
	if holds.Kernel.Version == gone.Kernel.Version || !strings.Contains(notice, "no longer offers") {
		t.Errorf("a version that is gone: used %s, notice %q", holds.Kernel.Version, notice)
	}
	if _, again, _, err := b.obtainKernel(ctx, gone); err != nil || again != holds {
		t.Errorf("the second time another kernel is used: %+v %v", again.Kernel, err)
	}
	if got, _, err := fileSHA256(deb); err != nil || got != holds.Kernel.SHA256 {
		t.Errorf("package has digest %s, expected %s (%v)", got, holds.Kernel.SHA256, err)
	}

	// A keyring without the distribution's keys: apt must refuse the index.
	bad := o
	bad.CacheDir = t.TempDir()
	bad.Keyring = filepath.Join(t.TempDir(), "empty.gpg")
	if err := os.WriteFile(bad.Keyring, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := NewestKernel(ctx, bad, "6.12"); err == nil {
		t.Error("an index that no known key has signed was accepted")
	}
	left, err := os.ReadDir(o.CacheDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range left {
		if strings.HasPrefix(e.Name(), ".") {
			t.Errorf("left behind: %s", e.Name())
		}
	}
}
