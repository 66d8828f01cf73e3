package guestimage

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/u-root/u-root/pkg/cpio"
)

// newBuiltKernel is a kernel that has everything built in that the image wants.
func newBuiltKernel(t *testing.T, without string) string {
	t.Helper()
	var builtin strings.Builder
	for _, w := range wantedModules() {
		if w.Name != without {
			builtin.WriteString("kernel/" + strings.ReplaceAll(w.Name, "_", "-") + ".ko\n")
		}
	}
	k := BuiltKernel{Release: "6.12.95-cloister", Compiler: "gcc 12", Source: SourceLock{
		Package: "linux-source-6.12", Version: "6.12.95-1~bpo12+1", Suite: "bookworm-backports", SHA256: strings.Repeat("cd", 32)}}
	dir := t.TempDir()
	config := strings.Join(requiredConfig, "\n") + "\n"
	if err := WriteBuiltKernel(dir, k, []byte("the kernel"), []byte(config), []byte(builtin.String())); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestBuiltKernel packs an image's initrd for a kernel without modules: there is no module file, and no list to load from.
func TestBuiltKernel(t *testing.T) {
	tree, k, err := readBuiltKernel(newBuiltKernel(t, ""))
	if err != nil {
		t.Fatal(err)
	}
	if err := tree.requireConfig(requiredConfig...); err != nil {
		t.Error(err)
	}
	mods, err := selectModules(tree, wantedModules())
	if err != nil {
		t.Fatal(err)
	}
	image, err := packed(initrdInput{Release: k.Release, Guest: []byte("guest"), Runc: []byte("runc"), Modules: mods})
	if err != nil {
		t.Fatal(err)
	}
	zr, err := zstd.NewReader(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	defer zr.Close()
	plain, err := io.ReadAll(zr)
	if err != nil {
		t.Fatal(err)
	}
	recs, err := cpio.ReadAllRecords(cpio.Newc.Reader(bytes.NewReader(plain)))
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, r := range recs {
		seen[r.Name] = true
		if strings.HasPrefix(r.Name, "lib/modules") || r.Name == moduleListPath {
			t.Errorf("the initrd has %s", r.Name)
		}
	}
	if !seen["init"] || !seen["usr/bin/runc"] {
		t.Error("the initrd lacks its programs")
	}
	sum := strings.Repeat("ef", 32)
	in := inputs{lock: goodLock(), code: firmwareFile{"/code", sum}, vars: firmwareFile{"/vars", sum}}
	stock := in.imageKey()
	in.built = k.Vmlinuz
	if in.imageKey() == stock {
		t.Error("the small kernel is not part of the image's key")
	}
	m := newManifest(in, tree, mods, []byte("guest"), []byte("runc"), image, plain)
	if err := m.Validate(); err != nil || len(m.Modules) != 0 || m.Kernel.Version != "6.12.95-cloister" {
		t.Errorf("%+v, %v", m, err)
	}
}

func TestBuiltKernelRefuses(t *testing.T) {
	lacks, _, err := readBuiltKernel(newBuiltKernel(t, "dm_verity"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := selectModules(lacks, wantedModules()); err == nil || !strings.Contains(err.Error(), "dm_verity") {
		t.Errorf("a kernel without dm-verity: %v", err)
	}
	for name, text := range map[string]string{
		"vmlinuz": "another kernel", "config": "", BuiltKernelFile: `{"release":"../x"}`, "modules.builtin": "x",
	} {
		dir := newBuiltKernel(t, "")
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, _, err := readBuiltKernel(dir); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, _, err := readBuiltKernel(t.TempDir()); err == nil || !strings.Contains(err.Error(), "cloister guest kernel build") {
		t.Errorf("an empty folder: %v", err)
	}
}

func TestLockWithSource(t *testing.T) {
	l := goodLock()
	l.Source = SourceLock{Package: "linux-source-6.12", Version: "6.12.95-1~bpo12+1", Suite: "bookworm-backports", SHA256: strings.Repeat("cd", 32)}
	text, err := l.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseLock(text)
	if err != nil || *got != l {
		t.Errorf("%+v, %v", got, err)
	}
	l.Source.Package = "linux-source-6.12;id"
	if err := l.Validate(); err == nil || !strings.Contains(err.Error(), "kernel_source.package") {
		t.Errorf("got %v", err)
	}
}
