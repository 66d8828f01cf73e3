package snapshotter

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/host/blockmount"
)

// overlayOptions are those that an upper directory needs so that it is a layer of its own: without them, where the kernel has other
// defaults, it would point into the layers below. A kernel without a feature does not know its option either.
func overlayOptions() []string {
	var options []string
	for _, feature := range []string{"index", "redirect_dir", "metacopy"} {
		if _, err := os.Stat("/sys/module/overlay/parameters/" + feature); err == nil {
			options = append(options, feature+"=off")
		}
	}
	return options
}

// need mounts the layers below a snapshot on the host and remembers who needs them.
func (s *Snapshotter) need(key string, ids []string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		if err := mountLayer(s.dir(id)); err != nil {
			return err
		}
	}
	if _, known := s.active[key]; !known {
		s.active[key] = ids
		for _, id := range ids {
			s.uses[id]++
		}
	}
	return nil
}

// release unmounts the layers that only this snapshot needed.
func (s *Snapshotter) release(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range s.active[key] {
		if s.uses[id]--; s.uses[id] > 0 {
			continue
		}
		delete(s.uses, id)
		if err := unmountLayer(s.dir(id)); err != nil {
			s.log.Warn("unmounting a layer that nothing uses", "error", err)
		}
	}
	delete(s.active, key)
}

// mounted says whether something is mounted on a directory of dir.
func mounted(dir, name string) (bool, error) {
	var parent, child unix.Stat_t
	if err := unix.Lstat(dir, &parent); err != nil {
		return false, fmt.Errorf("looking for a mount: %s: %w", dir, err)
	}
	if err := unix.Lstat(filepath.Join(dir, name), &child); err != nil {
		return false, fmt.Errorf("looking for a mount: %s: %w", filepath.Join(dir, name), err)
	}
	return parent.Dev != child.Dev, nil
}

// mountLayer mounts the layer of a snapshot's directory, if it is not. Linux from 6.12 mounts the file, others need a loop device.
func mountLayer(dir string) error {
	l, err := blockmount.Read(filepath.Join(dir, blockmount.LayerFile))
	if err != nil {
		return fmt.Errorf("mounting a layer: %w\nhint: remove its image and pull it again", err) // whether it is sealed is not known
	}
	if l.KeyID != "" {
		return nil // ciphertext, which guests open
	}
	if there, err := mounted(dir, blockmount.MountPoint); err != nil || there {
		return err
	}
	file, target := filepath.Join(dir, blockmount.LayerFile), filepath.Join(dir, blockmount.MountPoint)
	err = unix.Mount(file, target, "erofs", unix.MS_RDONLY, "")
	if errors.Is(err, unix.ENOTBLK) {
		err = loopMount(file, target)
	}
	if errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("mounting the layer %s: %w\nhint: this kernel has no EROFS: modprobe erofs", file, err)
	}
	if err != nil {
		return fmt.Errorf("mounting the layer %s: %w", file, err)
	}
	return nil
}

// unmountLayer unmounts the layer of a directory, which need not be there or have one.
func unmountLayer(dir string) error {
	there, err := mounted(dir, blockmount.MountPoint)
	if errors.Is(err, os.ErrNotExist) || err == nil && !there {
		return nil
	}
	if err != nil {
		return err
	}
	// Overlays keep what they are made of. Who else looks into it now, keeps it until done.
	if err := unix.Unmount(filepath.Join(dir, blockmount.MountPoint), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("unmounting the layer in %s: %w", dir, err)
	}
	return nil
}

// loopTries bounds the attempts to get a loop device that others want, too.
const loopTries = 64

// loopMount mounts a file by a loop device that goes with the mount.
func loopMount(file, target string) error {
	backing, err := os.Open(file)
	if err != nil {
		return err
	}
	defer backing.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("getting a loop device: %w", err)
	}
	defer control.Close()
	for range loopTries {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return fmt.Errorf("getting a loop device: %w", err)
		}
		name := fmt.Sprintf("/dev/loop%d", n)
		device, err := os.OpenFile(name, os.O_RDONLY, 0)
		if err != nil {
			return fmt.Errorf("getting a loop device: %w", err)
		}
		config := unix.LoopConfig{Fd: uint32(backing.Fd())}
		config.Info.Flags = unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR
		copy(config.Info.File_name[:len(config.Info.File_name)-1], file)
		if err := unix.IoctlLoopConfigure(int(device.Fd()), &config); err != nil {
			device.Close()
			if errors.Is(err, unix.EBUSY) {
				continue // somebody else was faster
			}
			return fmt.Errorf("setting up %s: %w", name, err)
		}
		err = unix.Mount(name, target, "erofs", unix.MS_RDONLY, "")
		device.Close() // unless it is mounted, the device is free again
		return err
	}
	return errors.New("getting a loop device: others were always faster")
}
