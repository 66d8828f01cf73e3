package snapshotter

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/host/blockmount"
	"github.com/cloister/cloister/internal/needs"
	"github.com/cloister/cloister/layer"
)

// TestManyAtOnce: many pulls of the same layer are one conversion.
func TestManyAtOnce(t *testing.T) { synctest.Test(t, testManyAtOnce) }

func testManyAtOnce(t *testing.T) {
	content := newContent()
	content.gate = make(chan struct{})
	layers := content.addImage(t, tarOfSize(t, 1, someSize))
	s, n := open(t, t.TempDir(), content, asIs), &number{}
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			if _, err := unpack(t.Context(), s, n, "", layers[0], nil); err != nil {
				t.Error(err)
			}
		})
	}
	synctest.Wait()
	if n := s.waiting1(layers[0].blob); n != 16 {
		t.Errorf("%d wait for the conversion, want 16", n)
	}
	close(content.gate)
	all.Wait()
	if times := content.times(layers[0].blob); times != 1 {
		t.Errorf("the blob was read %d times", times)
	}
	if len(s.pins) > 0 || len(s.running) > 0 {
		t.Errorf("pinned: %v, running: %v", s.pins, s.running)
	}
}

// waiting1 is how many wait for the conversion of a blob.
func (s *Snapshotter) waiting1(blob string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.running[blob]; c != nil {
		return c.waiters
	}
	return 0
}

// TestImpatient: a conversion goes on while somebody wants it, and ends when nobody does.
func TestImpatient(t *testing.T) { synctest.Test(t, testImpatient) }

func testImpatient(t *testing.T) {
	content := newContent()
	content.gate = make(chan struct{})
	l := content.addImage(t, tarOfSize(t, 1, someSize))[0]
	s, n := open(t, t.TempDir(), content, asIs), &number{}
	impatient, leave := context.WithCancel(t.Context())
	var both sync.WaitGroup
	both.Go(func() {
		if _, err := unpack(impatient, s, n, "", l, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("who left got %v", err)
		}
	})
	both.Go(func() {
		if _, err := unpack(t.Context(), s, n, "", l, nil); err != nil {
			t.Errorf("who stayed got %v", err)
		}
	})
	synctest.Wait()
	if n := s.waiting1(l.blob); n != 2 {
		t.Errorf("%d wait for the conversion, want 2", n)
	}
	leave()
	synctest.Wait()
	if n := s.waiting1(l.blob); n != 1 {
		t.Errorf("%d wait for the conversion, want 1", n)
	}
	close(content.gate)
	both.Wait()

	content.gate = make(chan struct{}) // never closed
	other := content.addImage(t, tarOfSize(t, 2, someSize))[0]
	alone, leave := context.WithCancel(t.Context())
	both.Go(func() {
		if _, err := unpack(alone, s, n, "", other, nil); err == nil {
			t.Error("a layer that never came is committed")
		}
	})
	synctest.Wait()
	if n := s.waiting1(other.blob); n != 1 {
		t.Errorf("%d wait for the conversion, want 1", n)
	}
	leave()
	both.Wait()
	if err := s.Close(); err != nil { // waits for the conversion's end
		t.Error(err)
	}
	if _, unfinished := inStore(t, s); len(unfinished) > 0 {
		t.Errorf("there is %v", unfinished)
	}
}

// TestFullDisk: a layer that does not fit says so and leaves room for one that does.
func TestFullDisk(t *testing.T) {
	needs.Root(t, "mounts")
	root := t.TempDir()
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "size=2m"); err != nil {
		needs.Missing(t, "the right to mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, 0); err != nil {
			t.Error(err)
		}
	})
	content := newContent()
	large, small := content.addImage(t, tarOfSize(t, 1, 4<<20)), content.addImage(t, tarOfSize(t, 2, someSize))
	t.Run("", func(t *testing.T) {
		s, n := open(t, filepath.Join(root, "r"), content, asIs), &number{}
		_, err := unpack(t.Context(), s, n, "", large[0], nil)
		if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "hint: the disk of ") {
			t.Errorf("the error is %v", err)
		}
		if layers, unfinished := inStore(t, s); len(layers)+len(unfinished) > 0 {
			t.Errorf("there are %v and %v", layers, unfinished)
		}
		name, err := unpack(t.Context(), s, n, "", small[0], nil)
		if err != nil {
			t.Fatal(err)
		}
		whole(t, layerFile(t, s, name), small[0])
	})
}

// TestLeftovers: what a crash left is gone after the next start, and nothing else.
func TestLeftovers(t *testing.T) {
	root, content, n := t.TempDir(), newContent(), &number{}
	layers := content.addImage(t, tarOfSize(t, 1, someSize), tarOfSize(t, 2, 10))
	var names []string
	var active string
	t.Run("before", func(t *testing.T) {
		s := open(t, root, content, asIs)
		names = unpackAll(t, s, n, layers)
		active = n.name("k8s.io", "empty")
		if _, err := s.Prepare(t.Context(), active, ""); err != nil {
			t.Fatal(err)
		}
		if _, err := New(t.Context(), s.cfg, s.log, content, s.build); err == nil || !strings.Contains(err.Error(), "hint: another") {
			t.Errorf("a second snapshotter on the root: %v", err)
		}
	})
	for _, dir := range []string{"snapshots/new-1/fs", "snapshots/99/fs", "ingest/new-2/layer", "layers/half", "layers/" + RecipeCloister + "-x"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{"ingest/new-2/layer/layer.erofs", "layers/half/layer.erofs", "snapshots/1/extraction"} {
		if err := os.WriteFile(filepath.Join(root, file), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s := open(t, root, content, asIs)
	for i, name := range names {
		whole(t, layerFile(t, s, name), layers[i])
	}
	if _, err := s.Stat(t.Context(), active); err != nil {
		t.Error(err)
	}
	stored, unfinished := inStore(t, s)
	entries, err := os.ReadDir(filepath.Join(root, snapshotsDir))
	if err != nil || len(entries) != 3 || len(stored) != 2 || len(unfinished) != 0 {
		t.Errorf("there are %v, %v and %v, %v", entries, stored, unfinished, err)
	}
	if _, err := os.Stat(filepath.Join(root, "snapshots/1/extraction")); err == nil {
		t.Error("a committed snapshot still waits for a layer")
	}
}

// TestHostMounts: layers are mounted while a snapshot above needs them.
func TestHostMounts(t *testing.T) {
	needs.Root(t, "mounts")
	content, n := newContent(), &number{}
	layers := content.addImage(t, tarOfSize(t, 1, someSize), tarOfSize(t, 2, 10))
	root := t.TempDir()
	s := open(t, root, content, asIs)
	names := unpackAll(t, s, n, layers)
	count := func() (found int) {
		t.Helper()
		for _, name := range names {
			there, err := mounted(filepath.Dir(layerFile(t, s, name)), blockmount.MountPoint)
			if err != nil {
				t.Fatal(err)
			}
			if there {
				found++
			}
		}
		return found
	}
	check := func(want int, when string) {
		t.Helper()
		if got := count(); got != want {
			t.Errorf("%s: %d layers are mounted, want %d", when, got, want)
		}
	}
	check(0, "after the pull")
	mounts, err := s.Prepare(t.Context(), "k8s.io/100/c", names[1])
	if errors.Is(err, unix.ENODEV) {
		needs.Missing(t, "EROFS in this kernel: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	check(2, "with a container")
	if _, err := s.View(t.Context(), "k8s.io/101/v", names[0]); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), "k8s.io/100/c"); err != nil {
		t.Fatal(err)
	}
	check(1, "with a view of the first")
	if text, err := os.ReadFile(filepath.Join(filepath.Dir(layerFile(t, s, names[0])), "mnt/d/1")); err != nil || len(text) != someSize {
		t.Errorf("%d bytes, %v", len(text), err)
	}
	if err := s.Unmount(); err != nil { // as a boot of the node does
		t.Fatal(err)
	}
	if _, err := s.Mounts(t.Context(), "k8s.io/101/v"); err != nil {
		t.Fatal(err)
	}
	check(1, "after a boot")
	if err := s.Remove(t.Context(), "k8s.io/101/v"); err != nil {
		t.Fatal(err)
	}
	check(0, "without any")
	var list []blockmount.Mount
	for _, m := range mounts {
		list = append(list, blockmount.Mount{Type: m.Type, Source: m.Source, Options: m.Options})
	}
	found, upper, err := blockmount.Layers(list)
	if err != nil || len(found) != 2 || found[0].File != layerFile(t, s, names[1]) || found[1].File != layerFile(t, s, names[0]) || upper == "" {
		t.Errorf("the shim finds %v, %q, %v", found, upper, err)
	}
}

// TestVerify finds one flipped bit.
func TestVerify(t *testing.T) {
	content, n := newContent(), &number{}
	layers := content.addImage(t, tarOfSize(t, 1, someSize), tarOfSize(t, 2, someSize))
	s := open(t, t.TempDir(), content, asIs)
	names := unpackAll(t, s, n, layers)
	var out strings.Builder
	if err := Verify(t.Context(), s.cfg, &out); err != nil || strings.Count(out.String(), "good ") != 2 {
		t.Errorf("%v: %s", err, out.String())
	}
	none := Config{Root: filepath.Join(t.TempDir(), "none")}
	out.Reset()
	if err := Verify(t.Context(), none, &out); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "hint: ") || out.Len() > 0 {
		t.Errorf("without a root: %v: %s", err, out.String())
	}
	none.Root = t.TempDir()
	if err := Verify(t.Context(), none, &out); err != nil || out.String() != "no layers in "+none.Root+"\n" {
		t.Errorf("an empty root: %v: %s", err, out.String())
	}
	f, err := os.OpenFile(layerFile(t, s, names[0]), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], 5000); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 4
	if _, err := f.WriteAt(b[:], 5000); err != nil {
		t.Fatal(err)
	}
	out.Reset()
	s.cfg.Containerd = filepath.Join(t.TempDir(), "no.sock")
	if err := Verify(t.Context(), s.cfg, &out); err == nil || !strings.Contains(err.Error(), "1 of 2") || strings.Count(out.String(), "bad ") != 1 ||
		!strings.Contains(err.Error(), "the images that have them are not known") || !strings.Contains(err.Error(), "no.sock") {
		t.Errorf("%v: %s", err, out.String())
	}
	// The images that have it are named, also by an index of which only one platform is there.
	index := content.put([]byte(`{"manifests": [{"digest": "sha256:` + strings.Repeat("0", 64) + `"}, {"digest": "` + content.manifests[0] + `"}]}`))
	other := content.put([]byte(`{"config": {"digest": "` + content.put([]byte(`{"rootfs": {"diff_ids": ["`+layers[1].diffID+`"]}}`)) + `"}}`))
	store := &fakeImages{content, []namedImage{{"k8s.io", "registry.example/web:1", index}, {"default", "web", content.manifests[0]}, {"k8s.io", "registry.example/other:1", other},
		{"k8s.io", "gone", sum(nil)}, {"k8s.io", "broken", content.put([]byte("x"))}, {"k8s.io", "loop", "x"}}}
	find := func(ctx context.Context, wanted map[string]bool) (map[string][]string, error) {
		return users(ctx, store, wanted)
	}
	out.Reset()
	err = verifyAll(t.Context(), s.cfg, &out, find)
	damaged := RecipeCloister + "-" + strings.TrimPrefix(layers[0].diffID, "sha256:")
	want := damaged + " is in k8s.io registry.example/web:1\n" + damaged + " is in default web\n"
	if err == nil || !strings.HasSuffix(out.String(), want) || strings.Contains(out.String(), "other:1") {
		t.Errorf("%v: %s, want %s at its end", err, out.String(), want)
	}
	store.images = nil
	out.Reset()
	if err := verifyAll(t.Context(), s.cfg, &out, find); err == nil || !strings.Contains(out.String(), damaged+" is in no image that containerd has") {
		t.Errorf("%v: %s", err, out.String())
	}
}

// fakeImages are images by name.
type fakeImages struct {
	*fakeContent
	images []namedImage
}

func (f *fakeImages) Images(context.Context) ([]namedImage, error) { return f.images, nil }

// TestRecipes: the blob's digest is part of a layer of containerd's recipe, and what has no blob is made by ours.
func TestRecipes(t *testing.T) {
	content, n := newContent(), &number{}
	l := content.addImage(t, tarOfSize(t, 1, 10))[0]
	s := open(t, t.TempDir(), content, func(c *Config) { c.Recipe = RecipeContainerd })
	var asked []layer.Options
	s.build = func(ctx context.Context, tar io.Reader, out io.WriterAt, o layer.Options) (layer.Result, error) {
		asked = append(asked, o)
		return layer.Build(ctx, tar, out, layer.Options{})
	}
	name, err := unpack(t.Context(), s, n, "", l, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Prepare(t.Context(), "k8s.io/100/a", ""); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(t.Context(), "k8s.io/101/b", "k8s.io/100/a"); err != nil {
		t.Fatal(err)
	}
	if len(asked) != 2 || asked[0].Recipe != layer.Containerd || asked[0].Descriptor != l.blob || asked[1].Recipe != layer.Cloister {
		t.Errorf("asked for %+v", asked)
	}
	stored, _ := inStore(t, s)
	want := RecipeContainerd + "-" + strings.TrimPrefix(l.diffID, "sha256:") + "-" + strings.TrimPrefix(l.blob, "sha256:")
	if len(stored) != 2 || !slices.Contains(stored, want) {
		t.Errorf("%s: there is %v, want %s", name, stored, want)
	}
}

// TestLoop mounts by a loop device, as kernels before 6.12 need it, and finds the device free afterwards.
func TestLoop(t *testing.T) {
	needs.Root(t, "mounts")
	needs.Files(t, "/dev/loop-control")
	content := newContent()
	l := content.addImage(t, tarOfSize(t, 1, someSize))[0]
	s := open(t, t.TempDir(), content, asIs)
	name, err := unpack(t.Context(), s, &number{}, "", l, nil)
	if err != nil {
		t.Fatal(err)
	}
	file, target := layerFile(t, s, name), t.TempDir()
	if err := loopMount(file, target); errors.Is(err, unix.ENODEV) {
		needs.Missing(t, "EROFS in this kernel: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(target, "d/1"))
	if err != nil || len(text) != someSize {
		t.Errorf("%d bytes, %v", len(text), err)
	}
	if err := unix.Unmount(target, 0); err != nil {
		t.Error(err)
	}
	left := func() string {
		backing, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range backing {
			if text, err := os.ReadFile(b); err == nil && strings.TrimSpace(string(text)) == file {
				return b
			}
		}
		return ""
	}
	// A mount namespace that somebody else on this machine made meanwhile has the mount, too, until it goes.
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for end := time.Now().Add(time.Minute); left() != ""; <-look.C {
		if time.Now().After(end) {
			t.Fatalf("%s is still there", left())
		}
	}
}
