package policy_test

import (
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/guest/gate"
	"github.com/cloister/cloister/wire/agent"
)

// Ids as containerd makes them.
var (
	podID = strings.Repeat("a0", 32)
	webID = strings.Repeat("b1", 32)
)

const (
	webImage  = "registry.example/web@sha256:0000000000000000000000000000000000000000000000000000000000000000"
	guestRoot = "/run/kata-containers/"
)

// howto is the policy of docs/howto, which has to compile as it stands there.
func howto(t testing.TB) *gate.Engine {
	t.Helper()
	text, err := os.ReadFile("../../docs/howto/pod-policy.rego")
	if err != nil {
		t.Fatal(err)
	}
	e, err := gate.New(string(text), gate.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func copied(id, name string) string {
	return guestRoot + "shared/containers/" + id + "-0123456789abcdef-" + name
}

func bindMount(source, destination string) *agent.Mount {
	return &agent.Mount{Type: "bind", Source: source, Destination: destination, Options: []string{"rbind", "rprivate", "rw"}}
}

// fromCRI is a request as the shim makes it of what containerd says.
func fromCRI(id, image, kind string) *agent.CreateContainerRequest {
	caps := []string{"CAP_CHOWN", "CAP_NET_RAW"}
	root := guestRoot + id + "/rootfs"
	return &agent.CreateContainerRequest{ContainerId: id, ExecId: id,
		Storages: []*agent.Storage{{Driver: "image_guest_pull", Source: image, Fstype: "overlay", MountPoint: root,
			DriverOptions: []string{`image_guest_pull={"metadata":{"io.kubernetes.cri.container-type":"` + kind + `"}}`}}},
		OCI: &agent.Spec{Version: "1.1.0", Hostname: "pod", Root: &agent.Root{Path: root},
			Annotations: map[string]string{"io.kubernetes.cri.container-type": kind},
			Process: &agent.Process{Args: []string{"/pause"}, Env: []string{"PATH=/bin"}, Cwd: "/", User: &agent.User{UID: 65535, GID: 65535},
				Capabilities: &agent.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}},
			Mounts: []*agent.Mount{{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid"}},
				{Destination: "/dev", Type: "tmpfs", Source: "tmpfs"}, {Destination: "/dev/pts", Type: "devpts", Source: "devpts"},
				{Destination: "/sys", Type: "sysfs", Source: "sysfs"}, bindMount(guestRoot+"sandbox/shm", "/dev/shm"),
				bindMount(copied(id, "resolv.conf"), "/etc/resolv.conf")},
			Linux: &agent.Linux{Namespaces: []*agent.LinuxNamespace{{Type: "ipc"}, {Type: "mount"}}}}}
}

func webRequest() *agent.CreateContainerRequest {
	r := fromCRI(webID, webImage, "container")
	r.OCI.Annotations["io.kubernetes.cri.container-name"] = "web"
	r.OCI.Process.Args = []string{"/web", "--listen=:8080"}
	r.OCI.Process.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME=pod", "KUBERNETES_SERVICE_HOST=10.96.0.1",
		"KUBERNETES_PORT_443_TCP=tcp://10.96.0.1:443", "KUBERNETES_SERVICE_PORT_HTTPS=443"}
	r.OCI.Process.User = &agent.User{}
	r.OCI.Mounts = append(r.OCI.Mounts, bindMount(copied(webID, "hosts"), "/etc/hosts"), bindMount(copied(webID, "web"), "/etc/web"),
		bindMount(guestRoot+"sandbox/ephemeral/cache", "/cache"))
	r.Storages = append(r.Storages, &agent.Storage{Driver: "ephemeral", Source: "tmpfs", Fstype: "tmpfs", MountPoint: guestRoot + "sandbox/ephemeral/cache"})
	return r
}

// TestHowtoPolicy asks the policy of docs/howto what a host asks that does its work.
func TestHowtoPolicy(t *testing.T) {
	e := howto(t)
	disk := webRequest()
	last := len(disk.OCI.Mounts) - 1
	disk.OCI.Mounts[last].Source = guestRoot + "sandbox/storage/MDIvMDE="
	disk.Storages[1] = &agent.Storage{Driver: "blk", Source: "02/01", Fstype: "ext4", MountPoint: guestRoot + "sandbox/storage/MDIvMDE=", Shared: true,
		DriverOptions: []string{"encryption_key=ephemeral", "create_filesystem"}}
	local := webRequest()
	dir := guestRoot + "shared/containers/" + podID + "/rootfs/local/cache"
	local.OCI.Mounts[last].Source = dir
	local.Storages[1] = &agent.Storage{Driver: "local", Source: "local", Fstype: "local", Options: []string{"mode=0777"}, MountPoint: dir}
	pause := fromCRI(podID, "pause", "sandbox")
	pause.OCI.Linux.Sysctl = map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"}
	for _, r := range []proto.Message{
		&agent.CreateSandboxRequest{Hostname: "pod", Dns: []string{"nameserver 10.96.0.10"}, SandboxId: podID, Storages: []*agent.Storage{{Driver: "ephemeral",
			Source: "shm", Fstype: "tmpfs", MountPoint: guestRoot + "sandbox/shm", Options: []string{"size=67108864"}}}},
		&agent.UpdateInterfaceRequest{Interface: &agent.Interface{Name: "eth0", Device: "eth0",
			IPAddresses: []*agent.IPAddress{{Address: "10.88.0.5", Mask: "24"}, {Address: "fd00::7f01", Mask: "64"}}}},
		&agent.UpdateRoutesRequest{Routes: &agent.Routes{Routes: []*agent.Route{{Gateway: "10.88.0.1", Device: "eth0"}, {Dest: "::/0", Device: "eth0"}}}},
		&agent.CopyFileRequest{Path: copied(webID, "web") + "/..data", FileMode: 0o120777, Data: []byte("..2026"), FileSize: 6},
		pause, webRequest(), disk, local,
		&agent.StartContainerRequest{ContainerId: webID}, &agent.WaitProcessRequest{ContainerId: webID}, &agent.ReadStreamRequest{ContainerId: webID},
		&agent.SignalProcessRequest{ContainerId: webID, Signal: 15}, &agent.StatsContainerRequest{ContainerId: webID}, &agent.GetOOMEventRequest{},
		&agent.GetDiagnosticDataRequest{LogType: "termination_log", ContainerId: webID}, &agent.RemoveContainerRequest{ContainerId: webID},
		&agent.DestroySandboxRequest{},
	} {
		mustAllow(t, e, r)
	}
}

// TestHowtoPolicyRefuses asks it what a host asks that wants to get at the pod.
func TestHowtoPolicyRefuses(t *testing.T) {
	web := func(change func(*agent.CreateContainerRequest)) proto.Message {
		r := webRequest()
		change(r)
		return r
	}
	pause := func(change func(*agent.CreateContainerRequest)) proto.Message {
		r := fromCRI(podID, "pause", "sandbox")
		change(r)
		return r
	}
	mount := func(m *agent.Mount) proto.Message {
		return web(func(r *agent.CreateContainerRequest) { r.OCI.Mounts = append(r.OCI.Mounts, m) })
	}
	storage := func(s *agent.Storage) proto.Message {
		return web(func(r *agent.CreateContainerRequest) { r.Storages = append(r.Storages, s) })
	}
	env := func(v string) proto.Message {
		return web(func(r *agent.CreateContainerRequest) { r.OCI.Process.Env = append(r.OCI.Process.Env, v) })
	}
	for name, r := range map[string]proto.Message{
		"other image":         web(func(r *agent.CreateContainerRequest) { r.Storages[0].Source = strings.ReplaceAll(webImage, "00", "01") }),
		"image by tag":        web(func(r *agent.CreateContainerRequest) { r.Storages[0].Source = "registry.example/web:1" }),
		"two images":          storage(webRequest().Storages[0]),
		"no image":            web(func(r *agent.CreateContainerRequest) { r.Storages = r.Storages[1:] }),
		"image as pause":      web(func(r *agent.CreateContainerRequest) { r.Storages[0].Source = "pause" }),
		"unknown container":   web(func(r *agent.CreateContainerRequest) { r.OCI.Annotations["io.kubernetes.cri.container-name"] = "worm" }),
		"unnamed container":   web(func(r *agent.CreateContainerRequest) { r.OCI.Annotations = nil }),
		"other program":       web(func(r *agent.CreateContainerRequest) { r.OCI.Process.Args[0] = "/bin/sh" }),
		"more arguments":      web(func(r *agent.CreateContainerRequest) { r.OCI.Process.Args = append(r.OCI.Process.Args, "--debug") }),
		"other directory":     web(func(r *agent.CreateContainerRequest) { r.OCI.Process.Cwd = "/etc/web" }),
		"other user":          web(func(r *agent.CreateContainerRequest) { r.OCI.Process.User.UID = 1000 }),
		"user by name":        web(func(r *agent.CreateContainerRequest) { r.StringUser = &agent.StringUser{Uid: "root"} }),
		"LD_PRELOAD":          env("LD_PRELOAD=/etc/web/evil.so"),
		"service with a path": env("LD_AUDIT_PORT=/x /y"),
		"other PATH":          env("PATH=/etc/web"),
		"privileged": web(func(r *agent.CreateContainerRequest) {
			r.OCI.Process.Capabilities.Effective = []string{"CAP_SYS_ADMIN"}
		}),
		"no capabilities given": web(func(r *agent.CreateContainerRequest) { r.OCI.Process.Capabilities = nil }),
		"root elsewhere":        web(func(r *agent.CreateContainerRequest) { r.OCI.Root.Path = copied(webID, "evil") }),
		"image elsewhere": web(func(r *agent.CreateContainerRequest) {
			r.Storages[0].MountPoint = guestRoot + podID + "/rootfs"
		}),
		"device of the host": web(func(r *agent.CreateContainerRequest) {
			r.Devices = []*agent.Device{{Type: "blk", ContainerPath: "/dev/x"}}
		}),
		"device of the guest": web(func(r *agent.CreateContainerRequest) {
			r.OCI.Linux.Devices = []*agent.LinuxDevice{{Path: "/dev/mem", Type: "c"}}
		}),
		"hook": web(func(r *agent.CreateContainerRequest) {
			r.OCI.Hooks = &agent.Hooks{Prestart: []*agent.Hook{{Path: "/x"}}}
		}),
		"namespace of others": web(func(r *agent.CreateContainerRequest) { r.OCI.Linux.Namespaces[0].Path = "/proc/1/ns/ipc" }),
		"sysctl": web(func(r *agent.CreateContainerRequest) {
			r.OCI.Linux.Sysctl = map[string]string{"kernel.core_pattern": "|/x"}
		}),
		"shared mount":           web(func(r *agent.CreateContainerRequest) { r.SharedMounts = []*agent.SharedMount{{Name: "x"}} }),
		"bind of the guest":      mount(bindMount("/run/kata-containers/image", "/cache")),
		"bind of all of it":      mount(bindMount(guestRoot+"shared/containers/", "/etc/web")),
		"bind with ..":           mount(bindMount(guestRoot+"sandbox/ephemeral/..", "/cache")),
		"bind of a part":         mount(bindMount(guestRoot+"sandbox/ephemeral/cache/x", "/cache")),
		"copy as scratch":        mount(bindMount(copied(webID, "cache"), "/cache")),
		"scratch as copy":        mount(bindMount(guestRoot+"sandbox/ephemeral/cache", "/etc/web")),
		"copy over the program":  mount(bindMount(copied(webID, "web"), "/web")),
		"copy over libraries":    mount(bindMount(copied(webID, "lib"), "/lib")),
		"bind by option":         mount(&agent.Mount{Type: "proc", Source: copied(webID, "x"), Destination: "/proc", Options: []string{"rbind"}}),
		"tmpfs over the program": mount(&agent.Mount{Type: "tmpfs", Source: "tmpfs", Destination: "/web"}),
		"proc elsewhere":         mount(&agent.Mount{Type: "proc", Source: "proc", Destination: "/cache"}),
		"shared directory":       storage(&agent.Storage{Driver: "virtio-fs", Source: "kataShared", Fstype: "virtiofs", MountPoint: guestRoot + "shared/containers/"}),
		"disk of the host":       storage(&agent.Storage{Driver: "blk", Source: "02/01", Fstype: "ext4", MountPoint: guestRoot + "sandbox/storage/x"}),
		"disk as root":           storage(&agent.Storage{Driver: "blk", Source: "02/01", Fstype: "ext4", MountPoint: guestRoot + webID + "/rootfs"}),
		"encrypted disk elsewhere": storage(&agent.Storage{Driver: "scsi", Source: "0:0", Fstype: "ext4", MountPoint: "/etc",
			DriverOptions: []string{"encryption_key=ephemeral", "create_filesystem"}}),
		"watched files":         storage(&agent.Storage{Driver: "watchable-bind", Source: "/x", Fstype: "bind", MountPoint: "/x"}),
		"memory over the guest": storage(&agent.Storage{Driver: "ephemeral", Fstype: "tmpfs", MountPoint: guestRoot + "sandbox/shm"}),
		"huge pages":            storage(&agent.Storage{Driver: "ephemeral", Fstype: "hugetlbfs", MountPoint: guestRoot + "sandbox/ephemeral/x"}),
		"directory in a copy":   storage(&agent.Storage{Driver: "local", MountPoint: copied(webID, "web")}),
		"pulled pause": pause(func(r *agent.CreateContainerRequest) {
			r.Storages[0].DriverOptions[0] = `image_guest_pull={"metadata":{}}`
		}),
		"pause in two spellings": pause(func(r *agent.CreateContainerRequest) {
			r.Storages[0].DriverOptions[0] = `image_guest_pull={"metadata":{"io.kubernetes.cri.container-type":"sandbox"},"Metadata":{"io.kubernetes.cri.container-type":"container"}}`
		}),
		"pause with two options": pause(func(r *agent.CreateContainerRequest) {
			r.Storages[0].DriverOptions = append([]string{`image_guest_pull={}`}, r.Storages[0].DriverOptions...)
		}),
		"pause with a volume": pause(func(r *agent.CreateContainerRequest) {
			r.OCI.Mounts = append(r.OCI.Mounts, bindMount(copied(podID, "x"), "/pause"))
		}),
		"pause with a disk": pause(func(r *agent.CreateContainerRequest) {
			r.Storages = append(r.Storages, &agent.Storage{Driver: "blk", MountPoint: guestRoot + "sandbox/storage/x"})
		}),
		"shared directory of the pod": &agent.CreateSandboxRequest{Storages: []*agent.Storage{{Driver: "virtio-fs", Source: "kataShared", Fstype: "virtiofs",
			MountPoint: guestRoot + "shared/containers/"}}},
		"hooks of the guest":     &agent.CreateSandboxRequest{GuestHookPath: "/x"},
		"kernel modules":         &agent.CreateSandboxRequest{KernelModules: []*agent.KernelModule{{Name: "x"}}},
		"memory over all":        &agent.CreateSandboxRequest{Storages: []*agent.Storage{{Driver: "ephemeral", Fstype: "tmpfs", MountPoint: guestRoot + "sandbox"}}},
		"copy into an emptyDir":  &agent.CopyFileRequest{Path: guestRoot + "shared/containers/" + podID + "/rootfs/local/cache/x", FileMode: 0o100644},
		"copy into an image":     &agent.CopyFileRequest{Path: guestRoot + webID + "/rootfs/web", FileMode: 0o100755},
		"link to a directory":    &agent.CopyFileRequest{Path: copied(webID, "web"), FileMode: 0o120777, Data: []byte(podID + "/rootfs/local/cache"), FileSize: 1},
		"link out of a volume":   &agent.CopyFileRequest{Path: copied(webID, "web") + "/x", FileMode: 0o120777, Data: []byte("../" + podID + "/rootfs/local/cache"), FileSize: 1},
		"link by its whole path": &agent.CopyFileRequest{Path: copied(webID, "web") + "/x", FileMode: 0o120777, Data: []byte("/run"), FileSize: 1},
		"copy with ..":           &agent.CopyFileRequest{Path: copied(webID, "web") + "/../x", FileMode: 0o100644},
		"exec":                   &agent.ExecProcessRequest{ContainerId: webID, Process: &agent.Process{Args: []string{"sh"}}},
		"policy":                 &agent.SetPolicyRequest{Policy: "package agent_policy"},
		"update":                 &agent.UpdateContainerRequest{ContainerId: webID},
		"input":                  &agent.WriteStreamRequest{ContainerId: webID, Data: []byte("x")},
		"other diagnostics":      &agent.GetDiagnosticDataRequest{LogType: "console"},
		"kernel's random seed":   &agent.ReseedRandomDevRequest{},
		"clock":                  &agent.SetGuestDateTimeRequest{},
		"rules of iptables":      &agent.SetIPTablesRequest{},
		"loopback address":       &agent.UpdateInterfaceRequest{Interface: &agent.Interface{Name: "eth0", IPAddresses: []*agent.IPAddress{{Address: "127.0.0.5"}}}},
		"loopback address 6":     &agent.UpdateInterfaceRequest{Interface: &agent.Interface{Name: "eth0", IPAddresses: []*agent.IPAddress{{Address: "0:0::1"}}}},
		"loopback device":        &agent.UpdateInterfaceRequest{Interface: &agent.Interface{Name: "lo"}},
		"route to loopback":      &agent.UpdateRoutesRequest{Routes: &agent.Routes{Routes: []*agent.Route{{Dest: "::ffff:127.0.0.1/128", Device: "eth0"}}}},
		"neighbour":              &agent.AddARPNeighborsRequest{Neighbors: &agent.ARPNeighbors{ARPNeighbors: []*agent.ARPNeighbor{{Device: "lo", ToIPAddress: &agent.IPAddress{Address: "10.0.0.1"}}}}},
	} {
		t.Run(name, func(t *testing.T) {
			var unnamed *gate.InternalError // the policy has no such rule, which is a refusal as well
			if err := ask(howto(t), r); !errors.As(err, &unnamed) {
				denied(t, err, nil, nil)
			}
		})
	}
}

// TestHowtoTable: the table ends where programs that put in their own containers expect it.
func TestHowtoTable(t *testing.T) {
	text, err := os.ReadFile("../../docs/howto/pod-policy.rego")
	if err != nil {
		t.Fatal(err)
	}
	if n := len(regexp.MustCompile(`(?s)\ncontainers := \{.*?\n\}\}\n`).FindAll(text, -1)); n != 1 {
		t.Errorf("there are %d tables of containers", n)
	}
}
