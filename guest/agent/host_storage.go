package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/guest/crypt"
	"github.com/cloister/cloister/guest/device"
	"github.com/cloister/cloister/guest/ext4"
	"github.com/cloister/cloister/wire/agent"
)

// hostStorageRule is asked, with the storage as its input, before the guest uses files that the host can read and
// change. A policy that does not have it says no.
const hostStorageRule = "HostStorageRequest"

func (a *Agent) allowHostStorage(ctx context.Context, s *agent.Storage) error {
	if _, err := a.cfg.Gate.Begin(ctx, hostStorageRule, s); err != nil {
		return fmt.Errorf("storage that the host can read and change: %w", err)
	}
	return nil
}

// maxTag is that of virtio-fs.
const maxTag = 36

// shareStorage mounts the directory that the host shares with the whole pod.
func (a *Agent) shareStorage(ctx context.Context, containerID string, s *agent.Storage) (func() error, error) {
	want := filepath.Join(a.cfg.Layout.Root, "shared/containers")
	switch tag := s.GetSource(); {
	case containerID != "":
		return nil, invalid("a shared directory belongs to the sandbox, not to a container")
	case filepath.Clean(s.GetMountPoint()) != want:
		return nil, invalid("the shared directory belongs at %s, not %.120q", want, s.GetMountPoint())
	case s.GetFstype() != "virtiofs":
		return nil, fmt.Errorf("file system %.40q: %w", s.GetFstype(), errUnsupported)
	case tag == "" || len(tag) > maxTag || strings.ContainsAny(tag, "/\x00"):
		return nil, invalid("tag %.60q", tag)
	}
	opts, err := parseMount(s.GetOptions(), nil)
	if err != nil {
		return nil, err
	}
	if err := a.allowHostStorage(ctx, s); err != nil {
		return nil, err
	}
	if err := a.cfg.Modules.Load("virtiofs"); err != nil {
		return nil, err
	}
	at, err := os.Open(want)
	if err != nil {
		return nil, fmt.Errorf("opening the place of the shared directory: %w", err)
	}
	defer at.Close()
	var share *os.File
	err = a.cfg.Devices.Wait(ctx, "the shared directory "+s.GetSource(), func() (bool, error) {
		share, err = openFS("virtiofs", s.GetSource(), opts)
		// EINVAL is the kernel's way to say that no device has this tag.
		if errors.Is(err, unix.EINVAL) {
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		return nil, err
	}
	if err := attach(share, at); err != nil {
		return nil, errors.Join(err, share.Close())
	}
	return func() error { return detach(share) }, nil
}

// diskFS are the file systems of disks, with the options each may have.
func diskFS(fstype string) (options []string, ok bool) {
	switch fstype {
	case "ext4":
		return []string{"discard", "noload", "nobarrier", "data=ordered"}, true
	case "erofs", "squashfs":
		return nil, true
	}
	return nil, false
}

// Driver options of disks.
const (
	optionCreate    = "create_filesystem"
	optionEphemeral = "encryption_key=ephemeral"
)

// blockStorage mounts a disk. One that is encrypted with a key of this boot keeps no trust in the host; any other needs
// the policy's word.
func (a *Agent) blockStorage(ctx context.Context, containerID string, s *agent.Storage) (_ func() error, err error) {
	fsOptions, ok := diskFS(s.GetFstype())
	if !ok {
		return nil, fmt.Errorf("file system %.40q on a disk: %w", s.GetFstype(), errUnsupported)
	}
	opts, err := parseMount(s.GetOptions(), fsOptions)
	if err != nil {
		return nil, err
	}
	group, err := parseGroup(s)
	if err != nil {
		return nil, err
	}
	create, encrypt := slices.Contains(s.GetDriverOptions(), optionCreate), false
	for _, o := range s.GetDriverOptions() {
		switch {
		case o == optionEphemeral:
			encrypt = true
		case strings.HasPrefix(o, "encryption_key"):
			return nil, fmt.Errorf("driver option %.60q: %w", o, errUnsupported)
		case o != optionCreate:
			return nil, invalid("driver option %.60q", o)
		}
	}
	switch {
	case encrypt && !create:
		return nil, invalid("a key of this boot opens nothing: %s needs %s", optionEphemeral, optionCreate)
	case create && s.GetFstype() != "ext4":
		return nil, fmt.Errorf("making a file system of type %s: %w", s.GetFstype(), errUnsupported)
	case create && opts.readOnly():
		return nil, invalid("a new file system that is read-only would stay empty")
	}
	if !encrypt {
		if err := a.allowHostStorage(ctx, s); err != nil {
			return nil, err
		}
	}
	disk, err := a.cfg.Devices.Find(ctx, s.GetDriver(), s.GetSource())
	if err != nil {
		return nil, err
	}
	var undo undoList
	defer func() {
		if err != nil {
			err = errors.Join(err, undo.run())
		}
	}()
	node := a.cfg.Devices.Path(disk)
	if create {
		done, path, err := a.newFileSystem(node, disk, encrypt)
		if err != nil {
			return nil, err
		}
		undo.add(done)
		node = path
		opts.flags = append(opts.flags, "noinit_itable") // the tables are never read before they are written
	}
	if err := a.cfg.Modules.Load(s.GetFstype()); err != nil {
		return nil, err
	}
	mount, err := openFS(s.GetFstype(), node, opts)
	if err != nil {
		return nil, err
	}
	undo.add(mount.Close)
	if err := prepareDisk(mount, create, opts.readOnly(), group); err != nil {
		return nil, err
	}
	at, err := a.openDiskPlace(containerID, s.GetMountPoint())
	if err != nil {
		return nil, err
	}
	defer at.Close()
	if err := attach(mount, at); err != nil {
		return nil, err
	}
	undo.replace(func() error { return detach(mount) })
	a.log.Info("disk mounted", "disk", disk.Name, "at", s.GetMountPoint(), "fs", s.GetFstype(), "created", create, "encrypted", encrypt)
	return undo.run, nil
}

// prepareDisk makes a file system ready for its users before they see it.
func prepareDisk(mount *os.File, created, readOnly bool, group volumeGroup) error {
	root, err := openRoot(mount)
	if err != nil {
		return err
	}
	defer root.Close()
	if created {
		// Programs that want an empty directory get one.
		if err := unix.Unlinkat(int(root.Fd()), "lost+found", unix.AT_REMOVEDIR); err != nil {
			return fmt.Errorf("emptying the new file system: %w", err)
		}
	}
	if readOnly {
		return nil
	}
	return group.applyAll(root)
}

// openDiskPlace makes and opens the directory where a disk is to be seen.
func (a *Agent) openDiskPlace(containerID, p string) (*os.File, error) {
	areas := []string{"sandbox", "shared/containers"}
	if containerID != "" {
		if err := os.MkdirAll(filepath.Join(a.cfg.Layout.Root, containerID), 0o700); err != nil {
			return nil, fmt.Errorf("making the container's directory: %w", err)
		}
		areas = append(areas, containerID)
	}
	return a.openVolume(p, areas...)
}

// undoList is run from its end.
type undoList []func() error

// replace puts another step in the place of the last one.
func (u *undoList) replace(f func() error) { (*u)[len(*u)-1] = f }

func (u *undoList) add(f func() error) { *u = append(*u, f) }

func (u *undoList) run() error {
	var errs []error
	for _, f := range slices.Backward(*u) {
		errs = append(errs, f())
	}
	*u = nil
	return errors.Join(errs...)
}

// newFileSystem makes a file system on a disk, below a layer of encryption if that is asked for, and returns its node.
func (a *Agent) newFileSystem(node string, disk device.Block, encrypt bool) (func() error, string, error) {
	done, size := func() error { return nil }, disk.Size
	if encrypt {
		integrity := !a.cfg.WithoutIntegrity
		if err := a.cfg.Modules.Load(crypt.Modules(integrity)...); err != nil {
			return nil, "", err
		}
		d, err := crypt.Open("cloister-"+disk.Name, node, disk.Size, integrity)
		if err != nil {
			return nil, "", err
		}
		done, node, size = d.Close, d.Node, d.Size
	}
	if err := format(node, size); err != nil {
		return nil, "", errors.Join(err, done())
	}
	return done, node, nil
}

func format(node string, size int64) (err error) {
	f, err := os.OpenFile(node, os.O_RDWR|os.O_EXCL, 0)
	if err != nil {
		return fmt.Errorf("opening the disk: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var uuid [16]byte
	if _, err := rand.Read(uuid[:]); err != nil {
		return fmt.Errorf("naming the file system: %w", err)
	}
	uuid[6], uuid[8] = uuid[6]&0x0f|0x40, uuid[8]&0x3f|0x80 // version 4
	if err := ext4.Format(f, min(size, ext4.MaxSize), uuid, time.Now()); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("writing the file system: %w", err)
	}
	return nil
}
