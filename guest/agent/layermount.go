package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/guest/crypt"
	"github.com/cloister/cloister/guest/device"
	"github.com/cloister/cloister/layer/sealed"
	"github.com/cloister/cloister/wire/agent"
)

// addLayers makes the root file system of a container of layers that the host has attached, and returns its key.
func (a *Agent) addLayers(ctx context.Context, containerID string, list []*agent.Storage) (string, error) {
	bundle := filepath.Join(a.cfg.Layout.Root, containerID)
	rootfs := filepath.Join(bundle, "rootfs")
	if containerID == "" {
		return "", invalid("layers belong to a container, not to the sandbox")
	}
	l, err := parseLayers(list, rootfs)
	if err != nil {
		return "", err
	}
	ready := make(chan struct{})
	close(ready) // nobody else can know of it
	st := &storage{refs: 1, ready: ready}
	a.mu.Lock()
	_, taken := a.storages[rootfs]
	if !taken {
		a.storages[rootfs] = st
	}
	a.mu.Unlock()
	if taken {
		return "", invalid("there is a root file system at %s already", rootfs)
	}
	if st.undo, err = a.mountLayers(ctx, containerID, bundle, l); err != nil {
		a.mu.Lock()
		delete(a.storages, rootfs)
		a.mu.Unlock()
		return "", err
	}
	a.log.Info("layers mounted", "container", containerID, "layers", len(l.lowers))
	return rootfs, nil
}

// mountLayers verifies and mounts the layers and puts a writable one over them. What it returns undoes it, from the top down.
func (a *Agent) mountLayers(ctx context.Context, containerID, bundle string, l *layered) (_ func() error, err error) {
	var undo undoList
	var lowers []*lowerMount
	defer func() {
		if err != nil {
			for _, m := range lowers {
				err = errors.Join(err, m.hide())
			}
			err = errors.Join(err, undo.run())
		}
	}()
	if err := a.cfg.Modules.Load(append(crypt.VerityModules(), "erofs", "overlay")...); err != nil {
		return nil, err
	}
	upper, rootfs := filepath.Join(bundle, upperDir), filepath.Join(bundle, "rootfs")
	dir := filepath.Dir(upper)
	for _, d := range []string{upper, rootfs} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("making the container's directory: %w", err)
		}
	}
	lowers, err = a.openLowers(ctx, dir, l.lowers)
	for _, m := range lowers {
		undo.add(m.close)
	}
	if err != nil {
		return nil, err
	}
	if l.upper != nil {
		done, err := a.blockStorage(ctx, containerID, l.upper)
		if err != nil {
			return nil, fmt.Errorf("writable layer: %w", err)
		}
		undo.add(done)
	}
	done, err := overlayLayers(lowers, upper, rootfs)
	if err != nil {
		return nil, err
	}
	undo.add(done)
	// The overlay has the layers for itself: where they were mounted they are not needed any more, and hold nothing.
	for _, m := range lowers {
		if err := m.hide(); err != nil {
			return nil, err
		}
	}
	return undo.run, nil
}

// lowerMount is a layer that is there.
type lowerMount struct {
	place string
	mount *os.File // nil when it is mounted nowhere
	disk  *crypt.Disk
}

// hide unmounts the layer, which stays for those who have it open.
func (m *lowerMount) hide() error {
	if m.mount == nil {
		return nil
	}
	err := detach(m.mount)
	m.mount = nil
	return errors.Join(err, os.Remove(m.place))
}

// close removes the device below the layer.
func (m *lowerMount) close() error {
	if m.disk == nil {
		return nil
	}
	return m.disk.Close()
}

// layersAtOnce bounds the layers that are opened at the same time; most of it is waiting for the kernel.
const layersAtOnce = 8

// openLowers mounts all layers below dir. Those that it returns are mounted, or left to be removed, also with an error.
func (a *Agent) openLowers(ctx context.Context, dir string, list []*lowerLayer) ([]*lowerMount, error) {
	out := make([]*lowerMount, len(list))
	disks := diskTable{agent: a, disks: map[[2]string]device.Block{}, keys: map[string][]byte{}}
	defer disks.forget()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(layersAtOnce)
	for i := range list {
		out[i] = &lowerMount{place: filepath.Join(dir, "lower-"+strconv.Itoa(i))}
		g.Go(func() error {
			if err := a.openLower(ctx, &disks, list[i], out[i]); err != nil {
				return fmt.Errorf("%s: %w", list[i], err)
			}
			return nil
		})
	}
	return out, g.Wait()
}

// diskTable finds each disk, and fetches each key, once.
type diskTable struct {
	agent *Agent
	mu    sync.Mutex
	disks map[[2]string]device.Block
	keys  map[string][]byte // of the broker, by name
}

// forget clears the keys.
func (t *diskTable) forget() {
	for _, k := range t.keys {
		clear(k)
	}
}

// layerKey is the key of a sealed layer with this salt.
func (t *diskTable) layerKey(ctx context.Context, id string, salt []byte) ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	key, ok := t.keys[id]
	if !ok {
		if t.agent.cfg.Keys == nil {
			return nil, fmt.Errorf("fetching the key %s: the guest runs without a data hub: %w", id, errUnsupported)
		}
		ctx, cancel := context.WithTimeout(ctx, t.agent.cfg.HubTimeout)
		defer cancel()
		var err error
		if key, err = t.agent.cfg.Keys.Resource(ctx, id); err != nil {
			return nil, fmt.Errorf("fetching the key %s: %w", id, err)
		}
		t.keys[id] = key
	}
	return sealed.LayerKey(key, salt)
}

// unseal puts decryption on a verified layer.
func (t *diskTable) unseal(ctx context.Context, name, id string, disk *crypt.Disk) error {
	if err := t.agent.cfg.Modules.Load(crypt.SealedModules()...); err != nil {
		return err
	}
	key, err := t.layerKey(ctx, id, disk.Salt)
	if err != nil {
		return err
	}
	defer clear(key)
	return disk.Decrypt(name, key)
}

func (t *diskTable) find(ctx context.Context, driver, source string) (device.Block, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	key := [2]string{driver, source}
	if d, ok := t.disks[key]; ok {
		return d, nil
	}
	d, err := t.agent.cfg.Devices.Find(ctx, driver, source)
	if err == nil {
		t.disks[key] = d
	}
	return d, err
}

func (a *Agent) openLower(ctx context.Context, disks *diskTable, l *lowerLayer, m *lowerMount) error {
	if l.verity == nil {
		if err := a.allowHostStorage(ctx, l.storage); err != nil {
			return err
		}
	}
	disk, err := disks.find(ctx, l.driver, l.source)
	if err == nil && l.partition {
		disk, err = a.cfg.Devices.Partition(ctx, disk, l.number)
	}
	if err != nil {
		return err
	}
	node := a.cfg.Devices.Path(disk)
	if l.verity != nil {
		name := fmt.Sprintf("verity-%s-%d-%s", disk.Name, a.layers.Add(1), l.verity.Root[:min(32, len(l.verity.Root))])
		if m.disk, err = crypt.OpenVerity(name, node, disk.Size, *l.verity); err != nil {
			return err
		}
		if l.keyID != "" {
			if err := disks.unseal(ctx, name+"-plain", l.keyID, m.disk); err != nil {
				return err
			}
		}
		node = m.disk.Node
	}
	mount, err := openFS("erofs", node, mountArgs{attrs: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NODEV, flags: []string{"ro"}})
	if errors.Is(err, unix.EIO) && l.verity != nil {
		return fmt.Errorf("what the host has attached does not fit the root hash: %w", err)
	}
	if errors.Is(err, unix.EINVAL) && l.keyID != "" {
		return fmt.Errorf("the key %s does not open it: %w", l.keyID, err)
	}
	if err != nil {
		return err
	}
	if err := attachAt(mount, m.place); err != nil {
		return errors.Join(err, mount.Close())
	}
	m.mount = mount
	return nil
}

// attachAt shows a mount at a new directory, or one that is there.
func attachAt(mount *os.File, place string) error {
	if err := os.MkdirAll(place, 0o700); err != nil {
		return fmt.Errorf("making the place of a mount: %w", err)
	}
	at, err := os.Open(place)
	if err != nil {
		return fmt.Errorf("opening the place of a mount: %w", err)
	}
	defer at.Close()
	return attach(mount, at)
}

// overlayLayers shows the layers, with a writable one in upper over them, at rootfs.
func overlayLayers(lowers []*lowerMount, upper, rootfs string) (func() error, error) {
	dirs := []string{filepath.Join(upper, "upper"), filepath.Join(upper, "work")}
	for _, dir := range dirs {
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("making the writable layer: %w", err)
		}
	}
	// The root directory itself looks as that of the topmost layer.
	var st unix.Stat_t
	err := unix.Fstat(int(lowers[0].mount.Fd()), &st)
	if err == nil {
		err = errors.Join(os.Lchown(dirs[0], int(st.Uid), int(st.Gid)), unix.Chmod(dirs[0], st.Mode&0o7777))
	}
	if err != nil {
		return nil, fmt.Errorf("making the writable layer: %w", err)
	}
	// One by one, because all of them together can be longer than the page that mount(2) takes. Layers never come with redirects or
	// metadata-only copies; if they seem to, the kernel must not follow.
	m := mountArgs{attrs: unix.MOUNT_ATTR_NODEV}
	for _, l := range lowers {
		m.values = append(m.values, [2]string{"lowerdir+", l.place})
	}
	m.values = append(m.values, [2]string{"upperdir", dirs[0]}, [2]string{"workdir", dirs[1]},
		[2]string{"redirect_dir", "nofollow"}, [2]string{"metacopy", "off"}, [2]string{"index", "off"})
	overlay, err := openFS("overlay", "layers", m)
	if err != nil {
		return nil, fmt.Errorf("putting %d layers together: %w", len(lowers), err)
	}
	if err := attachAt(overlay, rootfs); err != nil {
		return nil, errors.Join(err, overlay.Close())
	}
	return func() error { return detach(overlay) }, nil
}
