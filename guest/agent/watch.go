package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/guest/container"
	"github.com/cloister/cloister/wire/agent"
)

// Limits of a watched volume, those of the kata agent. A larger one is shown as it is.
const (
	maxWatchedFiles = 16
	maxWatchedBytes = 1 << 20
	watchEvery      = 2 * time.Second
)

// errTooLarge says that a volume is above the limits.
var errTooLarge = errors.New("too large to be watched")

// watched is a small volume of the host that is copied again and again, because the kernel does not tell about changes
// in a shared directory.
type watched struct {
	source *os.Root
	target *os.Root
	have   map[string]watchedFile
}

// watchedFile is a file as it was copied.
type watchedFile struct {
	mode     fs.FileMode
	uid, gid uint32
	data     []byte // of a file, or the target of a symlink
}

// watchStorage shows a copy of a shared directory, renewed while the storage lives. The copy lies in memory of the
// guest and is bound to the mount point.
func (a *Agent) watchStorage(s *agent.Storage) (_ func() error, err error) {
	options := slices.DeleteFunc(slices.Clone(s.GetOptions()), func(o string) bool { return o == "bind" || o == "rbind" })
	opts, err := parseMount(options, nil)
	if err != nil {
		return nil, err
	}
	shared := filepath.Join(a.cfg.Layout.Root, "shared/containers")
	fd, err := container.OpenBeneath(filepath.Clean(s.GetSource()), []string{shared})
	if err != nil {
		return nil, err
	}
	source := os.NewFile(uintptr(fd), s.GetSource())
	defer source.Close()
	if info, err := source.Stat(); err != nil || !info.IsDir() {
		return nil, invalid("watched volume %.120q is not a directory", s.GetSource())
	}
	at, err := a.openVolume(s.GetMountPoint(), "sandbox", "shared/containers")
	if err != nil {
		return nil, err
	}
	defer at.Close()
	w := &watched{have: map[string]watchedFile{}}
	if w.source, err = os.OpenRoot(fdPath(source)); err != nil {
		return nil, fmt.Errorf("opening the watched volume: %w", err)
	}
	now, err := w.read()
	if errors.Is(err, errTooLarge) {
		a.log.Info("volume is shown without a copy", "source", s.GetSource(), "reason", err)
		return bindThere(source, at, opts, w.source.Close)
	}
	if err != nil {
		return nil, errors.Join(err, w.source.Close())
	}
	mount, err := openFS("tmpfs", "watched", mountArgs{attrs: opts.attrs &^ unix.MOUNT_ATTR_RDONLY, values: [][2]string{{"size", "4m"}, {"nr_inodes", "256"}, {"mode", "0755"}}})
	if err != nil {
		return nil, errors.Join(err, w.source.Close())
	}
	if w.target, err = os.OpenRoot(fdPath(mount)); err == nil {
		if err = w.update(now); err == nil {
			err = attach(mount, at)
		}
	}
	if err != nil {
		return nil, errors.Join(err, w.source.Close(), mount.Close())
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		w.follow(ctx, a)
	}()
	return func() error {
		stop()
		<-ended
		return errors.Join(w.source.Close(), w.target.Close(), detach(mount))
	}, nil
}

// bindThere shows a directory at another.
func bindThere(source, at *os.File, opts mountArgs, done func() error) (func() error, error) {
	fd, err := unix.OpenTree(int(source.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("binding the volume: %w", err), done())
	}
	mount := os.NewFile(uintptr(fd), source.Name())
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: uint64(opts.attrs)})
	if err == nil {
		err = attach(mount, at)
	}
	if err != nil {
		return nil, errors.Join(err, mount.Close(), done())
	}
	return func() error { return errors.Join(detach(mount), done()) }, nil
}

// follow copies what changes until ctx ends.
func (w *watched) follow(ctx context.Context, a *Agent) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now, err := w.read()
		if err == nil {
			err = w.update(now)
		}
		if err != nil {
			// What was copied stays; the host may be in the middle of a change.
			a.log.Warn("watched volume not renewed", "volume", w.source.Name(), "error", err)
		}
	}
}

// read takes in all of the volume, within the limits.
func (w *watched) read() (map[string]watchedFile, error) {
	now, size := map[string]watchedFile{}, 0
	err := fs.WalkDir(w.source.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		if len(now) == maxWatchedFiles {
			return fmt.Errorf("%w: more than %d files", errTooLarge, maxWatchedFiles)
		}
		f, err := w.readFile(name, d.Type(), maxWatchedBytes-size)
		size += len(f.data)
		now[name] = f
		return err
	})
	return now, err
}

func (w *watched) readFile(name string, kind fs.FileMode, room int) (watchedFile, error) {
	info, err := w.source.Lstat(name)
	if err != nil {
		return watchedFile{}, err
	}
	out := watchedFile{mode: info.Mode()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		out.uid, out.gid = st.Uid, st.Gid
	}
	switch kind {
	case fs.ModeDir:
	case fs.ModeSymlink:
		to, err := w.source.Readlink(name)
		if err != nil {
			return out, err
		}
		out.data = []byte(to)
	case 0:
		f, err := w.source.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err != nil {
			return out, err
		}
		defer f.Close()
		if out.data, err = io.ReadAll(io.LimitReader(f, int64(room)+1)); err != nil {
			return out, err
		}
		if len(out.data) > room {
			return out, fmt.Errorf("%w: more than %d bytes", errTooLarge, maxWatchedBytes)
		}
	default:
		return out, invalid("%s in a watched volume is a %v", name, kind)
	}
	return out, nil
}

// update makes the copy what now says. New files come first, then symlinks, which are replaced in one step: that is how
// Kubernetes switches a volume from one version to the next.
func (w *watched) update(now map[string]watchedFile) error {
	for _, links := range []bool{false, true} {
		for name, f := range now {
			old, known := w.have[name]
			if f.mode.Type() == fs.ModeSymlink != links || known && old.mode == f.mode && old.uid == f.uid && old.gid == f.gid && bytes.Equal(old.data, f.data) {
				continue
			}
			if err := w.put(name, f, known && old.mode.Type() != f.mode.Type()); err != nil {
				return fmt.Errorf("copying %s: %w", name, err)
			}
			w.have[name] = f
		}
	}
	for name := range w.have {
		if _, ok := now[name]; ok {
			continue
		}
		if err := w.target.RemoveAll(name); err != nil {
			return fmt.Errorf("removing %s: %w", name, err)
		}
		delete(w.have, name)
	}
	return nil
}

func (w *watched) put(name string, f watchedFile, replace bool) error {
	if replace {
		if err := w.target.RemoveAll(name); err != nil {
			return err
		}
	}
	if err := w.target.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	if f.mode.IsDir() {
		if err := w.target.MkdirAll(name, 0o700); err != nil {
			return err
		}
		return errors.Join(w.target.Chown(name, int(f.uid), int(f.gid)), w.target.Chmod(name, f.mode))
	}
	tmp := filepath.Join(filepath.Dir(name), ".cloister-"+strings.TrimPrefix(filepath.Base(name), "."))
	if err := w.target.RemoveAll(tmp); err != nil {
		return err
	}
	if f.mode.Type() == fs.ModeSymlink {
		if err := w.target.Symlink(string(f.data), tmp); err != nil {
			return err
		}
		return w.target.Rename(tmp, name)
	}
	err := w.target.WriteFile(tmp, f.data, 0o600)
	if err == nil {
		err = errors.Join(w.target.Chown(tmp, int(f.uid), int(f.gid)), w.target.Chmod(tmp, f.mode))
	}
	if err != nil {
		return err
	}
	return w.target.Rename(tmp, name)
}
