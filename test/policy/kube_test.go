package policy_test

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/guest/gate"
	"github.com/cloister/cloister/wire/agent"
)

// The rules of author/genpolicy over data in the shape of the Kata generator, written by hand here: what is tested is
// the rules, not a generator.

// object is a piece of policy_data.
type object = map[string]any

const (
	sandboxID = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	podUID    = "9c64c5bf-298f-46c4-ad63-e2270a2ff44c"
	netns     = "/var/run/netns/cni-22190131-6f68-2878-6d7b-418baf176cdf"
	digestOne = "sha256:1111111111111111111111111111111111111111111111111111111111111111"
	digestTwo = "sha256:2222222222222222222222222222222222222222222222222222222222222222"
	sharedDir = "/run/kata-containers/shared/containers/"
)

var defaultCaps = []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE"}

// kubeMount is a mount of policy_data and the source that a genuine request has for it.
type kubeMount struct {
	destination, kind, source string
	options                   []string
	real                      func(id string) string
}

func literalMount(destination, kind, source string, options ...string) kubeMount {
	return kubeMount{destination, kind, source, options, func(string) string { return source }}
}

// sharedMount is a file or directory that the host puts into the guest.
func sharedMount(destination string, options ...string) kubeMount {
	base := destination[strings.LastIndexByte(destination, '/')+1:]
	return kubeMount{destination, "bind", "$(sfprefix)" + base + "$", options, func(id string) string { return sharedDir + id + "-0123456789abcdef-" + base }}
}

func (m kubeMount) declared() object {
	return object{"destination": m.destination, "type_": m.kind, "source": m.source, "options": m.options}
}

func baseMounts(sysOption string) []kubeMount {
	return []kubeMount{
		literalMount("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
		literalMount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
		literalMount("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
		literalMount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"),
		literalMount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", sysOption),
		literalMount("/dev/shm", "bind", "/run/kata-containers/sandbox/shm", "rbind"),
	}
}

func workloadMounts() []kubeMount {
	return append(baseMounts("ro"),
		literalMount("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid", "noexec", "nodev", "relatime", "ro"),
		sharedMount("/etc/hosts", "rbind", "rprivate", "rw"),
		sharedMount("/dev/termination-log", "rbind", "rprivate", "rw"),
		sharedMount("/etc/hostname", "rbind", "rprivate", "rw"),
		sharedMount("/etc/resolv.conf", "rbind", "rprivate", "rw"),
		sharedMount("/var/run/secrets/kubernetes.io/serviceaccount", "rbind", "rprivate", "ro"),
	)
}

// kubeContainer is an entry of policy_data.containers with what a genuine request for it holds.
type kubeContainer struct {
	name     string // "" is the pause container
	data     object
	mounts   []kubeMount
	env      []string // of the request
	image    string   // source of the guest pull
	storages []*agent.Storage
}

func masked() []string {
	return []string{"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"}
}

func readonly() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}

func container(name, kind, podKind string, mounts []kubeMount, args, env []string, uid int) *kubeContainer {
	annotations := object{
		"io.kubernetes.cri.container-type":         kind,
		"io.katacontainers.pkg.oci.container_type": podKind,
		"io.katacontainers.pkg.oci.bundle_path":    "/run/containerd/io.containerd.runtime.v2.task/k8s.io/$(bundle-id)",
		"io.kubernetes.cri.sandbox-id":             "^[a-z0-9]{64}$",
		"io.kubernetes.cri.sandbox-name":           "^web-pod$",
		"io.kubernetes.cri.sandbox-namespace":      "default",
	}
	var declared []object
	for _, m := range mounts {
		declared = append(declared, m.declared())
	}
	return &kubeContainer{name: name, mounts: mounts, data: object{
		"OCI": object{
			"Version": "1.1.0",
			"Process": object{
				"Terminal": false, "User": object{"UID": uid, "GID": uid, "AdditionalGids": []int{uid}, "Username": ""},
				"Args": args, "Env": env, "Cwd": "/",
				"Capabilities": object{"Ambient": []string{}, "Bounding": []string{"$(default_caps)"}, "Effective": []string{"$(default_caps)"},
					"Inheritable": []string{}, "Permitted": []string{"$(default_caps)"}},
				"NoNewPrivileges": true,
			},
			"Root":        object{"Path": "$(root_path)", "Readonly": true},
			"Mounts":      declared,
			"Annotations": annotations,
			"Linux": object{
				"Namespaces":  []object{{"Type": "ipc", "Path": ""}, {"Type": "uts", "Path": ""}, {"Type": "mount", "Path": ""}},
				"MaskedPaths": masked(), "ReadonlyPaths": readonly(), "Devices": []object{},
				"Sysctl": object{"net.ipv4.ip_unprivileged_port_start": "0"},
			},
		},
		"storages": []object{}, "devices": []object{}, "sandbox_pidns": false, "exec_commands": [][]string{}, "runtime_anno_patterns": object{},
	}}
}

func pause() *kubeContainer {
	mounts := append(baseMounts("ro"), kubeMount{"/etc/resolv.conf", "bind", "$(sfprefix)resolv.conf$",
		[]string{"rbind", "ro", "nosuid", "nodev", "noexec"}, func(id string) string { return sharedDir + id + "-0123456789abcdef-resolv.conf" }})
	const path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	c := container("", "sandbox", "pod_sandbox", mounts, []string{"/pause"}, []string{path}, 65535)
	c.env, c.image = []string{path}, "pause"
	a := c.annotations()
	a["io.kubernetes.cri.sandbox-log-directory"] = "^/var/log/pods/$(sandbox-namespace)_$(sandbox-name)_[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
	a["nerdctl/network-namespace"] = "^/var/run/netns/cni-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
	return c
}

func workload(name string, more ...kubeMount) *kubeContainer {
	c := container(name, "container", "pod_container", append(workloadMounts(), more...), []string{"/bin/serve", "--name=$(sandbox-name)", "cost$$5"},
		[]string{"PATH=/bin", "MODE=production", "POD=$(sandbox-name)", "IP=$(pod-ip)", "HOSTNAME=$(host-name)"}, 1000)
	c.env = []string{"PATH=/bin", "HOSTNAME=web-pod", "MODE=production", "POD=web-pod", "IP=10.1.2.3", "KUBERNETES_SERVICE_HOST=10.0.0.1"}
	c.image = "registry.example/web:1@" + digestOne
	c.annotations()["io.kubernetes.cri.container-name"] = name
	c.annotations()["io.kubernetes.cri.image-name"] = "registry.example/web:1@" + digestOne
	c.data["runtime_anno_patterns"] = object{
		`^io\.kubernetes\.container\.terminationMessagePath$`:   "^/.*$",
		`^io\.kubernetes\.container\.terminationMessagePolicy$`: "^(File|FallbackToLogsOnError)$",
	}
	c.data["exec_commands"] = [][]string{{"/bin/probe", name}}
	return c
}

func (c *kubeContainer) oci() object         { return c.data["OCI"].(object) }
func (c *kubeContainer) process() object     { return c.oci()["Process"].(object) }
func (c *kubeContainer) annotations() object { return c.oci()["Annotations"].(object) }

// storage declares a storage and adds it to genuine requests.
func (c *kubeContainer) storage(declared object, real *agent.Storage) {
	c.data["storages"] = append(c.data["storages"].([]object), declared)
	c.storages = append(c.storages, real)
}

// request is what an honest host asks for.
func (c *kubeContainer) request(id string) *agent.CreateContainerRequest {
	req := &agent.CreateContainerRequest{ContainerId: id, ExecId: id, OCI: &agent.Spec{
		Version:  "1.1.0",
		Hostname: "web-pod",
		Root:     &agent.Root{Path: "/run/kata-containers/" + id + "/rootfs", Readonly: true},
		Annotations: map[string]string{
			"io.kubernetes.cri.sandbox-id": sandboxID, "io.kubernetes.cri.sandbox-name": "web-pod",
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
	p := c.process()
	user := p["User"].(object)
	uid := uint32(user["UID"].(int))
	req.OCI.Process = &agent.Process{
		User: &agent.User{UID: uid, GID: uid, AdditionalGids: []uint32{uid}}, Env: slices.Clone(c.env), Cwd: "/", NoNewPrivileges: true,
		OOMScoreAdj:  -998,
		Capabilities: &agent.LinuxCapabilities{Bounding: slices.Clone(defaultCaps), Effective: slices.Clone(defaultCaps), Permitted: slices.Clone(defaultCaps)},
	}
	for _, a := range p["Args"].([]string) {
		req.OCI.Process.Args = append(req.OCI.Process.Args, strings.ReplaceAll(strings.ReplaceAll(a, "$(sandbox-name)", "web-pod"), "$$", "$"))
	}
	for _, m := range c.mounts {
		req.OCI.Mounts = append(req.OCI.Mounts, &agent.Mount{Destination: m.destination, Type: m.kind, Source: m.real(id), Options: slices.Clone(m.options)})
	}
	a := req.OCI.Annotations
	kind := "container"
	if c.name == "" {
		kind = "sandbox"
		a["io.katacontainers.pkg.oci.container_type"] = "pod_sandbox"
		a["nerdctl/network-namespace"] = netns
		a["io.kubernetes.cri.sandbox-log-directory"] = "/var/log/pods/default_web-pod_" + podUID
	} else {
		a["io.katacontainers.pkg.oci.container_type"] = "pod_container"
		a["io.kubernetes.cri.container-name"] = c.name
		a["io.kubernetes.cri.image-name"] = c.image
		a["io.kubernetes.container.terminationMessagePath"] = "/dev/termination-log"
	}
	a["io.kubernetes.cri.container-type"] = kind
	for _, s := range c.storages {
		req.Storages = append(req.Storages, proto.Clone(s).(*agent.Storage))
	}
	if c.image != "" {
		meta, _ := json.Marshal(map[string]any{"metadata": map[string]string{"io.kubernetes.cri.container-type": kind}})
		req.Storages = append(req.Storages, &agent.Storage{Driver: "image_guest_pull", Source: c.image, Fstype: "overlay",
			MountPoint: req.OCI.Root.Path, DriverOptions: []string{"image_guest_pull=" + string(meta)}})
	}
	return req
}

// kubeData is policy_data with the default settings.
func kubeData(containers ...*kubeContainer) object {
	var list []object
	for _, c := range containers {
		list = append(list, c.data)
	}
	const octet = `([0-9]|[1-9][0-9]|1[0-9]{2}|2[0-4][0-9]|25[0-5])`
	return object{
		"containers": list,
		"common": object{
			"cpath": "/run/kata-containers/shared/containers(?:/passthrough)?", "spath": "/run/kata-containers/sandbox/storage",
			"root_path": "/run/kata-containers/$(bundle-id)/rootfs", "sfprefix": "^$(cpath)/(watchable/)?$(bundle-id)-[a-z0-9]{16}-",
			"ip_p": "[0-9]{1,5}", "ipv4_a": strings.Join([]string{octet, octet, octet, octet}, `\.`),
			"svc_name_downward_env": "[A-Z](?:[A-Z0-9_]{0,61}[A-Z0-9])?", "dns_label": `[a-zA-Z0-9_\.\-]+`,
			"default_caps": defaultCaps, "privileged_caps": append(slices.Clone(defaultCaps), "CAP_SYS_ADMIN"), "image_layer_verification": "none",
		},
		"sandbox": object{"storages": []object{{"driver": "ephemeral", "driver_options": []string{}, "source": "shm", "fstype": "tmpfs",
			"options": []string{"noexec", "nosuid", "nodev", "mode=1777", "size=67108864"}, "mount_point": "/run/kata-containers/sandbox/shm", "fs_group": nil}}},
		"request_defaults": object{
			"CreateContainerRequest": object{"allow_env_regex": []string{"^HOSTNAME=$(dns_label)$", "^$(svc_name_downward_env)_SERVICE_HOST=$(ipv4_a)$",
				"^$(svc_name_downward_env)_SERVICE_PORT=$(ip_p)$", "^TERM=xterm$"}},
			"CopyFileRequest":        []string{"$(sfprefix)"},
			"ExecProcessRequest":     object{"allowed_commands": [][]string{{"/bin/date", "-u"}}, "regex": []string{}},
			"UpdateInterfaceRequest": object{"allow_raw_flags": 128, "forbidden_names": []string{"lo"}, "forbidden_hw_addrs": []string{"00:00:00:00:00:00"}},
			"UpdateRoutesRequest": object{"forbidden_device_names": []string{"lo"},
				"forbidden_source_regex": []string{"^(?:0{0,4}:){0,7}0{0,3}1$", `^127\.(?:[0-9]{1,3}\.){2}[0-9]{1,3}$`}},
			"AddARPNeighborsRequest": object{"forbidden_device_names": []string{"lo"}, "forbidden_cidrs_regex": []string{`^127\.(?:[0-9]{1,3}\.){2}[0-9]{1,3}$`},
				"allowed_states": []int{2, 128}},
			"CloseStdinRequest": false, "GetDiagnosticDataRequest": false, "ReadStreamRequest": true, "UpdateEphemeralMountsRequest": false, "WriteStreamRequest": false,
		},
		"devices":        object{"vfio": object{"device_path": "/dev/vfio/devices/vfio"}},
		"cluster_config": object{"guest_pull": true, "cgroup_mount_extras_allowed": []string{"nsdelegate", "memory_recursiveprot"}},
	}
}

// kubePolicy is the text of a policy over data.
func kubePolicy(t testing.TB, data object) string {
	t.Helper()
	rules, err := os.ReadFile("../../author/genpolicy/rules.rego")
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.MarshalIndent(data, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return string(rules) + "\npolicy_data := " + string(text) + "\n"
}

func kubeEngine(t testing.TB, data object) *gate.Engine {
	t.Helper()
	e, err := gate.New(kubePolicy(t, data), gate.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// containerID is a well-formed id.
func containerID(n int) string { return fmt.Sprintf("%064x", n) }

func kubeSandbox() *agent.CreateSandboxRequest {
	return &agent.CreateSandboxRequest{Hostname: "web-pod", SandboxId: sandboxID, Storages: []*agent.Storage{{Driver: "ephemeral", Source: "shm",
		Fstype: "tmpfs", Options: []string{"noexec", "nosuid", "nodev", "mode=1777", "size=67108864"}, MountPoint: "/run/kata-containers/sandbox/shm"}}}
}
