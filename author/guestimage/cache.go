package guestimage

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// key hashes labelled inputs. Order, label and length all count, so that no
// two different sets of inputs meet.
func key(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s\n", len(p), p)
	}
	return hex.EncodeToString(h.Sum(nil))[:32]
}

// cache is a directory of finished things, each in a directory named by the
// key of its inputs.
type cache struct {
	dir string
}

// lock waits until no other builder works in this cache.
func (c cache) lock(ctx context.Context, waiting func()) (release func(), err error) {
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return nil, fmt.Errorf("making the guest cache: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(c.dir, "lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, fmt.Errorf("locking the guest cache: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
		return func() { f.Close() }, nil
	}
	waiting()
	// flock cannot be interrupted by a context: wait beside it. The file is
	// closed by whoever ends last.
	got := make(chan error, 1)
	go func() {
		var err error
		for {
			if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
				break
			}
		}
		got <- err
	}()
	select {
	case err := <-got:
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("locking the guest cache: %w", err)
		}
		return func() { f.Close() }, nil
	case <-ctx.Done():
		go func() { <-got; f.Close() }()
		return nil, fmt.Errorf("waiting for another guest build in %s: %w", c.dir, ctx.Err())
	}
}

// path is where the thing with this key is or will be.
func (c cache) path(kind, key string) string {
	return filepath.Join(c.dir, kind+"-"+key)
}

// get returns the directory of a finished thing, or makes it: fill writes
// into a scratch directory, which takes its place by rename.
func (c cache) get(kind, key string, fill func(dir string) error) (dir string, cached bool, err error) {
	dir = c.path(kind, key)
	if _, err := os.Stat(dir); err == nil {
		return dir, true, nil
	}
	tmp, err := os.MkdirTemp(c.dir, ".new-"+kind+"-")
	if err != nil {
		return "", false, fmt.Errorf("making room in the guest cache: %w", err)
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil {
		return "", false, err
	}
	if err := fill(tmp); err != nil {
		return "", false, err
	}
	if err := syncTree(tmp); err != nil {
		return "", false, fmt.Errorf("writing the guest cache: %w", err)
	}
	if err := os.Rename(tmp, dir); err != nil {
		return "", false, fmt.Errorf("finishing %s: %w", dir, err)
	}
	return dir, false, nil
}

// syncTree makes the files of a flat directory durable before its rename.
func syncTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range append([]string{"."}, names(entries)...) {
		f, err := os.Open(filepath.Join(dir, e))
		if err != nil {
			return err
		}
		err = f.Sync()
		f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func names(entries []os.DirEntry) []string {
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// sweep removes what a killed builder left behind, and all but the newest few
// of a kind. The caller holds the lock.
func (c cache) sweep(kind string, keep int) error {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return err
	}
	type aged struct {
		name string
		mod  int64
	}
	var old []aged
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, ".new-") {
			if err := os.RemoveAll(filepath.Join(c.dir, name)); err != nil {
				return err
			}
			continue
		}
		if !strings.HasPrefix(name, kind+"-") {
			continue
		}
		info, err := e.Info()
		if err != nil {
			continue
		}
		old = append(old, aged{name, info.ModTime().UnixNano()})
	}
	sort.Slice(old, func(i, j int) bool { return old[i].mod > old[j].mod })
	for i := keep; i < len(old); i++ {
		if err := os.RemoveAll(filepath.Join(c.dir, old[i].name)); err != nil {
			return err
		}
	}
	return nil
}

// pointCurrent makes <cache>/current lead to dir.
func (c cache) pointCurrent(dir string) error {
	tmp := filepath.Join(c.dir, ".new-current")
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	if err := os.Symlink(filepath.Base(dir), tmp); err != nil {
		return fmt.Errorf("marking the current guest image: %w", err)
	}
	if err := os.Rename(tmp, filepath.Join(c.dir, "current")); err != nil {
		return fmt.Errorf("marking the current guest image: %w", err)
	}
	return nil
}
