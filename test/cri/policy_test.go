package cri

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cloister/cloister/test/containerd"
)

// generatedManifest is a pod as its owner writes it, without any Rego.
const generatedManifest = `apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: test}
data: {color: red}
---
apiVersion: v1
kind: Pod
metadata: {name: generated, namespace: test}
spec:
  runtimeClassName: cloister-tpm
  initContainers:
  - name: before
    image: %[1]s
    command: [sh, -c, %[3]q]
    securityContext: {readOnlyRootFilesystem: true}
  containers:
  - name: main
    image: %[1]s
    command: [sh, -c, %[2]q]
    livenessProbe: {exec: {command: [cat, /scratch/note]}}
    volumeMounts: [{name: settings, mountPath: /config}, {name: scratch, mountPath: /scratch}, {name: disk, mountPath: /disk}]
    resources: {limits: {cpu: "1", memory: 192Mi}}
  volumes:
  - {name: settings, configMap: {name: settings}}
  - {name: scratch, emptyDir: {medium: Memory}}
  - {name: disk, emptyDir: {}}
`

// VolumesImage is an image that declares directories as volumes: one with a file, an empty one, and one that it does not have.
const VolumesImage = "registry.cloister.test/volumes:1"

func volumesImage(t testing.TB) containerd.Image {
	image := containerd.Busybox(t, VolumesImage)
	image.Files = append(image.Files, containerd.File{Path: "seeded/", Mode: 0o755}, containerd.File{Path: "seeded/file", Mode: 0o644, Data: []byte("of the image\n")},
		containerd.File{Path: "empty/", Mode: 0o750, UID: 1000})
	image.Config.Volumes = map[string]struct{}{"/seeded": {}, "/empty": {}, "/not/there/": {}}
	return image
}

// useVolumes writes to the volumes of the image, below a root that cannot be written.
const useVolumes = `set -e; cat /seeded/file; stat -c '%a %u' /empty; for d in /seeded /empty /not/there; do grep -q " $d " /proc/mounts; echo mine > $d/mine; done; ` +
	`if touch /root/x 2>/dev/null; then exit 9; fi; ls /seeded /empty /not/there`

// fillRoot writes 50 MB into the container's root, and says by how much that grows what file systems in memory hold.
const fillRoot = `shmem() { awk '/^Shmem:/ {print $2}' /proc/meminfo; }; n=$(shmem); yes "` + plainText + `" | head -c 50000000 > /filled; sync; ` +
	`echo $(($(shmem) - n)) kB grown; `

// fillDisk writes 5 MB to the emptyDir on a disk, and shows what is mounted there.
const fillDisk = `yes "` + plainText + `" | head -c 5000000 > /disk/f; sync; awk '$2 == "/disk" {print "disk", $1, $3}' /proc/mounts; `

const plainText = "nobody else reads this line"

func scratchFiles(t *testing.T, node string) []string {
	t.Helper()
	if node == "" {
		return nil
	}
	names, err := filepath.Glob(node + "/snapshots/*/fs/*.img")
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// checkScratch expects what fillRoot has written in one file of the host, encrypted, and not in the guest's memory.
func checkScratch(t *testing.T, out, node string) {
	t.Helper()
	grown := regexp.MustCompile(`(-?\d+) kB grown`).FindStringSubmatch(out)
	if grown == nil {
		t.Fatalf("got %q", out)
	}
	if n, err := strconv.Atoi(grown[1]); err != nil || n > 5_000 {
		t.Errorf("50 MB in the container's root grow the guest's memory by %s kB, %v", grown[1], err)
	}
	var largest int64
	for _, name := range scratchFiles(t, node) {
		var st unix.Stat_t
		if err := unix.Stat(name, &st); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d bytes, %d on the disk", name, st.Size, st.Blocks*512)
		if st.Size != 10<<30 {
			t.Errorf("%s has %d bytes", name, st.Size)
		}
		largest = max(largest, st.Blocks*512)
		if bytes.Contains(allocated(t, name), []byte(plainText)) {
			t.Errorf("%s shows what the container has written", name)
		}
	}
	if largest < 50_000_000 || largest > 200_000_000 {
		t.Errorf("the largest disk takes %d bytes on the host", largest)
	}
}

// checkDisk expects what fillDisk has written in one file of the volume's directory on the host, encrypted.
func checkDisk(t *testing.T, volume string) {
	t.Helper()
	names, err := filepath.Glob(volume + "/*")
	if err != nil || len(names) != 1 {
		t.Fatalf("in the directory of the emptyDir: %v, %v", names, err)
	}
	data := allocated(t, names[0])
	if len(data) < 5_000_000 || bytes.Contains(data, []byte(plainText)) {
		t.Errorf("the disk of the emptyDir has %d bytes, readable: %v", len(data), bytes.Contains(data, []byte(plainText)))
	}
}

// allocated is what a sparse file holds, without its holes.
func allocated(t *testing.T, name string) (data []byte) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for at := int64(0); ; {
		from, err := f.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return data
		}
		if err == nil {
			at, err = f.Seek(from, unix.SEEK_HOLE)
		}
		var part []byte
		if err == nil {
			part, err = io.ReadAll(io.NewSectionReader(f, from, at-from))
		}
		if err != nil {
			t.Fatal(err)
		}
		data = append(data, part...)
	}
}

// generated runs the pod of a manifest under the policy that was made of it, with layers of the guest or the host, and the host's attempts to
// have something else. node is the snapshotter's directory, if it has the layers.
func generated(t *testing.T, w *secretPod, ref, layers, node string) {
	script := `echo $(ls /empty /not/there /seeded); cat /config/color && echo kept > /scratch/note && cat /scratch/note; awk '$2 == "/" {print "root", $1, $3}' /proc/mounts; ` + fillDisk
	if layers == "host" {
		script += fillRoot
	}
	script += Sleeper
	base := w.run(t, append([]string{"initdata", "new", "--policy", w.file(t, "any.rego", "package agent_policy\n"), "--insecure-registry", w.address,
		"--guest-kbs", w.kbs, w.file(t, "pod.yaml", fmt.Sprintf(manifest, ""))}, w.admin...)...)
	out := w.run(t, "policy", "generate", "--base64", "--allow-logs", "--layers", layers, "--image-source",
		"containerd:"+w.Daemon.Address+",k8s.io", "--initdata", w.file(t, "base.toml", base), w.file(t, "generated.yaml", fmt.Sprintf(generatedManifest, ref, script, useVolumes)))
	annotation := strings.TrimSpace(out)
	p := w.NewPod(t, handlerTPM, "generated")
	p.Config.Annotations["io.katacontainers.config.hypervisor.cc_init_data"] = annotation
	p.Config.Linux.Resources = resources()
	p.Config.LogDirectory = fmt.Sprintf("/var/log/pods/test_generated_%s", p.UID) // the kubelet's, which the policy knows
	if err := os.MkdirAll(p.Config.LogDirectory, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(p.Config.LogDirectory) })
	p.Run()
	settings := p.Volume(t, "configmap", "settings")
	WriteAtomically(t, settings, map[string]string{"color": "red"})
	scratch := p.Volume(t, "empty-dir", "scratch")
	Tmpfs(t, scratch, "size=16m,mode=0777")
	disk := p.Volume(t, "empty-dir", "disk")
	config := func(name, script string) *runtime.ContainerConfig {
		c := Shell(name, script)
		c.Image = &runtime.ImageSpec{Image: ref, UserSpecifiedImage: ref}
		c.Mounts = []*runtime.Mount{
			Mount(p.File(t, "etc-hosts", HostsFile(p.IP(), "generated")), "/etc/hosts"),
			Mount(p.File(t, "containers/"+name+"/0a1b2c3d", ""), "/dev/termination-log"),
		}
		c.Annotations = map[string]string{"io.kubernetes.container.terminationMessagePath": "/dev/termination-log",
			"io.kubernetes.container.terminationMessagePolicy": "File"}
		c.Envs = []*runtime.KeyValue{{Key: "KUBERNETES_SERVICE_HOST", Value: []byte("10.96.0.1")}, {Key: "KUBERNETES_PORT_443_TCP", Value: []byte("tcp://10.96.0.1:443")}}
		return c
	}
	volumes := []*runtime.Mount{ReadOnly(settings, "/config"), Mount(scratch, "/scratch"), Mount(disk, "/disk")}
	main := config("main", script)
	main.Mounts = append(main.Mounts, volumes...)

	refused(t, attempt(t, p, main), "CreateContainerRequest is blocked by policy", "finished") // the init container has not run
	first := config("before", useVolumes)
	first.Linux.SecurityContext.ReadonlyRootfs = true
	before := p.RunContainer(t, first)
	before.ExpectExit(0)
	if out := before.Output(); out != "of the image\n750 1000\n/empty:\nmine\n\n/not/there:\nmine\n\n/seeded:\nfile\nmine\n" {
		t.Errorf("the volumes of the image: %q", out)
	}
	other := config("main", "echo something else")
	other.Mounts = main.Mounts
	refused(t, attempt(t, p, other), "CreateContainerRequest is blocked by policy")
	more := config("main", script)
	more.Mounts = main.Mounts
	more.Envs = append(more.Envs, &runtime.KeyValue{Key: "LD_PRELOAD", Value: []byte("/config/evil.so")})
	refused(t, attempt(t, p, more), "CreateContainerRequest is blocked by policy", "LD_PRELOAD")

	k := p.RunContainer(t, main)
	k.Says("/empty: /not/there: /seeded: file\nredkept\nroot ") // volumes of its own
	k.Says("\ndisk /dev/dm-")
	checkDisk(t, disk)
	if layers == "host" {
		k.Says(" kB grown\n")
		checkScratch(t, k.Output(), node)
	}
	if r := k.Exec("cat", "/scratch/note"); r.Code != 0 || r.Stdout != "kept\n" { // the probe
		t.Errorf("the probe got %+v", r)
	}
	_, err := k.TryExec(60, "cat", "/config/color")
	refused(t, err, "ExecProcessRequest is blocked by policy")
	k.Stop(60)
	k.ExpectExit(0)
	before.Remove()
	k.Remove()
	if left := scratchFiles(t, node); len(left) > 0 {
		t.Errorf("the containers are gone, and their disks are there: %v", left)
	}
	unmount(scratch)
	p.Remove()
}

// TestGeneratedPolicy runs a confidential pod whose layers are on the node, under the policy that was made of its manifest.
func TestGeneratedPolicy(t *testing.T) { each(t, "1.7", generatedPolicy) }

func generatedPolicy(t *testing.T, version string) {
	dir := snapshotter(t)
	w := newSecretPod(t, version, "--snapshotter="+dir+"/s.sock")
	if err := os.Symlink(w.Daemon.Address, dir+"/c.sock"); err != nil {
		t.Fatal(err)
	}
	ref := w.images[VolumesImage]
	w.pullFor(t, ref, handlerTPM)
	generated(t, w, ref, "host", dir+"/root")
}
