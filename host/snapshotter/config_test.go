package snapshotter

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestRemoveAll refuses while there is something and then leaves nothing.
func TestRemoveAll(t *testing.T) {
	cfg := Default()
	dir := t.TempDir()
	cfg.Root, cfg.Socket, cfg.Containerd = filepath.Join(dir, "root"), filepath.Join(dir, "s.sock"), filepath.Join(dir, "c.sock")
	s, err := Open(t.Context(), cfg, open(t, t.TempDir(), newContent(), asIs).log)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Prepare(t.Context(), "a", ""); err != nil {
		t.Fatal(err)
	}
	if err := RemoveAll(t.Context(), cfg, s.log); err == nil || !strings.Contains(err.Error(), "another cloister-snapshotter") {
		t.Errorf("while it runs: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := RemoveAll(t.Context(), cfg, s.log); err == nil || !strings.Contains(err.Error(), "hint: remove the containers") {
		t.Errorf("with a snapshot: %v", err)
	}
	if s, err = Open(t.Context(), cfg, s.log); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Remove(t.Context(), "a"), s.Close()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := RemoveAll(t.Context(), cfg, s.log); err != nil {
			t.Error(err)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("there are %v, %v", entries, err)
	}
}

// TestForeignRoot: a directory that is somebody else's is neither taken nor removed, whatever the flags say.
func TestForeignRoot(t *testing.T) {
	log := open(t, t.TempDir(), newContent(), asIs).log
	for name, files := range map[string][]string{
		"somebody's":            {"notes/a"},
		"beside ours":           {"layers/", "notes/a"},
		"another snapshotter's": {"metadata.db", "snapshots/1/fs/a"},
	} {
		dir := t.TempDir()
		for _, f := range files {
			if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(f+"x")), 0o755); err != nil {
				t.Fatal(err)
			}
			if !strings.HasSuffix(f, "/") {
				if err := os.WriteFile(filepath.Join(dir, f), nil, 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		cfg := Default()
		cfg.Root, cfg.Socket = dir, filepath.Join(t.TempDir(), "s.sock")
		_, serving := Open(t.Context(), cfg, log)
		for what, err := range map[string]error{"serving": serving, "verifying": Verify(t.Context(), cfg, io.Discard), "removing": RemoveAll(t.Context(), cfg, log)} {
			if err == nil || !strings.Contains(err.Error(), "is not a directory of cloister-snapshotter") {
				t.Errorf("%s, %s: %v", name, what, err)
			}
		}
		for _, f := range files {
			if _, err := os.Stat(filepath.Join(dir, f)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o755 {
			t.Errorf("%s: its mode is changed: %v, %v", name, info.Mode(), err)
		}
	}
	// What a first start, or a removal, leaves when it is interrupted is ours; a file of the operator's in our root stays.
	dir := t.TempDir()
	cfg := Default()
	cfg.Root, cfg.Socket = dir, filepath.Join(t.TempDir(), "s.sock")
	for _, name := range []string{"layers", "snapshots", "lost+found"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s, err := Open(t.Context(), cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "README"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := RemoveAll(t.Context(), cfg, log); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 2 {
		t.Errorf("there are %v, %v", left, err)
	}
	if err := os.WriteFile(cfg.Socket, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "README")); err != nil {
		t.Fatal(err)
	}
	if err := RemoveAll(t.Context(), cfg, log); err == nil || !strings.Contains(err.Error(), "is no socket") {
		t.Errorf("a file in the place of the socket: %v", err)
	}
}

// TestUsage: who calls it wrongly learns where help is.
func TestUsage(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"verify", "x"}, `error: cloister-snapshotter verify takes no arguments, got "x"` + "\nhint: see `cloister-snapshotter verify --help`"},
		{[]string{"serve", "--rot", "x"}, "unknown flag: --rot\nhint: see `cloister-snapshotter serve --help`"},
		{[]string{"verif"}, "hint: see `cloister-snapshotter --help`"},
		{[]string{"serve", "--root", "x"}, "want a clean absolute path\nhint: see `cloister-snapshotter serve --help`"},
	} {
		var out, fault strings.Builder
		if code := Main(t.Context(), c.args, "0", &out, &fault); code != 2 || !strings.Contains(fault.String(), c.want) || out.Len() > 0 {
			t.Errorf("%v: exit code %d, %s", c.args, code, fault.String())
		}
	}
}

func TestConfig(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "c.toml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(string(Example()))
	if c, err := Load(file); err != nil || c != Default() {
		t.Errorf("the example is %+v, %v", c, err)
	}
	for text, want := range map[string]string{
		"root = \"/a\"\nnone = 1\n":                    `c.toml:2: unknown key "none"`,
		"root = \"a\"\nrecipe = \"x\"\nmounts = \"y\"": "recipe is \"x\"",
		"root = 3":          "c.toml",
		"max_layer_gib = 0": "max_layer_gib is 0",
		"conversions = -1":  "conversions is -1",
		"root = \"/a:b\"":   "part of mount options",
		"socket = \"/" + strings.Repeat("s", 200) + "\"": "socket has 201 bytes",
	} {
		write(text)
		if _, err := Load(file); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
	if _, err := Load(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if n := Default().conversions(); n < 1 || n > 4 {
		t.Errorf("%d conversions unless something is said", n)
	}
	if n := (Config{Conversions: 9}).conversions(); n != 9 {
		t.Errorf("%d conversions, want 9", n)
	}
	var out, errs strings.Builder
	for _, tc := range []struct {
		args string
		code int
	}{{"config", 0}, {"serve --nothing", 2}, {"serve extra", 2}, {"verify extra", 2}, {"nosuch", 2}, {"serve --mounts x", 2}, {"remove --root " + filepath.Join(dir, "gone"), 0}, {"serve -f " + filepath.Join(dir, "none"), 1}} {
		if code := Main(t.Context(), strings.Fields(tc.args), "0", &out, &errs); code != tc.code {
			t.Errorf("%s ends with %d, want %d: %s", tc.args, code, tc.code, errs.String())
		}
	}
	if out.String() != string(Example()) {
		t.Error(fmt.Errorf("config prints %q", out.String()))
	}
}
