package layerdisk

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister/cloister/internal/needs"
)

// TestOtherProgramsReadIt lets QEMU read the disk back and, where it is there, sfdisk the table.
func TestOtherProgramsReadIt(t *testing.T) {
	dir := t.TempDir()
	var layers []Layer
	for i, size := range []int{4096, 3<<20 + 512, 513, 1 << 20} {
		data := make([]byte, size)
		rand.Read(data)
		path := filepath.Join(dir, strings.Repeat("x", i)+"layer, 1=2.erofs")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		layers = append(layers, Layer{path, int64(size), "erofs-" + strings.Repeat("ä", 40)})
	}
	descriptor, err := Write(filepath.Join(dir, "disk"), layers)
	if err != nil {
		t.Fatal(err)
	}
	needs.Programs(t, "qemu-img", "sfdisk")
	raw := filepath.Join(dir, "raw")
	if out, err := exec.Command("qemu-img", "convert", "-f", "vmdk", "-O", "raw", descriptor, raw).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	got, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	places, err := arrange(layers)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range places {
		want, err := os.ReadFile(layers[i].Path)
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, make([]byte, p.sectors*sector-int64(len(want)))...)
		if p.start%align != 0 || !bytes.Equal(got[p.start*sector:][:p.sectors*sector], want) {
			t.Errorf("layer %d is not at %d", i+1, p.start)
		}
	}
	if end := places[3].end() + 1; int64(len(got)) != end*sector {
		t.Errorf("the disk has %d bytes, expected %d", len(got), end*sector)
	}
	out, err := exec.Command("sfdisk", "--json", raw).Output()
	if err != nil {
		t.Fatalf("sfdisk: %v", err)
	}
	var found struct {
		PartitionTable struct {
			Label      string
			Partitions []struct{ Start, Size int64 }
		}
	}
	if err := json.Unmarshal(out, &found); err != nil {
		t.Fatal(err)
	}
	for i, p := range found.PartitionTable.Partitions {
		if (place{p.Start, p.Size}) != places[i] {
			t.Errorf("partition %d is at %+v, expected %+v", i+1, p, places[i])
		}
	}
	if n := len(found.PartitionTable.Partitions); n != 4 || found.PartitionTable.Label != "gpt" {
		t.Errorf("sfdisk sees %d partitions, expected 4: %s", n, out)
	}
}

func TestLargeLayersAreSplit(t *testing.T) {
	layers := []Layer{{"/a", 5 << 30, "a"}, {"/b", 1, "b"}}
	places, err := arrange(layers)
	if err != nil {
		t.Fatal(err)
	}
	text, err := describe("/head", "/gap", layers, places)
	if err != nil {
		t.Fatal(err)
	}
	want := `RW 2048 FLAT "/head" 0
RW 4194304 FLAT "/a" 0
RW 4194304 FLAT "/a" 4194304
RW 2097152 FLAT "/a" 8388608
RW 1 FLAT "/b" 0
`
	if !strings.Contains(text, want) {
		t.Errorf("got %s", text)
	}
}

func TestRefused(t *testing.T) {
	many := make([]Layer, MaxLayers+1)
	for i := range many {
		many[i] = Layer{"/a", 1, ""}
	}
	for name, layers := range map[string][]Layer{
		"none": nil, "too many": many, "empty": {{"/a", 0, ""}}, "negative": {{"/a", -1, ""}}, "huge": {{"/a", 1 << 62, ""}},
		"huge together": {{"/a", maxSectors * sector, ""}, {"/b", 1 << 20, ""}},
		"relative":      {{"a", 1, ""}}, "quote": {{`/a"b`, 1, ""}}, "line": {{"/a\nRW 1 FLAT \"/etc/shadow\" 0", 1, ""}},
		"long": {{"/" + strings.Repeat("a", maxPath), 1, ""}},
	} {
		dir := filepath.Join(t.TempDir(), "disk")
		if d, err := Write(dir, layers); err == nil {
			t.Errorf("%s gave %s", name, d)
		}
	}
	if _, err := Write(t.TempDir(), many[:MaxLayers]); err != nil {
		t.Error(err)
	}
}
