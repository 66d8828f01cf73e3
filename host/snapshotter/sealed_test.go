package snapshotter

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"

	"github.com/cloister/cloister/host/blockmount"
	"github.com/cloister/cloister/layer/sealed"
)

const sealedRoot = "7d65bf19129e2bd6a3597fdfcf2a423885171b17359d6ff52dba9f297a52ef66"

// sealedDescriptor is that of a blob as a sealed layer, as a manifest has it.
func sealedDescriptor(blob []byte, changes ...string) *types.Descriptor {
	d := &types.Descriptor{MediaType: sealed.MediaType, Digest: sum(blob), Size: int64(len(blob)), Annotations: map[string]string{
		sealed.AnnotationVersion: sealed.Version, sealed.AnnotationCipher: sealed.Cipher, sealed.AnnotationKeyID: "kbs:///a/b/c",
		sealed.AnnotationRoot: sealedRoot, sealed.AnnotationHashOffset: "4096",
	}}
	for i := 0; i < len(changes); i += 2 {
		d.Annotations[changes[i]] = changes[i+1]
	}
	return d
}

// applyTo offers a blob to a new snapshot that waits for the layer with a chain ID.
func applyTo(t *testing.T, s *Snapshotter, n *number, chain string, d *types.Descriptor) (key, diffID string, err error) {
	t.Helper()
	key = n.name("k8s.io", "extract-7-a "+chain)
	mounts, err := s.Prepare(t.Context(), key, "")
	if err != nil {
		t.Fatal(err)
	}
	r, err := differ{s: s}.Apply(t.Context(), &diffapi.ApplyRequest{Mounts: mount.ToProto(mounts), Diff: d})
	return key, r.GetApplied().GetDigest(), err
}

// TestSealedDiffID: the same blob that is to be opened in another way is another layer.
func TestSealedDiffID(t *testing.T) {
	content := newContent()
	blob := make([]byte, 16384)
	content.put(blob)
	s, n := open(t, t.TempDir(), content, asIs), &number{}
	seen := map[string]string{}
	for name, d := range map[string]*types.Descriptor{
		"as it is":       sealedDescriptor(blob),
		"another root":   sealedDescriptor(blob, sealed.AnnotationRoot, strings.Repeat("0a", 32)),
		"another offset": sealedDescriptor(blob, sealed.AnnotationHashOffset, "8192"),
		"another key":    sealedDescriptor(blob, sealed.AnnotationKeyID, "kbs:///a/b/d"),
	} {
		want, err := sealedLayer(d)
		if err != nil {
			t.Fatal(err)
		}
		diffID := sealed.DiffID(d.Digest, want.Root, want.HashOffset, want.KeyID)
		key, got, err := applyTo(t, s, n, diffID, d)
		if err != nil || got != diffID {
			t.Fatalf("%s: got %s, %v; want %s", name, got, err, diffID)
		}
		if other, there := seen[got]; there {
			t.Errorf("%s has the diff ID of %s", name, other)
		}
		seen[got] = name
		committed := n.name("k8s.io", diffID)
		if err := s.Commit(t.Context(), committed, key); err != nil {
			t.Fatal(err)
		}
		if l, err := blockmount.Read(layerFile(t, s, committed)); err != nil || l.Root != want.Root || l.HashOffset != want.HashOffset || l.KeyID != want.KeyID {
			t.Errorf("%s: the shim is told %+v, %v; want %+v", name, l, err, want)
		}
		if layers, _ := inStore(t, s); len(layers) != len(seen) || !slices.Contains(layers, "sealed-"+strings.TrimPrefix(diffID, "sha256:")) {
			t.Errorf("%s: there are %v", name, layers)
		}
	}
	// Whoever says the same gets what is there.
	before := content.times(sum(blob))
	if _, got, err := applyTo(t, s, n, sum(nil), sealedDescriptor(blob)); err != nil || seen[got] != "as it is" || content.times(sum(blob)) != before {
		t.Errorf("again: %s, %v, read %d times", got, err, content.times(sum(blob))-before)
	}
}

// TestSealedIsNotPlain: a tar that is offered as a sealed layer takes nobody's place.
func TestSealedIsNotPlain(t *testing.T) {
	content, n := newContent(), &number{}
	victim := content.addImage(t, tarOfSize(t, 1, someSize))[0]
	content.put(victim.tar)
	s := open(t, t.TempDir(), content, asIs)
	key, got, err := applyTo(t, s, n, victim.chain, sealedDescriptor(victim.tar))
	if err != nil || got == victim.diffID || got == victim.blob {
		t.Fatalf("the diff ID is %s, %v; that of the tar is %s", got, err, victim.diffID)
	}
	if err := s.Commit(t.Context(), n.name("k8s.io", victim.chain), key); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("it is committed for the victim's layer: %v", err)
	}
	name, err := unpack(t.Context(), s, n, "", victim, nil)
	if err != nil {
		t.Fatal(err)
	}
	whole(t, layerFile(t, s, name), victim)
}

// TestSealedRefused: what is no description of a sealed layer leaves nothing.
func TestSealedRefused(t *testing.T) {
	content := newContent()
	blob := make([]byte, 16384)
	content.put(blob)
	s, n := open(t, t.TempDir(), content, asIs), &number{}
	for name, d := range map[string]*types.Descriptor{
		"version":       sealedDescriptor(blob, sealed.AnnotationVersion, "2"),
		"cipher":        sealedDescriptor(blob, sealed.AnnotationCipher, "null"),
		"no key":        sealedDescriptor(blob, sealed.AnnotationKeyID, ""),
		"lines in key":  sealedDescriptor(blob, sealed.AnnotationKeyID, "kbs:///a\nb"),
		"no root":       sealedDescriptor(blob, sealed.AnnotationRoot, ""),
		"lines in root": sealedDescriptor(blob, sealed.AnnotationRoot, sealedRoot+"\n4096"),
		"odd offset":    sealedDescriptor(blob, sealed.AnnotationHashOffset, "4097"),
		"negative":      sealedDescriptor(blob, sealed.AnnotationHashOffset, "-4096"),
		"beyond":        sealedDescriptor(blob, sealed.AnnotationHashOffset, "16384"),
		"other bytes":   {MediaType: sealed.MediaType, Digest: sum(blob), Size: 12288, Annotations: sealedDescriptor(blob).Annotations},
	} {
		if _, got, err := applyTo(t, s, n, sum([]byte(name)), d); err == nil {
			t.Errorf("%s is accepted as %s", name, got)
		}
	}
	if layers, unfinished := inStore(t, s); len(layers)+len(unfinished) > 0 {
		t.Errorf("there are %v and %v", layers, unfinished)
	}
}

// TestSealedMounts: in the form "erofs" only the shim can do something with a sealed layer, and without its record nobody.
func TestSealedMounts(t *testing.T) {
	content, n := newContent(), &number{}
	blob := make([]byte, 16384)
	content.put(blob)
	s := open(t, t.TempDir(), content, func(c *Config) { c.Mounts = MountsEROFS })
	d := sealedDescriptor(blob)
	chain := sealed.DiffID(d.Digest, sealedRoot, 4096, "kbs:///a/b/c")
	key, _, err := applyTo(t, s, n, chain, d)
	if err != nil {
		t.Fatal(err)
	}
	name := n.name("k8s.io", chain)
	if err := s.Commit(t.Context(), name, key); err != nil {
		t.Fatal(err)
	}
	for kind, prepare := range map[string]func() ([]mount.Mount, error){
		"container": func() ([]mount.Mount, error) { return s.Prepare(t.Context(), "k8s.io/100/c", name) },
		"view":      func() ([]mount.Mount, error) { return s.View(t.Context(), "k8s.io/101/v", name) },
	} {
		mounts, err := prepare()
		if err != nil {
			t.Fatal(err)
		}
		var list []blockmount.Mount
		for _, m := range mounts {
			if !strings.HasPrefix(m.Type, "cloister-") {
				t.Errorf("%s: the host would mount %+v", kind, m)
			}
			list = append(list, blockmount.Mount{Type: m.Type, Source: m.Source, Options: m.Options})
		}
		if l, _, err := blockmount.Layers(list); err != nil || len(l) != 1 || l[0].KeyID != "kbs:///a/b/c" {
			t.Errorf("%s: the shim finds %+v, %v", kind, l, err)
		}
	}
	dir := filepath.Dir(layerFile(t, s, name))
	if err := os.WriteFile(filepath.Join(dir, blockmount.SidecarFile), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if mounts, err := s.Mounts(t.Context(), "k8s.io/100/c"); err == nil || !strings.Contains(err.Error(), "hint: ") {
		t.Errorf("without a record there are %v, %v", mounts, err)
	}
	if err := mountLayer(dir); err == nil || !strings.Contains(err.Error(), blockmount.SidecarFile) {
		t.Errorf("a layer without a record is mounted: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, blockmount.SidecarFile)); err != nil {
		t.Fatal(err)
	}
	if err := mountLayer(dir); err == nil || !strings.Contains(err.Error(), blockmount.SidecarFile) {
		t.Errorf("a layer whose record has gone is mounted: %v", err)
	}
	if _, err := s.View(t.Context(), "k8s.io/102/v", name); err == nil {
		t.Error("a view of a layer without a record is made")
	}
}
