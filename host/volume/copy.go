package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/wire/agent"
)

// Bounds of what is copied into a guest, where it is memory.
const (
	chunk       = 1 << 20
	maxCopied   = 64 << 20 // bytes of one volume
	maxEntries  = 4096     // files, directories and links of one volume
	maxDepth    = 16
	copiedDirs  = unix.S_IFDIR | 0o750 // of parents that the guest makes
	dataLink    = "..data"
	maxAttempts = 5
)

// errChanged says that the kubelet exchanged a volume's files while they were read.
var errChanged = errors.New("the volume's files changed while they were read")

// copyIn copies small files of the pod into a guest that shares nothing.
func (b *build) copyIn(ctx context.Context, m specs.Mount, src *source) (string, error) {
	if b.set.opts.CopyFile == nil {
		return "", errors.New("this virtual machine takes no files")
	}
	plugin, err := b.copyable(m, src)
	if err != nil {
		return "", err
	}
	name, err := b.guestName(m.Destination)
	if err != nil {
		return "", err
	}
	c := &copier{send: b.set.opts.CopyFile, log: b.set.log.With("container", b.req.ID, "mount", m.Destination)}
	where := path.Join(guestShared, name)
	switch {
	case src.dir() && published(plugin):
		mir, err := b.set.follow(ctx, c, src, where)
		if err != nil {
			return "", err
		}
		b.held.copies = append(b.held.copies, mir)
		return where, nil
	case src.dir():
		return where, c.tree(ctx, src.file, where)
	}
	if err := c.file(ctx, src.file, ".", where); err != nil {
		return "", err
	}
	if src.kube != nil && src.kube.kind == kubeLog {
		f, err := openBelow(nil, fdPath(src.file), unix.O_PATH, 0) // a descriptor of our own for the same file
		if err != nil {
			return "", err
		}
		b.set.mu.Lock()
		b.held.termLog, b.held.logPath = f, src.path
		b.set.mu.Unlock()
		b.out.TerminationLog = m.Destination
	}
	return where, nil
}

// copyable says whether a volume may be copied, and which plugin made it. A copy is right for what the pod reads and the kubelet writes;
// anything else would look like the host's directory and not be it.
func (b *build) copyable(m specs.Mount, src *source) (plugin string, err error) {
	if k := src.kube; k != nil {
		switch {
		case k.kind == kubeVolume && published(k.plugin):
			return k.plugin, nil
		case k.kind == kubeHosts, k.kind == kubeLog:
			return "", nil
		case k.kind == kubeSubPath:
			for _, p := range []string{pluginConfigMap, pluginSecret, pluginProjected, pluginDownward} {
				dir, err := openInPod(k.pod, kubeVolume+"/"+p+"/"+k.name)
				if err == nil {
					dir.Close()
					return "", nil // the kubelet does not update sub-paths
				}
			}
		}
	}
	switch path.Clean(m.Destination) {
	case "/etc/hosts", "/etc/hostname", "/etc/resolv.conf":
		if src.regular() {
			return "", nil
		}
	}
	if !b.set.opts.Config.Confidential() {
		if readOnly(m) && (src.dir() || src.regular()) {
			return "", nil
		}
		return "", errors.New("without a shared file system a directory of the host cannot be written from the guest\nhint: set storage.shared_fs = " +
			"\"virtiofs\", mount it read-only to copy it, or use a block volume")
	}
	what := "a file system of the host"
	if src.kube == nil {
		what = "hostPath"
	} else if src.kube.plugin != "" {
		what = "volume plugin " + src.kube.plugin
	}
	return "", fmt.Errorf("%s cannot be mounted into a confidential pod: the host would read and change what the pod keeps there\nhint: use emptyDir "+
		"for scratch space, a PersistentVolumeClaim with volumeMode: Block or a direct-assigned volume for data, a ConfigMap for configuration, and "+
		"sealed secrets for secrets", what)
}

// copier sends files to the guest.
type copier struct {
	send func(context.Context, *agent.CopyFileRequest) error
	log  *slog.Logger

	entries int
	bytes   int64
	// sent is the directory ..data led to when the volume was last copied as a whole. Its files do not change any more.
	sent string
}

// count bounds one volume.
func (c *copier) count(n int64) error {
	c.entries++
	c.bytes += n
	if c.entries > maxEntries || c.bytes > maxCopied {
		return fmt.Errorf("more than %d files or %d MiB are not copied into a guest\nhint: put large data into an image or a block volume", maxEntries,
			maxCopied>>20)
	}
	return nil
}

// tree copies a directory as it is now. What the kubelet published is copied as it publishes: the directory with the files first, the link
// to it after all of them.
func (c *copier) tree(ctx context.Context, dir *os.File, to string) error {
	for range maxAttempts {
		c.entries, c.bytes = 0, 0
		err := c.publishedTree(ctx, dir, to)
		if !errors.Is(err, errChanged) && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return errChanged
}

func (c *copier) publishedTree(ctx context.Context, dir *os.File, to string) error {
	current, err := dataTarget(dir)
	if err != nil {
		return err
	}
	err = c.directory(ctx, dir, ".", to, 0, func(name string) bool {
		// Beside the directory that ..data names there can be one that is being written, or deleted.
		return current == "" || !strings.HasPrefix(name, "..") || name == current && current != c.sent
	}, func() error {
		if now, err := dataTarget(dir); err != nil || now != current {
			return errors.Join(errChanged, err)
		}
		if current == "" {
			return nil
		}
		// The target that was copied, not the one there is by now.
		return c.linkTo(ctx, dir, dataLink, current, path.Join(to, dataLink))
	})
	if err == nil {
		c.sent = current
	}
	return err
}

// dataTarget is where the link ..data leads, or "" when there is none.
func dataTarget(dir *os.File) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(dir.Fd()), dataLink, buf)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// directory copies a directory: itself, then the directories and files in it that are wanted, then its links. Before the links it calls
// published. That is the kubelet's order: a new file's link appears when there is something behind it.
func (c *copier) directory(ctx context.Context, parent *os.File, name, to string, depth int, want func(string) bool, published func() error) error {
	if depth > maxDepth {
		return fmt.Errorf("directories more than %d deep are not copied into a guest", maxDepth)
	}
	dir, err := openBelow(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, beneath)
	if err != nil {
		return err
	}
	defer dir.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return err
	}
	if err := c.count(0); err != nil {
		return err
	}
	if err := c.request(ctx, to, &st, 0, nil, 0); err != nil {
		return err
	}
	names, err := dir.Readdirnames(maxEntries + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	slices.Sort(names)
	var links []string
	for _, n := range names {
		if want != nil && !want(n) {
			continue
		}
		if err := unix.Fstatat(int(dir.Fd()), n, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return &os.PathError{Op: "stat", Path: n, Err: err}
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			err = c.directory(ctx, dir, n, path.Join(to, n), depth+1, nil, nil)
		case unix.S_IFREG:
			err = c.file(ctx, dir, n, path.Join(to, n))
		case unix.S_IFLNK:
			links = append(links, n)
		default:
			c.log.Debug("sockets, pipes and devices are not copied", "name", n)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", n, err)
		}
	}
	if published != nil {
		if err := published(); err != nil {
			return err
		}
	}
	for _, n := range links {
		if err := c.link(ctx, dir, n, path.Join(to, n)); err != nil {
			return fmt.Errorf("%s: %w", n, err)
		}
	}
	return nil
}

// link copies a symbolic link that stays in its directory; others are left out, as policies want it.
func (c *copier) link(ctx context.Context, dir *os.File, name, to string) error {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(dir.Fd()), name, buf)
	if err != nil {
		return &os.PathError{Op: "readlink", Path: name, Err: err}
	}
	return c.linkTo(ctx, dir, name, string(buf[:n]), to)
}

func (c *copier) linkTo(ctx context.Context, dir *os.File, name, target, to string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "stat", Path: name, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return errChanged
	}
	if path.IsAbs(target) || path.Clean(target) != target || target == ".." || strings.HasPrefix(target, "../") || len(target) >= unix.PathMax {
		c.log.Warn("a link that leads out of its directory is not copied", "name", name)
		return nil
	}
	if err := c.count(int64(len(target))); err != nil {
		return err
	}
	return c.request(ctx, to, &st, int64(len(target)), []byte(target), 0)
}

// file copies a regular file; name "." is parent itself.
func (c *copier) file(ctx context.Context, parent *os.File, name, to string) error {
	var f *os.File
	var err error
	if name == "." {
		f, err = openBelow(nil, fdPath(parent), unix.O_RDONLY|unix.O_NONBLOCK, 0)
	} else {
		f, err = openBelow(parent, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, beneath)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return errors.New("only directories and regular files are copied into a guest")
	}
	if err := c.count(st.Size); err != nil {
		return err
	}
	buf := make([]byte, min(st.Size, chunk))
	for off := int64(0); ; {
		n := min(st.Size-off, chunk)
		if _, err := io.ReadFull(io.NewSectionReader(f, off, n), buf[:n]); err != nil {
			return errors.Join(errChanged, err)
		}
		if err := c.request(ctx, to, &st, st.Size, buf[:n], off); err != nil {
			return err
		}
		if off += n; off >= st.Size {
			return nil
		}
	}
}

func (c *copier) request(ctx context.Context, to string, st *unix.Stat_t, size int64, data []byte, off int64) error {
	return c.send(ctx, &agent.CopyFileRequest{Path: to, FileSize: size, FileMode: st.Mode, DirMode: copiedDirs, Uid: int32(st.Uid),
		Gid: int32(st.Gid), Offset: off, Data: data}) // which names the path in its errors
}
