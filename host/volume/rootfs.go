package volume

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/wire/agent"
)

// kataVolume introduces a volume of Kata's snapshotters among the options of a mount: base64 of JSON.
const kataVolume = "io.katacontainers.volume="

// pauseImage stands for the pod's own container, which the guest brings itself.
const pauseImage = "pause"

// virtualVolume is as much of Kata's volume description as has a meaning here.
type virtualVolume struct {
	Type   string `json:"volume_type"`
	Source string `json:"source"`
	Pull   *struct {
		Metadata map[string]string `json:"metadata"`
	} `json:"image_pull"`
}

const typeGuestPull = "image_guest_pull"

// rootfs provides the root file system.
func (b *build) rootfs(ctx context.Context) error {
	v, err := findVirtualVolume(b.req.Rootfs)
	if err != nil {
		return err
	}
	c := b.set.opts.Config
	if v == nil && !c.Storage.GuestPull {
		if done, err := b.layerRoot(ctx); done || err != nil {
			return err
		}
	}
	if v != nil || c.Confidential() || c.Storage.GuestPull {
		return b.guestPull(v)
	}
	if done, err := b.blockRoot(ctx); done || err != nil {
		return err
	}
	sh := b.set.opts.Share
	if sh == nil {
		return fmt.Errorf("there is no shared file system for it (storage.shared_fs is %q)\nhint: set storage.guest_pull = true, or use a "+
			"snapshotter of block devices", c.SharedFS())
	}
	list := b.req.Rootfs
	if len(list) == 0 { // mounted by the caller in the bundle
		dir := b.req.Spec.Root.Path
		if !filepath.IsAbs(dir) {
			dir = filepath.Join(b.req.Bundle, dir)
		}
		list = []Mount{{Type: "bind", Source: dir, Options: []string{"rbind"}}}
	}
	path, err := sh.Mount(b.req.ID, list)
	if err != nil {
		return err
	}
	b.held.shared = append(b.held.shared, b.req.ID)
	b.out.Root = path
	return nil
}

func (b *build) containerRoot() string { return guestRoot + "/" + b.req.ID + "/rootfs" }

// guestPull lets the guest pull the image.
func (b *build) guestPull(v *virtualVolume) error {
	notes := b.req.Spec.Annotations
	image := pauseImage
	if !b.req.Sandbox {
		image = firstOf(notes, "io.kubernetes.cri.image-name", "io.kubernetes.cri-o.ImageName")
		if image == "" {
			return errors.New("the guest shall pull the image, but no annotation names it\nhint: io.kubernetes.cri.image-name is set by containerd's " +
				"CRI plugin and can be set with `ctr run --annotation`")
		}
	}
	metadata := map[string]string{}
	if v != nil && v.Pull != nil {
		maps.Copy(metadata, v.Pull.Metadata)
	}
	maps.Copy(metadata, notes)
	option, err := pullOption(metadata)
	if err != nil {
		return err
	}
	b.out.Root = b.containerRoot()
	b.storage(&agent.Storage{Driver: driverImage, DriverOptions: []string{option}, Source: image, Fstype: "overlay", MountPoint: b.out.Root})
	return nil
}

// pullOption is the driver option of a guest pull; it is compared by policies as text.
func pullOption(metadata map[string]string) (string, error) {
	var text strings.Builder
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(map[string]any{"metadata": metadata}); err != nil {
		return "", err
	}
	return driverImage + "=" + strings.TrimSuffix(text.String(), "\n"), nil
}

// findVirtualVolume looks for a guest pull that the snapshotter asks for.
func findVirtualVolume(list []Mount) (*virtualVolume, error) {
	for _, m := range list {
		for _, o := range m.Options {
			text, ok := strings.CutPrefix(o, kataVolume)
			if !ok {
				continue
			}
			if len(text) > 1<<20 {
				return nil, fmt.Errorf("the snapshotter's volume description has %d bytes", len(text))
			}
			raw, err := base64.StdEncoding.DecodeString(text)
			if err != nil {
				return nil, fmt.Errorf("reading the snapshotter's volume description: %w", err)
			}
			var v virtualVolume
			if err := json.Unmarshal(raw, &v); err != nil {
				return nil, fmt.Errorf("reading the snapshotter's volume description: %w", err)
			}
			if v.Type != typeGuestPull {
				return nil, fmt.Errorf("the snapshotter's volume type %.40q is not supported\nhint: only %s is", v.Type, typeGuestPull)
			}
			return &v, nil
		}
	}
	return nil, nil
}

// blockFileSystem is the one that the guest mounts writably from a disk. A disk with another one is mounted here, and shared.
const blockFileSystem = "ext4"

// blockRoot gives the guest a root file system that is a disk: of the devmapper or the blockfile snapshotter.
func (b *build) blockRoot(ctx context.Context) (done bool, err error) {
	if len(b.req.Rootfs) != 1 || b.req.Rootfs[0].Type != blockFileSystem {
		return false, nil
	}
	m := b.req.Rootfs[0]
	if m.Target != "" {
		return false, fmt.Errorf("target %q inside of the root file system is not supported", m.Target)
	}
	src, err := openSource(m.Source, "")
	if err != nil {
		return false, err
	}
	defer src.file.Close()
	if !src.block() && !src.regular() {
		return false, nil
	}
	ro := slices.Contains(m.Options, "ro")
	d, err := b.attach(ctx, src, attachOptions{readOnly: ro})
	if errors.Is(err, errors.ErrUnsupported) && src.block() && b.set.opts.Share != nil {
		b.set.log.Info("the root file system's disk cannot be plugged and is shared instead", "container", b.req.ID, "reason", err)
		return false, nil
	}
	if err != nil {
		return false, err
	}
	options := slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return o == "loop" || strings.HasPrefix(o, "loop=") })
	b.out.Root = b.containerRoot()
	b.storage(&agent.Storage{Driver: d.place.Driver, Source: d.place.Address, Fstype: m.Type, Options: options, MountPoint: b.out.Root})
	return true, nil
}

func firstOf(m map[string]string, keys ...string) string {
	for _, k := range keys {
		if m[k] != "" {
			return m[k]
		}
	}
	return ""
}

// deviceNode is the node of a block device below /dev, found by its number: the name that a specification gives may lead elsewhere
// by the time it is opened.
func deviceNode(major, minor uint32) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/uevent", major, minor))
	if err != nil {
		return "", fmt.Errorf("block device %d:%d: %w", major, minor, err)
	}
	for line := range strings.Lines(string(b)) {
		name, ok := strings.CutPrefix(strings.TrimSpace(line), "DEVNAME=")
		if !ok {
			continue
		}
		node := filepath.Join("/dev", name)
		var st unix.Stat_t
		if err := unix.Lstat(node, &st); err != nil {
			return "", &os.PathError{Op: "stat", Path: node, Err: err}
		}
		if st.Mode&unix.S_IFMT != unix.S_IFBLK || unix.Major(st.Rdev) != major || unix.Minor(st.Rdev) != minor {
			return "", fmt.Errorf("%s is not block device %d:%d", node, major, minor)
		}
		return node, nil
	}
	return "", fmt.Errorf("block device %d:%d has no name", major, minor)
}
