package sandbox

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister/cloister/host/runtimeconfig"
)

// TestImageCmdline compares the command lines of guests whose root is a disk with golden files.
func TestImageCmdline(t *testing.T) {
	dir := t.TempDir()
	erofs, xfs := image(), image()
	for _, d := range [][]byte{erofs, xfs} {
		binary.LittleEndian.PutUint16(d[1<<20+1024+56:], 0)
	}
	binary.LittleEndian.PutUint32(erofs[1<<20+1024:], 0xe0f5e1e2)
	copy(xfs[1<<20:], "XFSB")
	for name, content := range map[string][]byte{"ext4": image(), "erofs": erofs, "xfs": xfs} {
		write(t, filepath.Join(dir, name), content)
	}
	for name, g := range map[string]runtimeconfig.Guest{
		"plain":        {Image: filepath.Join(dir, "ext4")},
		"plain-xfs":    {Image: filepath.Join(dir, "xfs")},
		"verity":       {Image: filepath.Join(dir, "ext4"), VerityParams: verity},
		"verity-erofs": {Image: filepath.Join(dir, "erofs"), VerityParams: strings.Replace(verity, "salt=0011aabb", "salt=-", 1)},
	} {
		got, err := imageCmdline(&g)
		if err != nil {
			t.Fatal(err)
		}
		golden := filepath.Join("testdata", name+".cmdline")
		if os.Getenv("CLOISTER_UPDATE") != "" {
			write(t, golden, []byte(got+"\n"))
		}
		want, err := os.ReadFile(golden)
		if err != nil || string(want) != got+"\n" {
			t.Errorf("%s is\n%s\nwant\n%s%v", name, got, want, err)
		}
	}
}

func TestRootTypeRefused(t *testing.T) {
	for name, edit := range map[string]func([]byte) []byte{
		"empty":           func([]byte) []byte { return nil },
		"no signature":    func(d []byte) []byte { d[510] = 0; return d },
		"GPT":             func(d []byte) []byte { d[446+4] = 0xee; return d },
		"no partition":    func(d []byte) []byte { d[446+4] = 0; return d },
		"beyond the end":  func(d []byte) []byte { binary.LittleEndian.PutUint32(d[446+8:], 1<<32-1); return d },
		"no file system":  func(d []byte) []byte { return append(d[:1<<20:1<<20], make([]byte, 4096)...) },
		"cut in the head": func(d []byte) []byte { return d[:1<<20+100] },
	} {
		if kind, err := rootType(bytes.NewReader(edit(image()))); err == nil {
			t.Errorf("%s: %s", name, kind)
		}
	}
}

func TestAgentWords(t *testing.T) {
	c := runtimeconfig.Default()
	if got := agentWords(&c); got != "" {
		t.Errorf("by default %q, which changes what is measured", got)
	}
	c.Timeouts.Hub, c.Timeouts.GuestProcess, c.Logging.GuestLevel = 1500e6, 9e9, "debug"
	if got := agentWords(&c); got != "agent.cdh_api_timeout=2 agent.launch_process_timeout=9 agent.log=debug" {
		t.Error(got)
	}
}
