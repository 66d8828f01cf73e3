package guestimage

import (
	"archive/tar"
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/u-root/u-root/pkg/cpio"
)

func testInput(t *testing.T) initrdInput {
	t.Helper()
	set, err := selectModules(fakeTree(t), []wantedModule{{Name: "virtio_net", Boot: true}, {Name: "dm_mod"}})
	if err != nil {
		t.Fatal(err)
	}
	return initrdInput{Release: "6.12.0-test", Guest: []byte("guest"), Runc: []byte("runc"), Modules: set}
}

// packed is the initrd that is measured.
func packed(in initrdInput) ([]byte, error) {
	plain, err := packInitrd(in)
	if err != nil {
		return nil, err
	}
	return compressInitrd(plain)
}

func TestInitrd(t *testing.T) {
	image, err := packed(testInput(t))
	if err != nil {
		t.Fatal(err)
	}
	again, err := packed(testInput(t))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(image, again) {
		t.Error("two builds of the same inputs differ")
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
	seen := map[string]cpio.Record{}
	for i, r := range recs {
		if r.UID != 0 || r.GID != 0 || r.MTime != 0 || r.Ino != uint64(i)+1 {
			t.Errorf("%s has owner %d:%d, time %d, inode %d", r.Name, r.UID, r.GID, r.MTime, r.Ino)
		}
		if at := strings.LastIndexByte(r.Name, '/'); at > 0 {
			if _, ok := seen[r.Name[:at]]; !ok {
				t.Errorf("%s comes before its directory", r.Name)
			}
		}
		seen[r.Name] = r
	}
	for name, mode := range map[string]uint64{
		"init": 0o100755, "usr/bin/runc": 0o100755, "dev/console": 0o020600, "tmp": 0o041777,
		"lib/modules/6.12.0-test/kernel/md/dm-mod.ko": 0o100644, moduleListPath: 0o100644,
	} {
		if r, ok := seen[name]; !ok || r.Mode != mode {
			t.Errorf("%s: there %v, mode %o, want %o", name, ok, r.Mode, mode)
		}
	}
	list, err := io.ReadAll(io.NewSectionReader(seen[moduleListPath], 0, int64(seen[moduleListPath].FileSize)))
	if err != nil {
		t.Fatal(err)
	}
	want := "/lib/modules/6.12.0-test/kernel/net/failover.ko\n"
	if !strings.HasPrefix(string(list), want) || strings.Contains(string(list), "dm-mod") {
		t.Errorf("module list:\n%s", list)
	}
}

func TestCPIORefuses(t *testing.T) {
	for name, recs := range map[string][]cpio.Record{
		"twice":    {cpio.StaticFile("a", "", 0o644), cpio.StaticFile("a", "", 0o644)},
		"absolute": {cpio.StaticFile("/a", "", 0o644)},
		"no name":  {cpio.StaticFile("", "", 0o644)},
	} {
		if err := writeCPIO(io.Discard, recs); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestBudgets(t *testing.T) {
	mods := &moduleSet{Files: map[string][]byte{"kernel/big.ko": make([]byte, 5_000_000)}}
	if err := checkBudgets(GuestBudget, 1, mods, InitrdBudget); err != nil {
		t.Errorf("at the budget: %v", err)
	}
	err := checkBudgets(GuestBudget+1, 1, mods, InitrdBudget+1)
	if err == nil {
		t.Fatal("over the budget: accepted")
	}
	for _, want := range []string{"guest binary has", "initrd has", "kernel/big.ko 5.0 MB"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %q", want, err)
		}
	}
}

type tarFile struct{ name, data string }

func makeTar(t testing.TB, files ...tarFile) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		if err := w.WriteHeader(&tar.Header{Name: f.name, Size: int64(len(f.data)), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, f.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestReadKernelTar(t *testing.T) {
	kernel := tarFile{"./boot/vmlinuz-6.12.0-x", "K"}
	module := tarFile{"./usr/lib/modules/6.12.0-x/kernel/a.ko.xz", "M"}
	builtin := tarFile{"./lib/modules/6.12.0-x/modules.builtin", "kernel/b.ko\n"}
	config := tarFile{"./boot/config-6.12.0-x", "CONFIG_A=y\n# CONFIG_B is not set\n"}
	tree, err := readKernelTar(bytes.NewReader(makeTar(t, kernel, module, builtin, config, tarFile{"./usr/share/doc/x", "d"})))
	if err != nil {
		t.Fatal(err)
	}
	if tree.Release != "6.12.0-x" || string(tree.Kernel) != "K" || string(tree.Modules["kernel/a.ko.xz"]) != "M" || len(tree.Modules) != 1 {
		t.Errorf("got %+v", tree)
	}
	if err := tree.requireConfig("CONFIG_A=y"); err != nil {
		t.Error(err)
	}
	if err := tree.requireConfig("CONFIG_A=y", "CONFIG_B=y"); err == nil || !strings.Contains(err.Error(), "CONFIG_B=y") {
		t.Errorf("missing option: %v", err)
	}
	for name, files := range map[string][]tarFile{
		"no kernel":   {module, builtin},
		"no modules":  {kernel, builtin},
		"no builtin":  {kernel, module},
		"two kernels": {kernel, {"./boot/vmlinuz-other", "K"}, module, builtin},
	} {
		if _, err := readKernelTar(bytes.NewReader(makeTar(t, files...))); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzReadKernelTar(f *testing.F) {
	f.Add(makeTar(f, tarFile{"./boot/vmlinuz-6.12.0-x", "K"}, tarFile{"./lib/modules/6.12.0-x/kernel/a.ko", "M"}))
	f.Fuzz(func(t *testing.T, data []byte) {
		tree, err := readKernelTar(bytes.NewReader(data))
		if err == nil && (tree.Kernel == nil || len(tree.Modules) == 0) {
			t.Error("accepted an incomplete package")
		}
	})
}
