package volume

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/host/vmm"
)

// disk is a disk that the VM has.
type disk struct {
	serial   string
	place    vmm.Place
	readOnly bool
	refs     int
	// keep: it belongs to the pod, and stays when no container uses it.
	keep bool
	// leaving: the guest was asked to let go of it, and has not yet.
	leaving bool
	dir     string       // goes with the disk, if not ""
	scratch *scratchNote // of the file that goes with the disk, or nil
}

// attachOptions say how a disk is used.
type attachOptions struct {
	readOnly, discard, keep, sealed bool
	format                          string
}

// attach gives the VM a block device or an image file, once, and counts this container as a user.
func (b *build) attach(ctx context.Context, src *source, o attachOptions) (*disk, error) {
	name := src.path
	key := fmt.Sprintf("file %d %d", src.stat.Dev, src.stat.Ino)
	if src.block() {
		major, minor := unix.Major(src.stat.Rdev), unix.Minor(src.stat.Rdev)
		key = fmt.Sprintf("device %d:%d", major, minor)
		var err error
		if name, err = deviceNode(major, minor); err != nil {
			return nil, err
		}
	}
	b.set.plug.Lock()
	defer b.set.plug.Unlock()
	return b.plugIn(ctx, key, name, o)
}

// plugIn adds a disk, or counts one more use of it. The caller holds plug.
func (b *build) plugIn(ctx context.Context, key, name string, o attachOptions) (*disk, error) {
	s := b.set
	d := s.disks[key]
	if d == nil {
		if s.opts.Disks == nil {
			return nil, fmt.Errorf("adding the disk %s: this virtual machine takes none: %w", name, errors.ErrUnsupported)
		}
		d = &disk{serial: s.serial(key), readOnly: o.readOnly, keep: o.keep}
		var err error
		d.place, err = s.opts.Disks.AddDisk(ctx, vmm.Disk{
			Path: name, Format: o.format, ReadOnly: o.readOnly, Serial: d.serial, Discard: o.discard, Sealed: o.sealed,
		})
		if err != nil {
			return nil, fmt.Errorf("adding the disk %s: %w", name, err)
		}
		s.disks[key] = d
	}
	if d.leaving {
		return nil, fmt.Errorf("the disk %s is still being removed from the virtual machine, and cannot be added again before", name)
	}
	if d.readOnly && !o.readOnly {
		return nil, fmt.Errorf("the disk %s is attached read-only already, and now shall be written", name)
	}
	d.refs++
	b.held.disks = append(b.held.disks, key)
	return d, nil
}

// serial names a disk in the guest and to the monitor.
func (s *Set) serial(key string) string {
	sum := sha256.Sum256([]byte(s.opts.SandboxID + " " + key))
	return "v" + hex.EncodeToString(sum[:8])
}

// unplug drops one use of a disk.
func (s *Set) unplug(ctx context.Context, key string) error {
	s.plug.Lock()
	defer s.plug.Unlock()
	d := s.disks[key]
	if d == nil {
		return nil
	}
	if d.refs > 1 || d.keep {
		d.refs--
		return nil
	}
	// The guest decides when it lets go. Until it has, somebody else must not be told that the disk is free.
	d.leaving = true
	err := s.opts.Disks.RemoveDisk(ctx, d.serial)
	if err != nil && !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing a disk: %w", err)
	}
	delete(s.disks, key)
	if d.dir != "" {
		if err := os.RemoveAll(d.dir); err != nil {
			return fmt.Errorf("removing the table of a disk of layers: %w", err)
		}
	}
	if d.scratch != nil {
		return s.dropScratch(*d.scratch)
	}
	return nil
}

// scratchNote says where a scratch disk's file is, for Cleanup.
type scratchNote struct {
	Pod  string `json:"pod"`  // the kubelet's directory of the pod, or a snapshotter's for what a container writes
	Dir  string `json:"dir"`  // the volume's directory in it, "." for itself
	Name string `json:"name"` // the file's
}

const scratchSuffix = ".scratch.json"

// attachScratch makes the file of a scratch disk and attaches it, once for the pod. What is sealed the guest encrypts, so that freed blocks,
// which would tell how it uses the disk, are not given back.
func (b *build) attachScratch(ctx context.Context, src *source, size int64, sealed bool) (*disk, error) {
	s := b.set
	key := fmt.Sprintf("scratch %d %d", src.stat.Dev, src.stat.Ino)
	serial := s.serial(key)
	note := scratchNote{Pod: src.kube.pod, Dir: src.kube.rest, Name: "cloister-" + serial + ".img"}
	s.plug.Lock()
	defer s.plug.Unlock()
	known := s.disks[key] != nil
	if !known {
		if s.opts.Disks == nil {
			return nil, fmt.Errorf("this virtual machine takes no disks: %w", errors.ErrUnsupported)
		}
		if err := s.makeScratch(src.file, note, size); err != nil {
			return nil, fmt.Errorf("making the disk of emptyDir %s: %w", src.kube.name, err)
		}
	}
	d, err := b.plugIn(ctx, key, filepath.Join(src.path, note.Name), attachOptions{discard: !sealed, sealed: sealed, keep: true})
	if err != nil && !known {
		err = errors.Join(err, s.dropScratch(note))
	}
	return d, err
}

// makeScratch notes the file before it makes it, so that no crash can leave one that nobody knows of.
func (s *Set) makeScratch(place *os.File, note scratchNote, size int64) error {
	text, err := json.Marshal(note)
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.notePath(note), text, 0o600); err != nil {
		return err
	}
	dir, err := openBelow(place, ".", unix.O_RDONLY|unix.O_DIRECTORY, beneath)
	if err != nil {
		return err
	}
	defer dir.Close()
	f, err := openBelow(dir, note.Name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, beneath)
	if errors.Is(err, os.ErrExist) { // of an attempt that failed; its content's key is gone
		if err = unix.Unlinkat(int(dir.Fd()), note.Name, 0); err == nil {
			f, err = openBelow(dir, note.Name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, beneath)
		}
	}
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

func (s *Set) notePath(n scratchNote) string { return filepath.Join(s.opts.Dir, n.Name+scratchSuffix) }

func (s *Set) dropScratch(n scratchNote) error {
	if err := removeScratch(n); err != nil {
		return err
	}
	return os.Remove(s.notePath(n))
}

// removeScratch removes a scratch disk's file. That the pod's directory is gone is well.
func removeScratch(n scratchNote) error {
	if filepath.Base(n.Name) != n.Name || n.Name == "." || n.Name == ".." || !filepath.IsAbs(n.Pod) {
		return fmt.Errorf("scratch disk %.120q is not one", n.Name)
	}
	dir, err := openInPod(n.Pod, n.Dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("removing a scratch disk: %w", err)
	}
	defer dir.Close()
	if err := unix.Unlinkat(int(dir.Fd()), n.Name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("removing the scratch disk %s: %w", n.Name, err)
	}
	return nil
}
