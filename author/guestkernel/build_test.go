package guestkernel

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/author/guestimage"
	"github.com/cloister/cloister/internal/needs"
)

// fakeMake stands for the kernel's build: it takes the wished options, and "compiles" the tree's only file with the environment.
const fakeMake = `#!/bin/sh
set -eu
for arg; do
	case $arg in
	KCONFIG_ALLCONFIG=*) wishes=${arg#*=} ;;
	esac
	target=$arg
done
case $target in
allnoconfig)
	cp "$wishes" .config
	test ! -e lacks || grep -v -f lacks "$wishes" >.config ;;
bzImage)
	test ! -e fails || { cat fails >&2; exit 2; }
	test ! -e hangs || exec sleep 1000
	mkdir -p arch/x86/boot include/config
	{ cat code; env | grep KBUILD_ | sort; env | grep -c SECRET || true; } >arch/x86/boot/bzImage
	echo kernel/fs/ext4/ext4.ko >modules.builtin
	echo 6.12.95-cloister >include/config/kernel.release ;;
*) exit 1 ;;
esac
`

// newBuild makes a source package with the files, and tools that stand for the real ones.
func newBuild(t *testing.T, files map[string]string) Options {
	t.Helper()
	needs.Programs(t, "dpkg-deb", "tar", "xz", "gcc", "ld")
	dir := t.TempDir()
	bin := filepath.Join(dir, "bin")
	write := func(name, text string, mode os.FileMode) {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(bin, "make"), fakeMake, 0o755)
	for _, tool := range []string{"flex", "bison", "bc", "zstd", "perl"} {
		write(filepath.Join(bin, tool), "#!/bin/sh\nexit 1\n", 0o755)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	t.Setenv("KBUILD_BUILD_USER", "SECRET")

	pkg := filepath.Join(dir, "package")
	write(filepath.Join(dir, "linux-source-6.12", "code"), "the code\n", 0o644)
	for name, text := range files {
		write(filepath.Join(dir, "linux-source-6.12", name), text, 0o644)
	}
	write(filepath.Join(pkg, "DEBIAN/control"), "Package: linux-source-6.12\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example>\nDescription: x\n", 0o644)
	if err := os.MkdirAll(filepath.Join(pkg, "usr/src"), 0o755); err != nil {
		t.Fatal(err)
	}
	deb := filepath.Join(dir, "source.deb")
	for _, c := range [][]string{
		{"tar", "-C", dir, "-cJf", filepath.Join(pkg, "usr/src/linux-source-6.12.tar.xz"), "linux-source-6.12"},
		{"dpkg-deb", "-b", pkg, deb},
	} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", c, err, out)
		}
	}
	data, err := os.ReadFile(deb)
	if err != nil {
		t.Fatal(err)
	}
	lock := &guestimage.Lock{
		Kernel: guestimage.KernelLock{Series: "6.12", Package: "linux-image-6.12.95+deb12-cloud-amd64", Version: "6.12.95-1~bpo12+1",
			Suite: "bookworm-backports", SHA256: strings.Repeat("ab", 32)},
		Source: guestimage.SourceLock{Package: "linux-source-6.12", Version: "6.12.95-1~bpo12+1", Suite: "bookworm-backports",
			SHA256: fmt.Sprintf("%x", sha256.Sum256(data))},
		Runc: guestimage.RuncLock{Version: "v1.5.2", Sum: "h1:eUUowc2WJCnFYzI87C1WqRcu356Dk/wsoi90y+2wEfE="},
	}
	path := filepath.Join(dir, "guest.lock")
	if err := lock.Save(path); err != nil {
		t.Fatal(err)
	}
	return Options{Image: guestimage.Options{CacheDir: filepath.Join(dir, "cache"), LockPath: path}, Package: deb, Jobs: 1}
}

// left lists what a build leaves in its cache beside the lock.
func left(t *testing.T, o Options) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(o.Image.CacheDir, "kernels"))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		if e.Name() != "lock" {
			out = append(out, e.Name())
		}
	}
	return out
}

func TestBuild(t *testing.T) {
	o := newBuild(t, nil)
	r, err := Build(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if r.Cached || r.Kernel.Release != "6.12.95-cloister" || r.Size == 0 || r.Kernel.Compiler == "" || r.Kernel.Source.Package != "linux-source-6.12" {
		t.Errorf("%+v %+v", r, r.Kernel)
	}
	kernel, err := os.ReadFile(filepath.Join(r.Dir, "vmlinuz"))
	if err != nil {
		t.Fatal(err)
	}
	want := "the code\nKBUILD_BUILD_HOST=cloister\nKBUILD_BUILD_TIMESTAMP=Thu Jan  1 00:00:00 UTC 1970\nKBUILD_BUILD_USER=cloister\nKBUILD_BUILD_VERSION=1\n0\n"
	if string(kernel) != want {
		t.Errorf("the kernel is %q", kernel)
	}
	config, err := os.ReadFile(filepath.Join(r.Dir, "config"))
	if err != nil || !strings.Contains(string(config), "CONFIG_EXT4_FS=y\n") || !strings.Contains(string(config), "# CONFIG_MODULES is not set\n") {
		t.Errorf("the configuration is %.200q, %v", config, err)
	}
	again, err := Build(t.Context(), o)
	if err != nil || !again.Cached || again.Dir != r.Dir {
		t.Errorf("the second time: %+v, %v", again, err)
	}
	o.Extra = []Fragment{{"mine", []byte("CONFIG_USB=y\nCONFIG_EXT4_FS=n\n")}}
	other, err := Build(t.Context(), o)
	if err != nil || other.Dir == r.Dir {
		t.Errorf("with another option: %+v, %v", other, err)
	}
	if n := left(t, o); len(n) != 2 {
		t.Errorf("left are %v", n)
	}
}

func TestBuildFails(t *testing.T) {
	for says, files := range map[string]map[string]string{
		"CONFIG_VIRTIO_MEM=y is wanted, the kernel's configuration makes it n": {"lacks": "VIRTIO_MEM"},
		"undefined reference": {"fails": "ld: undefined reference to x\n"},
	} {
		o := newBuild(t, files)
		_, err := Build(t.Context(), o)
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("the error is %v, want one with %q", err, says)
		}
		if n := left(t, o); len(n) != 0 {
			t.Errorf("left are %v", n)
		}
	}
	o := newBuild(t, nil)
	if err := os.WriteFile(o.Package, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Build(t.Context(), o); err == nil || !strings.Contains(err.Error(), "the lock expects") {
		t.Errorf("another package: %v", err)
	}
	lock, err := guestimage.LoadLock(o.Image.LockPath)
	if err != nil {
		t.Fatal(err)
	}
	lock.Source = guestimage.SourceLock{}
	if err := lock.Save(o.Image.LockPath); err != nil {
		t.Fatal(err)
	}
	if _, err := Build(t.Context(), o); err == nil || !strings.Contains(err.Error(), "--update-lock") {
		t.Errorf("no source in the lock: %v", err)
	}
	t.Setenv("PATH", "/nonexistent")
	if _, err := Build(t.Context(), o); err == nil {
		t.Error("no tools: no error")
	}
}

// TestInterrupted ends a build whose compiler does not end.
func TestInterrupted(t *testing.T) {
	o := newBuild(t, map[string]string{"hangs": ""})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	o.Progress = func(step, _ string) {
		if step == "compile" {
			time.AfterFunc(50*time.Millisecond, cancel)
		}
	}
	if _, err := Build(ctx, o); err == nil || !strings.Contains(err.Error(), context.Canceled.Error()) {
		t.Errorf("the error is %v", err)
	}
	if n := left(t, o); len(n) != 0 {
		t.Errorf("left are %v", n)
	}
}

// TestKilled finds what a killed build has left.
func TestKilled(t *testing.T) {
	o := newBuild(t, nil)
	if err := os.MkdirAll(filepath.Join(o.Image.CacheDir, "kernels", ".new-1", "linux"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Build(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if n := left(t, o); len(n) != 1 {
		t.Errorf("left are %v", n)
	}
}
