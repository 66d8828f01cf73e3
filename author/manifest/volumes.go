package manifest

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/cloister/cloister/author/kubernetes"
	"github.com/cloister/cloister/wire/agent"
	"github.com/cloister/cloister/wire/launch"
)

// maxVolumeFile bounds one file of a volume; it travels in one request.
const maxVolumeFile = 1 << 20

const (
	typeRegular = 0o100000
	typeDir     = 0o040000
	dirMode     = typeDir | 0o755
)

const readOnly, readWrite = "ro", "rw"

func bind(dest, source, access string) *agent.Mount {
	return &agent.Mount{Destination: dest, Type: "bind", Source: source, Options: []string{"rbind", "rprivate", access}}
}

// volumeStorages makes the storage of each emptyDir: memory of the guest, so that
// nothing of it reaches the host.
func volumeStorages(m *Manifest) map[string]*agent.Storage {
	out := map[string]*agent.Storage{}
	for _, v := range m.Pod.Spec.Volumes {
		if v.EmptyDir == nil {
			continue
		}
		s := &agent.Storage{Driver: "ephemeral", Source: "tmpfs", Fstype: "tmpfs", MountPoint: ephemeralDir + "/" + v.Name}
		if v.EmptyDir.SizeLimit != "" {
			if n, err := v.EmptyDir.SizeLimit.Bytes(); err == nil { // checked by Parse
				s.Options = append(s.Options, "size="+strconv.FormatInt(n, 10))
			}
		}
		if g := m.Pod.Spec.SecurityContext.FSGroup; g != nil && *g != 0 {
			s.Options = append(s.Options, "fsgid="+strconv.FormatInt(*g, 10))
		}
		out[v.Name] = s
	}
	return out
}

// mounts adds the files that every container has and the volumes it mounts.
func (b *builder) mounts(x *kubernetes.Container, id string, req *agent.CreateContainerRequest) error {
	pod := b.manifest.Pod
	access := readWrite
	if x.Security.ReadOnlyRoot {
		access = readOnly
	}
	add := func(m *agent.Mount) { req.OCI.Mounts = append(req.OCI.Mounts, m) }
	for _, f := range []struct{ name, content string }{
		{"hosts", b.hostsFile()},
		{"hostname", b.plan.Hostname + "\n"},
		{"resolv.conf", "nameserver " + nameserver + "\n"},
	} {
		p := sharedPath(id, f.name)
		b.file(p, f.content, typeRegular|0o644, 0)
		add(bind("/etc/"+f.name, p, access))
	}
	volumes := map[string]kubernetes.Volume{}
	for _, v := range pod.Spec.Volumes {
		volumes[v.Name] = v
	}
	shm := &agent.Mount{Destination: "/dev/shm", Type: "bind", Source: sandboxShm, Options: []string{"rbind"}}
	var rest []*agent.Mount
	done := map[string]bool{}
	for _, vm := range x.VolumeMounts {
		v := volumes[vm.Name]
		dest, access := path.Clean(vm.MountPath), readWrite
		if vm.ReadOnly {
			access = readOnly
		}
		var m *agent.Mount
		if s := b.storages[vm.Name]; s != nil {
			if !done[vm.Name] {
				req.Storages = append(req.Storages, s)
			}
			m = bind(dest, s.MountPoint, access)
		} else {
			dir := sharedPath(id, vm.Name)
			if !done[vm.Name] {
				if err := b.volumeFiles(dir, v); err != nil {
					return fmt.Errorf("volume %q: %w", vm.Name, err)
				}
			}
			m = bind(dest, dir, readOnly)
		}
		done[vm.Name] = true
		if dest == shm.Destination {
			shm = m
			continue
		}
		rest = append(rest, m)
	}
	add(shm)
	// Parents before children, else a parent would hide what is mounted below it.
	slices.SortStableFunc(rest, func(a, c *agent.Mount) int { return depth(a.Destination) - depth(c.Destination) })
	for _, m := range rest {
		add(m)
	}
	return nil
}

func depth(p string) int {
	n := 0
	for _, c := range p {
		if c == '/' {
			n++
		}
	}
	return n
}

// volumeFiles sends the files of a ConfigMap or Secret volume.
func (b *builder) volumeFiles(dir string, v kubernetes.Volume) error {
	ref, items, defaultMode := b.manifest.set.FilesOf(b.manifest.Pod, &v)
	if ref == nil {
		return fmt.Errorf("it has no source")
	}
	data, mode := ref.Files(), int64(0o644)
	if defaultMode != nil {
		mode = *defaultMode
	}
	gid := int64(0)
	if g := b.manifest.Pod.Spec.SecurityContext.FSGroup; g != nil {
		gid = *g
	}
	if len(items) == 0 {
		for k := range data {
			items = append(items, kubernetes.Item{Key: k, Path: k})
		}
		slices.SortFunc(items, func(a, c kubernetes.Item) int { return strings.Compare(a.Path, c.Path) })
	}
	b.file(dir, "", dirMode, gid)
	for _, it := range items {
		content, ok := data[it.Key]
		if !ok {
			continue // optional, checked by Parse
		}
		m := mode
		if it.Mode != nil {
			m = *it.Mode
		}
		if gid != 0 {
			m |= 0o040
		}
		b.file(dir+"/"+it.Path, content, uint32(typeRegular|m), gid)
	}
	return nil
}

func (b *builder) file(p, content string, mode uint32, gid int64) {
	b.plan.Files = append(b.plan.Files, launch.File{Request: &agent.CopyFileRequest{
		Path:     p,
		FileSize: int64(len(content)),
		FileMode: mode,
		DirMode:  dirMode,
		Gid:      int32(gid),
		Data:     []byte(content),
	}})
}

// sharedPath is where a file of a container lies in the guest.
func sharedPath(id, name string) string {
	return sharedRoot + "/" + id + "-" + digest("file", id, name)[:16] + "-" + name
}

func (b *builder) hostsFile() string {
	return "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" + podIP + "\t" + b.plan.Hostname + "\n"
}

// ExecCommands lists, per container, the commands of probes and hooks in the
// order liveness, readiness, startup, postStart, preStop.
func ExecCommands(m *Manifest) map[string][][]string {
	out := map[string][][]string{}
	for _, x := range m.Pod.Spec.Containers {
		add := func(e *kubernetes.Exec) {
			if e != nil {
				out[x.Name] = append(out[x.Name], e.Command)
			}
		}
		for _, p := range []*kubernetes.Probe{x.LivenessProbe, x.ReadinessProbe, x.StartupProbe} {
			if p != nil {
				add(p.Exec)
			}
		}
		for _, h := range []*kubernetes.Hook{x.Lifecycle.PostStart, x.Lifecycle.PreStop} {
			if h != nil {
				add(h.Exec)
			}
		}
	}
	return out
}
