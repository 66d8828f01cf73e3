package volume

import (
	"os"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// criVolume is where containerd keeps a volume of a container's image.
func (w *world) criVolume(id, hash string) string {
	return w.mkdir("io.containerd.grpc.v1.cri/containers/" + id + "/volumes/" + hash)
}

// prepare makes a container in a guest that makes the volumes of images, or does not.
func (w *world) prepare(makes bool, mounts ...specs.Mount) (*Prepared, error) {
	spec := &specs.Spec{Root: &specs.Root{Path: "rootfs"}, Mounts: mounts, Linux: &specs.Linux{}, Annotations: map[string]string{"io.kubernetes.cri.image-name": "registry.example/web:1"}}
	return w.set.Container(w.ctx(), Request{ID: cid, Bundle: w.dir, Spec: spec, ImageVolumes: makes})
}

// TestImageVolumes: a confidential guest gets nothing of the host for the volumes that an image declares.
func TestImageVolumes(t *testing.T) {
	w := newWorld(t)
	s := w.confidential()
	data, more := w.criVolume(cid, strings.Repeat("ab", 32)), w.criVolume(cid, strings.Repeat("cd", 32))
	w.put("io.containerd.grpc.v1.cri/containers/"+cid+"/volumes/"+strings.Repeat("ab", 32)+"/evil", "of the host")
	p, err := w.prepare(true, bind(data, "/var/lib/data/", "rw"), bind(more, "/srv/data", "rw"))
	if err != nil {
		t.Fatal(err)
	}
	prefix := "/run/kata-containers/shared/containers/" + cid + "-imagevolume0000"
	if len(p.Mounts) != 2 || p.Mounts[0].Source != prefix+"0-data" || p.Mounts[0].Destination != "/var/lib/data" || p.Mounts[1].Source != prefix+"1-data" ||
		!slices.Equal(p.Mounts[0].Options, []string{"rbind", "rprivate", "rw"}) {
		t.Errorf("%+v", p.Mounts)
	}
	if len(w.sent) > 0 || len(p.Storages) != 1 {
		t.Errorf("the guest got %q and %v", w.sent, p.Storages)
	}
	if err := s.Release(w.ctx(), cid); err != nil {
		t.Fatal(err)
	}
	// A guest that cannot, such as Kata's.
	p, err = w.prepare(false, bind(data, "/var/lib/data", "rw"))
	if err != nil || len(p.Mounts) != 0 || len(w.sent) > 0 {
		t.Errorf("%+v, %v, sent %q", p, err, w.sent)
	}
	if err := s.Release(w.ctx(), cid); err != nil {
		t.Fatal(err)
	}
	for _, source := range []string{w.criVolume(sid, strings.Repeat("ab", 32)), w.mkdir("io.containerd.grpc.v1.cri/containers/" + cid + "/other/abc"), w.mkdir("volumes-of-others/abc")} {
		if _, err := w.prepare(true, bind(source, "/data", "rw")); err == nil || !strings.Contains(err.Error(), "confidential pod") {
			t.Errorf("%s: %v", source, err)
		}
	}
	if _, err := w.prepare(true, bind(data, "/", "rw")); err == nil {
		t.Error("a volume replaces the root")
	}
}

// TestSharedImageVolumes: a sandboxed guest sees the directory that containerd has filled, on the host's disk.
func TestSharedImageVolumes(t *testing.T) {
	w := newWorld(t)
	w.sandboxed()
	data := w.criVolume(cid, strings.Repeat("ab", 32))
	if err := os.WriteFile(data+"/file", []byte("copied up"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := w.must(cid, bind(data, "/data", "rw"))
	if strings.Contains(p.Mounts[0].Source, "imagevolume") {
		t.Errorf("%+v", p.Mounts[0])
	}
	w.want(w.seen(p.Mounts[0].Source)+"/file", "copied up")
}

// TestImageVolumesOnDisk: what is written to them goes to the container's disk also where nothing else of its root is written.
func TestImageVolumesOnDisk(t *testing.T) {
	w := newWorld(t)
	s := w.scratch(w, 100<<20)
	_, overlay, _ := w.image("9")
	spec := &specs.Spec{Root: &specs.Root{Readonly: true}, Mounts: []specs.Mount{bind(w.criVolume(cid, strings.Repeat("ab", 32)), "/data", "rw")}}
	for _, makes := range []bool{true, false} {
		p, err := s.Container(w.ctx(), Request{ID: cid, Spec: spec, Rootfs: overlay, ImageVolumes: makes})
		if err != nil {
			t.Fatal(err)
		}
		w.upper(p, makes)
		if err := s.Release(w.ctx(), cid); err != nil {
			t.Fatal(err)
		}
	}
}
