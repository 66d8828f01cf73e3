package volume

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/host/blockmount"
	"github.com/cloister/cloister/host/layerdisk"
	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/layer/verity"
	"github.com/cloister/cloister/wire/agent"
)

// blockLayer is a layer of an image, as the guest is told of it.
type blockLayer struct {
	blockmount.Layer
	size      int64
	inode     string // tells files apart
	blockSize int
	hashSize  int
}

// layerRoot gives the guest a root file system of layers that a snapshotter has as files with dm-verity hashes. The guest verifies them and
// puts a writable layer of its own over them. done is false when the root is another one, or this virtual machine takes no disks.
func (b *build) layerRoot(ctx context.Context) (done bool, err error) {
	layers, upper, err := b.findLayers()
	if err != nil || len(layers) == 0 {
		return false, err
	}
	if b.req.Sandbox {
		return true, b.guestPull(nil) // nothing of its image is used
	}
	b.out.Root = b.containerRoot()
	disk, err := b.oneDisk(ctx, layers)
	if err == nil {
		for i, l := range layers {
			b.layer(l, disk.place, "X-kata.gpt-partitioned=true", fmt.Sprintf("X-kata.partition-number=%d", i+1))
		}
		return true, b.upperDisk(ctx, upper)
	}
	if !errors.Is(err, errors.ErrUnsupported) {
		return false, err
	}
	why := err
	for i, l := range layers {
		d, err := b.attachLayer(ctx, l)
		if errors.Is(err, errors.ErrUnsupported) && i == 0 {
			b.set.log.Info("the layers of the image cannot be attached", "container", b.req.ID, "one_disk", why, "disk_each", err)
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("layer %d of %d: %w", i+1, len(layers), err)
		}
		b.layer(l, d.place, fmt.Sprintf("X-cloister.layer-number=%d", i+1))
	}
	if b.set.opts.ScratchSize > 0 { // the places of the machine's bus are for layers
		b.set.log.Info("what the container writes goes to the guest's memory", "container", b.req.ID, "reason", "each layer is a disk")
	}
	return true, nil
}

// findLayers looks at the snapshotter's mounts, and at the files that they name. upper is the host's directory for what is written, or "".
func (b *build) findLayers() (_ []blockLayer, upper string, err error) {
	var mounts []blockmount.Mount
	for _, m := range b.req.Rootfs {
		mounts = append(mounts, blockmount.Mount{Type: m.Type, Source: m.Source, Options: m.Options})
	}
	found, upper, err := blockmount.Layers(mounts)
	if err != nil || len(found) == 0 {
		return nil, "", err
	}
	if len(found) > layerdisk.MaxLayers {
		return nil, "", fmt.Errorf("the image has %d layers, at most %d can be attached\nhint: set storage.guest_pull = true, or merge layers of the image",
			len(found), layerdisk.MaxLayers)
	}
	if err := b.set.checkUpper(upper); err != nil {
		return nil, "", err
	}
	layers := make([]blockLayer, len(found))
	for i, l := range found {
		if layers[i], err = examineLayer(l); err != nil {
			return nil, "", fmt.Errorf("layer %d of %d: %w", i+1, len(found), err)
		}
	}
	return layers, upper, nil
}

// checkUpper refuses what would be lost: what the host has written over the layers does not go to the guest.
func (s *Set) checkUpper(dir string) error {
	if dir == "" {
		return nil
	}
	f, err := os.Open(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("the writable layer on the host: %w", err)
	}
	defer f.Close()
	names, err := f.Readdirnames(2)
	if err != nil && err != io.EOF {
		return fmt.Errorf("the writable layer on the host: %w", err)
	}
	// A scratch disk of before, of a container with this root that was made and removed, is made anew.
	names = slices.DeleteFunc(names, func(n string) bool { return n == s.upperNote(dir).Name })
	if len(names) > 0 {
		return fmt.Errorf("something has been written over the image on the host (%s in %s), which the guest would not see\n"+
			"hint: user namespaces and other changes of the host to the root file system do not work with attached layers", names[0], dir)
	}
	return nil
}

// examineLayer reads what the guest is told beside what the snapshotter says.
func examineLayer(l blockmount.Layer) (blockLayer, error) {
	out := blockLayer{Layer: l}
	f, err := os.OpenFile(l.File, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return out, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return out, &os.PathError{Op: "stat", Path: l.File, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size <= l.HashOffset {
		return out, fmt.Errorf("%s is not a file with hashes at byte %d", l.File, l.HashOffset)
	}
	super, err := verity.ReadSuperblock(f, l.HashOffset)
	if err != nil {
		return out, fmt.Errorf("%s: %w", l.File, err)
	}
	out.size, out.inode = st.Size, fmt.Sprintf("%d %d", st.Dev, st.Ino)
	out.blockSize, out.hashSize = super.DataBlock, super.HashBlock
	return out, nil
}

// layer is the storage of one layer.
func (b *build) layer(l blockLayer, at vmm.Place, number ...string) {
	options := append([]string{"X-kata.overlay-lower", "X-kata.multi-layer=true"}, number...)
	options = append(options, "X-kata.dmverity-enabled=true", "X-kata.dmverity.roothash="+l.Root,
		fmt.Sprintf("X-kata.dmverity.hashoffset=%d", l.HashOffset), "X-kata.dmverity.no-superblock=false",
		fmt.Sprintf("X-kata.dmverity.blocksize=%d", l.blockSize), fmt.Sprintf("X-kata.dmverity.hashsize=%d", l.hashSize))
	if l.KeyID != "" {
		options = append(options, "X-cloister.sealed.key-id="+l.KeyID)
	}
	b.out.Storages = append(b.out.Storages, &agent.Storage{Driver: at.Driver, Source: at.Address, Fstype: "erofs", Options: options, MountPoint: b.out.Root})
}

// oneDisk attaches all layers as one disk, once for all containers of the pod that have the same.
func (b *build) oneDisk(ctx context.Context, layers []blockLayer) (*disk, error) {
	s := b.set
	key := "layers"
	var parts []layerdisk.Layer
	for i, l := range layers {
		key += " " + l.inode
		parts = append(parts, layerdisk.Layer{Path: l.File, Size: l.size, Name: fmt.Sprintf("erofs-%d", i)})
	}
	sum := sha256.Sum256([]byte(key))
	dir := filepath.Join(s.opts.Dir, hex.EncodeToString(sum[:16])+layerSuffix)
	s.plug.Lock()
	defer s.plug.Unlock()
	known := s.disks[key] != nil
	descriptor := ""
	if !known {
		var err error
		if descriptor, err = layerdisk.Write(dir, parts); err != nil {
			return nil, errors.Join(err, os.RemoveAll(dir))
		}
	}
	d, err := b.plugIn(ctx, key, descriptor, attachOptions{readOnly: true, format: vmm.FormatVMDK})
	if err != nil && !known {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	if err == nil {
		d.dir = dir
	}
	return d, err
}

// layerSuffix ends the names of directories with the table of a disk of layers.
const layerSuffix = ".layers"

// attachLayer attaches one layer as a disk.
func (b *build) attachLayer(ctx context.Context, l blockLayer) (*disk, error) {
	if strings.ContainsAny(l.File, "\x00\n") {
		return nil, fmt.Errorf("file %q", l.File)
	}
	b.set.plug.Lock()
	defer b.set.plug.Unlock()
	return b.plugIn(ctx, "file "+l.inode, l.File, attachOptions{readOnly: true})
}
