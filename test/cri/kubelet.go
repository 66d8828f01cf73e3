package cri

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func unmount(name string) {
	for unix.Unmount(name, unix.MNT_DETACH) == nil {
	}
}

// Volume makes the directory of a volume: kind is "configmap", "secret", "projected", "downward-api", "empty-dir".
func (p *Pod) Volume(t testing.TB, kind, name string) string {
	t.Helper()
	dir := filepath.Join(p.dir, "volumes", "kubernetes.io~"+kind, name)
	if err := os.MkdirAll(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Tmpfs mounts memory on a directory, as the kubelet does for emptyDir volumes of medium Memory. The pod's end takes it away.
func Tmpfs(t testing.TB, dir, options string) {
	t.Helper()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Fatalf("mounting memory on %s: %v", dir, err)
	}
}

// WriteAtomically puts files into a volume as the kubelet does for configMaps and secrets: a new directory with a time in its name,
// the link ..data to it replaced in one step, a link per file, and the old directory removed.
func WriteAtomically(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	fail := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal("writing a volume:", err)
		}
	}
	old, _ := os.Readlink(filepath.Join(dir, "..data"))
	fresh, err := os.MkdirTemp(dir, "..2026_11_22_13_00_00.")
	fail(err)
	fail(os.Chmod(fresh, 0o755))
	for name, text := range files {
		fail(os.WriteFile(filepath.Join(fresh, name), []byte(text), 0o644))
	}
	fail(os.Symlink(filepath.Base(fresh), filepath.Join(dir, "..data_tmp")))
	fail(os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	for name := range files {
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)); err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
	}
	if old != "" {
		fail(os.RemoveAll(filepath.Join(dir, old)))
	}
}

// File makes a file below the pod's directory, such as a termination log or the file for /etc/hosts.
func (p *Pod) File(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(p.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}

// Mount is a mount of a container.
func Mount(host, container string) *runtime.Mount {
	return &runtime.Mount{HostPath: host, ContainerPath: container}
}

// ReadOnly is a mount that cannot be written to.
func ReadOnly(host, container string) *runtime.Mount {
	return &runtime.Mount{HostPath: host, ContainerPath: container, Readonly: true}
}

// HostsFile is what the kubelet writes for /etc/hosts.
func HostsFile(ip, hostname string) string {
	return fmt.Sprintf("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost\n%s\t%s\n10.1.2.3\tan.alias.test\n", ip, hostname)
}
