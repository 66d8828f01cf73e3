package guestvm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cloister/cloister/internal/needs"
	"github.com/cloister/cloister/wire/agent"
)

// daemon starts a virtiofsd for a directory and returns its socket.
func daemon(t *testing.T, dir string) string {
	t.Helper()
	sock := filepath.Join(t.TempDir(), "fs")
	args := []string{"--socket-path=" + sock, "--shared-dir=" + dir, "--sandbox=none"}
	program, err := exec.LookPath("/usr/libexec/virtiofsd")
	if err != nil {
		if program, err = exec.LookPath("/usr/lib/qemu/virtiofsd"); err != nil {
			needs.Missing(t, "virtiofsd: %v", err)
		}
		args = []string{"--socket-path=" + sock, "-o", "source=" + dir + ",sandbox=chroot"}
	}
	cmd := exec.Command(program, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("virtiofsd: %s", &out)
		}
	})
	waitFile(t, sock)
	return sock
}

// TestSandboxed is the life of a pod on a trusted host: a shared directory, disks of all kinds, ports, hot plug.
func TestSandboxed(t *testing.T) {
	img := image(t)
	share, plain, secret, onSCSI, late := t.TempDir(), disk(t, 64), disk(t, 96), disk(t, 32), disk(t, 16)
	if err := os.Mkdir(share+"/root", 0o755); err != nil {
		t.Fatal(err)
	}
	goBuild(t, "./probe", share+"/root/probe")
	if err := errors.Join(os.WriteFile(share+"/file", []byte("from the host\n"), 0o644), os.Mkdir(share+"/config", 0o755),
		os.WriteFile(share+"/config/key", []byte("one"), 0o644), os.Symlink("/etc", share+"/escape")); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", plain).CombinedOutput(); err != nil {
		needs.Missing(t, "mkfs.ext4: %v %s", err, out)
	}
	v := start(t, img, "cloister.sandboxed cloister.initdata=required agent.hotplug_timeout=60",
		"-chardev", "socket,id=fs,path="+daemon(t, share), "-device", "vhost-user-fs-pci,chardev=fs,tag=kataShared,addr=3",
		"-drive", "if=none,id=plain,format=raw,file="+plain, "-device", "virtio-blk-pci,drive=plain,addr=4",
		"-drive", "if=none,id=secret,format=raw,file="+secret, "-device", "virtio-blk-pci,drive=secret,addr=5",
		"-device", "virtio-scsi-pci,id=scsi,addr=6",
		"-drive", "if=none,id=onscsi,format=raw,file="+onSCSI, "-device", "scsi-hd,bus=scsi.0,scsi-id=0,lun=3,drive=onscsi",
		"-device", "pcie-root-port,id=rp,chassis=1,addr=7", "-drive", "if=none,id=late,format=raw,file="+late)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	v.connect()

	details, err := v.agent.GetGuestDetails(ctx, &agent.GuestDetailsRequest{MemBlockSize: true})
	if err != nil || !strings.Contains(strings.Join(details.GetAgentDetails().GetExtraFeatures(), " "), "cloister-sandboxed") || details.GetMemBlockSizeBytes() == 0 {
		t.Fatalf("details: %v, %v", details, err)
	}
	v.must(v.agent.CreateSandbox(ctx, &agent.CreateSandboxRequest{Hostname: "pod", SandboxId: "sandbox1", Storages: []*agent.Storage{
		{Driver: "virtio-fs", Source: "kataShared", Fstype: "virtiofs", Options: []string{"nodev"}, MountPoint: shared},
		{Driver: "ephemeral", Source: "shm", Fstype: "tmpfs", Options: []string{"size=16777216"}, MountPoint: "/run/kata-containers/sandbox/shm"},
	}}))

	t.Run("share", func(t *testing.T) {
		out := v.run(ctx, with(with(probe("share1", "cat=/file", "write=/dir/made", "who="), shared+"file", "/file", "ro"), shared+"config", "/dir"))
		if !strings.Contains(out, "from the host <nil>") {
			t.Errorf("got %q", out)
		}
		if _, err := os.Stat(share + "/config/made"); err != nil {
			t.Error(err)
		}
		for _, source := range []string{shared + "escape/passwd", shared + "escape", "/etc/cloister", shared + "../../../../etc"} {
			if _, err := v.agent.CreateContainer(ctx, with(probe("bad1", "say=x"), source, "/x")); err == nil {
				t.Errorf("%s was mounted", source)
			}
		}
		v.remove(ctx, "share1")
	})

	t.Run("disks", func(t *testing.T) {
		vol := "/run/kata-containers/sandbox/storage/"
		req := probe("disks1", "fill=/plain/a:8", "fill=/secret/b:16", "fill=/scsi/c:2", "ls=/secret", "open=/dev/raw")
		req.Storages = []*agent.Storage{
			{Driver: "blk", Source: "04", Fstype: "ext4", MountPoint: vol + "plain", FsGroup: &agent.FSGroup{GroupId: 4711}},
			{Driver: "blk", Source: "05.0", Fstype: "ext4", MountPoint: vol + "secret", DriverOptions: []string{"create_filesystem", "encryption_key=ephemeral"}, Shared: true},
			{Driver: "scsi", Source: "0:3", Fstype: "ext4", MountPoint: vol + "scsi", DriverOptions: []string{"create_filesystem"}},
		}
		with(with(with(req, vol+"plain", "/plain"), vol+"secret", "/secret"), vol+"scsi", "/scsi")
		out := v.run(ctx, req)
		if strings.Count(out, "filled <nil> <nil> true") != 3 || !strings.Contains(out, "b <nil>") {
			t.Errorf("got %q", out)
		}
		v.remove(ctx, "disks1")
		stats, err := v.agent.GetVolumeStats(ctx, &agent.VolumeStatsRequest{VolumeGuestPath: vol + "secret"})
		if err != nil || len(stats.GetUsage()) != 2 || stats.GetUsage()[0].GetUsed() < 16<<20 || stats.GetUsage()[0].GetTotal() > 96<<20 {
			t.Errorf("stats: %v, %v", stats, err)
		}
		data, err := os.ReadFile(secret)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(data, []byte{0x53, 0xef, 1, 0, 2, 0}) || bytes.Count(data, []byte{0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1}) > 0 {
			t.Error("the encrypted disk has plain text")
		}
		if data, err = os.ReadFile(onSCSI); err != nil || !bytes.Contains(data, []byte{0x53, 0xef, 1, 0, 2, 0}) {
			t.Error("the plain disk has no superblock", err)
		}
	})

	t.Run("changed disk", func(t *testing.T) {
		volume := "/run/kata-containers/sandbox/storage/secret"
		read := func(id string) string {
			out := v.run(ctx, with(probe(id, "direct=/secret/b"), volume, "/secret"))
			v.remove(ctx, id)
			return out
		}
		if out := read("direct1"); out != "direct 16777216 <nil>\n" {
			t.Fatalf("got %q", out)
		}
		f, err := os.OpenFile(secret, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for at := int64(4 << 20); at < 90<<20; at += 1 << 20 {
			if _, err := f.WriteAt(bytes.Repeat([]byte{0x5a}, 4096), at); err != nil {
				t.Fatal(err)
			}
		}
		if out := read("direct2"); !strings.HasPrefix(out, "direct -1 ") {
			t.Errorf("what the host changed was read: %q", out)
		}
	})

	t.Run("refused", func(t *testing.T) {
		for name, s := range map[string]*agent.Storage{
			"dots":              {Driver: "blk", Source: "../../../block/vda", Fstype: "ext4", MountPoint: "/run/kata-containers/sandbox/x1"},
			"node outside":      {Driver: "blk", Source: "/dev/../etc/passwd", Fstype: "ext4", MountPoint: "/run/kata-containers/sandbox/x2"},
			"through a symlink": {Driver: "blk", Source: "04", Fstype: "ext4", MountPoint: shared + "escape/x3"},
			"outside":           {Driver: "blk", Source: "04", Fstype: "ext4", MountPoint: "/usr/bin"},
			"no file system":    {Driver: "blk", Source: "05", Fstype: "erofs", MountPoint: "/run/kata-containers/sandbox/x4"},
			"key without mkfs":  {Driver: "blk", Source: "04", Fstype: "ext4", MountPoint: "/run/kata-containers/sandbox/x5", DriverOptions: []string{"encryption_key=ephemeral"}},
			"second share":      {Driver: "virtio-fs", Source: "kataShared", Fstype: "virtiofs", MountPoint: "/run/kata-containers/sandbox/x6"},
		} {
			req := probe("refused1", "say=x")
			req.Storages = []*agent.Storage{s}
			if _, err := v.agent.CreateContainer(ctx, req); err == nil {
				t.Errorf("%s was accepted", name)
			}
		}
	})

	t.Run("devices", func(t *testing.T) {
		req := probe("device1", "open=/dev/raw", "open=/dev/other")
		req.Devices = []*agent.Device{{Type: "blk", Id: "04", ContainerPath: "/dev/raw"}}
		req.OCI.Linux.Devices = []*agent.LinuxDevice{{Path: "/dev/raw", Type: "b", Major: 8, Minor: 99}}
		if out := v.run(ctx, req); !strings.HasPrefix(out, "<nil>\nopen /dev/other") {
			t.Errorf("got %q", out)
		}
		v.remove(ctx, "device1")
		for kind, want := range map[string]codes.Code{"vfio-pci": codes.Unimplemented, "blk": codes.InvalidArgument} {
			req := probe("device2", "say=x")
			req.Devices = []*agent.Device{{Type: kind, Id: "04/..", ContainerPath: "/dev/raw", Options: []string{"0000:21:00.0=04"}}}
			if _, err := v.agent.CreateContainer(ctx, req); status.Code(err) != want {
				t.Errorf("%s: %v", kind, err)
			}
		}
	})

	t.Run("watched volume", func(t *testing.T) {
		at := shared + "watchable/config"
		req := probe("watch1", "follow=/config/key")
		req.Storages = []*agent.Storage{{Driver: "watchable-bind", Source: shared + "config", Fstype: "bind", Options: []string{"bind"}, MountPoint: at}}
		v.launch(ctx, with(req, at, "/config"))
		look := func() string {
			t.Helper()
			v.must(v.agent.WriteStdin(ctx, &agent.WriteStreamRequest{ContainerId: "watch1", ExecId: "watch1", Data: []byte("go\n")}))
			r, err := v.agent.ReadStdout(ctx, &agent.ReadStreamRequest{ContainerId: "watch1", ExecId: "watch1", Len: 4096})
			if err != nil {
				t.Fatal(err)
			}
			return string(r.GetData())
		}
		if out := look(); out != "one <nil>\n" {
			t.Errorf("at first: %q", out)
		}
		// At once: a guest that looks in the middle would find an empty file.
		if err := os.WriteFile(share+"/key.new", []byte("two"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(share+"/key.new", share+"/config/key"); err != nil {
			t.Fatal(err)
		}
		out := look() // the guest looks every two seconds, by its own clock
		for out == "one <nil>\n" {
			out = look()
		}
		if out != "two <nil>\n" {
			t.Errorf("after the change: %q", out)
		}
		v.must(v.agent.CloseStdin(ctx, &agent.CloseStdinRequest{ContainerId: "watch1", ExecId: "watch1"}))
		if out := v.output(ctx, "watch1"); out != "" {
			t.Errorf("at the end: %q", out)
		}
		v.remove(ctx, "watch1")
	})

	t.Run("ports", func(t *testing.T) {
		v.launch(ctx, probe("serve1", "serve=8080"))
		r, err := v.agent.ReadStdout(ctx, &agent.ReadStreamRequest{ContainerId: "serve1", ExecId: "serve1", Len: 4096})
		if err != nil || !strings.HasPrefix(string(r.GetData()), "serving <nil>") {
			t.Fatalf("got %q, %v", r.GetData(), err)
		}
		c := v.dial(1030)
		answer := make([]byte, 1)
		if _, err := c.Write(binary.BigEndian.AppendUint16(nil, 8080)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, answer); err != nil || answer[0] != 0 {
			t.Fatalf("answer %d, %v", answer, err)
		}
		if _, err := io.WriteString(c, "round trip"); err != nil {
			t.Fatal(err)
		}
		c.Close() // half of it
		if got, err := io.ReadAll(c); err != nil || string(got) != "round trip" {
			t.Errorf("got %q, %v", got, err)
		}
		for _, port := range []uint16{8006, 9} {
			c := v.dial(1030)
			if _, err := c.Write(binary.BigEndian.AppendUint16(nil, port)); err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(c); err != nil || len(got) < 2 || int(got[0]) != len(got)-1 {
				t.Errorf("port %d: %q, %v", port, got, err)
			}
		}
	})

	t.Run("hot plug", func(t *testing.T) {
		v.monitor("device_add virtio-blk-pci,drive=late,bus=rp,id=late")
		v.monitor("object_add memory-backend-memfd,id=more,size=256M,share=on")
		v.monitor("device_add pc-dimm,id=dimm,memdev=more")
		req := probe("late1", "fill=/late/a:2")
		req.Storages = []*agent.Storage{{Driver: "blk", Source: "07/00", Fstype: "ext4", MountPoint: "/run/kata-containers/sandbox/late", DriverOptions: []string{"create_filesystem"}}}
		if out := v.run(ctx, with(req, "/run/kata-containers/sandbox/late", "/late")); !strings.Contains(out, "filled <nil> <nil> true") {
			t.Errorf("got %q", out)
		}
		v.must(v.agent.OnlineCPUMem(ctx, &agent.OnlineCPUMemRequest{Wait: true}))
		m, err := v.agent.GetMetrics(ctx, &agent.GetMetricsRequest{})
		if err != nil || !strings.Contains(m.GetMetrics(), "kata_guest_meminfo") {
			t.Errorf("metrics: %v", err)
		}
		// 768 MiB less what the kernel takes, and 256 MiB more.
		var total int
		out := v.run(ctx, probe("late2", "cat=/proc/meminfo"))
		if _, err := fmt.Sscanf(out, "MemTotal: %d kB", &total); err != nil || total < 850<<10 {
			t.Errorf("memory: %d kB, %v", total, err)
		}
	})

	// The machine may be gone before its answer is read; that it has ended for this reason is what counts.
	if _, err := v.agent.DestroySandbox(ctx, &agent.DestroySandboxRequest{}); err != nil && !errors.Is(err, ttrpc.ErrClosed) {
		t.Error(err)
	}
	v.waitExit()
	if !strings.Contains(v.console.String(), "the sandbox has been destroyed") {
		t.Error("the guest did not end by itself")
	}
}

// TestSandboxedRefuses boots where sandboxed mode must not run.
func TestSandboxedRefuses(t *testing.T) {
	img := image(t)
	v := start(t, img, "cloister.sandboxed", initdataDisk(t, document(t, "package agent_policy"))...)
	v.waitExit()
	if out := v.console.String(); !strings.Contains(out, "fatal: initdata is attached") {
		t.Errorf("the console does not say why")
	}
}
