package guestvm

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/host/layerdisk"
	"github.com/cloister/cloister/internal/needs"
	"github.com/cloister/cloister/wire/agent"
)

// verityLayer is a file of EROFS and its hashes, as other tools make them.
type verityLayer struct {
	file, root string
	offset     int64
	size       int64
}

var rootHash = regexp.MustCompile(`Root hash:\s+([0-9a-f]{64})`)

// makeLayer makes a layer of a directory.
func makeLayer(t *testing.T, dir string) verityLayer {
	t.Helper()
	l := verityLayer{file: dir + ".erofs"}
	if out, err := exec.Command("mkfs.erofs", "-T0", l.file, dir).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.erofs: %v: %s", err, out)
	}
	info, err := os.Stat(l.file)
	if err != nil {
		t.Fatal(err)
	}
	l.offset = (info.Size() + 4095) / 4096 * 4096
	out, err := exec.Command("veritysetup", "format", "--salt="+strings.Repeat("0", 64), fmt.Sprintf("--hash-offset=%d", l.offset),
		fmt.Sprintf("--data-blocks=%d", l.offset/4096), l.file, l.file).CombinedOutput()
	m := rootHash.FindSubmatch(out)
	if err != nil || m == nil {
		t.Fatalf("veritysetup: %v: %s", err, out)
	}
	l.root = string(m[1])
	if info, err = os.Stat(l.file); err != nil {
		t.Fatal(err)
	}
	l.size = info.Size()
	return l
}

// flip changes one byte of a copy of the layer where it has the mark, and returns the copy.
func (l verityLayer) flip(t *testing.T, mark []byte) verityLayer {
	t.Helper()
	data, err := os.ReadFile(l.file)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(data, mark)
	if at < 0 {
		t.Fatalf("%q is not in %s", mark, l.file)
	}
	data[at] ^= 1
	l.file = filepath.Join(t.TempDir(), "flipped.erofs")
	if err := os.WriteFile(l.file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return l
}

// diskOf is one disk of several layers, the topmost first.
func diskOf(t *testing.T, layers []verityLayer) string {
	t.Helper()
	var list []layerdisk.Layer
	for i, l := range layers {
		list = append(list, layerdisk.Layer{Path: l.file, Size: l.size, Name: fmt.Sprintf("erofs-%d", i)})
	}
	descriptor, err := layerdisk.Write(filepath.Join(t.TempDir(), "disk"), list)
	if err != nil {
		t.Fatal(err)
	}
	return descriptor
}

// storages are the layers, the topmost first, as partitions of the disk at a place.
func storages(id, place string, layers []verityLayer) (out []*agent.Storage) {
	for i, l := range layers {
		out = append(out, lowerStorage(id, place, l, "X-kata.gpt-partitioned=true", fmt.Sprintf("X-kata.partition-number=%d", i+1)))
	}
	return out
}

func lowerStorage(id, place string, l verityLayer, options ...string) *agent.Storage {
	return &agent.Storage{Driver: "blk", Source: place, Fstype: "erofs", MountPoint: "/run/kata-containers/" + id + "/rootfs",
		Options: append([]string{"X-kata.overlay-lower", "X-kata.multi-layer=true", "X-kata.dmverity-enabled=true", "X-kata.dmverity.roothash=" + l.root,
			fmt.Sprintf("X-kata.dmverity.hashoffset=%d", l.offset), "X-kata.dmverity.no-superblock=false"}, options...)}
}

// layered is a container of layers that runs the probe.
func layered(id string, list []*agent.Storage, args ...string) *agent.CreateContainerRequest {
	req := probe(id, args...)
	req.Storages = list
	req.OCI.Root.Path = "/run/kata-containers/" + id + "/rootfs"
	return req
}

// tree makes a directory of files; a name with a slash at its end is a directory, a value nil a whiteout.
func tree(t *testing.T, name string, files map[string][]byte) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), name)
	for f, data := range files {
		p := filepath.Join(dir, f)
		err := os.MkdirAll(filepath.Dir(p), 0o755)
		if err == nil && data == nil {
			err = unix.Mknod(p, unix.S_IFCHR, 0)
		} else if err == nil {
			err = os.WriteFile(p, data, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"proc", "dev", "sys"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestLayers runs containers whose root is layers that the host attaches.
func TestLayers(t *testing.T) {
	needs.Programs(t, "mkfs.erofs", "veritysetup")
	img := image(t)
	program := filepath.Join(t.TempDir(), "probe")
	goBuild(t, "./probe", program)
	binary, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	big := make([]byte, 3<<20)
	rand.Read(big)
	mark := []byte("this is where the byte is changed")
	copy(big[1<<20:], mark)
	bottomDir := tree(t, "bottom", map[string][]byte{"probe": binary, "file": []byte("bottom"), "gone": []byte("bottom"), "dir/a": []byte("bottom"), "big": big})
	middleDir := tree(t, "middle", map[string][]byte{"file": []byte("middle"), "gone": nil, "dir/b": []byte("middle"), "dir/large": big[:1<<20]})
	if err := unix.Setxattr(filepath.Join(middleDir, "dir"), "trusted.overlay.opaque", []byte("y"), 0); err != nil {
		needs.Missing(t, "the right to mark an opaque directory: %v", err)
	}
	layers := []verityLayer{makeLayer(t, tree(t, "top", map[string][]byte{"file": []byte("top")})), makeLayer(t, middleDir), makeLayer(t, bottomDir)}
	changed := []verityLayer{layers[0], layers[2].flip(t, mark)}
	broken := layers[2].flip(t, []byte{0xe2, 0xe1, 0xf5, 0xe0})
	many := make([]verityLayer, 100)
	for i := range many {
		many[i] = makeLayer(t, tree(t, "many"+strconv.Itoa(i), map[string][]byte{"file": []byte(strconv.Itoa(i)), "n" + strconv.Itoa(i): []byte("x")}))
	}
	many = append(many, layers[2])
	args := []string{}
	attach := func(place, format, file string) {
		args = append(args, "-drive", fmt.Sprintf("if=none,id=d%s,format=%s,readonly=on,file=%s", place, format, file), "-device", fmt.Sprintf("virtio-blk-pci,drive=d%s,addr=%s", place, place))
	}
	attach("4", "vmdk", diskOf(t, layers))
	attach("5", "raw", layers[0].file)
	attach("6", "raw", layers[1].file)
	attach("7", "raw", layers[2].file)
	attach("8", "vmdk", diskOf(t, changed))
	attach("9", "raw", broken.file)
	attach("c", "vmdk", diskOf(t, many))
	args = append(args, "-drive", "if=none,id=scratch,format=raw,file="+disk(t, 64), "-device", "virtio-blk-pci,drive=scratch,addr=d")
	v := start(t, img, "cloister.sandboxed cloister.initdata=required agent.hotplug_timeout=20", args...)
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	v.connect()
	v.must(v.agent.CreateSandbox(ctx, &agent.CreateSandboxRequest{Hostname: "pod", SandboxId: "sandbox1", Storages: shm()}))

	// words are what the containers find out; the number of dm devices is that of their own layers, if those before left none.
	words := []string{"cat=/file", "ls=/", "ls=/dir", "write=/new", "write=/dir/new", "cat=/new", "direct=/big", "ls=/sys/block", "cat=/proc/self/mountinfo"}
	check := func(t *testing.T, out string, dms int) {
		t.Helper()
		lines := strings.Split(out, "\n")
		for _, want := range []string{"top <nil>", "b large <nil>", "x <nil>", fmt.Sprintf("direct %d <nil>", len(big))} {
			if !slices.Contains(lines, want) {
				t.Errorf("no line %q", want)
			}
		}
		if strings.Contains(lines[1], "gone") || strings.Count(out, "dm-") < dms || strings.Count(lines[7], "dm-") != dms {
			t.Errorf("got %q", out)
		}
		if t.Failed() {
			t.Log(out)
		}
	}
	t.Run("partitions", func(t *testing.T) {
		for _, id := range []string{"parts1", "parts2"} {
			check(t, v.run(ctx, layered(id, storages(id, "04", layers), words...)), 3)
			v.remove(ctx, id)
		}
	})
	t.Run("disks", func(t *testing.T) {
		list := []*agent.Storage{ // in no order
			lowerStorage("disks1", "06", layers[1], "X-cloister.layer-number=2", "X-kata.dmverity.salt="+strings.Repeat("0", 64)),
			lowerStorage("disks1", "05", layers[0], "X-cloister.layer-number=1"),
			lowerStorage("disks1", "07", layers[2], "X-cloister.layer-number=3", "X-kata.dmverity.blocksize=4096", "X-kata.dmverity.hashsize=4096"),
		}
		check(t, v.run(ctx, layered("disks1", list, words...)), 3)
		v.remove(ctx, "disks1")
	})
	t.Run("many", func(t *testing.T) {
		began := time.Now()
		out := v.run(ctx, layered("many1", storages("many1", "0c", many), "cat=/file", "ls=/", "ls=/sys/block"))
		t.Logf("%d layers: %s", len(many), time.Since(began))
		if !strings.HasPrefix(out, "0 <nil>") || !strings.Contains(out, " n99 ") || strings.Count(out, "dm-") != len(many) {
			t.Errorf("got %q", out)
		}
		v.remove(ctx, "many1")
	})
	t.Run("encrypted scratch", func(t *testing.T) {
		list := append(storages("scratch1", "04", layers), &agent.Storage{Driver: "blk", Source: "0d", Fstype: "ext4",
			Options:       []string{"X-kata.overlay-upper", "X-kata.multi-layer=true", "rw"},
			DriverOptions: []string{"create_filesystem", "encryption_key=ephemeral"}, MountPoint: "/run/kata-containers/scratch1/rootfs"})
		check(t, v.run(ctx, layered("scratch1", list, append(words, "fill=/filled:8")...)), 5) // crypt and integrity
		v.remove(ctx, "scratch1")
	})
	t.Run("flipped bit", func(t *testing.T) {
		out := v.run(ctx, layered("flip1", storages("flip1", "08", changed), "cat=/file", "direct=/big"))
		if !strings.HasPrefix(out, "top <nil>\n") || !strings.Contains(out, "input/output error") {
			t.Errorf("got %q", out)
		}
		v.remove(ctx, "flip1")
	})
	t.Run("refused", func(t *testing.T) {
		swapped := layers[1]
		swapped.root = layers[2].root
		with := func(l verityLayer, place string, options ...string) *agent.Storage {
			return lowerStorage("refused1", place, l, append(options, "X-cloister.layer-number=2")...)
		}
		short := layers[1]
		short.offset -= 4096
		for name, c := range map[string]struct {
			bad  *agent.Storage
			want string
		}{
			"swapped root":      {with(swapped, "06"), "layer 2 at blk 06 with root hash " + layers[2].root + ": what the host has attached does not fit"},
			"broken superblock": {with(broken, "09"), "does not fit the root hash"},
			"hash offset":       {with(short, "06"), "byte 0 of the superblock"},
			"salt":              {with(layers[1], "06", "X-kata.dmverity.salt=00"), "the salt in the superblock"},
			"block size":        {with(layers[1], "06", "X-kata.dmverity.blocksize=512"), "data and hashes end at"},
			"no superblock":     {with(layers[2], "06"), "bytes"},
			"no disk":           {with(layers[1], "1e"), "layer 2 at blk 1e"},
		} {
			_, err := v.agent.CreateContainer(ctx, layered("refused1", []*agent.Storage{lowerStorage("refused1", "05", layers[0], "X-cloister.layer-number=1"), c.bad}, "say=x"))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v", name, err)
			}
		}
		// Nothing is left of them.
		check(t, v.run(ctx, layered("after1", storages("after1", "04", layers), words...)), 3)
		v.remove(ctx, "after1")
	})
}
