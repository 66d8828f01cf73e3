package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/guest/container"
	"github.com/cloister/cloister/wire/agent"
)

// volumesDir is where the image volumes of a container lie, beside what it writes elsewhere: neither the host nor another container has a
// way to it, and it goes with the container.
const volumesDir = "volumes"

// imageVolumes makes the directories that a container's image declares as volumes: those of its mounts that are named as such, which
// have nothing of the host in them. They are the container's own, and can be written also where its root cannot. What they hold at first
// is what the image has there. The result is the directory of those that are new.
func (a *Agent) imageVolumes(id, rootfs string, mounts []container.MountSpec) (string, error) {
	shared := filepath.Join(a.cfg.Layout.Root, "shared/containers")
	bundle := filepath.Join(a.cfg.Layout.Root, id)
	dir := filepath.Join(bundle, volumesDir)
	// On the disk for what the container writes, if it has one.
	if upper := filepath.Join(bundle, upperDir); isDir(upper) {
		dir = filepath.Join(upper, volumesDir)
	}
	for i := range mounts {
		m := &mounts[i]
		name, ok := strings.CutPrefix(m.Source, shared+"/")
		if !ok || !m.Bind() || !agent.IsImageVolume(id, name) {
			continue
		}
		source, err := imageVolume(rootfs, m.Destination, filepath.Join(dir, strconv.Itoa(i)))
		if err != nil {
			return "", fmt.Errorf("image volume %s: %w", m.Destination, err)
		}
		m.Source = source
	}
	return dir, nil
}

func isDir(name string) bool {
	info, err := os.Lstat(name)
	return err == nil && info.IsDir()
}

// imageVolume returns what is to be mounted as the volume at a place in a container. A directory with files is that of the container's
// root itself, which the kernel copies file by file when it is written to. One that is empty, or that the image lacks, is a new one at
// fresh: a file system of its own, as programs expect that make overlays in it, and with nothing between it and a database.
func imageVolume(rootfs, place, fresh string) (string, error) {
	root, err := unix.Open(rootfs, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &os.PathError{Op: "open", Path: rootfs, Err: err}
	}
	defer unix.Close(root)
	// Links of the image lead where they do in the container.
	fd, err := unix.Openat2(root, strings.TrimPrefix(place, "/"), &unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if errors.Is(err, unix.ENOENT) {
		return fresh, makeVolume(fresh, 0o755, 0, 0)
	}
	if errors.Is(err, unix.ENOTDIR) {
		return "", invalid("the image has no directory there")
	}
	if err != nil {
		return "", &os.PathError{Op: "open", Path: place, Err: err}
	}
	dir := os.NewFile(uintptr(fd), place)
	defer dir.Close()
	switch _, err := dir.Readdirnames(1); {
	case err == nil:
		return os.Readlink(fdPath(dir)) // its name without links, below rootfs
	case !errors.Is(err, io.EOF):
		return "", fmt.Errorf("reading the image's directory: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", fmt.Errorf("examining the image's directory: %w", err)
	}
	return fresh, makeVolume(fresh, st.Mode&0o7777, int(st.Uid), int(st.Gid))
}

// makeVolume makes an empty directory that looks as the image's.
func makeVolume(at string, mode uint32, uid, gid int) error {
	if err := os.MkdirAll(filepath.Dir(at), 0o700); err != nil {
		return fmt.Errorf("making the volume: %w", err)
	}
	if err := os.Mkdir(at, 0o700); err != nil {
		return fmt.Errorf("making the volume: %w", err)
	}
	// The owner first: a change of it clears mode bits.
	if err := errors.Join(os.Lchown(at, uid, gid), unix.Chmod(at, mode)); err != nil {
		return fmt.Errorf("making the volume: %w", err)
	}
	return nil
}
