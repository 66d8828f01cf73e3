package volume

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/host/runtimeconfig"
	"github.com/cloister/cloister/wire/agent"
)

// emptyDir provides the pod's emptyDir of which src is the kubelet's directory.
func (b *build) emptyDir(ctx context.Context, m *specs.Mount, src *source) (string, error) {
	c := b.set.opts.Config
	switch {
	case !src.dir():
		return "", errors.New("the emptyDir is no directory")
	case src.fs.Type == unix.TMPFS_MAGIC:
		st := memoryStorage(src)
		// Policies of confidential pods know the volume's size only when its author wrote one, which the host cannot tell from the kubelet's
		// own choice. There the guest's memory is the bound.
		if n := src.fs.Blocks * uint64(src.fs.Bsize); n > 0 && !c.Confidential() {
			st.Options = append([]string{"size=" + strconv.FormatUint(n, 10)}, st.Options...)
		}
		b.storage(st)
		return st.GetMountPoint(), nil
	case src.fs.Type == unix.HUGETLBFS_MAGIC:
		return b.hugePages(src)
	case c.EmptyDir() == runtimeconfig.EmptyDirShared && b.set.opts.Share != nil:
		return b.share(m, src)
	case c.EmptyDir() == runtimeconfig.EmptyDirShared, c.EmptyDir() == runtimeconfig.EmptyDirGuest:
		return b.localDir(src), nil
	}
	st, err := b.scratch(ctx, src, c.EmptyDir() == runtimeconfig.EmptyDirSealed)
	if errors.Is(err, errors.ErrUnsupported) {
		b.set.log.Info("the emptyDir is a directory in the guest's memory, because no disk can be plugged", "volume", src.kube.name, "reason", err)
		return b.localDir(src), nil
	}
	if err != nil {
		return "", err
	}
	b.storage(st)
	return st.GetMountPoint(), nil
}

// memoryStorage is a memory file system of the pod.
func memoryStorage(src *source) *agent.Storage {
	st := &agent.Storage{Driver: driverEphemeral, Source: "tmpfs", Fstype: "tmpfs", MountPoint: guestEphemeral + "/" + src.kube.name}
	if src.stat.Gid != 0 {
		st.Options = append(st.Options, fmt.Sprintf("fsgid=%d", src.stat.Gid))
	}
	return st
}

// hugePages is a memory file system of huge pages, as large as the container's limit for them.
func (b *build) hugePages(src *source) (string, error) {
	page := uint64(src.fs.Bsize)
	var size uint64
	if l := b.req.Spec.Linux; l != nil && l.Resources != nil {
		for _, h := range l.Resources.HugepageLimits {
			if n, err := parseSize(strings.TrimSuffix(h.Pagesize, "B")); err == nil && n == page {
				size = h.Limit
			}
		}
	}
	if size < page {
		return "", fmt.Errorf("huge pages of %d bytes: the container has no limit for them\nhint: set resources.limits of hugepages-%dMi", page, page>>20)
	}
	st := &agent.Storage{Driver: driverEphemeral, Source: "nodev", Fstype: "hugetlbfs", MountPoint: guestEphemeral + "/" + src.kube.name,
		Options: []string{fmt.Sprintf("pagesize=%d", page), fmt.Sprintf("size=%d", size)}}
	if src.stat.Gid != 0 {
		st.Options = append(st.Options, fmt.Sprintf("fsgid=%d", src.stat.Gid))
	}
	b.storage(st)
	return st.GetMountPoint(), nil
}

// localDir is a directory of the guest, which is memory.
func (b *build) localDir(src *source) string {
	where := guestLocal + "/" + src.kube.name
	if b.set.opts.Share == nil {
		where = path.Join(guestShared, b.set.opts.SandboxID, "rootfs/local", src.kube.name)
	}
	st := &agent.Storage{Driver: driverLocal, Source: "local", Fstype: "local", Options: []string{"mode=0777"}, MountPoint: where}
	if src.stat.Gid != 0 {
		st.Options = append(st.Options, fmt.Sprintf("fsgid=%d", src.stat.Gid))
	}
	b.storage(st)
	return where
}

// Sizes of scratch disks: what a file system needs at least, and what a file can have on common file systems of hosts.
const (
	minScratch = 16 << 20
	maxScratch = 8 << 40
)

// scratch is a disk for an emptyDir: a sparse file in the kubelet's directory, where the kubelet counts what it uses.
func (b *build) scratch(ctx context.Context, src *source, sealed bool) (*agent.Storage, error) {
	// With a quota, which is how the kubelet can enforce a sizeLimit, this is the quota.
	size := min(src.fs.Blocks*uint64(src.fs.Bsize)>>20<<20, maxScratch)
	if size < minScratch {
		return nil, fmt.Errorf("the emptyDir's file system has %d bytes, a disk needs %d", size, minScratch)
	}
	d, err := b.attachScratch(ctx, src, int64(size), sealed)
	if err != nil {
		return nil, err
	}
	st := diskStorage(d)
	st.Fstype = "ext4"
	st.DriverOptions = []string{"create_filesystem"}
	if sealed {
		st.DriverOptions = []string{"encryption_key=ephemeral", "create_filesystem"}
	} else {
		st.Options = []string{"discard"}
	}
	if src.stat.Gid != 0 {
		st.FsGroup = &agent.FSGroup{GroupId: src.stat.Gid}
	}
	return st, nil
}

// diskStorage is the storage of a disk of the pod.
func diskStorage(d *disk) *agent.Storage {
	return &agent.Storage{Driver: d.place.Driver, Source: d.place.Address, Shared: true,
		MountPoint: guestStorage + "/" + base64.URLEncoding.EncodeToString([]byte(d.place.Address))}
}

// emptyDirPart handles a sub-path of an emptyDir that lives in the guest: the kubelet's bind shows the empty directory of the host.
func (b *build) emptyDirPart(ctx context.Context, m *specs.Mount, src *source) (where string, done bool, err error) {
	k := src.kube
	if k == nil || k.kind != kubeSubPath {
		return "", false, nil
	}
	vol, err := openSource(k.pod+"/"+kubeVolume+"/"+pluginEmptyDir+"/"+k.name, "")
	if errors.Is(err, os.ErrNotExist) {
		return "", false, nil // a sub-path of another volume
	}
	if err != nil {
		return "", false, err
	}
	defer vol.file.Close()
	onHost := vol.fs.Type != unix.TMPFS_MAGIC && vol.fs.Type != unix.HUGETLBFS_MAGIC &&
		b.set.opts.Config.EmptyDir() == runtimeconfig.EmptyDirShared && b.set.opts.Share != nil
	if onHost {
		return "", false, nil
	}
	rel, err := inside(vol.file, src.file)
	if err != nil {
		return "", false, fmt.Errorf("sub-path of emptyDir %s: %w", k.name, err)
	}
	if !src.dir() {
		return "", false, fmt.Errorf("sub-path %s of emptyDir %s is a file, and the volume is in the guest\nhint: mount a directory", rel, k.name)
	}
	where, err = b.emptyDir(ctx, m, vol)
	if err != nil || rel == "." {
		return where, true, err
	}
	where = path.Join(where, rel)
	st := &agent.Storage{Driver: driverLocal, Source: "local", Fstype: "local", MountPoint: where,
		Options: []string{fmt.Sprintf("mode=%#o", src.stat.Mode&0o7777)}}
	if src.stat.Gid != 0 {
		st.Options = append(st.Options, fmt.Sprintf("fsgid=%d", src.stat.Gid))
	}
	b.storage(st)
	return where, true, nil
}

// inside is the path of a directory within another one, found by what the kernel says of their mounts: the inner one is a bind mount.
func inside(outer, inner *os.File) (string, error) {
	o, err := inFileSystem(outer)
	if err != nil {
		return "", err
	}
	i, err := inFileSystem(inner)
	if err != nil {
		return "", err
	}
	if o.device != i.device {
		return "", errors.New("it is in another file system than the volume")
	}
	if i.path == o.path {
		return ".", nil
	}
	rel, ok := strings.CutPrefix(i.path, strings.TrimSuffix(o.path, "/")+"/")
	if !ok || strings.HasSuffix(rel, "//deleted") {
		return "", errors.New("it is not in the volume")
	}
	return rel, nil
}

// place is where a file is within its file system.
type place struct{ device, path string }

func inFileSystem(f *os.File) (place, error) {
	var st unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st); err != nil {
		return place{}, err
	}
	name, err := os.Readlink(fdPath(f))
	if err != nil {
		return place{}, err
	}
	list, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return place{}, err
	}
	defer list.Close()
	return findMount(list, strconv.FormatUint(st.Mnt_id, 10), name)
}

// findMount reads a list of mounts for the one with an identifier, in which the file has a name.
func findMount(list io.Reader, id, name string) (place, error) {
	lines := bufio.NewScanner(list)
	lines.Buffer(make([]byte, 16<<10), 1<<20)
	for lines.Scan() {
		f := strings.SplitN(lines.Text(), " ", 6)
		if len(f) < 6 || f[0] != id {
			continue
		}
		root, point := unescape(f[3]), unescape(f[4])
		rel, ok := strings.CutPrefix(name, strings.TrimSuffix(point, "/"))
		if !ok {
			return place{}, fmt.Errorf("%s is not below its mount point %s", name, point)
		}
		return place{device: f[2], path: path.Join(root, rel)}, nil
	}
	if err := lines.Err(); err != nil {
		return place{}, err
	}
	return place{}, fmt.Errorf("the mount of %s is not in the list", name)
}

// unescape undoes the kernel's \ooo for blanks, tabs, line breaks and backslashes.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
