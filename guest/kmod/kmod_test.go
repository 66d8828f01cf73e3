package kmod

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
}

func TestLoader(t *testing.T) {
	dir, sys := t.TempDir(), t.TempDir()
	write(t, dir+"/modules.dep", "kernel/a-b.ko:\nkernel/net.ko: kernel/fail.ko kernel/a-b.ko\nkernel/fail.ko: kernel/a-b.ko\nkernel/mem.ko:\nkernel/gone.ko:\nkernel/scsi.ko:\n")
	write(t, dir+"/modules.alias", "# names\nalias virtio:d00000001v* net\nalias virtio:d00000018v* mem\nalias scsi:t-0x00* scsi\nbroken\n")
	l, err := Open(dir, slog.New(slog.DiscardHandler), "mem")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	bad := errors.New("bad module")
	l.insert = func(file, _ string) error {
		got = append(got, filepath.Base(file))
		switch filepath.Base(file) {
		case "gone.ko":
			return unix.ENODEV
		case "scsi.ko":
			return bad
		case "net.ko": // it brings a device of its own
			write(t, sys+"/bus/virtio/devices/v1/modalias", "virtio:d00000018v00001AF4\n")
		}
		return nil
	}
	if err := l.Load("builtin", "gone", "gone"); err != nil || !slices.Equal(got, []string{"gone.ko"}) {
		t.Fatalf("got %v, %v", got, err)
	}
	write(t, sys+"/bus/virtio/devices/v0/modalias", "virtio:d00000001v00001AF4\n")
	l.Postpone("net")
	if err := l.Devices(sys); err != nil || len(got) != 1 {
		t.Fatalf("a driver that can wait: got %v, %v", got, err)
	}
	l.Postpone()
	for range 2 {
		if err := l.Devices(sys); err != nil || !slices.Equal(got, []string{"gone.ko", "a-b.ko", "fail.ko", "net.ko"}) {
			t.Fatalf("got %v, %v", got, err)
		}
	}
	if err := l.Load("mem"); err != nil || got[len(got)-1] != "mem.ko" {
		t.Errorf("a module that is not for devices cannot be loaded by name: %v, %v", got, err)
	}
	write(t, sys+"/bus/scsi/devices/s/modalias", "scsi:t-0x00\n")
	if err := l.Devices(sys); !errors.Is(err, bad) {
		t.Errorf("got %v", err)
	}
	if l, err := Open(t.TempDir(), slog.New(slog.DiscardHandler)); err != nil || l.Load("anything") != nil || l.Devices(sys) != nil {
		t.Errorf("an image without modules: %v", err)
	}
}

// TestBuiltIn has drivers that nobody has loaded.
func TestBuiltIn(t *testing.T) {
	sys := t.TempDir()
	for _, driver := range []string{"mem", "net"} {
		write(t, sys+"/bus/virtio/drivers/"+driver+"/virtio4/x", "")
		write(t, sys+"/bus/virtio/drivers/"+driver+"/unbind", "")
	}
	l, err := Open(t.TempDir(), slog.New(slog.DiscardHandler), "mem", "missing")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Devices(sys); err != nil {
		t.Fatal(err)
	}
	for driver, want := range map[string]string{"mem": "virtio4", "net": ""} {
		if got, err := os.ReadFile(sys + "/bus/virtio/drivers/" + driver + "/unbind"); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", driver, got, err)
		}
	}
}
