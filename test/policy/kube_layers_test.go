package policy_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/author/genpolicy"
	"github.com/cloister/cloister/author/imagesource"
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
	mixed := present(id(), true)
	mixed.Storages[0] = present(mixed.ContainerId, false).Storages[0]
	mustDeny(t, e, mixed)
}
