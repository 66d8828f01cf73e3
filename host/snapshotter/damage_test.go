package snapshotter

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/host/blockmount"
	"github.com/cloister/cloister/internal/needs"
)

// TestRemovedFiles: somebody has removed a file of a kept layer, or a part of it. The next pull makes the layer anew, also when it learns
// which layer that is from the blob only.
func TestRemovedFiles(t *testing.T) {
	remove := func(name string) func(string) error {
		return func(dir string) error { return os.Remove(filepath.Join(dir, name)) }
	}
	for what, damage := range map[string]func(dir string) error{
		"file": remove(blockmount.LayerFile), "hashes": remove(blockmount.SidecarFile), "digest": remove(diffIDFile),
		"all": func(dir string) error {
			return errors.Join(remove(blockmount.LayerFile)(dir), remove(blockmount.SidecarFile)(dir), remove(diffIDFile)(dir))
		},
	} {
		t.Run(what, func(t *testing.T) {
			content, n := newContent(), &number{}
			l := content.addImage(t, tarOfSize(t, 1, someSize))[0]
			s := open(t, t.TempDir(), content, asIs)
			if _, err := unpack(t.Context(), s, n, "", l, nil); err != nil {
				t.Fatal(err)
			}
			dir := filepath.Join(s.cfg.Root, layersDir, s.layerName(l.diffID, l.blob))
			if err := damage(dir); err != nil {
				t.Fatal(err)
			}
			name, err := unpack(t.Context(), s, n, "", l, nil)
			if err != nil {
				t.Fatal(err)
			}
			whole(t, layerFile(t, s, name), l)
			if err := damage(dir); err != nil {
				t.Fatal(err)
			}
			made, err := s.convertBlob(t.Context(), source{Blob: l.blob})
			if err != nil {
				t.Fatal(err)
			}
			s.unpin(made)
			whole(t, filepath.Join(dir, blockmount.LayerFile), l)
		})
	}
}

// TestRemoveOnFullDisk: what is on a full disk can be removed.
func TestRemoveOnFullDisk(t *testing.T) {
	needs.Root(t, "mounts")
	root := t.TempDir()
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "size=4m"); err != nil {
		needs.Missing(t, "the right to mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, 0); err != nil {
			t.Error(err)
		}
	})
	t.Run("", func(t *testing.T) {
		content, n := newContent(), &number{}
		l := content.addImage(t, tarOfSize(t, 1, someSize))[0]
		s := open(t, filepath.Join(root, "r"), content, asIs)
		name, err := unpack(t.Context(), s, n, "", l, nil)
		if err != nil {
			t.Fatal(err)
		}
		fill, err := os.Create(filepath.Join(root, "fill"))
		if err != nil {
			t.Fatal(err)
		}
		defer fill.Close()
		for size := 1 << 20; size > 0; size /= 2 {
			for _, err := fill.Write(make([]byte, size)); err == nil; _, err = fill.Write(make([]byte, size)) {
			}
		}
		for range 50 {
			key := n.name("k8s.io", "container")
			if _, err := s.Prepare(t.Context(), key, name); err != nil {
				continue // as well as it can
			}
			if err := s.Remove(t.Context(), key); err != nil {
				t.Error(err)
			}
		}
		if err := s.Remove(t.Context(), name); err != nil {
			t.Error(err)
		}
		if layers, unfinished := inStore(t, s); len(layers)+len(unfinished) > 0 {
			t.Errorf("there are %v and %v", layers, unfinished)
		}
	})
}
