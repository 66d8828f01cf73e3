// Package cgroup2 runs the tests of host/cgroup where version 2 is all there is, with its controllers: in a virtual machine, since most
// machines that run tests have both versions, and then version 1 has the controllers.
package cgroup2

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/u-root/u-root/pkg/cpio"

	"github.com/cloister/cloister/author/guestimage"
	"github.com/cloister/cloister/internal/needs"
	"github.com/cloister/cloister/test/vmtest"
)

const limit = 10 * time.Minute

// boot is what the machine does. systemd leaves the groups of a host as this does: no process in the root.
const boot = `#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /tmp
/bin/busybox mount -t proc none /proc
/bin/busybox mount -t sysfs none /sys
/bin/busybox mount -t devtmpfs none /dev
/bin/busybox mount -t cgroup2 none /sys/fs/cgroup
/bin/busybox mkdir /sys/fs/cgroup/init.scope
echo $$ > /sys/fs/cgroup/init.scope/cgroup.procs
echo controllers: $(/bin/busybox cat /sys/fs/cgroup/cgroup.controllers)
export PATH=/bin TMPDIR=/tmp CI=true
/bin/busybox --install -s /bin
cd /test && /test/cgroup.test -test.v -test.timeout 5m
echo the tests ended with $?
/bin/busybox poweroff -f
`

func TestControlGroups(t *testing.T) {
	vmtest.Need(t)
	needs.Files(t, "/bin/busybox")
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	console, err := os.Create(filepath.Join(t.TempDir(), "console"))
	if err != nil {
		t.Fatal(err)
	}
	defer console.Close()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-M", "q35", "-accel", "tcg,thread=single", "-cpu", "max,la57=off,cx16=off", "-m", "768",
		"-display", "none", "-nodefaults", "-no-user-config", "-no-reboot", "-serial", "stdio",
		"-kernel", kernel(ctx, t), "-initrd", initrd(ctx, t), "-append", "console=ttyS0 quiet panic=-1 no_timer_check rdinit=/boot")
	cmd.Stdout, cmd.Stderr = console, console
	if err := cmd.Run(); err != nil {
		t.Error(err)
	}
	raw, err := os.ReadFile(console.Name())
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(string(raw), "\r", "")
	for _, want := range []string{
		"controllers: cpuset cpu io memory", "the tests ended with 0\n",
		"--- PASS: TestLife", "--- PASS: TestFigures", "--- PASS: TestOOM/path", "--- PASS: TestPlaces", "--- SKIP: TestVersion2", // version 2 is all
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q", want)
		}
	}
	if t.Failed() || testing.Verbose() {
		t.Logf("console:\n%s", text)
	}
}

func kernel(ctx context.Context, t *testing.T) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = t.TempDir()
	}
	lock, err := guestimage.LoadLock("../../guest.lock")
	if err != nil {
		t.Fatal(err)
	}
	file, err := guestimage.FetchKernel(ctx, guestimage.Options{CacheDir: filepath.Join(cache, "cloister", "test-kernels")}, lock.Kernel)
	if err != nil {
		needs.Missing(t, "a Debian mirror that offers %s: %v", lock.Kernel.Package, err)
	}
	return file
}

func initrd(ctx context.Context, t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	tests := filepath.Join(dir, "cgroup.test")
	build := exec.CommandContext(ctx, "go", "test", "-c", "-o", tests, "../../host/cgroup")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the tests: %v\n%s", err, out)
	}
	records := []cpio.Record{cpio.Directory("bin", 0o755), cpio.Directory("dev", 0o755), cpio.CharDev("dev/console", 0o600, 5, 1),
		cpio.Directory("test", 0o755), cpio.StaticFile("boot", boot, 0o755)}
	for to, from := range map[string]string{"bin/busybox": "/bin/busybox", "test/cgroup.test": tests} {
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, cpio.StaticFile(to, string(b), 0o755))
	}
	var b bytes.Buffer
	w := cpio.Newc.Writer(&b)
	if err := cpio.WriteRecords(w, records); err != nil {
		t.Fatal(err)
	}
	if err := cpio.WriteTrailer(w); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "initrd")
	if err := os.WriteFile(out, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return out
}
