// Package sealed tests sealed layers from the author's desk to the guest's kernel.
package sealed

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/author/guestimage"
	"github.com/cloister/cloister/layer"
	"github.com/cloister/cloister/layer/sealed"
	"github.com/cloister/cloister/layer/sealed/seal"
	"github.com/cloister/cloister/test/vmtest"
)

// sealLayer makes a sealed layer of two files.
func sealLayer(t *testing.T, key []byte, large []byte) (path string, l seal.Layer) {
	t.Helper()
	var archive bytes.Buffer
	tw := tar.NewWriter(&archive)
	var errs []error
	for name, data := range map[string][]byte{"file": []byte("for the guest only"), "large": large} {
		errs = append(errs, tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Size: int64(len(data)), Mode: 0o644}))
		_, err := tw.Write(data)
		errs = append(errs, err)
	}
	dir := t.TempDir()
	plain, err := os.Create(filepath.Join(dir, "plain"))
	out, oerr := os.Create(filepath.Join(dir, "sealed"))
	if err := errors.Join(append(errs, tw.Close(), err, oerr)...); err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	defer out.Close()
	built, err := layer.Build(t.Context(), &archive, plain, layer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	salt := make([]byte, sealed.SaltSize)
	rand.Read(salt)
	if l, err = seal.Seal(t.Context(), plain, built.HashOffset, out, key, salt); err != nil {
		t.Fatal(err)
	}
	return out.Name(), l
}

// TestGuestOpensSealedLayer boots a kernel that opens a sealed layer with a wrong and with the right key, and one with a changed byte.
func TestGuestOpensSealedLayer(t *testing.T) {
	vmtest.Need(t)
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	bin := filepath.Join(t.TempDir(), "probe")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "./probe")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building the probe: %v\n%s", err, out)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = t.TempDir()
	}
	img, err := guestimage.Build(ctx, guestimage.Options{CacheDir: filepath.Join(cache, "cloister", "test-kernels"), LockPath: "../../guest.lock", GuestBinary: bin})
	if err != nil {
		t.Fatal(err)
	}
	key, large := bytes.Repeat([]byte{9}, sealed.KeySize), make([]byte, 3<<20)
	rand.Read(large)
	path, l := sealLayer(t, key, large)
	for name, change := range map[string]bool{"whole": false, "changed": true} {
		t.Run(name, func(t *testing.T) {
			path := path
			if change {
				data, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				data[2<<20] ^= 1
				path = filepath.Join(t.TempDir(), "changed")
				if err := os.WriteFile(path, data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			qemu := exec.CommandContext(ctx, "qemu-system-x86_64", "-machine", "q35", "-accel", "tcg,thread=single", "-cpu", "max,la57=off,cx16=off", "-m", "512",
				"-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio",
				"-kernel", filepath.Join(img.Dir, img.Manifest.Kernel.Path), "-initrd", filepath.Join(img.Dir, img.Manifest.Initrd.Path),
				"-append", fmt.Sprintf("console=ttyS0 quiet panic=-1 sealed.root=%s sealed.offset=%d sealed.keys=%x,%x,%x", l.Root, l.HashOffset, make([]byte, 32), key, key[1:]),
				"-drive", "if=none,id=d,format=raw,readonly=on,file="+path, "-device", "virtio-blk-pci,drive=d")
			out, err := qemu.CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			want := []string{"probe: 00000000: error: mounting: invalid argument", "probe: 09090909: \"for the guest only\", 3145728 bytes, <nil>", "error: not a key of sealed layers"}
			if change {
				want[1] = "3145728 bytes"
			}
			for i, w := range want {
				if (i == 1 && change) == strings.Contains(string(out), w) {
					t.Errorf("%q: %v", w, change)
				}
			}
			if change && !strings.Contains(string(out), "input/output error") || strings.Contains(string(out), "is left") {
				t.Error("no error was seen, or a device is left")
			}
			if t.Failed() {
				t.Logf("%s", out)
			}
		})
	}
}
