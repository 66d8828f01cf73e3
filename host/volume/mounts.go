package volume

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path"
	"reflect"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/host/share"
)

// kernelTypes are mounts that the guest's kernel makes by itself.
var kernelTypes = []string{"proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2"}

// isBind says whether a mount shows something that exists.
func isBind(m specs.Mount) bool {
	return m.Type == "bind" || m.Type == "rbind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
}

func readOnly(m specs.Mount) bool {
	return slices.Contains(m.Options, "ro") || slices.Contains(m.Options, "rro")
}

// mounts goes through the mounts of the specification. containerd 1.6 names /dev/shm of a sandbox twice, which is the same mount in the
// guest; policies want one mount at each place.
func (b *build) mounts(ctx context.Context) error {
	for _, m := range b.req.Spec.Mounts {
		out, err := b.mount(ctx, m)
		if err != nil {
			return fmt.Errorf("mount of %s at %s: %w", m.Source, m.Destination, err)
		}
		if out != nil && b.req.Sandbox && out.Destination == "/etc/resolv.conf" {
			out.Options = hardened(out.Options)
		}
		if out != nil && !slices.ContainsFunc(b.out.Mounts, func(before specs.Mount) bool { return reflect.DeepEqual(before, *out) }) {
			b.out.Mounts = append(b.out.Mounts, *out)
		}
	}
	return nil
}

// hardened adds what newer versions of containerd say about the sandbox's resolv.conf, and 1.6 does not: policies want the same of all.
func hardened(options []string) []string {
	for _, o := range []string{"nosuid", "nodev", "noexec"} {
		if !slices.Contains(options, o) {
			options = append(options, o)
		}
	}
	return options
}

// mount decides about one mount; nil stands for one that has become a device, or that is left out.
func (b *build) mount(ctx context.Context, m specs.Mount) (*specs.Mount, error) {
	if !path.IsAbs(m.Destination) || strings.ContainsAny(m.Destination, "\x00\n") {
		return nil, fmt.Errorf("destination %.120q is not an absolute path", m.Destination)
	}
	if len(m.UIDMappings)+len(m.GIDMappings) > 0 || slices.Contains(m.Options, "idmap") || slices.Contains(m.Options, "ridmap") {
		return nil, errors.New("mounts with mapped users are not supported\nhint: leave out hostUsers: false; the virtual machine isolates more than a " +
			"user namespace")
	}
	shm := path.Clean(m.Destination) == "/dev/shm"
	if !isBind(m) {
		switch {
		case shm:
			return bindAt(m, guestShm, []string{"rbind"}), nil
		case slices.Contains(kernelTypes, m.Type):
			return &m, nil
		}
		return nil, fmt.Errorf("a mount of type %.40q is not supported", m.Type)
	}
	if b.set.opts.Share == nil && b.fromImage(m.Source) {
		return b.imageVolume(m)
	}
	src, err := openSource(m.Source, podUID(b.req.Spec))
	if err != nil {
		return nil, err
	}
	defer src.file.Close()
	if shm && !src.kube.emptyDir() {
		return bindAt(m, guestShm, []string{"rbind"}), nil
	}
	if src.block() {
		return nil, b.rawDevice(ctx, src, m.Destination, readOnly(m), nil)
	}
	where, err := b.volume(ctx, &m, src)
	if err != nil {
		return nil, err
	}
	b.set.mu.Lock()
	b.held.guest[src.path] = where
	b.set.mu.Unlock()
	return bindAt(m, where, guestOptions(m.Options)), nil
}

// volume provides a volume in the guest and returns its path there. It may change the options of the mount in the guest.
func (b *build) volume(ctx context.Context, m *specs.Mount, src *source) (string, error) {
	if src.kube.emptyDir() {
		return b.emptyDir(ctx, m, src)
	}
	if where, done, err := b.emptyDirPart(ctx, m, src); done || err != nil {
		return where, err
	}
	if info, err := FindDirect(b.set.opts.DirectDir, src.path); err != nil || info != nil {
		if err != nil {
			return "", err
		}
		return b.direct(ctx, info)
	}
	if b.set.opts.Share != nil {
		return b.share(m, src)
	}
	return b.copyIn(ctx, *m, src)
}

// bindAt is a mount that shows a path of the guest.
func bindAt(m specs.Mount, source string, options []string) *specs.Mount {
	return &specs.Mount{Destination: m.Destination, Type: "bind", Source: source, Options: options}
}

// guestOptions are the options of the bind in the guest. What is read-only below the mount is so on the host.
func guestOptions(in []string) []string {
	out := make([]string, 0, len(in)+1)
	for _, o := range in {
		if o == "rro" {
			o = "ro"
		}
		out = append(out, o)
	}
	if !slices.Contains(out, "bind") && !slices.Contains(out, "rbind") {
		out = append(out, "rbind")
	}
	return out
}

// share shows a file or directory of the host through the shared directory.
func (b *build) share(m *specs.Mount, src *source) (string, error) {
	switch {
	case src.fs.Type == unix.PROC_SUPER_MAGIC, src.fs.Type == unix.SYSFS_MAGIC, src.fs.Type == unix.CGROUP2_SUPER_MAGIC,
		src.fs.Type == unix.CGROUP_SUPER_MAGIC, src.fs.Type == unix.DEBUGFS_MAGIC, src.fs.Type == unix.TRACEFS_MAGIC:
		return "", errors.New("this is the host's kernel, and the container runs under another one\nhint: a pod that watches the node belongs " +
			"into a RuntimeClass without virtual machine")
	case src.dir() && hostDevices(src):
		return "", errors.New("these are the host's devices, and the virtual machine has its own\nhint: name a block device to give it to the pod; other " +
			"devices need a device plugin")
	case !src.dir() && !src.regular():
		return "", errors.New("sockets, pipes and character devices of the host cannot be reached from a virtual machine\nhint: use the network, " +
			"or for a device a device plugin")
	}
	name, err := b.guestName(m.Destination)
	if err != nil {
		return "", err
	}
	o := share.BindOptions{
		ReadOnly:  readOnly(*m),
		Recursive: slices.Contains(m.Options, "rro"),
		Submounts: m.Type == "rbind" || slices.Contains(m.Options, "rbind"),
		Follow: slices.ContainsFunc(m.Options, func(o string) bool {
			return o == "slave" || o == "rslave" || o == "shared" || o == "rshared"
		}),
	}
	where, err := b.set.opts.Share.Bind(src.file, name, o)
	if err != nil {
		return "", err
	}
	if o.ReadOnly && !o.Recursive && o.Submounts {
		// Only the directory itself is read-only, not what is mounted below. The guest sees one file system, which "ro" would close as a
		// whole; the host keeps the directory read-only anyway.
		below := o.Follow
		if !below {
			if below, err = share.HasMounts(src.file); err != nil {
				return "", errors.Join(err, b.set.opts.Share.Remove(name))
			}
		}
		if below {
			m.Options = slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return o == "ro" })
		}
	}
	b.held.shared = append(b.held.shared, name)
	return where, nil
}

// hostDevices says whether a directory is /dev or below it, except for what is memory there.
func hostDevices(src *source) bool {
	name, err := os.Readlink(fdPath(src.file))
	if err != nil {
		return true
	}
	for _, p := range []string{"/dev/shm", "/dev/hugepages"} {
		if name == p || strings.HasPrefix(name, p+"/") {
			return false
		}
	}
	return name == "/dev" || strings.HasPrefix(name, "/dev/")
}

// guestName is the name of one mount of this container below the guest's shared directory, in the form that policies expect.
func (b *build) guestName(destination string) (string, error) {
	var random [8]byte
	if _, err := rand.Read(random[:]); err != nil {
		return "", err
	}
	base := path.Base(path.Clean(destination))
	if base == "/" {
		return "", errors.New("a mount at / would replace the root file system")
	}
	if len(base) > 100 {
		base = base[len(base)-100:]
	}
	return b.req.ID + "-" + hex.EncodeToString(random[:]) + "-" + base, nil
}
