package policy_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/guest/gate"
	"github.com/cloister/cloister/test/kubepod"
	"github.com/cloister/cloister/wire/agent"
)

// diskVolume is an encrypted emptyDir on a disk that the host attaches.
func diskVolume(c *kubepod.Container, destination string) {
	const source = "02/03"
	mountPoint := "/run/kata-containers/sandbox/storage/MDIvMDM="
	m := kubepod.Mount{Destination: destination, Kind: "bind", Options: []string{"rbind", "rprivate", "rw"}, Real: func(string) string { return mountPoint }}
	c.Mounts = append(c.Mounts, m)
	c.OCI()["Mounts"] = append(c.OCI()["Mounts"].([]kubepod.Object), m.Declared())
	c.AddStorage(kubepod.Object{"driver": "", "source": "", "fstype": "ext4", "driver_options": []string{"encryption_key=ephemeral", "create_filesystem"},
		"options": []string{}, "fs_group": nil, "shared": true, "mount_point": "$(spath)/$(b64_device_id)"},
		&agent.Storage{Driver: "blk", Source: source, Fstype: "ext4", DriverOptions: []string{"encryption_key=ephemeral", "create_filesystem"},
			Shared: true, MountPoint: mountPoint})
}

// memoryVolume is an emptyDir of medium Memory.
func memoryVolume(c *kubepod.Container, name string) {
	pattern, place := "^/run/kata-containers/sandbox/ephemeral/"+name+"$", "/run/kata-containers/sandbox/ephemeral/"+name
	m := kubepod.Mount{Destination: "/" + name, Kind: "bind", Source: pattern, Options: []string{"rbind", "rprivate", "rw"}, Real: func(string) string { return place }}
	c.Mounts = append(c.Mounts, m)
	c.OCI()["Mounts"] = append(c.OCI()["Mounts"].([]kubepod.Object), m.Declared())
	c.AddStorage(kubepod.Object{"driver": "ephemeral", "source": "tmpfs", "fstype": "tmpfs", "driver_options": []string{}, "options": []string{}, "fs_group": nil,
		"shared": false, "mount_point": pattern}, &agent.Storage{Driver: "ephemeral", Source: "tmpfs", Fstype: "tmpfs", MountPoint: place})
}

// layers takes the image from the host instead of pulling it.
func layers(c *kubepod.Container, roots ...string) {
	c.Image = ""
	for i, root := range roots {
		options := []string{"X-kata.overlay-lower", "X-kata.multi-layer=true", "X-kata.gpt-partitioned=true", "X-kata.partition-number=" + string(rune('1'+i)),
			"X-kata.dmverity-enabled=true", "X-kata.dmverity.blocksize=4096", "X-kata.dmverity.hashsize=4096", "X-kata.dmverity.roothash=" + root}
		c.AddStorage(kubepod.Object{"driver": "erofs-verity-layer", "source": "", "fstype": "erofs", "driver_options": []string{}, "options": options, "fs_group": nil,
			"shared": false, "mount_point": "^/run/kata-containers/$(bundle-id)/rootfs$"},
			&agent.Storage{Driver: "blk", Source: "05", Fstype: "erofs", Options: append(slices.Clone(options), "X-kata.dmverity.hashoffset=4096", "X-kata.dmverity.no-superblock=false"),
				MountPoint: "ROOT"})
	}
}

func rootOf(r *agent.CreateContainerRequest) *agent.CreateContainerRequest {
	for _, s := range r.Storages {
		if s.MountPoint == "ROOT" {
			s.MountPoint = r.OCI.Root.Path
		}
	}
	return r
}

// attack changes a request that an honest host would make.
type attack struct {
	name   string
	change func(*agent.CreateContainerRequest)
	want   string // part of the reason
}

func pulledStorage(r *agent.CreateContainerRequest) *agent.Storage {
	for _, s := range r.Storages {
		if s.Driver == "image_guest_pull" {
			return s
		}
	}
	return nil
}

func mountAt(r *agent.CreateContainerRequest, destination string) *agent.Mount {
	for _, m := range r.OCI.Mounts {
		if m.Destination == destination {
			return m
		}
	}
	return nil
}

func addEnv(v string) func(*agent.CreateContainerRequest) {
	return func(r *agent.CreateContainerRequest) { r.OCI.Process.Env = append(r.OCI.Process.Env, v) }
}

// attackAll asks for each changed request, which is refused, and then for the honest one, which is allowed.
func attackAll(t *testing.T, data kubepod.Object, honest func(id string) *agent.CreateContainerRequest, attacks []attack) {
	e := kubeEngine(t, data)
	mustAllow(t, e, kubepod.Sandbox())
	for n, a := range attacks {
		t.Run(a.name, func(t *testing.T) {
			id := kubepod.ID(n + 1)
			r := honest(id)
			a.change(r)
			if proto.Equal(r, honest(id)) {
				t.Fatal("nothing was changed")
			}
			err := ask(e, r)
			var d *gate.DeniedError
			if !errors.As(err, &d) {
				t.Fatalf("got %v, expected a refusal", err)
			}
			if !strings.Contains(err.Error(), a.want) {
				t.Errorf("the reason lacks %q: %v", a.want, err)
			}
			if len(err.Error()) > 600 {
				t.Errorf("the reason has %d bytes: %v", len(err.Error()), err)
			}
			mustAllow(t, e, honest(id))
			mustAllow(t, e, &agent.RemoveContainerRequest{ContainerId: id})
		})
	}
}

func TestKubernetesContainerAttacks(t *testing.T) {
	web := kubepod.Workload("web")
	diskVolume(web, "/scratch")
	memoryVolume(web, "cache")
	other := kubepod.Workload("other")
	web.Entry["required_env"] = []string{"MODE"}
	web.Entry["required_mounts"] = []string{"/scratch"}
	data := kubepod.Data(kubepod.Pause(), web, other)
	honest := web.Request
	type req = *agent.CreateContainerRequest
	attackAll(t, data, honest, []attack{
		// process
		{"other program", func(r req) { r.OCI.Process.Args[0] = "/bin/sh" }, "OCI.Process.Args[0]"},
		{"argument added", func(r req) { r.OCI.Process.Args = append(r.OCI.Process.Args, "--debug") }, "OCI.Process.Args"},
		{"pod name in an argument", func(r req) { r.OCI.Process.Args[1] = "--name=evil" }, "OCI.Process.Args"},
		{"working directory", func(r req) { r.OCI.Process.Cwd = "/tmp" }, `OCI.Process.Cwd: got "/tmp", expected "/"`},
		{"terminal", func(r req) { r.OCI.Process.Terminal = true }, "OCI.Process.Terminal"},
		{"root user", func(r req) { r.OCI.Process.User.UID = 0 }, "OCI.Process.User.UID: got 0, expected 1000"},
		{"group", func(r req) { r.OCI.Process.User.GID = 0 }, "OCI.Process.User.GID"},
		{"extra group", func(r req) { r.OCI.Process.User.AdditionalGids = []uint32{1000, 0} }, "AdditionalGids"},
		{"user by name", func(r req) { r.OCI.Process.User.Username = "root" }, "Username"},
		{"new privileges", func(r req) { r.OCI.Process.NoNewPrivileges = false }, "NoNewPrivileges"},
		{"capability", func(r req) {
			r.OCI.Process.Capabilities.Bounding = append(r.OCI.Process.Capabilities.Bounding, "CAP_SYS_ADMIN")
		}, "apabilities"},
		{"capability without prefix", func(r req) { r.OCI.Process.Capabilities.Ambient = []string{"SYS_ADMIN"} }, "apabilities"},
		{"SELinux label", func(r req) { r.OCI.Process.SelinuxLabel = "unconfined_t" }, "SelinuxLabel"},
		{"user given as text", func(r req) { r.StringUser = &agent.StringUser{Uid: "0"} }, "string_user"},
		// environment
		{"variable added", addEnv("LD_PRELOAD=/scratch/evil.so"), "LD_PRELOAD"},
		{"variable changed", func(r req) { r.OCI.Process.Env[2] = "MODE=debug" }, "MODE"},
		{"variable twice", addEnv("MODE=production"), "count(given): got 6"},
		{"variable dropped", func(r req) { r.OCI.Process.Env = slices.Delete(r.OCI.Process.Env, 2, 3) }, "required_env"},
		{"pod name in the environment", func(r req) { r.OCI.Process.Env[3] = "POD=evil" }, "POD"},
		{"address that is none", func(r req) { r.OCI.Process.Env[4] = "IP=10.1.2.3;reboot" }, "IP"},
		{"host name that is none", func(r req) { r.OCI.Process.Env[1] = "HOSTNAME=a b" }, "HOSTNAME"},
		{"service that is none", addEnv("REDIS_SERVICE_HOST=evil.example"), "REDIS_SERVICE_HOST"},
		// namespaces and the kernel's protection
		{"host's pid namespace", func(r req) { r.SandboxPidns = true }, "sandbox_pidns: got true"},
		{"namespace dropped", func(r req) { r.OCI.Linux.Namespaces = r.OCI.Linux.Namespaces[:2] }, "namespaces[2]"},
		{"namespace by path", func(r req) { r.OCI.Linux.Namespaces[0].Path = "/proc/1/ns/ipc" }, "namespaces"},
		{"two network namespaces", func(r req) {
			r.OCI.Linux.Namespaces = append(r.OCI.Linux.Namespaces, &agent.LinuxNamespace{Type: "network"}, &agent.LinuxNamespace{Type: "network", Path: "/x"})
		}, "network"},
		{"masked path dropped", func(r req) { r.OCI.Linux.MaskedPaths = r.OCI.Linux.MaskedPaths[1:] }, "masked"},
		{"read-only path dropped", func(r req) { r.OCI.Linux.ReadonlyPaths = r.OCI.Linux.ReadonlyPaths[1:] }, "readonly"},
		{"device node", func(r req) { r.OCI.Linux.Devices = []*agent.LinuxDevice{{Path: "/dev/mem", Type: "c"}} }, "devices"},
		{"device passed in", func(r req) { r.Devices = []*agent.Device{{ContainerPath: "/dev/sda", Type: "blk"}} }, "p.devices"},
		{"sysctl added", func(r req) { r.OCI.Linux.Sysctl["kernel.core_pattern"] = "|/scratch/x" }, "ysctl"},
		{"sysctl changed", func(r req) { r.OCI.Linux.Sysctl["net.ipv4.ip_unprivileged_port_start"] = "1024" }, "ysctl"},
		{"hooks", func(r req) { r.OCI.Hooks = &agent.Hooks{} }, "Hooks"},
		{"seccomp", func(r req) { r.OCI.Linux.Seccomp = &agent.LinuxSeccomp{} }, "Seccomp"},
		{"user mapping", func(r req) { r.OCI.Linux.UIDMappings = []*agent.LinuxIDMapping{{Size: 1}} }, "UIDMappings"},
		{"device access", func(r req) { r.OCI.Linux.Resources.Devices = []*agent.LinuxDeviceCgroup{{Allow: true}} }, "Devices"},
		{"propagation of the root", func(r req) { r.OCI.Linux.RootfsPropagation = "shared" }, "RootfsPropagation"},
		{"mounts shared between containers", func(r req) { r.SharedMounts = []*agent.SharedMount{{}} }, "shared_mounts"},
		{"streams on the host's ports", func(r req) { r.StdinPort = 5000 }, "WriteStreamRequest"},
		{"version", func(r req) { r.OCI.Version = "1.2.0" }, "oci_version"},
		{"writable root", func(r req) { r.OCI.Root.Readonly = false }, "OCI.Root.Readonly"},
		{"root of another container", func(r req) { r.OCI.Root.Path = "/run/kata-containers/" + kubepod.SandboxID + "/rootfs" }, "Root.Path"},
		{"root elsewhere", func(r req) { r.OCI.Root.Path += "/../../shared" }, "Root.Path"},
		{"no id", func(r req) { r.ContainerId, r.ExecId = "", "" }, "container_id"},
		{"id that is a path", func(r req) { r.ContainerId = "../x"; r.ExecId = "" }, "container_id"},
		// who it is
		{"name of another container", func(r req) { r.OCI.Annotations["io.kubernetes.cri.container-name"] = "other" }, `"other"`},
		{"unknown container", func(r req) { r.OCI.Annotations["io.kubernetes.cri.container-name"] = "evil" }, `container_name: got "evil"`},
		{"container as sandbox", func(r req) { r.OCI.Annotations["io.kubernetes.cri.container-type"] = "sandbox" }, "container-type"},
		{"Kata's container type", func(r req) { r.OCI.Annotations["io.katacontainers.pkg.oci.container_type"] = "pod_sandbox" }, "container_type"},
		{"another pod's name", func(r req) { r.OCI.Annotations["io.kubernetes.cri.sandbox-name"] = "web-pod2" }, "sandbox-name"},
		{"another namespace", func(r req) { r.OCI.Annotations["io.kubernetes.cri.sandbox-namespace"] = "kube-system" }, "namespace"},
		{"sandbox id that is none", func(r req) { r.OCI.Annotations["io.kubernetes.cri.sandbox-id"] = "x" }, "sandbox-id"},
		{"annotation added", func(r req) { r.OCI.Annotations["io.katacontainers.config.agent.policy"] = "x" }, "io.katacontainers.config.agent.policy"},
		{"annotation of the pause container", func(r req) { r.OCI.Annotations["nerdctl/network-namespace"] = kubepod.NetNS }, "nerdctl/network-namespace"},
		{"bundle elsewhere", func(r req) { r.OCI.Annotations["io.katacontainers.pkg.oci.bundle_path"] = "/tmp" }, "bundle_path"},
		{"annotation whose value is wrong", func(r req) { r.OCI.Annotations["io.kubernetes.container.terminationMessagePolicy"] = "Never" }, "terminationMessagePolicy"},
		{"image name", func(r req) { r.OCI.Annotations["io.kubernetes.cri.image-name"] = "evil@" + kubepod.DigestTwo }, kubepod.DigestTwo},
		// image
		{"image by tag", func(r req) { pulledStorage(r).Source = "registry.example/web:1" }, "registry.example/web:1"},
		{"image of another digest", func(r req) { pulledStorage(r).Source = "registry.example/web:1@" + kubepod.DigestTwo }, kubepod.DigestTwo},
		{"two digests", func(r req) { pulledStorage(r).Source = "x@" + kubepod.DigestTwo + "@" + kubepod.DigestOne }, kubepod.DigestTwo},
		{"image as pause", func(r req) { pulledStorage(r).Source = "pause" }, "container-type"},
		{"guest's pause program instead of the image", func(r req) {
			pulledStorage(r).DriverOptions = []string{`image_guest_pull={"metadata":{"io.kubernetes.cri.container-type":"sandbox"}}`}
		}, "for_sandbox"},
		{"no image", func(r req) {
			r.Storages = slices.DeleteFunc(r.Storages, func(s *agent.Storage) bool { return s.Driver == "image_guest_pull" })
			r.Storages = append(r.Storages, &agent.Storage{})
		}, "storages"},
		{"two images", func(r req) { r.Storages = append(r.Storages, pulledStorage(r)) }, "pulled"},
		{"image elsewhere", func(r req) { pulledStorage(r).MountPoint = "/run/kata-containers/x/rootfs" }, "mount_point"},
		{"image with options", func(r req) { pulledStorage(r).Options = []string{"upperdir=/x"} }, "options"},
		// mounts
		{"mount added", func(r req) {
			r.OCI.Mounts = append(r.OCI.Mounts, &agent.Mount{Destination: "/bin", Type: "bind", Source: kubepod.SharedDir + r.ContainerId + "-0123456789abcdef-bin", Options: []string{"rbind"}})
		}, `destination`},
		{"mount stacked on another", func(r req) { r.OCI.Mounts = append(r.OCI.Mounts, proto.CloneOf(mountAt(r, "/etc/hosts"))) }, "destinations"},
		{"mount dropped", func(r req) {
			r.OCI.Mounts = slices.DeleteFunc(r.OCI.Mounts, func(m *agent.Mount) bool { return m.Destination == "/scratch" })
		}, "required_mounts"},
		{"file of another container", func(r req) {
			mountAt(r, "/etc/hosts").Source = kubepod.SharedDir + kubepod.ID(999) + "-0123456789abcdef-hosts"
		}, "source"},
		{"other file", func(r req) {
			mountAt(r, "/etc/hosts").Source = kubepod.SharedDir + r.ContainerId + "-0123456789abcdef-passwd"
		}, "source"},
		{"path of the guest", func(r req) { mountAt(r, "/etc/hosts").Source = "/proc/1/root/etc/shadow" }, "source"},
		{"placeholder written out", func(r req) {
			mountAt(r, "/etc/hosts").Source = kubepod.SharedDir + "$(bundle-id)-0123456789abcdef-hosts"
		}, "source"},
		{"path behind the file", func(r req) { mountAt(r, "/etc/hosts").Source += "/../../x" }, "source"},
		{"literal source changed", func(r req) { mountAt(r, "/dev/shm").Source += "/x" }, "source"},
		{"mount writable", func(r req) {
			mountAt(r, "/var/run/secrets/kubernetes.io/serviceaccount").Options = []string{"rbind", "rprivate", "rw"}
		}, "options"},
		{"mount of another type", func(r req) { mountAt(r, "/cache").Type = "overlay" }, "type_"},
		{"disk volume is a directory", func(r req) { mountAt(r, "/scratch").Source = "/run/kata-containers/sandbox" }, "source"},
		{"disk volume is the memory volume", func(r req) { mountAt(r, "/scratch").Source = "/run/kata-containers/sandbox/ephemeral/cache" }, "source"},
		{"disk volume over a path of the guest", func(r req) { r.Storages[0].MountPoint = "/etc"; mountAt(r, "/scratch").Source = "/etc" }, "source"},
		{"cgroup option", func(r req) {
			m := mountAt(r, "/sys/fs/cgroup")
			m.Options = append(m.Options, "release_agent=/x")
		}, "extra"},
		// storages
		{"storage added", func(r req) {
			r.Storages = append(r.Storages, &agent.Storage{Driver: "blk", Source: "07", Fstype: "ext4", MountPoint: "/etc"})
		}, "count(others)"},
		{"storage twice", func(r req) { r.Storages[0] = r.Storages[1] }, "storage"},
		{"storage dropped", func(r req) { r.Storages = r.Storages[1:] }, "storages"},
		{"not encrypted", func(r req) { r.Storages[0].DriverOptions = []string{"create_filesystem"} }, "driver_options"},
		{"other file system", func(r req) { r.Storages[0].Fstype = "xfs" }, "fstype"},
		{"storage options", func(r req) { r.Storages[1].Options = []string{"size=1"} }, "options"},
		{"owner of the volume", func(r req) { r.Storages[1].FsGroup = &agent.FSGroup{GroupId: 1} }, "fs_group"},
		{"source that is no disk", func(r req) { r.Storages[0].Source = "../../dev/mem" }, "source"},
		{"storage of another place", func(r req) { r.Storages[1].MountPoint = "/run/kata-containers/sandbox/ephemeral/other" }, "ephemeral"},
	})
	// Kernels and runtimes add these, and the rules know it.
	e := kubeEngine(t, data)
	mustAllow(t, e, kubepod.Sandbox())
	r := honest(kubepod.ID(1))
	mountAt(r, "/sys/fs/cgroup").Options = append(mountAt(r, "/sys/fs/cgroup").Options, "nsdelegate")
	r.OCI.Process.Env = append(r.OCI.Process.Env, "REDIS_SERVICE_PORT=6379")
	r.OCI.Linux.Namespaces = append(r.OCI.Linux.Namespaces, &agent.LinuxNamespace{Type: "cgroup"})
	r.OCI.Linux.Namespaces[2].Type = "mnt"
	r.OCI.Process.Env[4] = "IP=fd00::12"
	mustAllow(t, e, r)
}

func TestKubernetesLayerAttacks(t *testing.T) {
	one, two, three := strings.Repeat("11", 32), strings.Repeat("22", 32), strings.Repeat("33", 32)
	web := kubepod.Workload("web")
	layers(web, one, two)
	data := kubepod.Data(kubepod.Pause(), web)
	type req = *agent.CreateContainerRequest
	option := func(layer, n int, text string) func(req) {
		return func(r req) { r.Storages[layer].Options[n] = text }
	}
	add := func(text string) func(req) {
		return func(r req) { r.Storages[0].Options = append(r.Storages[0].Options, text) }
	}
	attackAll(t, data, func(id string) req { return rootOf(web.Request(id)) }, []attack{
		{"other root hash", option(0, 7, "X-kata.dmverity.roothash="+three), "roothash=11"},
		{"layers swapped", func(r req) {
			r.Storages[0].Options[7], r.Storages[1].Options[7] = r.Storages[1].Options[7], r.Storages[0].Options[7]
		}, ""},
		{"two root hashes", add("X-kata.dmverity.roothash=" + three), "storages[0].options"},
		{"unknown option", add("X-kata.mount-flags=exec"), "X-kata.mount-flags=exec"},
		{"option twice", add("X-kata.dmverity.hashoffset=4096"), "options"},
		{"two hash offsets", add("X-kata.dmverity.hashoffset=8192"), ""},
		{"without verity", func(r req) { r.Storages[0].Options = slices.Delete(r.Storages[0].Options, 4, 5) }, ""},
		{"layer dropped", func(r req) { r.Storages = r.Storages[:1] }, "count(layers): got 1, expected 2"},
		{"layer twice", func(r req) { r.Storages[1] = r.Storages[0] }, ""},
		{"layer added", func(r req) { r.Storages = append(r.Storages, proto.CloneOf(r.Storages[0])) }, "count(layers): got 3, expected 2"},
		{"image pulled beside the layers", func(r req) {
			r.Storages = append(r.Storages, &agent.Storage{Driver: "image_guest_pull", Source: web.Annotations()["io.kubernetes.cri.image-name"].(string), Fstype: "overlay", MountPoint: r.OCI.Root.Path})
		}, ""},
		{"other file system", func(r req) { r.Storages[0].Fstype = "ext4" }, "fstype"},
		{"root of another container", func(r req) { r.Storages[0].MountPoint = "/run/kata-containers/" + kubepod.ID(999) + "/rootfs" }, "mount_point"},
		{"shared directory as a layer", func(r req) { r.Storages[0].Driver = "virtio-fs" }, "driver"},
	})
}
