package cri

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// volumes are those that the kubelet makes.
func volumes(t *testing.T, p *Pod, _ *Container) {
	settings := p.Volume(t, "configmap", "settings")
	WriteAtomically(t, settings, map[string]string{"color": "red", "shape": "round"})
	secret := p.Volume(t, "secret", "token")
	Tmpfs(t, secret, "size=1m,mode=0755")
	WriteAtomically(t, secret, map[string]string{"password": "s3cret"})
	projected := p.Volume(t, "projected", "kube-api-access")
	Tmpfs(t, projected, "size=1m,mode=0755")
	WriteAtomically(t, projected, map[string]string{"token": "t1", "namespace": "test"})
	downward := p.Volume(t, "downward-api", "about")
	WriteAtomically(t, downward, map[string]string{"labels": `app="one"`})
	disk := p.Volume(t, "empty-dir", "scratch")
	memory := p.Volume(t, "empty-dir", "fast")
	Tmpfs(t, memory, "size=16m,mode=0777")

	mounts := []*runtime.Mount{
		ReadOnly(settings, "/config"), ReadOnly(secret, "/secret"), ReadOnly(projected, "/var/run/secrets/kubernetes.io/serviceaccount"),
		ReadOnly(downward, "/about"), Mount(disk, "/scratch"), Mount(memory, "/fast"),
	}
	config := Shell("volumes", Sleeper)
	config.Mounts = mounts
	k := p.RunContainer(t, config)
	k.ExpectSh("cat /config/color /config/shape; cat /secret/password /about/labels; cat /var/run/secrets/kubernetes.io/serviceaccount/token",
		`redrounds3cretapp="one"t1`)
	k.ExpectSh("readlink /config/color; ls /config", "..data/color\ncolor\nshape")
	if r := k.Exec("sh", "-c", "echo x > /config/color"); r.Code == 0 {
		t.Error("a configMap can be written to")
	}
	k.ExpectSh("dd if=/dev/zero of=/scratch/big bs=1M count=8 2>/dev/null; stat -c %s /scratch/big; df -m /fast | awk 'NR==2 {print $2}'", "8388608\n16")

	// A second container of the pod shares emptyDirs.
	other := Shell("sharer", Sleeper)
	other.Mounts = []*runtime.Mount{Mount(disk, "/elsewhere"), Mount(memory, "/quick")}
	o := p.RunContainer(t, other)
	k.Sh("echo one > /scratch/note; echo two > /fast/note")
	o.ExpectSh("cat /elsewhere/note /quick/note; echo back > /quick/answer", "one\ntwo")
	k.ExpectSh("cat /fast/answer", "back")

	// Updates follow, all files of a volume in one step, new names too.
	WriteAtomically(t, settings, map[string]string{"color": "blue", "shape": "square", "size": "big"})
	WriteAtomically(t, projected, map[string]string{"token": "t2", "namespace": "test"})
	for script, want := range map[string]string{
		"cat /config/color /config/shape /config/size 2>/dev/null || true":            "bluesquarebig",
		"cat /var/run/secrets/kubernetes.io/serviceaccount/token":                     "t2",
		"ls -a /config | grep -c '^\\.\\.20' | tr -d '\\n'; cat /config/..data/color": "1blue",
	} {
		wait(t, exitTimeout, "the container sees "+want+" by "+script, func() bool { return k.Sh(script) == want })
	}
	// A file given by its sub-path stays what it was, as Kubernetes says.
	sub := Shell("sub-path", Sleeper)
	sub.Mounts = []*runtime.Mount{ReadOnly(subPath(t, p, settings, "color"), "/etc/color")}
	s := p.RunContainer(t, sub)
	s.ExpectSh("cat /etc/color", "blue")

	// A restarted container finds the emptyDirs as they were left.
	k.Stop(60)
	k.Remove()
	config.Metadata.Attempt = 1
	k = p.RunContainer(t, config)
	k.ExpectSh("cat /scratch/note /fast/note /config/color", "one\ntwo\nblue")
	for _, c := range []*Container{k, o, s} {
		c.Stop(60)
		c.Remove()
	}
	for _, dir := range []string{secret, projected, memory} {
		unmount(dir)
	}
}

// subPath bind-mounts a file of a volume as the kubelet does for subPath mounts.
func subPath(t *testing.T, p *Pod, volume, name string) string {
	t.Helper()
	data, err := filepath.EvalSymlinks(filepath.Join(volume, name))
	if err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(p.dir, "volume-subpaths", filepath.Base(volume), "sub-path", "0")
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(target, nil, 0o640); err != nil {
		t.Fatal(err)
	}
	bind(t, data, target)
	t.Cleanup(func() { unmount(target) })
	if strings.HasPrefix(data, volume) {
		return target
	}
	t.Fatalf("the sub-path %s leads to %s, out of the volume", name, data)
	return ""
}
