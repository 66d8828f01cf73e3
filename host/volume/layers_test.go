package volume

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cloister/cloister/host/blockmount"
	"github.com/cloister/cloister/layer"
)

// snapshot makes a layer of one file as the snapshotter has it, and returns its directory and root hash.
func (w *world) snapshot(id string) (dir, root string) {
	w.t.Helper()
	var archive bytes.Buffer
	tw := tar.NewWriter(&archive)
	err := errors.Join(tw.WriteHeader(&tar.Header{Name: "file" + id, Typeflag: tar.TypeReg, Size: 1, Mode: 0o644}))
	_, werr := tw.Write([]byte("x"))
	dir = filepath.Join(w.dir, "snapshots", id)
	if err = errors.Join(err, werr, tw.Close(), os.MkdirAll(filepath.Join(dir, blockmount.MountPoint), 0o755)); err != nil {
		w.t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(dir, blockmount.LayerFile))
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	r, err := layer.Build(w.ctx(), &archive, f, layer.Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	text, err := blockmount.Sidecar(r.Root, r.HashOffset)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, blockmount.SidecarFile), text, 0o644)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return dir, r.Root
}

// image is three layers, the topmost first, and their mounts with a writable layer of a container.
func (w *world) image(upper string) (roots []string, overlay, erofs []Mount) {
	w.t.Helper()
	r := blockmount.Root{Upper: filepath.Join(w.dir, "snapshots", upper, "fs"), Work: filepath.Join(w.dir, "snapshots", upper, "work")}
	if err := os.MkdirAll(r.Upper, 0o755); err != nil {
		w.t.Fatal(err)
	}
	for _, id := range []string{"3", "2", "1"} {
		dir, root := w.snapshot(id)
		r.Layers, roots = append(r.Layers, dir), append(roots, root)
	}
	convert := func(list []blockmount.Mount) (out []Mount) {
		for _, m := range list {
			out = append(out, Mount{Type: m.Type, Source: m.Source, Options: m.Options})
		}
		return out
	}
	list, err := r.EROFS()
	if err != nil {
		w.t.Fatal(err)
	}
	return roots, convert(r.Overlay()), convert(list)
}

func (w *world) layered(s *Set, id string, mounts []Mount) (*Prepared, error) {
	return s.Container(w.ctx(), Request{ID: id, Spec: &specs.Spec{Root: &specs.Root{}, Annotations: map[string]string{"io.kubernetes.cri.image-name": "r/i:1"}}, Rootfs: mounts})
}

func TestLayersOnOneDisk(t *testing.T) {
	w := newWorld(t)
	s := w.confidential()
	roots, overlay, erofs := w.image("9")
	other := strings.Replace(cid, "c0", "c1", 1)
	for id, mounts := range map[string][]Mount{cid: overlay, other: erofs} {
		p, err := w.layered(s, id, mounts)
		if err != nil {
			t.Fatal(err)
		}
		if p.Root != "/run/kata-containers/"+id+"/rootfs" || len(p.Storages) != 3 {
			t.Fatalf("got %+v", p)
		}
		for i, st := range p.Storages {
			want := []string{"X-kata.overlay-lower", "X-kata.multi-layer=true", "X-kata.gpt-partitioned=true", fmt.Sprintf("X-kata.partition-number=%d", i+1),
				"X-kata.dmverity-enabled=true", "X-kata.dmverity.roothash=" + roots[i], "", "X-kata.dmverity.no-superblock=false",
				"X-kata.dmverity.blocksize=4096", "X-kata.dmverity.hashsize=4096"}
			want[6] = st.GetOptions()[6] // the hash offset depends on the content
			if !slices.Equal(st.GetOptions(), want) || st.GetMountPoint() != p.Root || st.GetFstype() != "erofs" || st.GetSource() != "0:1" {
				t.Errorf("layer %d: %v", i+1, st)
			}
		}
	}
	if len(w.plugged) != 1 {
		t.Fatalf("the pod has %d disks, expected one for both containers", len(w.plugged))
	}
	for _, d := range w.plugged {
		text, err := os.ReadFile(d.Path)
		if err != nil || !d.ReadOnly || d.Format != "vmdk" || strings.Count(string(text), "layer.erofs\"") != 3 {
			t.Errorf("disk %+v: %s, %v", d, text, err)
		}
	}
	if err := errors.Join(s.Release(w.ctx(), cid), s.Release(w.ctx(), other)); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(w.dir + "/volumes"); err != nil || len(left) != 0 || len(w.plugged) != 0 {
		t.Errorf("left: %v, %v, %v", left, w.plugged, err)
	}
	// What is there at the end goes with the set.
	if _, err := w.layered(s, cid, overlay); err != nil {
		t.Fatal(err)
	}
}

func TestLayersOnDisksOfTheirOwn(t *testing.T) {
	w := newWorld(t)
	w.noVMDK = true
	s := w.confidential()
	_, overlay, _ := w.image("9")
	p, err := w.layered(s, cid, overlay)
	if err != nil || len(p.Storages) != 3 || len(w.plugged) != 3 {
		t.Fatalf("got %+v, %v with disks %v", p, err, w.plugged)
	}
	for i, st := range p.Storages {
		if o := st.GetOptions(); o[2] != fmt.Sprintf("X-cloister.layer-number=%d", i+1) || slices.Contains(o, "X-kata.gpt-partitioned=true") || st.GetSource() != fmt.Sprintf("0:%d", i+1) {
			t.Errorf("layer %d: %v", i+1, st)
		}
	}
	if err := s.Release(w.ctx(), cid); err != nil || len(w.plugged) != 0 {
		t.Errorf("left: %v, %v", w.plugged, err)
	}
}

func TestLayersThatCannotBeAttached(t *testing.T) {
	w := newWorld(t)
	w.plugErr = fmt.Errorf("no hot plug: %w", errors.ErrUnsupported)
	s := w.confidential()
	_, overlay, _ := w.image("9")
	p, err := w.layered(s, cid, overlay)
	if err != nil || len(p.Storages) != 1 || p.Storages[0].GetDriver() != driverImage {
		t.Errorf("got %+v, %v; expected that the guest pulls", p, err)
	}
}

func TestThePodsOwnContainerNeedsNoLayers(t *testing.T) {
	w := newWorld(t)
	s := w.confidential()
	_, overlay, _ := w.image("9")
	p, err := s.Container(w.ctx(), Request{ID: cid, Sandbox: true, Spec: &specs.Spec{Root: &specs.Root{}}, Rootfs: overlay})
	if err != nil || len(p.Storages) != 1 || p.Storages[0].GetSource() != pauseImage || len(w.plugged) != 0 {
		t.Errorf("got %+v, %v", p, err)
	}
}

func TestLayersRefused(t *testing.T) {
	w := newWorld(t)
	s := w.confidential()
	_, overlay, _ := w.image("9")
	check := func(name, want string) {
		t.Helper()
		if _, err := w.layered(s, cid, overlay); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
		if left, _ := os.ReadDir(w.dir + "/volumes"); len(left) != 0 || len(w.plugged) != 0 {
			t.Errorf("%s left %v, %v", name, left, w.plugged)
		}
	}
	written := w.dir + "/snapshots/9/fs/etc"
	if err := os.Mkdir(written, 0o755); err != nil {
		t.Fatal(err)
	}
	check("a changed root", "has been written over the image on the host")
	if err := os.Remove(written); err != nil {
		t.Fatal(err)
	}
	w.plugErr = errors.New("no room")
	check("no room", "no room")
	w.plugErr = nil
	file := w.dir + "/snapshots/2/layer.erofs"
	if err := os.Truncate(file, 4096); err != nil {
		t.Fatal(err)
	}
	check("a layer without hashes", "layer")
}
