package guestvm

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/internal/needs"
	"github.com/cloister/cloister/wire/agent"
)

// upper is the storage of a writable layer on an encrypted disk.
func upper(id, place string) *agent.Storage {
	return &agent.Storage{Driver: "blk", Source: place, Fstype: "ext4", MountPoint: "/run/kata-containers/" + id + "/rootfs",
		Options: []string{"X-kata.overlay-upper", "X-kata.multi-layer=true"}, DriverOptions: []string{"encryption_key=ephemeral", "create_filesystem"}}
}

// until reads what a container prints until there is a text.
func (v *machine) until(ctx context.Context, id, text string) string {
	v.t.Helper()
	var out string
	for !strings.Contains(out, text) {
		r, err := v.agent.ReadStdout(ctx, &agent.ReadStreamRequest{ContainerId: id, ExecId: id, Len: 4096})
		if err != nil || len(r.GetData()) == 0 {
			v.t.Fatalf("%s printed %q and no %q: %v", id, out, text, err)
		}
		out += string(r.GetData())
	}
	return out
}

// TestHostileScratch: what a host does to the disk of a writable layer is an I/O error in the container, and never content. The next container
// starts all the same.
func TestHostileScratch(t *testing.T) {
	needs.Programs(t, "mkfs.erofs", "veritysetup")
	needs.Root(t, "mounts")
	img := image(t)
	program := filepath.Join(t.TempDir(), "probe")
	goBuild(t, "./probe", program)
	binary, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	layer := makeLayer(t, tree(t, "bottom", map[string][]byte{"probe": binary}))
	small := t.TempDir()
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=8m"); err != nil {
		needs.Missing(t, "the right to mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(small, unix.MNT_DETACH); err != nil { // QEMU may have the file until later
			t.Error(err)
		}
	})
	full := filepath.Join(small, "disk")
	if err := os.WriteFile(full, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(full, 64<<20); err != nil {
		t.Fatal(err)
	}
	flipped, short, twice := disk(t, 64), disk(t, 64), disk(t, 64)
	args := []string{"-drive", "if=none,id=layer,format=raw,readonly=on,file=" + layer.file, "-device", "virtio-blk-pci,drive=layer,addr=5"}
	attach := func(place, drive string) {
		args = append(args, "-drive", "if=none,id=d"+place+","+drive, "-device", fmt.Sprintf("virtio-blk-pci,drive=d%s,addr=%s,werror=report,rerror=report", place, place))
	}
	attach("6", "format=raw,file="+flipped)
	attach("7", "format=raw,file="+short)
	attach("8", "format=raw,file.locking=off,file="+twice)
	attach("9", "format=raw,file.locking=off,file="+twice)
	attach("a", "format=raw,file="+full)
	attach("b", "driver=null-co,size=1P,read-zeroes=on") // keeps nothing, and has more than ext4 can
	v := start(t, img, "cloister.sandboxed cloister.initdata=required agent.hotplug_timeout=20", args...)
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	v.connect()
	v.must(v.agent.CreateSandbox(ctx, &agent.CreateSandboxRequest{Hostname: "pod", SandboxId: "sandbox1", Storages: shm()}))
	request := func(id, place string, words ...string) *agent.CreateContainerRequest {
		return layered(id, []*agent.Storage{lowerStorage(id, "05", layer, "X-cloister.layer-number=1"), upper(id, place)}, words...)
	}
	goOn := func(id string) string {
		v.must(v.agent.WriteStdin(ctx, &agent.WriteStreamRequest{ContainerId: id, ExecId: id, Data: []byte("on\n")}))
		return v.output(ctx, id)
	}
	// A container writes and waits, the host does what it wants, and the container reads from the disk. The kernel tells a wrong
	// authentication code apart from other errors (EILSEQ) where it is asked for the disk itself.
	attack := func(id, place string, harm func() error) {
		t.Helper()
		v.launch(ctx, request(id, place, "fill=/filled:8", "line", "direct=/filled"))
		out := v.until(ctx, id, "filled")
		if err := harm(); err != nil {
			t.Fatal(err)
		}
		out += goOn(id)
		before, read, _ := strings.Cut(out, "got on\ndirect ")
		if before != "filled <nil> <nil> true\n" || !strings.HasSuffix(read, unix.EIO.Error()+"\n") && !strings.HasSuffix(read, unix.EILSEQ.Error()+"\n") {
			t.Errorf("%s: %q", id, out)
		}
		v.remove(ctx, id)
	}
	attack("flipped1", "06", func() error {
		f, err := os.OpenFile(flipped, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		for at := int64(1 << 20); at < 64<<20; at += 4096 {
			var b [1]byte
			if _, err := f.ReadAt(b[:], at); err != nil {
				return err
			}
			b[0] ^= 1
			if _, err := f.WriteAt(b[:], at); err != nil {
				return err
			}
		}
		return nil
	})
	attack("short1", "07", func() error { return os.Truncate(short, 2<<20) })
	attack("twice1", "08", func() error {
		if _, err := v.agent.CreateContainer(ctx, request("twice2", "08", "say=x")); err == nil {
			t.Error("one disk is the writable layer of two containers")
		} else {
			t.Log(err)
		}
		if out := v.run(ctx, request("twice3", "09", "fill=/filled:8", "direct=/filled")); !strings.Contains(out, "filled <nil> <nil> true\ndirect 8388608 <nil>") {
			t.Errorf("over another container's disk: %q", out)
		}
		v.remove(ctx, "twice3")
		return nil
	})
	out := v.run(ctx, request("full1", "0a", "fill=/filled:16", "direct=/filled"))
	if !strings.Contains(out, "input/output error") {
		t.Errorf("full1: %q", out)
	}
	v.remove(ctx, "full1")
	if _, err := v.agent.CreateContainer(ctx, request("huge1", "0b", "say=x")); err == nil {
		t.Error("a disk that keeps nothing is a writable layer")
	} else {
		t.Log(err)
	}
	// Nothing is left of them, and disks of before serve again.
	for _, place := range []string{"06", "08"} {
		id := "after" + place
		if out := v.run(ctx, request(id, place, "fill=/filled:8", "direct=/filled", "ls=/sys/block")); !strings.Contains(out, "filled <nil> <nil> true\ndirect 8388608 <nil>") || strings.Count(out, "dm-") != 3 {
			t.Errorf("%s: %q", id, out)
		}
		v.remove(ctx, id)
	}
}
