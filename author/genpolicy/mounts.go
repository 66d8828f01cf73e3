package genpolicy

import (
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/cloister/cloister/author/imagesource"
	"github.com/cloister/cloister/author/kubernetes"
	"github.com/cloister/cloister/wire/agent"
)

// mounts gathers the mounts of one container and what they need.
type mounts struct {
	g    *generator
	path string
	c    *kubernetes.Container
	// values are the manifest's variables of the container.
	values map[string]string

	list     []mount
	storages []storage
	devices  []device
	files    []fileMount
	required []string // destinations of the manifest's mounts
	parts    []directory
}

// set replaces the mount at the destination of m, or adds m.
// maxMounts bounds the volumes of a container. Each is compared with all others.
const maxMounts = 4096

func (m *mounts) set(x mount) {
	if i := slices.IndexFunc(m.list, func(y mount) bool { return y.Destination == x.Destination }); i >= 0 {
		m.list[i] = x
		return
	}
	m.list = append(m.list, x)
}

func (m *mounts) dropFiles(destination string) {
	m.files = slices.DeleteFunc(m.files, func(f fileMount) bool { return f.Destination == destination })
}

// base are the mounts that containerd gives every container.
func (m *mounts) base(pause, privileged bool) {
	mode := "ro"
	if privileged {
		mode = "rw"
	}
	add := func(destination, kind, source string, options ...string) {
		m.list = append(m.list, mount{Destination: destination, Type: kind, Source: source, Options: options})
	}
	add("/proc", "proc", "proc", "nosuid", "noexec", "nodev")
	add("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k")
	add("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")
	add("/dev/shm", "tmpfs", "shm", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k")
	add("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev")
	add("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", mode)
	if !pause {
		add("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid", "noexec", "nodev", "relatime", mode)
	}
}

// tokenDir is where Kubernetes mounts the token of the service account, unless the pod wants none.
const tokenDir = "/var/run/secrets/kubernetes.io/serviceaccount"

// settings adds the mounts that the settings have for a kind of container.
func (m *mounts) settings(t *template, readonlyRoot bool, terminationLog string) {
	for _, x := range t.Mounts {
		mounted := m.c != nil && slices.ContainsFunc(m.c.VolumeMounts, func(v kubernetes.VolumeMount) bool { return v.MountPath == x.Destination })
		if !mounted && !slices.Contains(m.g.s.MountDestinations, x.Destination) {
			continue
		}
		if !mounted && x.Destination == tokenDir && !m.g.set.MountsToken(m.g.w) {
			continue // what the host put there would not be asked for
		}
		x.Options = slices.Clone(x.Options)
		if x.Source == "" && x.Type == "bind" {
			x.Source = "$(sfprefix)" + regexp.QuoteMeta(path.Base(x.Destination)) + "$"
		}
		if m.c != nil && (x.Destination == "/etc/hostname" || x.Destination == "/etc/resolv.conf") {
			mode := "rw"
			if readonlyRoot {
				mode = "ro"
			}
			x.Options = append(x.Options, mode)
		}
		if x.Destination == "/dev/termination-log" && terminationLog != "" {
			x.Destination = trimSlash(terminationLog)
			x.Source = "$(sfprefix)" + regexp.QuoteMeta(path.Base(x.Destination)) + "$"
		}
		m.set(x)
		if base, ok := strings.CutPrefix(x.Source, "$(sfprefix)"); ok {
			base = strings.TrimSuffix(strings.ReplaceAll(base, `\`, ""), "$")
			m.files = append(m.files, fileMount{Destination: x.Destination, Base: base, Kind: "runtime", Entries: map[string]fileEntry{}})
		}
	}
}

// volumes adds the mounts of the pod's volumes.
func (m *mounts) volumes() {
	if n := len(m.c.VolumeMounts); n > maxMounts {
		m.g.fail(m.c.At, m.path+".volumeMounts", "there are %d, at most %d are supported", n, maxMounts)
		return
	}
	seen := map[string]bool{}
	for i := range m.c.VolumeMounts {
		vm := &m.c.VolumeMounts[i]
		where := m.path + ".volumeMounts[" + itoa(i) + "]"
		destination := trimSlash(path.Clean(vm.MountPath))
		switch {
		case vm.MountPath == "" || !strings.HasPrefix(vm.MountPath, "/") && strings.Contains(vm.MountPath, ":"):
			m.g.fail(vm.At, where+".mountPath", "%q is no path", vm.MountPath)
			continue
		case !strings.HasPrefix(vm.MountPath, "/"): // as the kubelet does
			destination = path.Clean("/" + vm.MountPath)
		}
		if destination == "/" {
			m.g.fail(vm.At, where+".mountPath", "a volume cannot replace the root file system")
			continue
		}
		if seen[destination] {
			m.g.fail(vm.At, where+".mountPath", "%s is used twice", destination)
			continue
		}
		seen[destination] = true
		m.dropFiles(destination)
		m.volume(where, vm, destination)
		if raw := "/" + strings.TrimPrefix(vm.MountPath, "/"); raw != destination { // containerd leaves it so
			for i := range m.list {
				if m.list[i].Destination == destination {
					m.list[i].Written = raw
				}
			}
		}
		if !m.mayBeDevice(vm) {
			m.required = append(m.required, destination)
		}
	}
	for i, d := range m.c.VolumeDevices {
		if !strings.HasPrefix(d.Path, "/") {
			m.g.fail(d.At, m.path+".volumeDevices["+itoa(i)+"].devicePath", "%q is no path", d.Path)
			continue
		}
		m.devices = append(m.devices, device{ContainerPath: d.Path, Options: []string{}})
	}
}

// mayBeDevice says whether a mount can become a device of the container, which depends on the node.
func (m *mounts) mayBeDevice(vm *kubernetes.VolumeMount) bool {
	return slices.ContainsFunc(m.g.w.Spec.Volumes, func(v kubernetes.Volume) bool {
		return v.Name == vm.Name && v.HostPath != nil && strings.HasPrefix(path.Clean(v.HostPath.Path), "/dev/")
	})
}

func (m *mounts) volume(where string, vm *kubernetes.VolumeMount, destination string) {
	spec := &m.g.w.Spec
	i := slices.IndexFunc(spec.Volumes, func(v kubernetes.Volume) bool { return v.Name == vm.Name })
	if i < 0 {
		template := slices.ContainsFunc(m.g.w.Claims, func(x kubernetes.Claim) bool { return x.Metadata.Name == vm.Name })
		d, disk := m.g.directVolume(vm.Name)
		switch {
		case !template:
			m.g.fail(vm.At, where+".name", "the pod has no volume %q", vm.Name)
		case d != nil:
			m.direct(where, vm, d, disk, destination, vm.ReadOnly)
		default:
			m.shared(vm, destination, "claim", vm.ReadOnly)
		}
		return
	}
	v := &spec.Volumes[i]
	if d, disk := m.g.directVolume(vm.Name); d != nil {
		m.direct(where, vm, d, disk, destination, vm.ReadOnly || v.Claim != nil && v.Claim.ReadOnly)
		return
	}
	switch {
	case v.EmptyDir != nil:
		m.emptyDir(where, vm, v.EmptyDir, destination)
	case v.ConfigMap != nil, v.Secret != nil, v.Projected != nil, v.Downward != nil:
		m.config(where, vm, v, destination)
	case v.HostPath != nil:
		m.hostPath(vm, v.HostPath, destination)
	case v.Claim != nil:
		m.shared(vm, destination, "claim", vm.ReadOnly || v.Claim.ReadOnly)
	case v.AzureFile != nil, v.NFS != nil, v.CSI != nil, v.Ephemeral != nil:
		m.shared(vm, destination, "claim", vm.ReadOnly)
	default:
		m.emptyDir(where, vm, &kubernetes.EmptyDir{}, destination) // a volume without a type is one
	}
}

// shared is a mount of what the host shares or copies.
func (m *mounts) shared(vm *kubernetes.VolumeMount, destination, kind string, readOnly bool) {
	base := path.Base(destination)
	m.set(mount{Destination: destination, Type: "bind", Source: "$(sfprefix)" + regexp.QuoteMeta(base) + "$", Options: bindOptions(vm, readOnly)})
	m.files = append(m.files, fileMount{Destination: destination, Base: base, Volume: vm.Name, Kind: kind, Entries: map[string]fileEntry{}})
}

func bindOptions(vm *kubernetes.VolumeMount, readOnly bool) []string {
	propagation := "rprivate"
	switch vm.Propagation {
	case "Bidirectional":
		propagation = "rshared"
	case "HostToContainer":
		propagation = "rslave"
	}
	mode := "rw"
	if readOnly {
		mode = "ro"
	}
	return []string{"rbind", propagation, mode}
}

func (m *mounts) hostPath(vm *kubernetes.VolumeMount, h *kubernetes.HostPath, destination string) {
	clean := path.Clean(h.Path)
	if clean == "/dev" || strings.HasPrefix(clean, "/dev/") || clean == "/sys" || strings.HasPrefix(clean, "/sys/") {
		m.set(mount{Destination: destination, Type: "bind", Source: regexp.QuoteMeta(clean), Options: bindOptions(vm, vm.ReadOnly)})
		return
	}
	m.shared(vm, destination, "hostPath", vm.ReadOnly)
}

// emptyDir is scratch space of the guest, or of the host if the settings say so.
func (m *mounts) emptyDir(where string, vm *kubernetes.VolumeMount, e *kubernetes.EmptyDir, destination string) {
	options := bindOptions(&kubernetes.VolumeMount{}, vm.ReadOnly)
	again := slices.ContainsFunc(m.c.VolumeMounts[:slices.IndexFunc(m.c.VolumeMounts, func(x kubernetes.VolumeMount) bool { return x.Node == vm.Node })],
		func(x kubernetes.VolumeMount) bool { return x.Name == vm.Name })
	if per := m.g.s.cluster.PerMount; per == nil || *per {
		again = false
	}
	sub, ok := m.subPath(vm)
	if !ok {
		m.g.fail(vm.At, where+".subPath", "%q leads out of the volume", vm.SubPath+vm.SubPathExpr)
		return
	}
	kind := m.g.s.cluster.EmptyDir
	if sub != "" && (e.Medium == "Memory" || kind != emptyDirShared) {
		m.parts = append(m.parts, directory{destination, m.partOptions()})
	}
	switch {
	case strings.HasPrefix(e.Medium, "HugePages"):
		m.g.fail(vm.At, where, "huge pages are not supported")
	case e.Medium == "Memory":
		v := m.g.s.Volumes["emptyDir_memory"]
		m.named(v, vm, destination, sub, options, again, m.fsgid())
	case e.Medium != "":
		m.g.fail(vm.At, where, "medium %q is not supported", e.Medium)
	case kind == emptyDirShared:
		pattern := "^$(cpath)/sandbox-[0-9a-f]{16}-" + regexp.QuoteMeta(vm.Name) + sub + "$"
		m.set(mount{Destination: destination, Type: "bind", Source: pattern, Options: options})
		m.list = append(m.list, mount{Destination: destination, Type: "bind", Source: "$(sfprefix)" + regexp.QuoteMeta(path.Base(destination)) + "$", Options: options})
	case kind == emptyDirGuest:
		v := m.g.s.Volumes["emptyDir"]
		m.named(v, vm, destination, sub, options, again, m.fsgid())
	default:
		name := map[string]string{emptyDirSealed: "emptyDir_encrypted", emptyDirPlain: "emptyDir_plain"}[kind]
		v := m.g.s.Volumes[name]
		source := v.MountSource
		if spath, _ := m.g.s.Common["spath"].(string); sub != "" {
			// The name of the disk's directory is the host's choice, as that of the whole disk is.
			source = "^" + regexp.QuoteMeta(spath) + "/[A-Za-z0-9_=-]+" + sub + "$"
		}
		m.set(mount{Destination: destination, Type: v.MountType, Source: source, Options: options, Volume: vm.Name})
		if again {
			return
		}
		st := v.storage(v.MountPoint)
		st.Volume = vm.Name
		if gid := m.g.w.Spec.SecurityContext.FSGroup; gid != nil && *gid != 0 {
			st.FSGroup = &fsGroup{GroupID: uint32(*gid)}
			if m.g.w.Spec.SecurityContext.FSGroupChangePolicy == "OnRootMismatch" {
				st.FSGroup.Policy = 1
			}
		}
		m.storages = append(m.storages, st)
	}
}

// subPath is a pattern of the directory of a volume that is mounted, with a slash in front; empty for the whole volume.
// What is known only when the pod runs can be any name.
func (m *mounts) subPath(vm *kubernetes.VolumeMount) (pattern string, ok bool) {
	sub := vm.SubPath
	if vm.SubPathExpr != "" {
		l := lookup{g: m.g, at: vm.At, path: m.path, values: m.values, found: map[string]string{}} // any name for those of the cluster
		sub = kubernetes.ExpandBy(vm.SubPathExpr, l.value)
	}
	for part := range strings.SplitSeq(path.Clean("/"+sub), "/") {
		if part == "" {
			continue
		}
		last := 0
		pattern += "/"
		for _, at := range placeholders.FindAllStringIndex(part, -1) {
			pattern += regexp.QuoteMeta(part[last:at[0]]) + "[^/]+"
			last = at[1]
		}
		pattern += regexp.QuoteMeta(part[last:])
	}
	return pattern, !strings.Contains("/"+sub+"/", "/../") && !strings.HasPrefix(sub, "/")
}

// named is a volume whose place in the guest has its name.
func (m *mounts) named(v volume, vm *kubernetes.VolumeMount, destination, sub string, options []string, again bool, more []string) {
	name := regexp.QuoteMeta(vm.Name)
	m.set(mount{Destination: destination, Type: "bind", Source: v.MountSource + name + sub + "$", Options: options})
	if again {
		return
	}
	st := v.storage(v.MountPoint + name + "$")
	st.Options = append(slices.Clone(st.Options), more...)
	m.storages = append(m.storages, st)
}

func (m *mounts) fsgid() []string {
	if gid := m.g.w.Spec.SecurityContext.FSGroup; gid != nil && *gid != 0 {
		return []string{"fsgid=" + itoa(int(*gid))}
	}
	return nil
}

// partOptions are those of the directory that the kubelet makes for a sub-path: it has the mode of an emptyDir.
func (m *mounts) partOptions() []string {
	if gid := m.fsgid(); gid != nil {
		return append([]string{"mode=02777"}, gid...)
	}
	return []string{"mode=0777"}
}

func (v volume) storage(mountPoint string) storage {
	list := func(x []string) []string {
		if x == nil {
			return []string{}
		}
		return x
	}
	return storage{Driver: v.Driver, DriverOptions: list(v.DriverOptions), Source: v.Source, FSType: v.FSType, Options: list(v.Options),
		MountPoint: mountPoint, Shared: v.Shared}
}

// imageVolumes are those that the image declares and the pod does not replace. Cloister's guest makes them, where the settings do not say
// that the host does.
func (m *mounts) imageVolumes(img *imagesource.Image) {
	if n := len(img.Config.Volumes); n > maxMounts {
		m.g.fail(m.c.At, m.path+".image", "it declares %d volumes, at most %d are supported", n, maxMounts)
		return
	}
	v := m.g.s.Volumes["image_volume"]
	hosts := !strings.Contains(v.MountSource, agent.ImageVolumePattern)
	for _, name := range img.Config.Volumes {
		destination := path.Clean("/" + name)
		if destination == "/" || slices.ContainsFunc(m.list, func(x mount) bool { return x.Destination == destination }) {
			continue
		}
		base := path.Base(destination)
		m.list = append(m.list, mount{Destination: destination, Type: v.MountType, Source: v.MountSource + regexp.QuoteMeta(base) + "$", Options: v.Options})
		if hosts {
			m.g.warn(m.c.At, m.path+".image", "it makes %s a volume, whose content the host chooses; mount an emptyDir there", destination)
			m.files = append(m.files, fileMount{Destination: destination, Base: base, Kind: "image", Entries: map[string]fileEntry{}})
		}
	}
}
