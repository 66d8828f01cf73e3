package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/cloister/cloister/wire/agent"
)

// Storage drivers. What the first ones provide is made in the guest or verified by it. What comes from the host is bound
// to nothing: it needs a policy that says so, except a disk that the guest encrypts with a key of its own.
const (
	driverImage     = "image_guest_pull"
	driverEphemeral = "ephemeral"
	driverLocal     = "local"
	driverWatch     = "watchable-bind"
	driverShare     = "virtio-fs"
	driverBlock     = "blk"
	driverMMIO      = "mmioblk"
	driverSCSI      = "scsi"
)

// storageDrivers is the list reported to the host.
func storageDrivers() []string {
	return []string{driverBlock, driverEphemeral, driverLayers, driverImage, driverLocal, driverMMIO, driverSCSI, driverShare, driverWatch}
}

// storage is a mount point in use.
type storage struct {
	refs  int
	what  *agent.Storage
	keep  bool // lives until the sandbox ends
	undo  func() error
	ready chan struct{} // closed when the first user has finished mounting
	err   error
}

// addStorages provides all storages of a request, or none. The result names those to release later.
func (a *Agent) addStorages(ctx context.Context, containerID string, list []*agent.Storage) (keys []string, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, a.releaseStorages(keys))
			keys = nil
		}
	}()
	layers, rest, err := splitLayers(list)
	if err != nil {
		return nil, err
	}
	if len(layers) > 0 {
		key, err := a.addLayers(ctx, containerID, layers)
		if err != nil {
			return nil, fmt.Errorf("layers of %s: %w", containerID, err)
		}
		keys = append(keys, key)
	}
	for _, s := range rest {
		key, err := a.addStorage(ctx, containerID, s)
		if err != nil {
			return keys, fmt.Errorf("storage %s for %s: %w", s.GetDriver(), s.GetMountPoint(), err)
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// sameStorage says whether two requests want the same thing at a place: one that asks for encryption must not get what others had made
// without.
func sameStorage(a, b *agent.Storage) bool {
	return a.GetDriver() == b.GetDriver() && a.GetSource() == b.GetSource() && a.GetFstype() == b.GetFstype() &&
		slices.Equal(a.GetDriverOptions(), b.GetDriverOptions())
}

// addStorage mounts a storage, or counts one more user of a mount point that exists.
func (a *Agent) addStorage(ctx context.Context, containerID string, s *agent.Storage) (string, error) {
	key := s.GetMountPoint()
	if len(key) > 1 { // the shared directory is named with a slash at its end
		key = strings.TrimSuffix(key, "/")
	}
	if !filepath.IsAbs(key) || filepath.Clean(key) != key || strings.ContainsRune(key, 0) {
		return "", invalid("mount point %.120q", key)
	}
	a.mu.Lock()
	if st, ok := a.storages[key]; ok {
		if !sameStorage(st.what, s) {
			a.mu.Unlock()
			return "", invalid("mount point %.120q has another storage, of driver %.20q, than the driver %.20q that is asked for", key, st.what.GetDriver(), s.GetDriver())
		}
		st.refs++
		a.mu.Unlock()
		select {
		case <-st.ready:
		case <-ctx.Done():
			return "", errors.Join(ctx.Err(), a.releaseStorages([]string{key}))
		}
		if st.err != nil {
			return "", st.err
		}
		return key, nil
	}
	// A second file system over a volume would hide what the containers before have left in it.
	keep := s.GetShared() || s.GetDriver() == driverEphemeral
	st := &storage{refs: 1, what: s, keep: keep, ready: make(chan struct{})}
	a.storages[key] = st
	a.mu.Unlock()

	st.undo, st.err = a.provide(ctx, containerID, s)
	if st.err != nil {
		a.mu.Lock()
		delete(a.storages, key)
		a.mu.Unlock()
	}
	close(st.ready)
	return key, st.err
}

// releaseStorages drops one use of each.
func (a *Agent) releaseStorages(keys []string) error {
	var errs []error
	for _, key := range keys {
		a.mu.Lock()
		st := a.storages[key]
		last := false
		if st != nil {
			st.refs--
			last = st.refs <= 0 && !st.keep
			if last {
				delete(a.storages, key)
			}
		}
		a.mu.Unlock()
		if last && st.undo != nil {
			errs = append(errs, st.undo())
		}
	}
	return errors.Join(errs...)
}

func (a *Agent) provide(ctx context.Context, containerID string, s *agent.Storage) (undo func() error, err error) {
	switch s.GetDriver() {
	case driverImage:
		return a.imageStorage(ctx, containerID, s)
	case driverEphemeral:
		return a.ephemeralStorage(s)
	case driverLocal:
		return a.localStorage(s)
	case driverWatch:
		return a.watchStorage(s)
	case driverShare:
		return a.shareStorage(ctx, containerID, s)
	case driverBlock, driverMMIO, driverSCSI:
		return a.blockStorage(ctx, containerID, s)
	}
	//lint:ignore ST1005 callers of this protocol know the text
	return nil, fmt.Errorf("Failed to find the storage handler %.60s: %w", s.GetDriver(), errUnsupported)
}

// ephemeralStorage is a memory file system below the sandbox directory. It lives as long as the pod: a container that
// is restarted finds its emptyDir again.
func (a *Agent) ephemeralStorage(s *agent.Storage) (func() error, error) {
	if s.GetFstype() == "hugetlbfs" {
		return a.hugeStorage(s)
	}
	if t := s.GetFstype(); t != "tmpfs" {
		return nil, fmt.Errorf("file system %.40q: %w", t, errUnsupported)
	}
	opts, err := parseTmpfs(s)
	if err != nil {
		return nil, err
	}
	f, err := a.openVolume(s.GetMountPoint(), "sandbox")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := unix.Mount("tmpfs", fdPath(f), "tmpfs", opts.flags, opts.data); err != nil {
		return nil, fmt.Errorf("mounting: %w", err)
	}
	// The directory opened above lies below the new mount.
	mounted, err := a.openVolume(s.GetMountPoint(), "sandbox")
	if err != nil {
		return nil, err
	}
	defer mounted.Close()
	if err := opts.group.apply(mounted); err != nil {
		return nil, err
	}
	return nil, nil
}

// localStorage is a plain directory of the pod.
func (a *Agent) localStorage(s *agent.Storage) (func() error, error) {
	mode := os.FileMode(0o755)
	group, err := parseGroup(s)
	if err != nil {
		return nil, err
	}
	for _, o := range s.GetOptions() {
		text, ok := strings.CutPrefix(o, "mode=")
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(text, 8, 32)
		if err != nil || n > 0o7777 {
			return nil, invalid("option %.60q", o)
		}
		mode = os.FileMode(n)
	}
	f, err := a.openVolume(s.GetMountPoint(), "sandbox", "shared/containers")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := unix.Fchmod(int(f.Fd()), uint32(mode)); err != nil {
		return nil, fmt.Errorf("setting the mode: %w", err)
	}
	return nil, group.apply(f)
}

// openVolume makes and opens the directory of a volume, which must lie in one of the named directories of the pod. No
// symlink on the way can lead anywhere else.
func (a *Agent) openVolume(p string, areas ...string) (*os.File, error) {
	for _, area := range areas {
		base := filepath.Join(a.cfg.Layout.Root, area)
		rel, ok := strings.CutPrefix(p, base+"/")
		if !ok {
			continue
		}
		root, err := os.OpenRoot(base)
		if err != nil {
			return nil, fmt.Errorf("opening the pod's directory: %w", err)
		}
		defer root.Close()
		if err := root.MkdirAll(rel, 0o755); err != nil {
			return nil, fmt.Errorf("making the volume's directory: %w", err)
		}
		f, err := root.Open(rel)
		if err != nil {
			return nil, fmt.Errorf("opening the volume's directory: %w", err)
		}
		return f, nil
	}
	return nil, invalid("mount point %.120q is not below %s", p, strings.Join(areas, " or "))
}

func fdPath(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }

// tmpfsOptions are mount options of a memory file system.
type tmpfsOptions struct {
	flags uintptr
	data  string
	group volumeGroup
}

// parseTmpfs accepts the options a memory volume may have. It never gives devices or set-user-id programs an effect.
func parseTmpfs(s *agent.Storage) (tmpfsOptions, error) {
	out := tmpfsOptions{flags: unix.MS_NOSUID | unix.MS_NODEV}
	var data []string
	for _, o := range s.GetOptions() {
		key, value, _ := strings.Cut(o, "=")
		switch key {
		case "nosuid", "nodev", "rw", "defaults", "relatime", "fsgid", "":
		case "noexec":
			out.flags |= unix.MS_NOEXEC
		case "ro":
			out.flags |= unix.MS_RDONLY
		case "noatime":
			out.flags |= unix.MS_NOATIME
		case "size", "nr_inodes", "mode":
			if value == "" || strings.Trim(value, "0123456789kmgKMG%") != "" {
				return out, invalid("option %.60q", o)
			}
			data = append(data, o)
		default:
			if !strings.HasPrefix(o, "X-kata.") && !strings.HasPrefix(o, "io.katacontainers.") {
				return out, invalid("option %.60q", o)
			}
		}
	}
	out.data = strings.Join(data, ",")
	var err error
	out.group, err = parseGroup(s)
	return out, err
}

// volumeGroup is the group a volume is given to.
type volumeGroup struct {
	set bool
	gid int
	// onMismatch leaves a volume alone whose root is as it should be.
	onMismatch bool
}

func parseGroup(s *agent.Storage) (volumeGroup, error) {
	var g volumeGroup
	if fg := s.GetFsGroup(); fg != nil {
		g = volumeGroup{set: true, gid: int(fg.GetGroupId()), onMismatch: fg.GetGroupChangePolicy() == agent.FSGroupChangePolicy_OnRootMismatch}
	}
	for _, o := range s.GetOptions() {
		text, ok := strings.CutPrefix(o, "fsgid=")
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			return g, invalid("option %.60q", o)
		}
		g = volumeGroup{set: true, gid: int(n)}
	}
	return g, nil
}

// apply gives the new and empty directory to the group, and with the set-group-id bit all that is made in it.
func (g volumeGroup) apply(dir *os.File) error {
	if !g.set {
		return nil
	}
	info, err := dir.Stat()
	if err != nil {
		return fmt.Errorf("examining the volume: %w", err)
	}
	if err := dir.Chown(-1, g.gid); err != nil {
		return fmt.Errorf("giving the volume to group %d: %w", g.gid, err)
	}
	if err := dir.Chmod(info.Mode().Perm() | 0o770 | os.ModeSetgid | info.Mode()&os.ModeSticky); err != nil {
		return fmt.Errorf("setting the volume's mode: %w", err)
	}
	return nil
}

// UpdateEphemeralMounts changes the size of memory volumes.
func (a *Agent) UpdateEphemeralMounts(_ context.Context, req *agent.UpdateEphemeralMountsRequest) (*emptypb.Empty, error) {
	for _, s := range req.GetStorages() {
		if s.GetDriver() != driverEphemeral {
			return nil, fmt.Errorf("changing storage %.60s: %w", s.GetDriver(), errUnsupported)
		}
		a.mu.Lock()
		_, known := a.storages[s.GetMountPoint()]
		a.mu.Unlock()
		if !known {
			return nil, invalid("%.120q is not a memory volume of this pod", s.GetMountPoint())
		}
		var opts []string
		for _, o := range s.GetOptions() {
			if o != "remount" {
				opts = append(opts, o)
			}
		}
		parsed, err := parseTmpfs(&agent.Storage{Options: opts})
		if err != nil {
			return nil, err
		}
		f, err := a.openVolume(s.GetMountPoint(), "sandbox")
		if err != nil {
			return nil, err
		}
		err = unix.Mount("", fdPath(f), "", parsed.flags|unix.MS_REMOUNT, parsed.data)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("changing %s: %w", s.GetMountPoint(), err)
		}
	}
	return &emptypb.Empty{}, nil
}
