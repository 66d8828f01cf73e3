package container

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/wire/agent"
)

func place() Placement {
	return Placement{
		ID: "c1", Rootfs: "/run/kata-containers/c1/rootfs",
		Join:      map[string]string{"ipc": "/run/cloister/ns/ipc", "uts": "/run/cloister/ns/uts"},
		BindRoots: []string{"/run/kata-containers/shared/containers", "/run/kata-containers/sandbox"},
		Reserved:  func(major, minor int64) bool { return major == 250 },
	}
}

func spec() *agent.Spec {
	return &agent.Spec{
		Version: "1.1.0", Hostname: "ignored",
		Process: &agent.Process{
			Args: []string{"/app"}, Env: []string{"A=b"}, Cwd: "/work", User: &agent.User{UID: 1000, GID: 100, AdditionalGids: []uint32{7}},
			Capabilities: &agent.LinuxCapabilities{Bounding: []string{"CAP_KILL"}}, Rlimits: []*agent.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 10, Soft: 5}},
			NoNewPrivileges: true, OOMScoreAdj: 998, ApparmorProfile: "cri", SelinuxLabel: "x",
		},
		Root: &agent.Root{Path: "/anything", Readonly: true},
		Mounts: []*agent.Mount{
			{Destination: "/proc", Source: "proc", Type: "proc"},
			{Destination: "/dev/shm", Source: "/run/kata-containers/sandbox/shm", Type: "bind", Options: []string{"rbind", "X-kata.foo"}},
			{Destination: "/etc/hosts", Source: "/run/kata-containers/shared/containers/c1-hosts", Options: []string{"bind", "ro", "rshared"}},
		},
		Annotations: map[string]string{"a": "b"},
		Linux: &agent.Linux{
			CgroupsPath: "kubepods.slice:cri:c1", Sysctl: map[string]string{"net.ipv4.tcp_syncookies": "1", "kernel.shmmax": "1"},
			Namespaces: []*agent.LinuxNamespace{{Type: "ipc", Path: "/proc/1/ns/ipc"}, {Type: "mount"}, {Type: "network", Path: "/var/run/netns/x"}},
			Resources: &agent.LinuxResources{
				Devices: []*agent.LinuxDeviceCgroup{{Allow: true, Type: "a", Access: "rwm"}}, Memory: &agent.LinuxMemory{Limit: 1 << 20},
				CPU: &agent.LinuxCPU{Quota: 5, Period: 10}, Pids: &agent.LinuxPids{Limit: 9},
			},
			Devices:     []*agent.LinuxDevice{{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229, FileMode: 0o666}},
			MaskedPaths: []string{"/proc/kcore"},
			Seccomp: &agent.LinuxSeccomp{DefaultAction: "SCMP_ACT_ERRNO", Syscalls: []*agent.LinuxSyscall{{
				Names: []string{"clone3"}, Action: "SCMP_ACT_ERRNO", ErrnoRet: &agent.LinuxSyscall_Errnoret{Errnoret: 38},
			}}},
		},
	}
}

func TestConvert(t *testing.T) {
	out, err := Convert(spec(), place())
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.MarshalIndent(out, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden := "testdata/config.json"
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(golden, append(got, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if string(got)+"\n" != string(want) {
		t.Errorf("configuration differs from %s (UPDATE_GOLDEN=1 rewrites it):\n%s", golden, got)
	}
	if out.NetSysctl["net.ipv4.tcp_syncookies"] != "1" {
		t.Errorf("network settings: %v", out.NetSysctl)
	}
}

// TestParentsAreMountedFirst: what the host names last does not hide what is mounted below it.
func TestParentsAreMountedFirst(t *testing.T) {
	s := spec()
	shared := "/run/kata-containers/shared/containers/"
	s.Mounts = nil
	for _, d := range []string{"/data/a/b", "/data/conf", "/data//", "/other/x", "/data/a"} {
		s.Mounts = append(s.Mounts, &agent.Mount{Destination: d, Source: shared + "v", Type: "bind", Options: []string{"rbind"}})
	}
	out, err := Convert(s, place())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range out.Mounts {
		got = append(got, m.Destination)
	}
	if want := []string{"/data", "/data/conf", "/other/x", "/data/a", "/data/a/b"}; !slices.Equal(got, want) {
		t.Errorf("mounted in the order %v, want %v", got, want)
	}
}

// TestSafeSysctls accepts what a pod may set, and names what it may not.
func TestSafeSysctls(t *testing.T) {
	for _, key := range []string{
		"kernel.shm_rmid_forced", "kernel.msgmax", "fs.mqueue.msg_max",
		"net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start", "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range",
		"net.ipv4.ip_local_reserved_ports", "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl",
		"net.ipv4.tcp_keepalive_probes",
	} {
		if err := checkSysctl(key); err != nil {
			t.Errorf("%s: %v", key, err)
		}
	}
	if err := checkSysctl("net.ipv4.ip_forward"); !errors.Is(err, ErrSpec) || !strings.Contains(err.Error(), "net.ipv4.ip_forward") {
		t.Errorf("got %v, expected a refusal that names the setting", err)
	}
}

// TestConfinement lists what a hostile specification could try.
func TestConfinement(t *testing.T) {
	mount := func(dest, source, fstype string, opts ...string) func(*agent.Spec) {
		return func(s *agent.Spec) {
			s.Mounts = append(s.Mounts, &agent.Mount{Destination: dest, Source: source, Type: fstype, Options: opts})
		}
	}
	device := func(kind string, major, minor int64, path string) func(*agent.Spec) {
		return func(s *agent.Spec) {
			s.Linux.Devices = []*agent.LinuxDevice{{Path: path, Type: kind, Major: major, Minor: minor}}
		}
	}
	sysctl := func(key string) func(*agent.Spec) {
		return func(s *agent.Spec) { s.Linux.Sysctl = map[string]string{key: "1"} }
	}
	for name, change := range map[string]func(*agent.Spec){
		"bind of the root":          mount("/x", "/", "bind"),
		"bind of the guest's state": mount("/x", "/run/cloister", "bind"),
		"bind of initdata":          mount("/x", "/run/confidential-containers", "bind"),
		"bind of images":            mount("/x", "/run/kata-containers/image", "bind"),
		"bind of another container": mount("/x", "/run/kata-containers/c2/rootfs", "bind"),
		"bind of a root itself":     mount("/x", "/run/kata-containers/sandbox", "bind"),
		"bind with ..":              mount("/x", "/run/kata-containers/sandbox/../image", "bind"),
		"bind by option":            mount("/x", "/etc", "tmpfs", "bind"),
		"rbind by option":           mount("/x", "/etc", "none", "rbind"),
		"bind of a similar name":    mount("/x", "/run/kata-containers/sandboxes", "bind"),
		"relative bind":             mount("/x", "run/kata-containers/sandbox/a", "bind"),
		"foreign file system":       mount("/x", "/dev/vda", "ext4"),
		"overlay":                   mount("/x", "overlay", "overlay", "lowerdir=/"),
		"debugfs":                   mount("/x", "debugfs", "debugfs"),
		"securityfs":                mount("/x", "securityfs", "securityfs"),
		"mount over /":              mount("/", "tmpfs", "tmpfs"),
		"mount over /proc":          mount("/proc", "tmpfs", "tmpfs"),
		"mount in /proc":            mount("/proc/sys", "tmpfs", "tmpfs"),
		"destination with ..":       mount("/a/../proc/self", "tmpfs", "tmpfs"),
		"relative destination":      mount("x", "tmpfs", "tmpfs"),
		"host memory":               device("c", 1, 1, "/dev/mem"),
		"kernel memory":             device("c", 1, 2, "/dev/kmem"),
		"I/O ports":                 device("c", 1, 4, "/dev/port"),
		"kernel log":                device("c", 1, 11, "/dev/kmsg"),
		"first TPM":                 device("c", 10, 224, "/dev/innocent"),
		"reserved device":           device("u", 250, 3, "/dev/innocent"),
		"block device":              device("b", 254, 0, "/dev/vda"),
		"device outside /dev":       device("c", 10, 229, "/etc/passwd"),
		"device of no type":         device("x", 10, 229, "/dev/x"),
		"sysctl of the machine":     sysctl("kernel.core_pattern"),
		"sysctl hostname":           sysctl("kernel.hostname"),
		"sysctl vm":                 sysctl("vm.overcommit_memory"),
		"sysctl with ..":            sysctl("net/../kernel/core_pattern"),
		"sysctl forwarding":         sysctl("net.ipv4.ip_forward"),
		"sysctl route_localnet":     sysctl("net.ipv4.conf.all.route_localnet"),
		"sysctl of all sockets":     sysctl("net.core.somaxconn"),
		"sysctl ipv6":               sysctl("net.ipv6.conf.all.forwarding"),
		"sysctl with slashes":       sysctl("net/ipv4/ip_forward"),
		"sysctl empty part":         sysctl("net..x"),
		"hooks":                     func(s *agent.Spec) { s.Hooks = &agent.Hooks{CreateRuntime: []*agent.Hook{{Path: "/bin/sh"}}} },
		"start hooks":               func(s *agent.Spec) { s.Hooks = &agent.Hooks{StartContainer: []*agent.Hook{{Path: "/bin/sh"}}} },
		"windows":                   func(s *agent.Spec) { s.Windows = &agent.Windows{} },
		"shared root":               func(s *agent.Spec) { s.Linux.RootfsPropagation = "rshared" },
		"unknown namespace":         func(s *agent.Spec) { s.Linux.Namespaces = []*agent.LinuxNamespace{{Type: "time"}} },
		"user namespace by path": func(s *agent.Spec) {
			s.Linux.Namespaces = []*agent.LinuxNamespace{{Type: "user", Path: "/proc/1/ns/user"}}
		},
		"mappings without namespace": func(s *agent.Spec) { s.Linux.UIDMappings = []*agent.LinuxIDMapping{{Size: 1}} },
		"no process":                 func(s *agent.Spec) { s.Process = nil },
		"no program":                 func(s *agent.Spec) { s.Process.Args = nil },
		"relative directory":         func(s *agent.Spec) { s.Process.Cwd = "work" },
		"zero byte":                  func(s *agent.Spec) { s.Process.Args = []string{"a\x00b"} },
		"nameless variable":          func(s *agent.Spec) { s.Process.Env = []string{"=x"} },
		"OOM score":                  func(s *agent.Spec) { s.Process.OOMScoreAdj = -5000 },
		"too many mounts":            func(s *agent.Spec) { s.Mounts = make([]*agent.Mount, maxMounts+1) },
	} {
		s := spec()
		change(s)
		if _, err := Convert(s, place()); !errors.Is(err, ErrSpec) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := Convert(nil, place()); !errors.Is(err, ErrSpec) {
		t.Errorf("no specification: got %v", err)
	}
}

func TestDevicesOfTheGuest(t *testing.T) {
	s, at := spec(), place()
	s.Linux.Devices = []*agent.LinuxDevice{{Path: "/dev/disk", Type: "b", Major: 8, Minor: 0}}
	at.Devices = map[string]DeviceSpec{"/dev/disk": {Type: "b", Major: 254, Minor: 16}}
	out, err := Convert(s, at)
	if err != nil || out.Linux.Devices[0].Major != 254 || out.Linux.Devices[0].Minor != 16 {
		t.Fatalf("got %+v, %v", out, err)
	}
	if !slices.ContainsFunc(out.Linux.Resources.Devices, func(r DeviceRuleSpec) bool { return r.Allow && r.Major != nil && *r.Major == 254 }) {
		t.Error("the device cgroup does not allow it")
	}
	at.Devices["/dev/other"] = DeviceSpec{Type: "b"}
	if _, err := Convert(s, at); !errors.Is(err, ErrSpec) {
		t.Errorf("a device the specification does not name: %v", err)
	}
}

func TestValidID(t *testing.T) {
	for id, ok := range map[string]bool{
		"ab": true, "a.b-c_d": true, strings.Repeat("f", 64): true, "0a": true,
		"": false, "a": false, ".a": false, "-a": false, "a/b": false, "..": false, "a b": false, "ä1": false, "a\x00": false, strings.Repeat("f", 129): false,
	} {
		if err := ValidID(id); (err == nil) != ok {
			t.Errorf("%q: %v", id, err)
		}
	}
}

func FuzzConvert(f *testing.F) {
	seed, err := proto.Marshal(spec())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, data []byte) {
		var in agent.Spec
		if proto.Unmarshal(data, &in) != nil {
			return
		}
		out, err := Convert(&in, place())
		if err != nil {
			return
		}
		for _, m := range out.Mounts {
			if filepath.Clean(m.Destination) != m.Destination || m.Destination == "/" || !filepath.IsAbs(m.Destination) {
				t.Errorf("destination %q", m.Destination)
			}
			if m.Bind() && !strings.HasPrefix(m.Source, "/run/kata-containers/s") {
				t.Errorf("source %q", m.Source)
			}
		}
		if out.Linux.CgroupsPath != "/pod/c1" || len(out.Process.Args) == 0 {
			t.Errorf("got %+v", out)
		}
	})
}
