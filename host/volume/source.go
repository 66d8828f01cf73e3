package volume

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Kinds of what the kubelet keeps for a pod.
const (
	kubeVolume  = "volumes"         // PLUGIN/NAME
	kubeSubPath = "volume-subpaths" // VOLUME/CONTAINER/INDEX, bound there by the kubelet
	kubeLog     = "containers"      // NAME/HASH: termination logs
	kubeHosts   = "etc-hosts"
)

// Plugins of volumes.
const (
	pluginEmptyDir  = "kubernetes.io~empty-dir"
	pluginConfigMap = "kubernetes.io~configmap"
	pluginSecret    = "kubernetes.io~secret"
	pluginProjected = "kubernetes.io~projected"
	pluginDownward  = "kubernetes.io~downward-api"
)

// kubelet says what a path is to the kubelet.
type kubelet struct {
	pod    string // the pod's directory
	kind   string
	plugin string // of a volume
	name   string // of the volume
	rest   string // below pod
}

// podPath matches ROOT/pods/UID/KIND…; the identifier is a UUID, or for static pods a hash without dashes.
var podPath = regexp.MustCompile(`^(/.+/pods/([0-9a-fA-F-]{32,36}))/((volumes|volume-subpaths|containers|etc-hosts)(/.+)?)$`)

// kubeletPath recognises what the kubelet keeps for this pod; uid, when known, is the pod's. Anything else is a path of the host.
func kubeletPath(p, uid string) *kubelet {
	m := podPath.FindStringSubmatch(p)
	if m == nil || uid != "" && !strings.EqualFold(m[2], uid) {
		return nil
	}
	k := &kubelet{pod: m[1], kind: m[4], rest: m[3]}
	parts := strings.Split(strings.TrimPrefix(m[5], "/"), "/")
	switch {
	case k.kind == kubeVolume && len(parts) >= 2:
		k.plugin, k.name = parts[0], parts[1]
	case k.kind == kubeSubPath && len(parts) == 3:
		k.name = parts[0]
	case k.kind == kubeLog && len(parts) == 2:
	case k.kind == kubeHosts && m[5] == "":
	default:
		return nil
	}
	return k
}

// emptyDir says that the path is the directory of an emptyDir itself.
func (k *kubelet) emptyDir() bool {
	return k != nil && k.kind == kubeVolume && k.plugin == pluginEmptyDir && k.rest == kubeVolume+"/"+pluginEmptyDir+"/"+k.name
}

// published says that a plugin writes its files at once, by exchanging the link ..data.
func published(plugin string) bool {
	switch plugin {
	case pluginConfigMap, pluginSecret, pluginProjected, pluginDownward:
		return true
	}
	return false
}

// source is an opened source of a mount.
type source struct {
	path string
	file *os.File // O_PATH
	stat unix.Stat_t
	fs   unix.Statfs_t
	kube *kubelet
}

func (s *source) dir() bool     { return s.stat.Mode&unix.S_IFMT == unix.S_IFDIR }
func (s *source) regular() bool { return s.stat.Mode&unix.S_IFMT == unix.S_IFREG }
func (s *source) block() bool   { return s.stat.Mode&unix.S_IFMT == unix.S_IFBLK }

// openSource opens what is to be mounted. Below the kubelet's directory of the pod no symbolic link is followed: containers may have
// made it, and the kubelet itself has none there.
func openSource(p, uid string) (*source, error) {
	if !filepath.IsAbs(p) || strings.ContainsRune(p, 0) || len(p) >= unix.PathMax {
		return nil, fmt.Errorf("source %.120q is not an absolute path", p)
	}
	p = filepath.Clean(p)
	s := &source{path: p, kube: kubeletPath(p, uid)}
	var err error
	if s.kube == nil {
		s.file, err = openBelow(nil, p, unix.O_PATH, unix.RESOLVE_NO_MAGICLINKS)
	} else {
		s.file, err = openInPod(s.kube.pod, s.kube.rest)
	}
	if err != nil {
		return nil, err
	}
	err = unix.Fstat(int(s.file.Fd()), &s.stat)
	if err == nil {
		err = unix.Fstatfs(int(s.file.Fd()), &s.fs)
	}
	if err != nil {
		s.file.Close()
		return nil, fmt.Errorf("examining %s: %w", p, err)
	}
	return s, nil
}

func openInPod(pod, rest string) (*os.File, error) {
	dir, err := openBelow(nil, pod, unix.O_PATH|unix.O_DIRECTORY, unix.RESOLVE_NO_MAGICLINKS)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return openBelow(dir, rest, unix.O_PATH, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_MAGICLINKS)
}

// openBelow is openat2.
func openBelow(dir *os.File, name string, flags int, resolve uint64) (*os.File, error) {
	at := unix.AT_FDCWD
	if dir != nil {
		at = int(dir.Fd())
	}
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: resolve}
	if flags&unix.O_CREAT != 0 {
		how.Mode = 0o600
	}
	for attempt := 0; ; attempt++ {
		fd, err := unix.Openat2(at, name, &how)
		// EAGAIN: a rename elsewhere disturbed the look-up; somebody may do that on purpose.
		if err == unix.EINTR || err == unix.EAGAIN && attempt < 1000 {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: name, Err: err}
		}
		return os.NewFile(uintptr(fd), name), nil
	}
}

// beneath is how names inside of volumes are opened.
const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

func fdPath(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }

// podUID is the pod's identifier, or "" when the annotations do not tell.
func podUID(spec *specs.Spec) string { return spec.Annotations["io.kubernetes.cri.sandbox-uid"] }

// defaultShm is the size of /dev/shm that container runtimes give.
const defaultShm = 64 << 20

// shmSize is the size of the pod's /dev/shm in bytes: that of the mount, or of what it binds.
func shmSize(spec *specs.Spec) (uint64, error) {
	if spec == nil {
		return defaultShm, nil
	}
	for _, m := range spec.Mounts {
		if filepath.Clean(m.Destination) != "/dev/shm" {
			continue
		}
		if isBind(m) {
			src, err := openSource(m.Source, podUID(spec))
			if err != nil {
				return 0, fmt.Errorf("/dev/shm of the pod: %w", err)
			}
			src.file.Close()
			if n := src.fs.Blocks * uint64(src.fs.Bsize); src.fs.Type == unix.TMPFS_MAGIC && n > 0 {
				return n, nil
			}
			return defaultShm, nil
		}
		for _, o := range m.Options {
			if text, ok := strings.CutPrefix(o, "size="); ok {
				n, err := parseSize(text)
				if err != nil {
					return 0, fmt.Errorf("/dev/shm of the pod: %w", err)
				}
				return n, nil
			}
		}
	}
	return defaultShm, nil
}

// parseSize reads a tmpfs size in bytes, with k, m or g.
func parseSize(text string) (uint64, error) {
	shift := 0
	number := text
	if text != "" {
		switch text[len(text)-1] {
		case 'k', 'K':
			shift = 10
		case 'm', 'M':
			shift = 20
		case 'g', 'G':
			shift = 30
		}
		if shift > 0 {
			number = text[:len(text)-1]
		}
	}
	n, err := strconv.ParseUint(number, 10, 63-shift)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("size %.40q: expected a number of bytes, or one with k, m or g", text)
	}
	return n << shift, nil
}
