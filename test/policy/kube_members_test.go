package policy_test

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/test/kubepod"
	"github.com/cloister/cloister/wire/agent"
)

// TestKubernetesMembers has members of requests that no pod sets, each of them alone.
func TestKubernetesMembers(t *testing.T) {
	web := kubepod.Workload("web")
	web.OCI()["Hostname"] = "web-pod"
	web.Process()["Rlimits"] = []kubepod.Object{{"Type": "RLIMIT_NOFILE", "Hard": 1024, "Soft": 1024}}
	web.Process()["ApparmorProfile"], web.Process()["OOMScoreAdj"] = "", -998
	pause := kubepod.Pause()
	type req = *agent.CreateContainerRequest
	data := kubepod.Data(pause, web)
	data["request_defaults"].(kubepod.Object)["ReadStreamRequest"] = false
	attackAll(t, data, func(id string) req {
		r := web.Request(id)
		r.OCI.Hostname = "web-pod"
		r.OCI.Process.Rlimits = []*agent.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1024, Soft: 1024}}
		r.OCI.Linux.Resources = &agent.LinuxResources{Memory: &agent.LinuxMemory{Limit: 1 << 30}, CPU: &agent.LinuxCPU{Shares: 2}}
		return r
	}, []attack{
		{"another system", func(r req) { r.OCI.Solaris = &agent.Solaris{} }, "Solaris"},
		{"one more system", func(r req) { r.OCI.Windows = &agent.Windows{} }, "Windows"},
		{"group mapping", func(r req) { r.OCI.Linux.GIDMappings = []*agent.LinuxIDMapping{{Size: 1}} }, "GIDMappings"},
		{"label of mounts", func(r req) { r.OCI.Linux.MountLabel = "x" }, "MountLabel"},
		{"cache", func(r req) { r.OCI.Linux.IntelRdt = &agent.LinuxIntelRdt{} }, "IntelRdt"},
		{"block I/O", func(r req) { r.OCI.Linux.Resources.BlockIO = &agent.LinuxBlockIO{} }, "BlockIO"},
		{"network class", func(r req) { r.OCI.Linux.Resources.Network = &agent.LinuxNetwork{} }, "Network"},
		{"processes", func(r req) { r.OCI.Linux.Resources.Pids = &agent.LinuxPids{} }, "Pids"},
		{"kernel memory", func(r req) { r.OCI.Linux.Resources.Memory.Kernel = 1 }, "Kernel"},
		{"kernel TCP memory", func(r req) { r.OCI.Linux.Resources.Memory.KernelTCP = 1 }, "KernelTCP"},
		{"realtime period", func(r req) { r.OCI.Linux.Resources.CPU.RealtimePeriod = 1 }, "RealtimePeriod"},
		{"output on the host's port", func(r req) { r.StdoutPort = 5000 }, "ReadStreamRequest"},
		{"errors on the host's port", func(r req) { r.StderrPort = 5000 }, "ReadStreamRequest"},
		{"exec id of another", func(r req) { r.ExecId = "x" }, "exec_id"},
		{"host name", func(r req) { r.OCI.Hostname = "evil" }, "ostname"},
		{"limits", func(r req) { r.OCI.Process.Rlimits[0].Soft = 1 }, "Rlimits"},
		{"profile", func(r req) { r.OCI.Process.ApparmorProfile = "unconfined" }, "ApparmorProfile"},
		{"kill order", func(r req) { r.OCI.Process.OOMScoreAdj = -1000 }, "OOMScoreAdj"},
		{"root and image of another container", func(r req) {
			r.OCI.Root.Path = "/run/kata-containers/" + kubepod.SandboxID + "/rootfs"
			pulledStorage(r).MountPoint = r.OCI.Root.Path
		}, "Root.Path"},
		{"placeholder written out in the root", func(r req) {
			r.OCI.Root.Path = "/run/kata-containers/$(bundle-id)/rootfs"
			pulledStorage(r).MountPoint = r.OCI.Root.Path
		}, "Root.Path"},
		{"digest as a tag", func(r req) { pulledStorage(r).Source = kubepod.DigestOne }, kubepod.DigestOne},
		{"annotation whose value another may have", func(r req) { r.OCI.Annotations["io.katacontainers.config.x"] = "/dev/log" }, "io.katacontainers.config.x"},
		{"group of the image", func(r req) { pulledStorage(r).FsGroup = &agent.FSGroup{} }, "fs_group"},
		{"shared image", func(r req) { pulledStorage(r).Shared = true }, "shared"},
		{"file system of the image", func(r req) { pulledStorage(r).Fstype = "virtiofs" }, "fstype"},
		{"image without its kind", func(r req) { pulledStorage(r).DriverOptions = nil }, "for_sandbox"},
		{"image of two kinds", func(r req) {
			pulledStorage(r).DriverOptions = append(pulledStorage(r).DriverOptions, `image_guest_pull={"metadata":{"io.kubernetes.cri-o.ContainerType":"sandbox"}}`)
		}, "for_sandbox"},
	})
}

// TestKubernetesPauseMembers: what the pause container alone says.
func TestKubernetesPauseMembers(t *testing.T) {
	pause := kubepod.Pause()
	type req = *agent.CreateContainerRequest
	attackAll(t, kubepod.Data(pause, kubepod.Workload("web")), func(id string) req { return proto.CloneOf(pause.Request(id)) }, []attack{
		{"logs elsewhere", func(r req) {
			a := r.OCI.Annotations
			a["io.kubernetes.cri.sandbox-log-directory"] = strings.Replace(a["io.kubernetes.cri.sandbox-log-directory"], "web-pod", "other", 1)
		}, "sandbox-log-directory"},
		{"logs in a pattern", func(r req) { r.OCI.Annotations["io.kubernetes.cri.sandbox-log-directory"] += "/.." }, "sandbox-log-directory"},
		{"another network", func(r req) { r.OCI.Annotations["nerdctl/network-namespace"] = "/proc/1/ns/net" }, "network-namespace"},
		{"no network", func(r req) { delete(r.OCI.Annotations, "nerdctl/network-namespace") }, "network-namespace"},
		{"an image in its place", func(r req) { pulledStorage(r).Source = "evil.example/pause:1" }, ""},
	})
}

// TestKubernetesFirst: what is wrong about the pod is refused from the first container as from later ones.
func TestKubernetesFirst(t *testing.T) {
	web := kubepod.Workload("web")
	for key, value := range map[string]string{
		"io.kubernetes.cri.sandbox-namespace": "kube-system", "io.kubernetes.cri.sandbox-name": "web-pod2", "io.kubernetes.cri.sandbox-id": strings.Repeat("A", 64),
	} {
		e := kubeEngine(t, kubepod.Data(kubepod.Pause(), web))
		mustAllow(t, e, kubepod.Sandbox())
		r := web.Request(kubepod.ID(1))
		r.OCI.Annotations[key] = value
		for i, v := range r.OCI.Process.Env { // as it would be in such a pod
			r.OCI.Process.Env[i] = strings.ReplaceAll(v, "web-pod", r.OCI.Annotations["io.kubernetes.cri.sandbox-name"])
		}
		for i, v := range r.OCI.Process.Args {
			r.OCI.Process.Args[i] = strings.ReplaceAll(v, "web-pod", r.OCI.Annotations["io.kubernetes.cri.sandbox-name"])
		}
		mustDeny(t, e, r)
	}
}

// TestKubernetesImageNames: the Kata generator may name an image by its tag. Docker's registry needs no naming, others do.
func TestKubernetesImageNames(t *testing.T) {
	for declared, references := range map[string]map[string]bool{
		"nginx:1.27": {"nginx:1.27": true, "docker.io/library/nginx:1.27": true, "library/nginx:1.27": true, "nginx:1.28": false, "nginx": false,
			"docker.io/nginx:1.27": false, "evil/nginx:1.27": false, "evil.example/nginx:1.27": false, "localhost/nginx:1.27": false,
			"evil.example/library/nginx:1.27": false, "evil:5000/library/nginx:1.27": false, "nginx:1.27@" + kubepod.DigestTwo: false},
		"team/app:1":           {"team/app:1": true, "docker.io/team/app:1": true, "docker.io/library/team/app:1": false, "app:1": false},
		"r.example/team/app:1": {"r.example/team/app:1": true, "docker.io/r.example/team/app:1": false, "team/app:1": false},
	} {
		for reference, allowed := range references {
			web := kubepod.Workload("web")
			web.Image = reference
			web.Annotations()["io.kubernetes.cri.image-name"] = declared
			e := kubeEngine(t, kubepod.Data(kubepod.Pause(), web))
			r := web.Request(kubepod.ID(1))
			r.OCI.Annotations["io.kubernetes.cri.image-name"] = reference
			if err := ask(e, r); (err == nil) != allowed {
				t.Errorf("%s for %s: %v", reference, declared, err)
			}
		}
	}
}
