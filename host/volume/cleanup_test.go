package volume

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister/cloister/host/runtimeconfig"
)

// life is an environment variable that makes this test binary the process that dies.
const life = "CLOISTER_VOLUME_TEST_LIFE"

// TestKilled makes a scratch disk in a process that is killed.
func TestKilled(t *testing.T) {
	if dir := os.Getenv(life); dir != "" {
		die(t, dir)
		return
	}
	w := newWorld(t)
	vol := w.mkdir("pods/" + uid + "/volumes/" + pluginEmptyDir + "/v")
	cmd := exec.CommandContext(w.ctx(), os.Args[0], "-test.run=^TestKilled$")
	cmd.Env = append(os.Environ(), life+"="+w.dir)
	out, err := cmd.CombinedOutput()
	if !strings.Contains(err.Error(), "killed") {
		t.Fatalf("%v: %s", err, out)
	}
	images, _ := filepath.Glob(vol + "/*.img")
	notes, _ := filepath.Glob(w.dir + "/volumes/*" + scratchSuffix)
	if len(images) != 1 || len(notes) != 1 {
		t.Fatalf("%v %v", images, notes)
	}
	for range 2 {
		if err := Cleanup(t.Context(), w.dir+"/volumes"); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{images[0], w.dir + "/volumes"} {
		if _, err := os.Lstat(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", name, err)
		}
	}
}

// die attaches a disk and kills its own process.
func die(t *testing.T, dir string) {
	w := &world{t: t, dir: dir, pod: dir + "/pods/" + uid, plugged: nil}
	w.plugErr = errors.New("unused")
	c := runtimeconfig.Default()
	c.Sandbox.TEE = "snp"
	w.new(&c, killer{w})
	_, err := w.container(cid, bind(w.pod+"/volumes/"+pluginEmptyDir+"/v", "/v"))
	t.Fatal("still alive", err)
}

func TestCleanupFollowsNoLinks(t *testing.T) {
	w := newWorld(t)
	precious := w.put("precious/disk.img", "keep")
	vol := w.mkdir("pods/" + uid + "/volumes/" + pluginEmptyDir)
	if err := os.Symlink(filepath.Dir(precious), vol+"/v"); err != nil {
		t.Fatal(err)
	}
	rest := "volumes/" + pluginEmptyDir + "/v"
	for note, ok := range map[string]bool{
		`{"pod":"` + w.pod + `","dir":"` + rest + `","name":"disk.img"}`:                     false,
		`{"pod":"` + w.pod + `","dir":"../../precious","name":"disk.img"}`:                   false,
		`{"pod":"` + w.pod + `","dir":"volumes","name":"../../precious/disk.img"}`:           false,
		`{"pod":"` + w.pod + `/gone","dir":"` + rest + `","name":"disk.img"}`:                true,
		`{"pod":"` + w.pod + `","dir":"volumes/` + pluginEmptyDir + `","name":"never-made"}`: true,
		`{"pod":"`: true, // cut by a crash, before the file was made
	} {
		w.put("notes/a"+scratchSuffix, note)
		if err := Cleanup(t.Context(), w.dir+"/notes"); (err == nil) != ok {
			t.Errorf("%s: %v", note, err)
		}
		w.want(precious, "keep")
	}
	os.RemoveAll(w.dir + "/notes")
	w.put("notes/strange", "")
	if err := Cleanup(t.Context(), w.dir+"/notes"); err == nil {
		t.Error("a strange file was removed")
	}
}
