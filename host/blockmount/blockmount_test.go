package blockmount

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const root = "7d65bf19129e2bd6a3597fdfcf2a423885171b17359d6ff52dba9f297a52ef66"

// layerDir makes a directory as a snapshotter has it.
func layerDir(t *testing.T, parent, name string) string {
	t.Helper()
	dir := filepath.Join(parent, name)
	if err := os.MkdirAll(filepath.Join(dir, MountPoint), 0o755); err != nil {
		t.Fatal(err)
	}
	text, err := Sidecar(root, 4096)
	if err != nil {
		t.Fatal(err)
	}
	for file, data := range map[string][]byte{LayerFile: make([]byte, 8192), SidecarFile: text} {
		if err := os.WriteFile(filepath.Join(dir, file), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestBothFormsSayTheSame(t *testing.T) {
	parent := t.TempDir()
	a, b, c := layerDir(t, parent, "1"), layerDir(t, parent, "2"), layerDir(t, parent, "3")
	upper, work := filepath.Join(parent, "9", "fs"), filepath.Join(parent, "9", "work")
	for name, r := range map[string]Root{
		"container": {Layers: []string{c, b, a}, Upper: upper, Work: work, Options: []string{"index=off"}},
		"one layer": {Layers: []string{a}, Upper: upper, Work: work},
		"view":      {Layers: []string{c, b, a}},
		"one view":  {Layers: []string{a}},
	} {
		list, err := r.EROFS()
		if err != nil {
			t.Fatal(err)
		}
		for form, mounts := range map[string][]Mount{"overlay": r.Overlay(), "erofs": list} {
			layers, gotUpper, err := Layers(mounts)
			if err != nil {
				t.Errorf("%s, %s: %v", name, form, err)
				continue
			}
			var dirs []string
			for _, l := range layers {
				if l.Root != root || l.HashOffset != 4096 {
					t.Errorf("%s, %s: %+v", name, form, l)
				}
				dirs = append(dirs, filepath.Dir(l.File))
			}
			if !slices.Equal(dirs, r.Layers) || gotUpper != r.Upper {
				t.Errorf("%s, %s: got layers %v, upper %q; want %v, %q", name, form, dirs, gotUpper, r.Layers, r.Upper)
			}
		}
	}
}

// TestSealedRoots: nothing but Layers takes a root with a sealed layer in the form "erofs", wherever the layer is.
func TestSealedRoots(t *testing.T) {
	parent := t.TempDir()
	a, b, c := layerDir(t, parent, "1"), layerDir(t, parent, "2"), layerDir(t, parent, "3")
	text, err := Layer{Root: root, HashOffset: 4096, KeyID: "kbs:///a/b/c"}.Sidecar()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b, SidecarFile), text, 0o644); err != nil {
		t.Fatal(err)
	}
	upper, work := filepath.Join(parent, "9", "fs"), filepath.Join(parent, "9", "work")
	for name, r := range map[string]Root{
		"container": {Layers: []string{c, b, a}, Upper: upper, Work: work, Options: []string{"index=off"}},
		"one layer": {Layers: []string{b}, Upper: upper, Work: work},
		"view":      {Layers: []string{a, b}},
		"one view":  {Layers: []string{b}},
	} {
		list, err := r.EROFS()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range list {
			if m.Type != "cloister-sealed" && m.Type != "cloister-overlay" || slices.Contains(m.Options, "loop") || strings.Contains(strings.Join(m.Options, " "), "{{") {
				t.Errorf("%s: containerd would act on %+v", name, m)
			}
		}
		layers, gotUpper, err := Layers(list)
		if err != nil || gotUpper != r.Upper {
			t.Errorf("%s: upper %q, %v", name, gotUpper, err)
		}
		var dirs []string
		for _, l := range layers {
			dirs = append(dirs, filepath.Dir(l.File))
			if (l.KeyID != "") != (filepath.Dir(l.File) == b) {
				t.Errorf("%s: %+v", name, l)
			}
		}
		if !slices.Equal(dirs, r.Layers) {
			t.Errorf("%s: got layers %v, want %v", name, dirs, r.Layers)
		}
	}
	if err := os.Remove(filepath.Join(b, SidecarFile)); err != nil {
		t.Fatal(err)
	}
	if list, err := (Root{Layers: []string{a, b}}).EROFS(); err == nil {
		t.Errorf("a layer without a record gave %+v", list)
	}
}

func TestOtherRoots(t *testing.T) {
	dir := layerDir(t, t.TempDir(), "1")
	mine := filepath.Join(dir, MountPoint)
	for name, mounts := range map[string][]Mount{
		"none":           nil,
		"a directory":    {{Type: "bind", Source: "/var/lib/x/fs"}},
		"overlayfs":      {{Type: "overlay", Options: []string{"upperdir=/a", "lowerdir=/var/lib/x/1/fs:/var/lib/x/2/fs"}}},
		"mnt of another": {{Type: "bind", Source: filepath.Join(t.TempDir(), MountPoint)}},
		"relative":       {{Type: "bind", Source: "mnt"}},
	} {
		if layers, _, err := Layers(mounts); err != nil || layers != nil {
			t.Errorf("%s: %v, %v", name, layers, err)
		}
	}
	for name, mounts := range map[string][]Mount{
		"a mixture": {{Type: "overlay", Options: []string{"lowerdir=" + mine + ":/var/lib/x/2/fs"}}},
		"an index":  {{Type: "erofs", Source: filepath.Join(dir, LayerFile), Options: []string{"device=/x"}}},
		"no top":    {{Type: "erofs", Source: filepath.Join(dir, LayerFile)}, {Type: "erofs", Source: filepath.Join(dir, LayerFile)}},
	} {
		if _, _, err := Layers(mounts); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

func TestSidecarsThatAreWrong(t *testing.T) {
	for name, text := range map[string]string{
		"empty":         "",
		"no root":       `{"hashoffset":4096}`,
		"short":         `{"roothash":"00","hashoffset":4096}`,
		"uppercase":     `{"roothash":"` + strings.ToUpper(root) + `","hashoffset":4096}`,
		"negative":      `{"roothash":"` + root + `","hashoffset":-4096}`,
		"odd":           `{"roothash":"` + root + `","hashoffset":4097}`,
		"a strange key": `{"roothash":"` + root + `","hashoffset":4096,"keyid":"file:///etc/passwd"}`,
		"beyond":        `{"roothash":"` + root + `","hashoffset":8192}`,
		"huge":          `{"roothash":"` + root + `","hashoffset":4096}` + strings.Repeat(" ", maxSidecar),
	} {
		dir := layerDir(t, t.TempDir(), "1")
		if err := os.WriteFile(filepath.Join(dir, SidecarFile), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(filepath.Join(dir, LayerFile)); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	dir := layerDir(t, t.TempDir(), "1")
	if err := os.Remove(filepath.Join(dir, SidecarFile)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Layers(Root{Layers: []string{dir}}.Overlay()); err == nil {
		t.Error("a layer without its root hash is accepted")
	}
}
