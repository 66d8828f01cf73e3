package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/wire/agent"
)

// maxUppers bounds the scratch disks of containers, so that they leave places for the images' disks.
const maxUppers = 12

// upperDisk gives what the container writes over its layers a disk: a sparse file in the snapshot's own directory, where containerd counts
// what a container has written, and removes it. The guest encrypts it. Without one the guest takes memory, which is no error.
func (b *build) upperDisk(ctx context.Context, dir string) error {
	s := b.set
	inMemory := func(why string, err error) error {
		s.log.Info("what the container writes goes to the guest's memory", "container", b.req.ID, "reason", why, "error", err)
		return nil
	}
	switch {
	case s.opts.ScratchSize == 0 || b.out.RootReadonly && !b.hasImageVolumes():
		return nil
	case !filepath.IsAbs(dir):
		return inMemory("the snapshotter names no directory for it", nil)
	case s.uppers() >= maxUppers:
		return inMemory(fmt.Sprintf("%d containers of the pod have a disk for it", maxUppers), nil)
	}
	place, err := openInPod(dir, ".")
	if errors.Is(err, os.ErrNotExist) {
		return inMemory("the snapshotter's directory for it is not there", err)
	}
	if err != nil {
		return fmt.Errorf("the writable layer on the host: %w", err)
	}
	defer place.Close()
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(place.Fd()), &fs); err != nil {
		return &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	size := min(s.opts.ScratchSize, int64(min(fs.Blocks*uint64(fs.Bsize), maxScratch))) >> 20 << 20
	switch {
	case fs.Type == unix.TMPFS_MAGIC:
		return inMemory("the snapshotter's directory is memory itself", nil)
	case size < minScratch:
		return inMemory(fmt.Sprintf("the snapshotter's file system has %d bytes, a disk needs %d", size, minScratch), nil)
	}
	d, err := b.attachUpper(ctx, place, s.upperNote(dir), size)
	if ctx.Err() == nil && errors.Is(err, errNoPlace) {
		return inMemory("the disk for it cannot be added", err)
	}
	if err != nil {
		return fmt.Errorf("making the disk for what the container writes: %w", err)
	}
	// Not by storage, which knows one for each place: the layers are at the same one.
	b.out.Storages = append(b.out.Storages, &agent.Storage{Driver: d.Driver, Source: d.Address, Fstype: "ext4", MountPoint: b.out.Root,
		Options:       []string{"X-kata.overlay-upper", "X-kata.multi-layer=true"},
		DriverOptions: []string{"encryption_key=ephemeral", "create_filesystem"}})
	return nil
}

// errNoPlace means that the machine did not take a disk.
var errNoPlace = errors.New("the virtual machine took no disk")

// uppers counts the scratch disks of containers.
func (s *Set) uppers() (n int) {
	s.plug.Lock()
	defer s.plug.Unlock()
	for _, d := range s.disks {
		if d.scratch != nil {
			n++
		}
	}
	return n
}

// upperKey names the scratch disk of a snapshot's writable layer.
func upperKey(dir string) string { return "upper " + filepath.Clean(dir) }

func (s *Set) upperNote(dir string) scratchNote {
	return scratchNote{Pod: filepath.Clean(dir), Dir: ".", Name: "cloister-" + s.serial(upperKey(dir)) + ".img"}
}

// attachUpper makes the file of a container's scratch disk and attaches it.
func (b *build) attachUpper(ctx context.Context, dir *os.File, note scratchNote, size int64) (vmm.Place, error) {
	s, key := b.set, upperKey(note.Pod)
	s.plug.Lock()
	defer s.plug.Unlock()
	if s.disks[key] != nil {
		return vmm.Place{}, fmt.Errorf("%s is another container's, or its disk is still being removed", note.Pod)
	}
	if err := s.makeScratch(dir, note, size); err != nil {
		return vmm.Place{}, err
	}
	d, err := b.plugIn(ctx, key, filepath.Join(note.Pod, note.Name), attachOptions{sealed: true})
	if err != nil {
		return vmm.Place{}, errors.Join(fmt.Errorf("%w: %w", errNoPlace, err), s.dropScratch(note))
	}
	d.scratch = &note
	return d.place, nil
}
