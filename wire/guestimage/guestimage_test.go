package guestimage

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func sum(s string) string { h := sha256.Sum256([]byte(s)); return hex.EncodeToString(h[:]) }

func manifest(firmware string) *Manifest {
	return &Manifest{
		Schema:   Schema,
		Kernel:   Kernel{Path: "vmlinuz", SHA256: sum("kernel"), Size: 6, Version: "6.1.0", Package: "linux-image"},
		Initrd:   File{Path: "initrd.img", SHA256: sum("initrd"), Size: 6},
		Firmware: Firmware{CodePath: filepath.Join(firmware, "CODE.fd"), VarsPath: filepath.Join(firmware, "VARS.fd"), CodeSHA256: sum("code"), VarsSHA256: sum("vars")},
		Cmdline:  "console=ttyS0 quiet panic=-1",
		Binaries: Binaries{GuestSHA256: sum("guest"), GuestSize: 5, RuncSHA256: sum("runc"), RuncVersion: "1.3"},
		Modules:  []string{"kernel/a.ko"},
		Packages: []Package{{"linux-image", "6.1.0-1", sum("deb")}},
	}
}

func image(t *testing.T) (string, *Manifest) {
	t.Helper()
	dir, firmware := t.TempDir(), t.TempDir()
	m := manifest(firmware)
	text, err := m.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for path, content := range map[string]string{
		filepath.Join(dir, ManifestName): string(text), filepath.Join(dir, "vmlinuz"): "kernel", filepath.Join(dir, "initrd.img"): "initrd",
		m.Firmware.CodePath: "code", m.Firmware.VarsPath: "vars",
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir, m
}

func TestLoadAndVerify(t *testing.T) {
	dir, want := image(t)
	m, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(m, want) {
		t.Errorf("got %+v", m)
	}
	if err := m.Verify(dir); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "initrd.img"), []byte("other"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(m.Firmware.CodePath); err != nil {
		t.Fatal(err)
	}
	err = m.Verify(dir)
	if err == nil || !strings.Contains(err.Error(), sum("other")) || !strings.Contains(err.Error(), sum("initrd")) || !strings.Contains(err.Error(), "CODE.fd") {
		t.Errorf("got %v", err)
	}
	if _, err := Load(t.TempDir()); err == nil {
		t.Error("loaded an empty folder")
	}
}

func TestParseRefuses(t *testing.T) {
	for name, f := range map[string]func(*Manifest){
		"schema":        func(m *Manifest) { m.Schema = 2 },
		"kernel path":   func(m *Manifest) { m.Kernel.Path = "../vmlinuz" },
		"absolute path": func(m *Manifest) { m.Initrd.Path = "/initrd" },
		"no path":       func(m *Manifest) { m.Initrd.Path = "" },
		"digest":        func(m *Manifest) { m.Kernel.SHA256 = "00" },
		"no firmware":   func(m *Manifest) { m.Firmware.VarsPath = "" },
		"firmware sum":  func(m *Manifest) { m.Firmware.CodeSHA256 = "" },
		"cmdline":       func(m *Manifest) { m.Cmdline = strings.Repeat("x", 4096) },
	} {
		m := manifest("/fw")
		f(m)
		if _, err := m.Marshal(); err == nil {
			t.Errorf("%s: written", name)
		}
	}
	good, err := manifest("/fw").Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]string{
		"empty": "", "trailing": string(good) + "{}", "unknown": strings.Replace(string(good), `"schema"`, `"more": 1, "schema"`, 1),
		"large": strings.Repeat(" ", maxManifestSize+1),
	} {
		if _, err := Parse([]byte(bad)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzParse(f *testing.F) {
	good, err := manifest("/fw").Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := Parse(text)
		if err != nil {
			return
		}
		again, err := m.Marshal()
		if err != nil {
			t.Fatalf("%q was read and cannot be written: %v", text, err)
		}
		if n, err := Parse(again); err != nil || !reflect.DeepEqual(m, n) {
			t.Fatalf("%q became %q: %v", text, again, err)
		}
	})
}
