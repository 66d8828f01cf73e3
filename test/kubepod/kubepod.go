// Package kubepod writes down Kubernetes pods by hand, twice: as policy_data in the shape of the Kata generator, and as the
// requests of an honest host. Tests and benchmarks of rules for such pods use it, so that they do not depend on a generator.
package kubepod

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/wire/agent"
)

// Object is a piece of policy_data.
type Object = map[string]any

// Facts of the pod.
const (
	SandboxID = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	podUID    = "9c64c5bf-298f-46c4-ad63-e2270a2ff44c"
	NetNS     = "/var/run/netns/cni-22190131-6f68-2878-6d7b-418baf176cdf"
	DigestOne = "sha256:1111111111111111111111111111111111111111111111111111111111111111"
	DigestTwo = "sha256:2222222222222222222222222222222222222222222222222222222222222222"
	SharedDir = "/run/kata-containers/shared/containers/"
)

var defaultCaps = []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE"}

// Mount is a mount of policy_data and the source that a genuine request has for it.
type Mount struct {
	Destination, Kind, Source string
	Options                   []string
	Real                      func(id string) string
}

// LiteralMount is a mount whose source stands in the policy.
func LiteralMount(destination, kind, source string, options ...string) Mount {
	return Mount{destination, kind, source, options, func(string) string { return source }}
}

// SharedMount is a file or directory that the host puts into the guest.
func SharedMount(destination string, options ...string) Mount {
	base := destination[strings.LastIndexByte(destination, '/')+1:]
	return Mount{destination, "bind", "$(sfprefix)" + base + "$", options, func(id string) string { return SharedDir + id + "-0123456789abcdef-" + base }}
}

// Declared is the mount in policy_data.
func (m Mount) Declared() Object {
	return Object{"destination": m.Destination, "type_": m.Kind, "source": m.Source, "options": m.Options}
}

func baseMounts(sysOption string) []Mount {
	return []Mount{
		LiteralMount("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
		LiteralMount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
		LiteralMount("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
		LiteralMount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"),
		LiteralMount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", sysOption),
		LiteralMount("/dev/shm", "bind", "/run/kata-containers/sandbox/shm", "rbind"),
	}
}

func workloadMounts() []Mount {
	return append(baseMounts("ro"),
		LiteralMount("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid", "noexec", "nodev", "relatime", "ro"),
		SharedMount("/etc/hosts", "rbind", "rprivate", "rw"),
		SharedMount("/dev/termination-log", "rbind", "rprivate", "rw"),
		SharedMount("/etc/hostname", "rbind", "rprivate", "rw"),
		SharedMount("/etc/resolv.conf", "rbind", "rprivate", "rw"),
		SharedMount("/var/run/secrets/kubernetes.io/serviceaccount", "rbind", "rprivate", "ro"),
	)
}

// Container is an entry of policy_data.containers with what a genuine request for it holds.
type Container struct {
	Name     string // "" is the pause container
	Entry    Object
	Mounts   []Mount
	Env      []string // of the request
	Image    string   // source of the guest pull
	Storages []*agent.Storage
}

func masked() []string {
	return []string{"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"}
}

func readonly() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}

func newContainer(name, kind, podKind string, mounts []Mount, args, env []string, uid int) *Container {
	annotations := Object{
		"io.kubernetes.cri.container-type":         kind,
		"io.katacontainers.pkg.oci.container_type": podKind,
		"io.katacontainers.pkg.oci.bundle_path":    "/run/containerd/io.containerd.runtime.v2.task/k8s.io/$(bundle-id)",
		"io.kubernetes.cri.sandbox-id":             "^[a-z0-9]{64}$",
		"io.kubernetes.cri.sandbox-name":           "^web-pod$",
		"io.kubernetes.cri.sandbox-namespace":      "default",
	}
	var declared []Object
	for _, m := range mounts {
		declared = append(declared, m.Declared())
	}
	return &Container{Name: name, Mounts: mounts, Entry: Object{
		"OCI": Object{
			"Version": "1.1.0",
			"Process": Object{
				"Terminal": false, "User": Object{"UID": uid, "GID": uid, "AdditionalGids": []int{uid}, "Username": ""},
				"Args": args, "Env": env, "Cwd": "/",
				"Capabilities": Object{"Ambient": []string{}, "Bounding": []string{"$(default_caps)"}, "Effective": []string{"$(default_caps)"},
					"Inheritable": []string{}, "Permitted": []string{"$(default_caps)"}},
				"NoNewPrivileges": true,
			},
			"Root":        Object{"Path": "$(root_path)", "Readonly": true},
			"Mounts":      declared,
			"Annotations": annotations,
			"Linux": Object{
				"Namespaces":  []Object{{"Type": "ipc", "Path": ""}, {"Type": "uts", "Path": ""}, {"Type": "mount", "Path": ""}},
				"MaskedPaths": masked(), "ReadonlyPaths": readonly(), "Devices": []Object{},
				"Sysctl": Object{"net.ipv4.ip_unprivileged_port_start": "0"},
			},
		},
		"storages": []Object{}, "devices": []Object{}, "sandbox_pidns": false, "exec_commands": [][]string{}, "runtime_anno_patterns": Object{},
	}}
}

// Pause is the pause container.
func Pause() *Container {
	mounts := append(baseMounts("ro"), Mount{"/etc/resolv.conf", "bind", "$(sfprefix)resolv.conf$",
		[]string{"rbind", "ro", "nosuid", "nodev", "noexec"}, func(id string) string { return SharedDir + id + "-0123456789abcdef-resolv.conf" }})
	const path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	c := newContainer("", "sandbox", "pod_sandbox", mounts, []string{"/pause"}, []string{path}, 65535)
	c.Env, c.Image = []string{path}, "pause"
	a := c.Annotations()
	a["io.kubernetes.cri.sandbox-log-directory"] = "^/var/log/pods/$(sandbox-namespace)_$(sandbox-name)_[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
	a["nerdctl/network-namespace"] = "^/var/run/netns/cni-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
	return c
}

// Workload is a container with a probe, templates in arguments and environment, and more mounts if wanted.
func Workload(name string, more ...Mount) *Container {
	c := newContainer(name, "container", "pod_container", append(workloadMounts(), more...), []string{"/bin/serve", "--name=$(sandbox-name)", "cost$$5"},
		[]string{"PATH=/bin", "MODE=production", "POD=$(sandbox-name)", "IP=$(pod-ip)", "HOSTNAME=$(host-name)"}, 1000)
	c.Env = []string{"PATH=/bin", "HOSTNAME=web-pod", "MODE=production", "POD=web-pod", "IP=10.1.2.3", "KUBERNETES_SERVICE_HOST=10.0.0.1"}
	c.Image = "registry.example/web:1@" + DigestOne
	c.Annotations()["io.kubernetes.cri.container-name"] = name
	c.Annotations()["io.kubernetes.cri.image-name"] = "registry.example/web:1@" + DigestOne
	c.Entry["runtime_anno_patterns"] = Object{
		`^io\.kubernetes\.container\.terminationMessagePath$`:   "^/.*$",
		`^io\.kubernetes\.container\.terminationMessagePolicy$`: "^(File|FallbackToLogsOnError)$",
	}
	c.Entry["exec_commands"] = [][]string{{"/bin/probe", name}}
	return c
}

// OCI, Process and Annotations are parts of the entry.
func (c *Container) OCI() Object         { return c.Entry["OCI"].(Object) }
func (c *Container) Process() Object     { return c.OCI()["Process"].(Object) }
func (c *Container) Annotations() Object { return c.OCI()["Annotations"].(Object) }

// AddStorage declares a storage and adds it to genuine requests.
func (c *Container) AddStorage(declared Object, real *agent.Storage) {
	c.Entry["storages"] = append(c.Entry["storages"].([]Object), declared)
	c.Storages = append(c.Storages, real)
}

// Request is what an honest host asks for.
func (c *Container) Request(id string) *agent.CreateContainerRequest {
	req := &agent.CreateContainerRequest{ContainerId: id, ExecId: id, OCI: &agent.Spec{
		Version:  "1.1.0",
		Hostname: "web-pod",
		Root:     &agent.Root{Path: "/run/kata-containers/" + id + "/rootfs", Readonly: true},
		Annotations: map[string]string{
			"io.kubernetes.cri.sandbox-id": SandboxID, "io.kubernetes.cri.sandbox-name": "web-pod",
			"io.kubernetes.cri.sandbox-namespace": "default", "io.kubernetes.cri.sandbox-uid": podUID,
			"io.katacontainers.pkg.oci.bundle_path": "/run/containerd/io.containerd.runtime.v2.task/k8s.io/" + id,
		},
		Linux: &agent.Linux{
			CgroupsPath: "/kubepods/" + id, MaskedPaths: append(masked(), "/proc/asound"), ReadonlyPaths: readonly(),
			Namespaces: []*agent.LinuxNamespace{{Type: "ipc"}, {Type: "uts"}, {Type: "mount"}},
			Resources:  &agent.LinuxResources{CPU: &agent.LinuxCPU{Shares: 2}},
			Sysctl:     map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"},
		},
	}}
	p := c.Process()
	user := p["User"].(Object)
	uid := uint32(user["UID"].(int))
	req.OCI.Process = &agent.Process{
		User: &agent.User{UID: uid, GID: uid, AdditionalGids: []uint32{uid}}, Env: slices.Clone(c.Env), Cwd: "/", NoNewPrivileges: true,
		OOMScoreAdj:  -998,
		Capabilities: &agent.LinuxCapabilities{Bounding: slices.Clone(defaultCaps), Effective: slices.Clone(defaultCaps), Permitted: slices.Clone(defaultCaps)},
	}
	for _, a := range p["Args"].([]string) {
		req.OCI.Process.Args = append(req.OCI.Process.Args, strings.ReplaceAll(strings.ReplaceAll(a, "$(sandbox-name)", "web-pod"), "$$", "$"))
	}
	for _, m := range c.Mounts {
		req.OCI.Mounts = append(req.OCI.Mounts, &agent.Mount{Destination: m.Destination, Type: m.Kind, Source: m.Real(id), Options: slices.Clone(m.Options)})
	}
	a := req.OCI.Annotations
	kind := "container"
	if c.Name == "" {
		kind = "sandbox"
		a["io.katacontainers.pkg.oci.container_type"] = "pod_sandbox"
		a["nerdctl/network-namespace"] = NetNS
		a["io.kubernetes.cri.sandbox-log-directory"] = "/var/log/pods/default_web-pod_" + podUID
	} else {
		a["io.katacontainers.pkg.oci.container_type"] = "pod_container"
		a["io.kubernetes.cri.container-name"] = c.Name
		a["io.kubernetes.cri.image-name"] = c.Annotations()["io.kubernetes.cri.image-name"].(string)
		a["io.kubernetes.container.terminationMessagePath"] = "/dev/termination-log"
	}
	a["io.kubernetes.cri.container-type"] = kind
	for _, s := range c.Storages {
		req.Storages = append(req.Storages, proto.Clone(s).(*agent.Storage))
	}
	if c.Image != "" {
		meta, _ := json.Marshal(map[string]any{"metadata": map[string]string{"io.kubernetes.cri.container-type": kind}})
		req.Storages = append(req.Storages, &agent.Storage{Driver: "image_guest_pull", Source: c.Image, Fstype: "overlay",
			MountPoint: req.OCI.Root.Path, DriverOptions: []string{"image_guest_pull=" + string(meta)}})
	}
	return req
}

// Data is policy_data with the default settings.
func Data(containers ...*Container) Object {
	var list []Object
	for _, c := range containers {
		list = append(list, c.Entry)
	}
	const octet = `([0-9]|[1-9][0-9]|1[0-9]{2}|2[0-4][0-9]|25[0-5])`
	return Object{
		"containers": list,
		"common": Object{
			"cpath": "/run/kata-containers/shared/containers(?:/passthrough)?", "spath": "/run/kata-containers/sandbox/storage",
			"root_path": "/run/kata-containers/$(bundle-id)/rootfs", "sfprefix": "^$(cpath)/(watchable/)?$(bundle-id)-[a-z0-9]{16}-",
			"ip_p": "[0-9]{1,5}", "ipv4_a": strings.Join([]string{octet, octet, octet, octet}, `\.`),
			"svc_name_downward_env": "[A-Z](?:[A-Z0-9_]{0,61}[A-Z0-9])?", "dns_label": `[a-zA-Z0-9_\.\-]+`,
			"default_caps": defaultCaps, "privileged_caps": append(slices.Clone(defaultCaps), "CAP_SYS_ADMIN"), "image_layer_verification": "none",
		},
		"sandbox": Object{"storages": []Object{{"driver": "ephemeral", "driver_options": []string{}, "source": "shm", "fstype": "tmpfs",
			"options": []string{"noexec", "nosuid", "nodev", "mode=1777", "size=67108864"}, "mount_point": "/run/kata-containers/sandbox/shm", "fs_group": nil}}},
		"request_defaults": Object{
			"CreateContainerRequest": Object{"allow_env_regex": []string{"^HOSTNAME=$(dns_label)$", "^$(svc_name_downward_env)_SERVICE_HOST=$(ipv4_a)$",
				"^$(svc_name_downward_env)_SERVICE_PORT=$(ip_p)$", "^TERM=xterm$"}},
			"CopyFileRequest":        []string{"$(sfprefix)"},
			"ExecProcessRequest":     Object{"allowed_commands": [][]string{{"/bin/date", "-u"}}, "regex": []string{}},
			"UpdateInterfaceRequest": Object{"allow_raw_flags": 128, "forbidden_names": []string{"lo"}, "forbidden_hw_addrs": []string{"00:00:00:00:00:00"}},
			"UpdateRoutesRequest": Object{"forbidden_device_names": []string{"lo"},
				"forbidden_source_regex": []string{"^(?:0{0,4}:){0,7}0{0,3}1$", `^127\.(?:[0-9]{1,3}\.){2}[0-9]{1,3}$`}},
			"AddARPNeighborsRequest": Object{"forbidden_device_names": []string{"lo"}, "forbidden_cidrs_regex": []string{`^127\.(?:[0-9]{1,3}\.){2}[0-9]{1,3}$`},
				"allowed_states": []int{2, 128}},
			"CloseStdinRequest": false, "GetDiagnosticDataRequest": false, "ReadStreamRequest": true, "UpdateEphemeralMountsRequest": false, "WriteStreamRequest": false,
		},
		"devices":        Object{"vfio": Object{"device_path": "/dev/vfio/devices/vfio"}},
		"cluster_config": Object{"guest_pull": true, "cgroup_mount_extras_allowed": []string{"nsdelegate", "memory_recursiveprot"}},
	}
}

// Policy is the text of a policy: rules over data.
func Policy(rules string, data Object) (string, error) {
	text, err := json.MarshalIndent(data, "", "  ")
	if err != nil {
		return "", fmt.Errorf("writing policy_data: %w", err)
	}
	return rules + "\npolicy_data := " + string(text) + "\n", nil
}

// ID is a well-formed id.
func ID(n int) string { return fmt.Sprintf("%064x", n) }

// Sandbox is the first request for the pod.
func Sandbox() *agent.CreateSandboxRequest {
	return &agent.CreateSandboxRequest{Hostname: "web-pod", SandboxId: SandboxID, Storages: []*agent.Storage{{Driver: "ephemeral", Source: "shm",
		Fstype: "tmpfs", Options: []string{"noexec", "nosuid", "nodev", "mode=1777", "size=67108864"}, MountPoint: "/run/kata-containers/sandbox/shm"}}}
}
