package policy_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/author/genpolicy"
	"github.com/cloister/cloister/author/imagesource"
	"github.com/cloister/cloister/guest/gate"
	"github.com/cloister/cloister/test/kubepod"
	"github.com/cloister/cloister/wire/agent"
)

// layeredImage has two layers.
type layeredImage struct{ oneImage }

func (l layeredImage) Image(ctx context.Context, ref string, need imagesource.Need) (*imagesource.Image, error) {
	img, err := l.oneImage.Image(ctx, ref, need)
	img.Layers = []imagesource.Layer{{Digest: "sha256:1", Root: strings.Repeat("1", 64), HashOffset: 4096}, {Digest: "sha256:2", Root: strings.Repeat("2", 64), HashOffset: 8192},
		{Digest: "sha256:2", Root: strings.Repeat("2", 64), HashOffset: 8192}}
	return img, err
}

// TestGeneratedLayers: layers come as partitions of one disk or as disks of their own, in the same order and with the same trees.
func TestGeneratedLayers(t *testing.T) {
	const manifest = "apiVersion: v1\nkind: Pod\nmetadata: {name: web-bcdf-ghjkl, namespace: shop}\nspec:\n  containers:\n  - {name: a, image: registry.example/app:1}\n"
	g := generate(t, manifest, layeredImage{}, func(s *genpolicy.Settings) { s.SetLayers(genpolicy.LayersVerity) })
	// present is what host/volume makes of layers.
	present := func(id string, disks bool) createRequest {
		r := g.request(t, "a", id)
		r.Storages = nil
		for i, l := range []struct{ root, offset string }{{"2", "8192"}, {"2", "8192"}, {"1", "4096"}} {
			n := string(rune('1' + i))
			s := &agent.Storage{Driver: "blk", Source: "05", Fstype: "erofs", MountPoint: r.OCI.Root.Path, Options: []string{"X-kata.overlay-lower", "X-kata.multi-layer=true"}}
			if disks {
				s.Source = "0" + n
				s.Options = append(s.Options, "X-cloister.layer-number="+n)
			} else {
				s.Options = append(s.Options, "X-kata.gpt-partitioned=true", "X-kata.partition-number="+n)
			}
			s.Options = append(s.Options, "X-kata.dmverity-enabled=true", "X-kata.dmverity.roothash="+strings.Repeat(l.root, 64), "X-kata.dmverity.hashoffset="+l.offset,
				"X-kata.dmverity.no-superblock=false", "X-kata.dmverity.blocksize=4096", "X-kata.dmverity.hashsize=4096")
			r.Storages = append(r.Storages, s)
		}
		return r
	}
	e := g.engine(t)
	mustAllow(t, e, kubepod.Sandbox())
	replace := func(n int, from, to string) func(createRequest) {
		return func(r createRequest) {
			for i, o := range r.Storages[n].Options {
				r.Storages[n].Options[i] = strings.ReplaceAll(o, from, to)
			}
		}
	}
	next := 0
	id := func() string { next++; return kubepod.ID(next) }
	for _, form := range []struct {
		name  string
		disks bool
		place string
	}{{"partitions", false, "X-kata.partition-number="}, {"disks", true, "X-cloister.layer-number="}} {
		for _, a := range []struct {
			name   string
			change func(createRequest)
			want   string
		}{
			{"hash offset", replace(0, "hashoffset=8192", "hashoffset=4096"), "hashoffset=8192"},
			{"no hash offset", func(r createRequest) {
				r.Storages[2].Options = slices.Delete(r.Storages[2].Options, len(r.Storages[2].Options)-4, len(r.Storages[2].Options)-3)
			}, "hashoffset=4096"},
			{"root hash", replace(2, strings.Repeat("1", 64), strings.Repeat("2", 64)), "roothash=1"},
			{"order", func(r createRequest) {
				replace(0, form.place+"1", form.place+"3")(r)
				replace(2, form.place+"3", form.place+"1")(r)
			}, "roothash="},
			{"place twice", replace(0, form.place+"1", form.place+"2"), "count(places): got 2, expected 3"},
			{"unknown place", replace(0, form.place+"1", form.place+"4"), ""},
			{"both forms", func(r createRequest) {
				r.Storages[0].Options = append(r.Storages[0].Options, "X-cloister.layer-number=2")
			}, ""},
			{"without verity", func(r createRequest) {
				r.Storages[0].Options = slices.DeleteFunc(r.Storages[0].Options, func(o string) bool { return strings.HasPrefix(o, "X-kata.dmverity") })
			}, "X-kata.dmverity-enabled=true"},
			{"salt", func(r createRequest) {
				r.Storages[0].Options = append(r.Storages[0].Options, "X-kata.dmverity.salt=zz")
			}, "salt=zz"},
			{"a key", func(r createRequest) {
				r.Storages[0].Options = append(r.Storages[0].Options, "X-cloister.sealed.key-id=kbs:///a/b/c")
			}, "key-id"},
			{"a layer more", func(r createRequest) { r.Storages = append(r.Storages, proto.CloneOf(r.Storages[0])) }, "count(layers): got 4, expected 3"},
		} {
			t.Run(form.name+"/"+a.name, func(t *testing.T) {
				r := present(id(), form.disks)
				a.change(r)
				deniedFor(t, e, r, a.want)
			})
		}
		n := id()
		mustAllow(t, e, present(n, form.disks))
		mustAllow(t, e, &agent.RemoveContainerRequest{ContainerId: n})
	}
	t.Run("writable layer", func(t *testing.T) { upperLayers(t, e, present, id) })
	mixed := present(id(), true)
	mixed.Storages[0] = present(mixed.ContainerId, false).Storages[0]
	mustDeny(t, e, mixed)
}

// upperStorage is what host/volume makes of a container's scratch disk.
func upperStorage(root string) *agent.Storage {
	return &agent.Storage{Driver: "blk", Source: "02/1e", Fstype: "ext4", MountPoint: root, Options: []string{"X-kata.overlay-upper", "X-kata.multi-layer=true"},
		DriverOptions: []string{"encryption_key=ephemeral", "create_filesystem"}}
}

// upperLayers: what is written over layers may be on one disk that nobody else can read, or in memory.
func upperLayers(t *testing.T, e *gate.Engine, present func(string, bool) createRequest, id func() string) {
	const upper = 3
	for _, a := range []struct {
		name   string
		change func(*agent.CreateContainerRequest)
		want   string
	}{
		{"plain", func(r *agent.CreateContainerRequest) { r.Storages[upper].DriverOptions = []string{"create_filesystem"} }, "storages[3]"},
		{"plain with content", func(r *agent.CreateContainerRequest) { r.Storages[upper].DriverOptions = nil }, "storages[3]"},
		{"key of the host", func(r *agent.CreateContainerRequest) {
			r.Storages[upper].DriverOptions[0] = "encryption_key=/dev/zero"
		}, "storages[3]"},
		{"foreign driver option", func(r *agent.CreateContainerRequest) {
			r.Storages[upper].DriverOptions = append(r.Storages[upper].DriverOptions, "x")
		}, "storages[3]"},
		{"driver option twice", func(r *agent.CreateContainerRequest) {
			r.Storages[upper].DriverOptions = append(r.Storages[upper].DriverOptions, "create_filesystem")
		}, "storages[3]"},
		{"foreign option", func(r *agent.CreateContainerRequest) {
			r.Storages[upper].Options = append(r.Storages[upper].Options, "X-kata.mkdir.path=/etc")
		}, "storages[3]"},
		{"mount option", func(r *agent.CreateContainerRequest) {
			r.Storages[upper].Options = append(r.Storages[upper].Options, "ro")
		}, "storages[3]"},
		{"lower, too", func(r *agent.CreateContainerRequest) {
			r.Storages[upper].Options = append(r.Storages[upper].Options, "X-kata.overlay-lower")
		}, "storages[3]"},
		{"not of the layers", func(r *agent.CreateContainerRequest) { r.Storages[upper].Options = []string{"X-kata.overlay-upper"} }, "storages[3]"},
		{"a layer as the writable one", func(r *agent.CreateContainerRequest) {
			r.Storages[0].Options = append(r.Storages[0].Options, "X-kata.overlay-upper")
			r.Storages = r.Storages[:upper]
		}, "count(layers): got 2, expected 3"},
		{"two", func(r *agent.CreateContainerRequest) {
			second := proto.CloneOf(r.Storages[upper])
			second.Source = "02/1d"
			r.Storages = append(r.Storages, second)
		}, "count(uppers): got 2, expected 1"},
		{"the disk of the layers", func(r *agent.CreateContainerRequest) { r.Storages[upper].Source = r.Storages[0].Source }, "expected 1"},
		{"elsewhere", func(r *agent.CreateContainerRequest) {
			r.Storages[upper].MountPoint = "/run/kata-containers/sandbox/storage/x"
		}, "storages[3]"},
		{"of the pod", func(r *agent.CreateContainerRequest) { r.Storages[upper].Shared = true }, "storages[3]"},
		{"group", func(r *agent.CreateContainerRequest) { r.Storages[upper].FsGroup = &agent.FSGroup{GroupId: 1} }, "storages[3]"},
		{"file system", func(r *agent.CreateContainerRequest) { r.Storages[upper].Fstype = "xfs" }, "storages[3]"},
		{"driver", func(r *agent.CreateContainerRequest) { r.Storages[upper].Driver = "ephemeral" }, "storages[3]"},
		{"source", func(r *agent.CreateContainerRequest) { r.Storages[upper].Source = "/dev/vda" }, "storages[3]"},
		{"without layers", func(r *agent.CreateContainerRequest) { r.Storages = r.Storages[upper:] }, "count(layers): got 0, expected 3"},
	} {
		t.Run(a.name, func(t *testing.T) {
			r := present(id(), false)
			r.Storages = append(r.Storages, upperStorage(r.OCI.Root.Path))
			a.change(r)
			deniedFor(t, e, r, a.want)
		})
	}
	for _, disks := range []bool{false, true} {
		r := present(id(), disks)
		r.Storages = append([]*agent.Storage{upperStorage(r.OCI.Root.Path)}, r.Storages...)
		mustAllow(t, e, r)
		mustAllow(t, e, &agent.RemoveContainerRequest{ContainerId: r.ContainerId})
	}
}

// TestUpperOnVolume: the disk of a volume is nobody's writable layer, in the container that mounts it and in those after it.
func TestUpperOnVolume(t *testing.T) {
	const manifest = `apiVersion: v1
kind: Pod
metadata: {name: web-bcdf-ghjkl, namespace: shop}
spec:
  containers:
  - {name: a, image: registry.example/app:1, volumeMounts: [{name: scratch, mountPath: /scratch}]}
  - {name: b, image: registry.example/app:1}
  volumes: [{name: scratch, emptyDir: {}}]
`
	g := generate(t, manifest, layeredImage{}, func(s *genpolicy.Settings) { s.SetLayers(genpolicy.LayersVerity) })
	e := g.engine(t)
	mustAllow(t, e, kubepod.Sandbox())
	request := func(name string, n int, upper string) createRequest {
		r := g.request(t, name, kubepod.ID(n))
		r.Storages = slices.DeleteFunc(r.Storages, func(s *agent.Storage) bool { return s.Driver == "image_guest_pull" })
		for _, s := range r.Storages {
			if s.Driver == "erofs-verity-layer" {
				s.Driver, s.Source, s.MountPoint = "blk", "02/1d", r.OCI.Root.Path
			}
		}
		r.Storages = append(r.Storages, upperStorage(r.OCI.Root.Path))
		if upper != "" {
			r.Storages[len(r.Storages)-1].Source = upper
		}
		return r
	}
	volume := disks["scratch"]
	deniedFor(t, e, request("a", 1, volume), "got 2, expected 1")
	mustAllow(t, e, request("a", 2, ""))
	deniedFor(t, e, request("b", 3, volume), "in taken")
	mustAllow(t, e, request("b", 4, "02/1c"))
}
