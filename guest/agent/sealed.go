package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/guest/container"
	"github.com/cloister/cloister/guest/gate"
)

const (
	// openedDir is where a container's volumes with opened secrets lie, in the container's own directory: neither the host
	// nor another container has a way to it, and it goes with the container.
	openedDir = "opened"
	// openedFile is the name of a volume that is a single file.
	openedFile = "file"

	maxSealedFile = 1 << 20
	// Bounds of the volumes that are copied for one container; the copies lie in memory.
	maxOpenedBytes = 64 << 20
	maxOpenedFiles = 4096
)

// neverSealed are the last parts of the names of files that a container itself may write, or that the host makes for
// every container. They hold no secrets.
func neverSealed(source string) bool {
	return slices.ContainsFunc([]string{"resolv.conf", "termination-log", "hostname", "hosts", "serviceaccount"}, func(s string) bool {
		return strings.HasSuffix(source, s)
	})
}

// unsealFiles opens the sealed files among those that the host has copied for the container. A volume that holds any is
// replaced in mounts by a copy with the secrets in their place; what the host can reach keeps the sealed text. A file
// that cannot be opened, or that the policy does not want opened, stops the container. The result is the directory of the copies.
func (a *Agent) unsealFiles(ctx context.Context, id string, mounts []container.MountSpec) (string, error) {
	shared := filepath.Join(a.cfg.Layout.Root, "shared/containers")
	dir := filepath.Join(a.cfg.Layout.Root, id, openedDir)
	budget := openBudget{bytes: maxOpenedBytes, files: maxOpenedFiles}
	for i := range mounts {
		m := &mounts[i]
		if !m.Bind() || !strings.HasPrefix(m.Source, shared+"/") || neverSealed(m.Source) {
			continue
		}
		v, err := a.copySealedVolume(m.Source, shared, filepath.Join(dir, strconv.Itoa(i)), &budget)
		if err != nil {
			return "", fmt.Errorf("looking for sealed files at %s: %w", m.Destination, err)
		}
		if v == nil {
			continue
		}
		err = a.openVolumeSecrets(ctx, v, gate.SealedFile{ContainerID: id, Destination: m.Destination, Path: m.Source})
		if err := errors.Join(err, v.copy.Close()); err != nil {
			return "", err
		}
		m.Source = v.source
	}
	return dir, nil
}

// openBudget is what may still be copied.
type openBudget struct{ bytes, files int64 }

func (b *openBudget) take(n int64) error {
	b.bytes, b.files = b.bytes-n, b.files-1
	if b.bytes < 0 || b.files < 0 {
		return invalid("volumes with sealed files have more than %d files or %d bytes", maxOpenedFiles, maxOpenedBytes)
	}
	return nil
}

// openedVolume is the copy of a volume.
type openedVolume struct {
	source  string // what the container mounts
	copy    *os.Root
	entries []openedEntry // parents before children
	sealed  []string
}

type openedEntry struct {
	name string
	info fs.FileInfo
}

// copiedIn says whether files can be those that the host has copied here. Those of its shared directory stay on the host: they can be all
// files of a node, of which each would be read here, and a copy of them would not be the volume.
func copiedIn(fs *unix.Statfs_t) bool { return fs.Type != unix.FUSE_SUPER_MAGIC }

// copySealedVolume copies a volume to target if there is a sealed file in it; otherwise the result is nil.
func (a *Agent) copySealedVolume(source, shared, target string, budget *openBudget) (_ *openedVolume, err error) {
	fd, err := container.OpenBeneath(source, []string{shared})
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("examining %s: %w", source, err)
	}
	var in unix.Statfs_t
	if err := unix.Fstatfs(fd, &in); err != nil {
		return nil, fmt.Errorf("examining %s: %w", source, err)
	}
	if !copiedIn(&in) {
		return nil, nil
	}
	self := "/proc/self/fd/" + strconv.Itoa(fd)
	v := &openedVolume{source: target}
	// The files must not change between the look and the copy.
	a.copying.Lock()
	defer a.copying.Unlock()
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		open := func(string) (*os.File, error) { return os.Open(self) }
		if ok, err := isSealed(openedFile, open); err != nil || !ok {
			return nil, err
		}
		info, err := os.Stat(self)
		if err != nil {
			return nil, err
		}
		v.source, v.sealed = filepath.Join(target, openedFile), []string{openedFile}
		v.entries = []openedEntry{{openedFile, info}}
		return v, v.fill(target, budget, open, nil)
	case unix.S_IFDIR:
		root, err := os.OpenRoot(self)
		if err != nil {
			return nil, err
		}
		defer root.Close()
		// A container may have changed what it can write to: nothing is followed, and nothing that blocks is waited for.
		open := func(name string) (*os.File, error) {
			return root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		}
		if err := v.list(root, open); err != nil || len(v.sealed) == 0 {
			return nil, err
		}
		return v, v.fill(target, budget, open, root.Readlink)
	}
	return nil, nil
}

// list finds what is in the volume, and which of its files are sealed.
func (v *openedVolume) list(root *os.Root, open func(string) (*os.File, error)) error {
	return fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := root.Lstat(name)
		if err != nil {
			return err
		}
		v.entries = append(v.entries, openedEntry{name, info})
		if !info.Mode().IsRegular() {
			return nil
		}
		sealed, err := isSealed(name, open)
		if sealed {
			v.sealed = append(v.sealed, name)
		}
		return err
	})
}

func isSealed(name string, open func(string) (*os.File, error)) (bool, error) {
	f, err := open(name)
	if err != nil {
		return false, err
	}
	defer f.Close()
	start := make([]byte, len(sealedPrefix))
	n, err := io.ReadFull(f, start)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return false, fmt.Errorf("reading %s: %w", name, err)
	}
	return string(start[:n]) == sealedPrefix, nil
}

// fill copies all entries, for nobody but the guest yet.
func (v *openedVolume) fill(target string, budget *openBudget, open func(string) (*os.File, error), readlink func(string) (string, error)) (err error) {
	if err := os.MkdirAll(target, 0o700); err != nil {
		return fmt.Errorf("making the volume's copy: %w", err)
	}
	if v.copy, err = os.OpenRoot(target); err != nil {
		return fmt.Errorf("opening the volume's copy: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, v.copy.Close())
		}
	}()
	for _, e := range v.entries {
		if err := v.add(e, budget, open, readlink); err != nil {
			return fmt.Errorf("copying %s: %w", e.name, err)
		}
	}
	return nil
}

func (v *openedVolume) add(e openedEntry, budget *openBudget, open func(string) (*os.File, error), readlink func(string) (string, error)) error {
	switch e.info.Mode().Type() {
	case fs.ModeDir:
		if e.name == "." {
			return nil
		}
		if err := budget.take(0); err != nil {
			return err
		}
		return v.copy.Mkdir(e.name, 0o700)
	case fs.ModeSymlink:
		if err := budget.take(0); err != nil {
			return err
		}
		to, err := readlink(e.name)
		if err != nil {
			return err
		}
		return v.copy.Symlink(to, e.name)
	case 0:
		f, err := open(e.name)
		if err != nil {
			return err
		}
		defer f.Close()
		data, err := io.ReadAll(io.LimitReader(f, maxOpenedBytes+1))
		if err != nil {
			return err
		}
		if err := budget.take(int64(len(data))); err != nil {
			return err
		}
		return v.copy.WriteFile(e.name, data, 0o600)
	}
	return invalid("it is a %v, expected a file, directory or symlink", e.info.Mode().Type())
}

// openVolumeSecrets opens the sealed files of a copy and then gives all entries their owners and modes.
func (a *Agent) openVolumeSecrets(ctx context.Context, v *openedVolume, volume gate.SealedFile) error {
	for _, name := range v.sealed {
		f := volume
		if v.source == v.copy.Name() { // not a single file
			f.Name, f.Path = name, volume.Path+"/"+name
		}
		if err := a.openSecret(ctx, v.copy, name, f); err != nil {
			return fmt.Errorf("opening the sealed file %.200s: %w", path.Join(f.Destination, f.Name), err)
		}
	}
	for _, e := range slices.Backward(v.entries) {
		st, ok := e.info.Sys().(*syscall.Stat_t)
		if !ok {
			return fmt.Errorf("examining %s: no owner", e.name)
		}
		err := v.copy.Lchown(e.name, int(st.Uid), int(st.Gid))
		if err == nil && e.info.Mode().Type() != fs.ModeSymlink {
			err = v.copy.Chmod(e.name, e.info.Mode()) // after the owner, whose change clears mode bits
		}
		if err != nil {
			return fmt.Errorf("setting owner and mode: %w", err)
		}
	}
	return nil
}

// openSecret puts the secret in the place of the sealed text. The policy is asked about the very text that is opened.
func (a *Agent) openSecret(ctx context.Context, root *os.Root, name string, f gate.SealedFile) error {
	if a.cfg.Secrets == nil {
		return fmt.Errorf("the guest runs without a data hub: %w", errUnsupported)
	}
	sealed, err := root.ReadFile(name)
	if err != nil {
		return err
	}
	if len(sealed) > maxSealedFile {
		return invalid("it has %d bytes, expected at most %d", len(sealed), maxSealedFile)
	}
	sum := sha256.Sum256(sealed)
	f.SHA256 = hex.EncodeToString(sum[:])
	if err := a.cfg.Gate.AllowUnsealFile(ctx, f); err != nil {
		return err
	}
	plain, err := a.unseal(ctx, string(bytes.TrimSpace(sealed)))
	if err != nil {
		return err
	}
	return root.WriteFile(name, []byte(plain), 0o600)
}
