package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func idMap(ctx context.Context) (map[string]string, error) { return storage.IDMap(ctx) }

const someSize = 300 << 10

// TestCommitFromBlobs: with labels or without, the layers are the author's, whatever lies in the staging directory.
func TestCommitFromBlobs(t *testing.T) {
	content := newContent()
	layers := content.addImage(t, tarOfSize(t, 1, someSize), tarOfSize(t, 2, someSize), tarOfSize(t, 3, 10))
	for name, labels := range map[string]func(testLayer) map[string]string{
		"no labels":       func(testLayer) map[string]string { return nil },
		"layer digest":    func(l testLayer) map[string]string { return map[string]string{labelLayerDigest: l.blob} },
		"manifest digest": func(testLayer) map[string]string { return map[string]string{labelManifestDigest: content.manifests[0]} },
		"useless labels": func(testLayer) map[string]string {
			return map[string]string{labelLayerDigest: sum(nil), labelManifestDigest: "?"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, n, parent := open(t, t.TempDir(), content, asIs), &number{}, ""
			for _, l := range layers {
				name, err := unpack(t.Context(), s, n, parent, l, labels(l))
				if err != nil {
					t.Fatal(err)
				}
				parent = name
				whole(t, layerFile(t, s, name), l)
				info, err := s.Stat(t.Context(), name)
				if err != nil || info.Labels[labelDiffID] != l.diffID {
					t.Errorf("%+v, %v", info, err)
				}
				if _, err := os.Stat(filepath.Join(filepath.Dir(layerFile(t, s, name)), upperDir)); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("what was unpacked is still there: %v", err)
				}
			}
		})
	}
}

// TestDiffer: containerd applies all layers at the same time, without parents, and commits them in order.
func TestDiffer(t *testing.T) {
	content := newContent()
	layers := content.addImage(t, tarOfSize(t, 1, someSize), tarOfSize(t, 2, someSize), tarOfSize(t, 3, 10))
	s, n := open(t, t.TempDir(), content, func(c *Config) { c.ReadAhead = true }), &number{}
	d := differ{s: s}
	keys := make([]string, len(layers))
	var all sync.WaitGroup
	for i, l := range layers {
		keys[i] = n.name("k8s.io", "extract-1-a_-= "+l.chain)
		mounts, err := s.Prepare(t.Context(), keys[i], "")
		if err != nil {
			t.Fatal(err)
		}
		all.Go(func() {
			r, err := d.Apply(t.Context(), &diffapi.ApplyRequest{Mounts: mount.ToProto(mounts), Diff: &types.Descriptor{Digest: l.blob,
				MediaType: []string{"application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.oci.image.layer.v1.tar+zstd", "application/vnd.docker.image.rootfs.diff.tar"}[i]}})
			if err != nil || r.Applied.Digest != l.diffID {
				t.Errorf("%v, %v", r, err)
			}
		})
	}
	all.Wait()
	parent := ""
	for i, l := range layers {
		name := n.name("k8s.io", l.chain)
		if err := s.Commit(t.Context(), name, keys[i], snapshots.WithParent(parent)); err != nil {
			t.Fatal(err)
		}
		parent = name
		whole(t, layerFile(t, s, name), l)
		if times := content.times(l.blob); times != 1 {
			t.Errorf("layer %d was read %d times", i, times)
		}
	}
}

// TestDifferLeavesOthers: what is not for one of our snapshots, or cannot be read, is containerd's own differ's.
func TestDifferLeavesOthers(t *testing.T) {
	content := newContent()
	l := content.addImage(t, tarOfSize(t, 1, 10))[0]
	s := open(t, t.TempDir(), content, asIs)
	ours, err := s.Prepare(t.Context(), "k8s.io/1/extract-1-a "+l.chain, "")
	if err != nil {
		t.Fatal(err)
	}
	active, err := s.Prepare(t.Context(), "k8s.io/2/container", "")
	if err != nil {
		t.Fatal(err)
	}
	const good = "application/vnd.oci.image.layer.v1.tar+gzip"
	for name, r := range map[string]struct {
		mounts []mount.Mount
		media  string
		digest string
	}{
		"encrypted":    {ours, good + "+encrypted", l.blob},
		"other digest": {ours, good, "sha512:00"},
		"a container":  {active, good, l.blob},
		"elsewhere":    {[]mount.Mount{{Type: "bind", Source: "/var/lib/other/1/fs"}}, good, l.blob},
		"overlay":      {[]mount.Mount{{Type: "overlay"}}, good, l.blob},
		"dots":         {[]mount.Mount{{Type: "bind", Source: s.cfg.Root + "/snapshots/../snapshots/x/fs"}}, good, l.blob},
		"none":         {nil, good, l.blob},
	} {
		_, err := differ{s: s}.Apply(t.Context(), &diffapi.ApplyRequest{Mounts: mount.ToProto(r.mounts), Diff: &types.Descriptor{Digest: r.digest, MediaType: r.media}})
		if status.Code(err) != codes.Unimplemented {
			t.Errorf("%s: %v, want that it is not implemented", name, err)
		}
	}
}

// TestRefused: what does not give the chain ID that containerd computed is not committed, and leaves nothing.
func TestRefused(t *testing.T) {
	truncated := compress(t, 0, tarOfSize(t, 1, someSize))
	truncated = truncated[:len(truncated)-20]
	for name, tc := range map[string]struct {
		blob []byte
		err  string
	}{
		"another tar":    {compress(t, 0, tarOfSize(t, 9, 100)), "uncompressed digest"},
		"cut off":        {truncated, "unexpected EOF"},
		"no tar":         {[]byte(strings.Repeat("x", 4096)), "tar"},
		"empty":          {nil, ""},
		"bad gzip":       {[]byte{0x1f, 0x8b, 0, 0, 0, 0}, ""},
		"bad zstd":       {[]byte{0x28, 0xb5, 0x2f, 0xfd, 0xff, 0xff}, ""},
		"trailing bytes": {append(tarOfSize(t, 1, 100), "more"...), "uncompressed digest"},
	} {
		t.Run(name, func(t *testing.T) {
			content := newContent()
			s, n := open(t, t.TempDir(), content, asIs), &number{}
			l := testLayer{blob: content.put(tc.blob), chain: sum(tarOfSize(t, 1, 100))}
			_, err := unpack(t.Context(), s, n, "", l, map[string]string{labelLayerDigest: l.blob})
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("the error is %v, want one with %q", err, tc.err)
			}
			if err := s.Cleanup(t.Context()); err != nil {
				t.Error(err)
			}
			if layers, unfinished := inStore(t, s); len(layers)+len(unfinished) > 0 {
				t.Errorf("there are %v and %v", layers, unfinished)
			}
		})
	}
	t.Run("not there", func(t *testing.T) {
		_, err := unpack(t.Context(), open(t, t.TempDir(), newContent(), asIs), &number{}, "", testLayer{chain: sum(nil)}, nil)
		if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "hint: ") {
			t.Errorf("the error is %v", err)
		}
	})
	t.Run("another name", func(t *testing.T) {
		content := newContent()
		l := content.addImage(t, tarOfSize(t, 1, 10))[0]
		s := open(t, t.TempDir(), content, asIs)
		if _, err := s.Prepare(t.Context(), "k8s.io/1/extract-1-a "+l.chain, ""); err != nil {
			t.Fatal(err)
		}
		if err := s.Commit(t.Context(), "k8s.io/2/"+sum(nil), "k8s.io/1/extract-1-a "+l.chain); !errdefs.IsInvalidArgument(err) {
			t.Errorf("the error is %v", err)
		}
	})
	t.Run("too large", func(t *testing.T) {
		b := &bounded{r: strings.NewReader("123456"), left: 3}
		var p [10]byte
		if n, err := b.Read(p[:]); n != 3 || err != nil {
			t.Fatal(n, err)
		}
		if _, err := b.Read(p[:]); !errors.Is(err, errTooLarge) {
			t.Error(err)
		}
	})
}

// TestSharedAndCollected: one layer in two images is one file, and goes with the last.
func TestSharedAndCollected(t *testing.T) {
	content := newContent()
	a, b, c := tarOfSize(t, 1, someSize), tarOfSize(t, 2, someSize), tarOfSize(t, 3, someSize)
	first, second := content.addImage(t, a, b), content.addImage(t, c, b)
	s, n := open(t, t.TempDir(), content, asIs), &number{}
	x, y := unpackAll(t, s, n, first), unpackAll(t, s, n, second)
	if first[1].blob != second[1].blob || content.times(first[1].blob) != 1 {
		t.Errorf("the shared blob was read %d times", content.times(first[1].blob))
	}
	one, err := os.Stat(layerFile(t, s, x[1]))
	if err != nil {
		t.Fatal(err)
	}
	if two, err := os.Stat(layerFile(t, s, y[1])); err != nil || !os.SameFile(one, two) {
		t.Errorf("the shared layer is two files: %v", err)
	}
	if err := s.Remove(t.Context(), x[0]); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("removing a layer that another is on: %v", err)
	}
	for i, want := range []int{3, 2, 1, 0} { // x[1] is shared with y[1]
		if err := s.Remove(t.Context(), []string{x[1], x[0], y[1], y[0]}[i]); err != nil {
			t.Fatal(err)
		}
		if layers, unfinished := inStore(t, s); len(layers) != want || len(unfinished) != 0 {
			t.Errorf("after %d removals there are %v, want %d, and %v", i+1, layers, want, unfinished)
		}
	}
}

// TestAlreadyThere: the layers of an image are made while its first is unpacked, and containerd then hears that they exist.
func TestAlreadyThere(t *testing.T) {
	content := newContent()
	layers := content.addImage(t, tarOfSize(t, 1, someSize), tarOfSize(t, 2, someSize), tarOfSize(t, 3, 10))
	s, n := open(t, t.TempDir(), content, func(c *Config) { c.ReadAhead = true }), &number{}
	first, err := unpack(t.Context(), s, n, "", layers[0], map[string]string{labelRef: layers[0].chain})
	if err != nil {
		t.Fatal(err)
	}
	parent := first
	for _, l := range layers[1:] {
		_, err := unpack(t.Context(), s, n, parent, l, map[string]string{labelRef: l.chain})
		if !errdefs.IsAlreadyExists(err) {
			t.Fatalf("the layer is asked for: %v", err)
		}
		var found []snapshots.Info
		err = s.Walk(t.Context(), func(_ context.Context, i snapshots.Info) error { found = append(found, i); return nil },
			fmt.Sprintf(`labels."containerd.io/snapshot.ref"==%s,parent==%q`, l.chain, parent))
		if err != nil || len(found) != 1 || found[0].Kind != snapshots.KindCommitted {
			t.Fatalf("containerd finds %v, %v", found, err)
		}
		whole(t, layerFile(t, s, found[0].Name), l)
		parent = found[0].Name
	}
	// Of another namespace's, without its label, nothing is said.
	if _, err := s.Prepare(t.Context(), n.name("b", "extract-1-a "+layers[0].chain), ""); err != nil {
		t.Error(err)
	}
}
