package genpolicy

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/cloister/cloister/author/imagesource"
	"github.com/cloister/cloister/author/kubernetes"
	"github.com/cloister/cloister/wire/initdata"
)

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// What containerd masks and protects in a container that is not privileged.
var (
	maskedPaths = []string{"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats",
		"/proc/sched_debug", "/proc/scsi", "/sys/firmware"}
	readonlyPaths = []string{"/proc/asound", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

const uuid = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"

// Annotations that containerd makes.
const (
	annoSandboxName   = "io.kubernetes.cri.sandbox-name"
	annoNamespace     = "io.kubernetes.cri.sandbox-namespace"
	annoContainerName = "io.kubernetes.cri.container-name"
	annoImageName     = "io.kubernetes.cri.image-name"
	annoNetNS         = "nerdctl/network-namespace"
)

func (g *generator) annotations(t *template) map[string]string {
	out := map[string]string{}
	maps.Copy(out, g.w.Template.Annotations)
	delete(out, initdata.Annotation)
	maps.Copy(out, t.Annotations)
	pattern, err := sandboxName(g.w)
	if err != nil {
		g.fail(kubernetes.At{}, "", "%v", err)
	}
	out[annoSandboxName] = "^" + pattern + "$"
	out[annoNamespace] = g.namespace()
	return out
}

func (g *generator) namespace() string {
	if ns := g.w.Namespace(); ns != "" {
		return ns
	}
	return g.o.Namespace
}

func (g *generator) linux(t *template, privileged, pause bool) linux {
	l := linux{MaskedPaths: t.Linux.MaskedPaths, ReadonlyPaths: t.Linux.ReadonlyPaths, Sysctl: maps.Clone(t.Linux.Sysctl), Devices: []linuxDevice{}}
	if len(l.MaskedPaths) == 0 {
		l.MaskedPaths = maskedPaths
	}
	if len(l.ReadonlyPaths) == 0 {
		l.ReadonlyPaths = readonlyPaths
	}
	if privileged && !pause {
		l.MaskedPaths, l.ReadonlyPaths = []string{}, []string{}
	}
	l.Namespaces = []namespace{{Type: "ipc"}, {Type: "uts"}, {Type: "mount"}}
	if pause && g.w.Spec.HostNetwork {
		l.Namespaces = []namespace{{Type: "ipc"}, {Type: "mount"}}
	}
	for _, s := range g.w.Spec.SecurityContext.Sysctls {
		if l.Sysctl == nil {
			l.Sysctl = map[string]string{}
		}
		l.Sysctl[strings.ReplaceAll(s.Name, "/", ".")] = string(s.Value)
	}
	return l
}

// pause is the pod's own container.
func (g *generator) pause() container {
	t := &g.s.PauseContainer
	var img imagesource.Image
	if p := g.s.cluster.PauseConfig; p != nil {
		img.Config = imagesource.Config{User: p.User, Entrypoint: p.Entrypoint, Env: p.Env, WorkingDir: p.WorkingDir}
	} else if fetched := g.images[g.s.cluster.PauseImage]; fetched != nil {
		img = *fetched
	}
	id := g.pauseIdentity(&img)
	caps := []string{"$(default_caps)"}
	privileged := slices.ContainsFunc(g.w.Spec.Containers, func(c kubernetes.Container) bool { return c.Security.Privileged })
	p := process{
		User: id, Cwd: "/", Env: img.Config.Env, Args: slices.Concat(img.Config.Entrypoint, img.Config.Cmd), NoNewPrivileges: t.Process.NoNewPrivileges,
		Capabilities: capabilities{Ambient: []string{}, Bounding: caps, Effective: caps, Inheritable: []string{}, Permitted: caps},
	}
	if img.Config.WorkingDir != "" {
		p.Cwd = img.Config.WorkingDir
	}
	if len(p.Env) == 0 {
		p.Env = []string{defaultPath}
	}
	p.Args, p.Env = appendMissing(p.Args, t.Process.Args), appendMissing(p.Env, t.Process.Env)
	annotations := g.annotations(t)
	host := ""
	if g.w.Spec.HostNetwork {
		host = "test"
	}
	annotations[annoNetNS] = "^/[A-Za-z0-9._/-]+/cni" + host + "-" + uuid + "$" // containerd may keep them elsewhere than in /var/run/netns
	m := &mounts{g: g}
	m.base(true, privileged)
	m.settings(t, false, "")
	c := container{
		Kind: kindPause, Signals: []int{9, 15}, Restarts: false, Files: m.files, ExecCommands: [][]string{}, AnnoPatterns: g.vfioPatterns(false),
		OCI: oci{Version: g.s.Kata.OCIVersion, Process: p, Root: t.Root, Mounts: m.list, Annotations: annotations, Linux: g.linux(t, privileged, true)},
	}
	c.Storages, c.Devices = m.storages, []device{}
	if fetched := g.images[g.s.cluster.PauseImage]; fetched != nil && g.s.cluster.PauseConfig == nil && g.s.HostLayers() {
		c.Storages = slices.Concat(g.layers(fetched, kubernetes.At{}, ""), c.Storages)
		c.Image = &imageRef{Reference: g.s.cluster.PauseImage, Digest: fetched.Digest, Digests: digests(fetched), Names: []string{}}
	}
	return fill(c)
}

// fill replaces lists that are nil: policies tell them from empty ones.
func fill(c container) container {
	if c.Storages == nil {
		c.Storages = []storage{}
	}
	if c.Devices == nil {
		c.Devices = []device{}
	}
	if c.Files == nil {
		c.Files = []fileMount{}
	}
	if c.RequiredEnv == nil {
		c.RequiredEnv = []string{}
	}
	if c.RequiredMounts == nil {
		c.RequiredMounts = []string{}
	}
	if c.OCI.Process.User.AdditionalGids == nil {
		c.OCI.Process.User.AdditionalGids = []uint32{}
	}
	return c
}

func appendMissing(list, more []string) []string {
	have := make(map[string]bool, len(list)) // foreign lists may be long
	for _, x := range list {
		have[x] = true
	}
	list = slices.Clip(list)
	for _, x := range more {
		if !have[x] {
			have[x] = true
			list = append(list, x)
		}
	}
	return list
}

// container is the entry of one container of the pod.
func (g *generator) container(path string, c *kubernetes.Container) container {
	t := &g.s.OtherContainer
	img := g.images[c.Image]
	if img == nil {
		img = &imagesource.Image{} // already reported
	}
	text := g.processText(path, c, img)
	p := process{
		Terminal: c.TTY, User: g.identity(path, c, img), Args: appendMissing(text.args, t.Process.Args), Env: appendMissing(text.env, t.Process.Env),
		Cwd: "/", Capabilities: g.capabilities(path, c),
	}
	if x := first(c.Security.AllowPrivilegeEscalation, g.w.Spec.SecurityContext.AllowPrivilegeEscalation); x != nil {
		p.NoNewPrivileges = !*x
	}
	for _, dir := range []string{img.Config.WorkingDir, c.WorkingDir} {
		if dir != "" {
			p.Cwd = dir
		}
	}
	annotations := g.annotations(t)
	annotations[annoContainerName] = c.Name
	r := t.Root
	r.Readonly = c.Security.ReadOnlyRoot
	m := &mounts{g: g, path: path, c: c, values: text.values}
	m.base(false, c.Security.Privileged)
	m.settings(t, r.Readonly, c.TerminationMessagePath)
	m.volumes()
	m.imageVolumes(img)
	entry := container{
		Name: c.Name, SandboxPidns: g.w.Spec.ShareProcessNamespace, ExecCommands: g.execCommands(path, c), Signals: g.signals(path, c, img),
		Files: m.files, Storages: m.storages, Devices: slices.Concat(m.devices, g.vfio(path, c)), AnnoPatterns: g.vfioPatterns(g.gpus(path, c) > 0),
		OCI:         oci{Version: g.s.Kata.OCIVersion, Process: p, Root: r, Mounts: m.list, Annotations: annotations, Linux: g.linux(t, c.Security.Privileged, false)},
		RequiredEnv: text.required, RequiredMounts: m.required, Directories: m.parts, ClusterValues: text.cluster,
	}
	entry.AnnoPatterns[`^io\.kubernetes\.container\.terminationMessagePath$`] = `^/.*$`
	entry.AnnoPatterns[`^io\.kubernetes\.container\.terminationMessagePolicy$`] = `^(File|FallbackToLogsOnError)$`
	for _, d := range m.devices {
		entry.OCI.Linux.Devices = append(entry.OCI.Linux.Devices, linuxDevice{Type: "b", Path: d.ContainerPath})
	}
	entry.Image = g.imageRef(path, c, img)
	g.checkSealed(path, c, img)
	annotations[annoImageName] = entry.Image.Reference
	if !strings.Contains(entry.Image.Reference, ":") {
		annotations[annoImageName] += ":latest"
	}
	if g.s.HostLayers() {
		entry.Storages = slices.Concat(g.layers(img, c.At, path+".image"), entry.Storages)
	}
	return fill(entry)
}

func first(list ...*bool) *bool {
	for _, b := range list {
		if b != nil {
			return b
		}
	}
	return nil
}

// capabilities are written short where they are those of the settings.
func (g *generator) capabilities(path string, c *kubernetes.Container) capabilities {
	base, short := g.s.common.DefaultCaps, "$(default_caps)"
	if c.Security.Privileged {
		base, short = g.s.common.PrivilegedCaps, "$(privileged_caps)"
	}
	caps := slices.Clone(base)
	for _, name := range c.Security.Capabilities.Drop {
		if strings.EqualFold(name, "ALL") {
			caps = nil
		}
		caps = slices.DeleteFunc(caps, func(x string) bool { return x == capName(name) })
	}
	for _, name := range c.Security.Capabilities.Add {
		switch {
		case strings.EqualFold(name, "ALL"):
			for _, x := range g.s.common.PrivilegedCaps {
				caps = appendMissing(caps, []string{x})
			}
		case !slices.Contains(g.s.common.PrivilegedCaps, capName(name)):
			g.fail(c.Security.At, path+".securityContext.capabilities.add", "%q is no capability of Linux", name)
		default:
			caps = appendMissing(caps, []string{capName(name)})
		}
	}
	if slices.Equal(caps, base) {
		caps = []string{short}
	}
	if caps == nil {
		caps = []string{}
	}
	return capabilities{Ambient: []string{}, Bounding: caps, Effective: caps, Inheritable: []string{}, Permitted: caps}
}

func capName(name string) string {
	name = strings.ToUpper(name)
	if strings.HasPrefix(name, "CAP_") {
		return name
	}
	return "CAP_" + name
}

// execCommands are what the kubelet runs in the container. In those of probes it expands variables, by their plain text in the manifest;
// ones with a source count as empty. Those of hooks it takes as they are.
func (g *generator) execCommands(path string, c *kubernetes.Container) [][]string {
	out := [][]string{}
	add := func(e *kubernetes.Exec) {
		if e != nil && len(e.Command) > 0 {
			out = append(out, e.Command)
		}
	}
	static := map[string]string{}
	for _, v := range c.Env {
		static[v.Name] = v.Value
	}
	for _, p := range []*kubernetes.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
		if p != nil && p.Exec != nil {
			var command []string
			for _, word := range p.Exec.Command {
				word = kubernetes.Expand(word, static)
				if !g.take(c.At, path, len(word)) {
					return out
				}
				command = append(command, word)
			}
			add(&kubernetes.Exec{Command: command})
		}
	}
	for _, h := range []*kubernetes.Hook{c.Lifecycle.PostStart, c.Lifecycle.PreStop} {
		if h != nil {
			add(h.Exec)
		}
	}
	return out
}

var signalNumbers = map[string]int{
	"HUP": 1, "INT": 2, "QUIT": 3, "ILL": 4, "TRAP": 5, "ABRT": 6, "IOT": 6, "BUS": 7, "FPE": 8, "KILL": 9, "USR1": 10, "SEGV": 11, "USR2": 12,
	"PIPE": 13, "ALRM": 14, "TERM": 15, "STKFLT": 16, "CHLD": 17, "CLD": 17, "CONT": 18, "STOP": 19, "TSTP": 20, "TTIN": 21, "TTOU": 22, "URG": 23,
	"XCPU": 24, "XFSZ": 25, "VTALRM": 26, "PROF": 27, "WINCH": 28, "IO": 29, "POLL": 29, "PWR": 30, "SYS": 31,
}

var realtimeSignal = regexp.MustCompile(`^RT(MIN|MAX)([+-][0-9]{1,2})?$`)

// signals are what a runtime sends to stop the container.
func (g *generator) signals(path string, c *kubernetes.Container, img *imagesource.Image) []int {
	out := []int{9, 15}
	for i, name := range []string{img.Config.StopSignal, c.Lifecycle.StopSignal} {
		if name == "" {
			continue
		}
		n, ok := signalNumber(name)
		if !ok {
			if i == 0 {
				g.fail(c.At, path+".image", "its stop signal %q is not known", name)
			} else {
				g.fail(c.At, path+".lifecycle.stopSignal", "signal %q is not known", name)
			}
			continue
		}
		out = append(out, n)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func signalNumber(name string) (int, bool) {
	if n, err := strconv.Atoi(name); err == nil {
		return n, n > 0 && n < 65
	}
	short := strings.TrimPrefix(strings.ToUpper(name), "SIG")
	if n, ok := signalNumbers[short]; ok {
		return n, true
	}
	m := realtimeSignal.FindStringSubmatch(short)
	if m == nil {
		return 0, false
	}
	n := map[string]int{"MIN": 34, "MAX": 64}[m[1]]
	if m[2] != "" {
		d, err := strconv.Atoi(m[2])
		if err != nil {
			return 0, false
		}
		n += d
	}
	return n, n >= 34 && n <= 64
}

// gpus counts the devices that the container claims.
func (g *generator) gpus(path string, c *kubernetes.Container) int {
	n := 0
	for _, key := range g.s.Devices.VFIO.Nvidia.ResourceKeys {
		q, ok := c.Resources.Limits[key]
		if !ok {
			continue
		}
		count, err := strconv.Atoi(string(q))
		if err != nil || count < 0 || count > 64 {
			g.fail(c.At, path+".resources.limits", "%s: %q is no number of devices", key, q)
			continue
		}
		n += count
	}
	return n
}

func (g *generator) vfio(path string, c *kubernetes.Container) []device {
	var out []device
	for range g.gpus(path, c) {
		out = append(out, device{Type: g.s.Devices.VFIO.Nvidia.DeviceType, ContainerPath: g.s.Devices.VFIO.DevicePath, Options: []string{}})
	}
	return out
}

func (g *generator) vfioPatterns(used bool) map[string]string {
	if !used {
		return map[string]string{}
	}
	return map[string]string{g.s.Devices.VFIO.AnnoKeyRegex: g.s.Devices.VFIO.Nvidia.AnnoValueRegex}
}

// layers are the storages of an image's layers, the topmost first.
func (g *generator) layers(img *imagesource.Image, at kubernetes.At, path string) []storage {
	var out []storage
	for i, l := range slices.Backward(img.Layers) {
		if len(l.Root) != 64 || l.HashOffset <= 0 {
			g.fail(at, path, "layer %s has no root hash", l.Digest)
			continue
		}
		out = append(out, storage{
			Driver: "erofs-verity-layer", FSType: "erofs", DriverOptions: []string{}, MountPoint: "^(?:$(cpath)|/run/kata-containers)/$(bundle-id)/rootfs$",
			Options: []string{"X-kata.overlay-lower", "X-kata.multi-layer=true", "X-kata.gpt-partitioned=true",
				fmt.Sprintf("X-kata.partition-number=%d", len(img.Layers)-i), "X-kata.dmverity-enabled=true", "X-kata.dmverity.blocksize=4096",
				"X-kata.dmverity.hashsize=4096", "X-kata.dmverity.roothash=" + l.Root, fmt.Sprintf("X-kata.dmverity.hashoffset=%d", l.HashOffset)},
		})
		if l.KeyID != "" {
			last := &out[len(out)-1]
			last.Options = append(last.Options, "X-cloister.sealed.key-id="+l.KeyID)
		}
	}
	return out
}
