package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/host/vmm"
)

// uppers are the scratch files of the world's snapshots.
func (w *world) uppers() []string {
	w.t.Helper()
	names, err := filepath.Glob(w.dir + "/snapshots/*/fs/*.img")
	if err != nil {
		w.t.Fatal(err)
	}
	return names
}

// upper expects the layers, with or without a disk over them, and returns it.
func (w *world) upper(p *Prepared, want bool) vmm.Disk {
	w.t.Helper()
	if !want {
		if len(p.Storages) != 3 || len(w.uppers()) != 0 {
			w.t.Errorf("got %v and files %v, expected no disk", p.Storages, w.uppers())
		}
		return vmm.Disk{}
	}
	if len(p.Storages) != 4 {
		w.t.Fatalf("got %v, expected a disk", p.Storages)
	}
	st := p.Storages[3]
	if st.GetMountPoint() != p.Root || st.GetFstype() != "ext4" || st.GetShared() || st.GetFsGroup() != nil || st.GetDriver() != "scsi" || st.GetSource() == p.Storages[0].GetSource() ||
		!slices.Equal(st.GetOptions(), []string{"X-kata.overlay-upper", "X-kata.multi-layer=true"}) ||
		!slices.Equal(st.GetDriverOptions(), []string{"encryption_key=ephemeral", "create_filesystem"}) {
		w.t.Errorf("got %v", st)
	}
	for _, d := range w.plugged {
		if d.Sealed {
			return d
		}
	}
	w.t.Fatalf("no disk is sealed: %v", w.plugged)
	return vmm.Disk{}
}

func TestUpperOnDisk(t *testing.T) {
	w := newWorld(t)
	s := w.scratch(w, 100<<20)
	_, overlay, erofs := w.image("9")
	for name, mounts := range map[string][]Mount{"overlay": overlay, "erofs": erofs} {
		for range 2 { // again with the same snapshot
			p, err := w.layered(s, cid, mounts)
			if err != nil {
				t.Fatal(err)
			}
			d := w.upper(p, true)
			var st unix.Stat_t
			if err := unix.Stat(d.Path, &st); err != nil || d.ReadOnly || d.Format != "" || st.Size != 100<<20 || st.Blocks > 16 || st.Mode&0o777 != 0o600 {
				t.Errorf("%s: %+v, %+v, %v", name, d, st, err)
			}
			if filepath.Dir(d.Path) != w.dir+"/snapshots/9/fs" {
				t.Errorf("%s: it is at %s", name, d.Path)
			}
			if _, err := w.layered(s, strings.Replace(cid, "c0", "c1", 1), mounts); err == nil || !strings.Contains(err.Error(), "another container's") {
				t.Errorf("%s: two containers write to one snapshot: %v", name, err)
			}
			if err := s.Release(w.ctx(), cid); err != nil || len(w.uppers()) != 0 || len(w.plugged) != 0 {
				t.Errorf("%s: left %v, %v, %v", name, w.uppers(), w.plugged, err)
			}
		}
	}
	if left, err := os.ReadDir(w.dir + "/volumes"); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	// What is there at the end goes with the set; a file of the same disk that was left is no content of the image.
	w.put("snapshots/9/fs/"+s.upperNote(w.dir+"/snapshots/9/fs").Name, "of an attempt that failed")
	p, err := w.layered(s, cid, overlay)
	if err != nil {
		t.Fatal(err)
	}
	w.upper(p, true)
	if err := s.Close(context.Background()); err != nil || len(w.uppers()) != 0 {
		t.Errorf("left: %v, %v", w.uppers(), err)
	}
}

// TestUpperInMemory: the disk is left out where it has no use, or cannot be had.
func TestUpperInMemory(t *testing.T) {
	w := newWorld(t)
	s := w.scratch(w, 100<<20)
	_, overlay, _ := w.image("9")
	again := func(want bool, change func(*specs.Spec)) {
		t.Helper()
		spec := &specs.Spec{Root: &specs.Root{}}
		if change != nil {
			change(spec)
		}
		p, err := s.Container(w.ctx(), Request{ID: cid, Spec: spec, Rootfs: overlay})
		if err != nil {
			t.Fatal(err)
		}
		w.upper(p, want)
		if err := s.Release(w.ctx(), cid); err != nil {
			t.Fatal(err)
		}
		if left, err := os.ReadDir(w.dir + "/volumes"); err != nil || len(left) != 0 || len(w.plugged) != 0 {
			t.Errorf("left: %v, %v, %v", left, w.plugged, err)
		}
	}
	again(false, func(spec *specs.Spec) { spec.Root.Readonly = true })
	for _, err := range []error{fmt.Errorf("no hot plug: %w", errors.ErrUnsupported), errors.New("all 30 places are taken")} {
		w.noSealed = err
		again(false, nil)
	}
	w.noSealed = nil
	s.opts.ScratchSize = 0
	again(false, nil)
	s.opts.ScratchSize = 8 << 40 // more than the file system has
	again(true, nil)
	for i := range maxUppers {
		s.disks[fmt.Sprint(i)] = &disk{scratch: &scratchNote{}}
	}
	again(false, nil)
	clear(s.disks)
	if err := os.Remove(w.dir + "/snapshots/9/fs"); err != nil {
		t.Fatal(err)
	}
	again(false, nil)
	w.needRoot()
	w.mount("tmpfs", w.mkdir("snapshots/9/fs"), "tmpfs", 0, "size=1m")
	again(false, nil)
	s.opts.ScratchSize = 100 << 20
	w.noVMDK = true // a disk for each layer: their places are not for others
	again(false, nil)
}

// TestUpperOfKilled makes a container's disk in a process that is killed.
func TestUpperOfKilled(t *testing.T) {
	if dir := os.Getenv(life); dir != "" {
		w := &world{t: t, dir: dir, plugged: map[string]vmm.Disk{}}
		s := w.scratch(upperKiller{w}, 100<<20)
		_, overlay, _ := w.image("9")
		_, err := w.layered(s, cid, overlay)
		t.Fatal("still alive", err)
	}
	w := newWorld(t)
	cmd := exec.CommandContext(w.ctx(), os.Args[0], "-test.run=^TestUpperOfKilled$")
	cmd.Env = append(os.Environ(), life+"="+w.dir)
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(err.Error(), "killed") || len(w.uppers()) != 1 {
		t.Fatalf("%v: %s, and files %v", err, out, w.uppers())
	}
	for range 2 {
		if err := Cleanup(t.Context(), w.dir+"/volumes"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Lstat(w.dir + "/volumes"); !errors.Is(err, os.ErrNotExist) || len(w.uppers()) != 0 {
		t.Errorf("left: %v, %v", w.uppers(), err)
	}
}

// upperKiller ends the process when a container's disk is plugged.
type upperKiller struct{ *world }

func (k upperKiller) AddDisk(ctx context.Context, d vmm.Disk) (vmm.Place, error) {
	if d.Sealed {
		return killer(k).AddDisk(ctx, d)
	}
	return k.world.AddDisk(ctx, d)
}
