package layer

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/cloister/cloister/internal/needs"
)

// vector is a line of testdata/vectors.json.
type vector struct {
	Archive    string `json:"archive"` // made by testdata/vectors.sh
	Recipe     Recipe `json:"recipe"`
	Descriptor string `json:"descriptor,omitempty"`
	ErofsUtils string `json:"erofs_utils,omitempty"` // version, for the recipe that runs it
	DiffID     string `json:"diff_id"`
	Root       string `json:"root"`
	HashOffset int64  `json:"hash_offset"`
	Size       int64  `json:"size"`
}

// TestVectors: root hashes are in policies, so a recipe never changes. CLOISTER_UPDATE=1 writes the file: only for a recipe with a
// new name.
func TestVectors(t *testing.T) {
	script, err := filepath.Abs("testdata/vectors.sh")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cmd := exec.Command("bash", script)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("making archives: %v: %s", err, out)
	}
	const path = "testdata/vectors.json"
	var vectors []vector
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, &vectors)
	}
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range vectors {
		if v.Recipe == Containerd {
			if err := checkMkfs(t.Context()); err != nil {
				continue
			}
			if out, _ := exec.Command(mkfsErofs, "--version").Output(); !bytes.Contains(out, []byte(" "+v.ErofsUtils+"\n")) {
				continue
			}
		}
		stream, err := os.ReadFile(filepath.Join(dir, v.Archive))
		if err != nil {
			t.Fatal(err)
		}
		r, err := Build(t.Context(), bytes.NewReader(stream), nil, Options{Recipe: v.Recipe, Descriptor: v.Descriptor, TempDir: dir})
		if err != nil {
			t.Errorf("%s by %s: %v", v.Archive, v.Recipe, err)
			continue
		}
		got := v
		got.DiffID, got.Root, got.HashOffset, got.Size = r.DiffID, r.Root, r.HashOffset, r.Size
		if os.Getenv("CLOISTER_UPDATE") == "1" {
			vectors[i] = got
		} else if got.DiffID != v.DiffID {
			needs.Missing(t, "a GNU tar that makes the same archives: %s has digest %s, want %s", v.Archive, got.DiffID, v.DiffID)
		} else if got != v {
			t.Errorf("got  %+v\nwant %+v", got, v)
		}
	}
	if os.Getenv("CLOISTER_UPDATE") == "1" {
		b, err := json.MarshalIndent(vectors, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, append(b, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
