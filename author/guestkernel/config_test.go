package guestkernel

import (
	"bytes"
	"strings"
	"testing"
)

// TestFragments: our own fragments are well formed, and have what the guest cannot do without.
func TestFragments(t *testing.T) {
	own, err := Fragments()
	if err != nil {
		t.Fatal(err)
	}
	all, err := parse(own, nil)
	if err != nil {
		t.Fatal(err)
	}
	text := string(wishes(all))
	for _, want := range []string{
		"CONFIG_RD_ZSTD=y", "CONFIG_EFI_STUB=y", "CONFIG_DEVTMPFS=y", "CONFIG_TMPFS=y", "CONFIG_SECURITYFS=y", "CONFIG_CGROUP_PIDS=y",
		"CONFIG_SECCOMP=y", "CONFIG_SERIAL_8250_CONSOLE=y", "CONFIG_UNIX=y", "CONFIG_PVH=y", "CONFIG_VIRTIO_VSOCKETS=y", "CONFIG_DM_VERITY=y",
		"CONFIG_DM_CRYPT=y", "CONFIG_DM_INTEGRITY=y", "CONFIG_TCG_CRB=y", "CONFIG_SEV_GUEST=y", "CONFIG_TDX_GUEST_DRIVER=y",
		"CONFIG_UNACCEPTED_MEMORY=y", "CONFIG_CPU_MITIGATIONS=y", "# CONFIG_MODULES is not set", "# CONFIG_DEVMEM is not set",
		"CONFIG_LOCALVERSION=\"-cloister\"",
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("the fragments lack %s", want)
		}
	}
}

func TestParse(t *testing.T) {
	own := []Fragment{{"a", []byte("# comment\nCONFIG_A=y\n\nCONFIG_B=n\nCONFIG_C=16\n")}}
	all, err := parse(own, []Fragment{{"mine", []byte("CONFIG_B=y\nCONFIG_D=\"x y\"\n")}})
	if err != nil {
		t.Fatal(err)
	}
	if got := string(wishes(all)); got != "CONFIG_A=y\nCONFIG_B=y\nCONFIG_C=16\nCONFIG_D=\"x y\"\n" {
		t.Errorf("got %q", got)
	}
	if err := check(all, []byte("CONFIG_A=y\nCONFIG_B=y\nCONFIG_C=16\nCONFIG_D=\"x y\"\nCONFIG_MORE=y\n")); err != nil {
		t.Error(err)
	}
	err = check(all, []byte("CONFIG_A=m\n# CONFIG_B is not set\nCONFIG_C=8\nCONFIG_D=\"x y\"\n"))
	for _, want := range []string{"a:2: CONFIG_A=y is wanted, the kernel's configuration makes it m", "mine:1: CONFIG_B=y", "makes it 8"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v lacks %q", err, want)
		}
	}
	for _, bad := range []string{"CONFIG_A=m", "CONFIG_A", "A=y", "CONFIG_A=y\nCONFIG_A=n", `CONFIG_A="x"y"`, "CONFIG_A=$(shell id)"} {
		if _, err := parse([]Fragment{{"bad", []byte(bad)}}, nil); err == nil || !strings.Contains(err.Error(), "bad:") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := parse([]Fragment{{"big", bytes.Repeat([]byte("#"), maxFragment+1)}}, nil); err == nil {
		t.Error("a huge fragment was accepted")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=\"x\"\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		all, err := parse(nil, []Fragment{{"x", text}})
		if err != nil {
			return
		}
		// What is wished for comes back as it was.
		if err := check(all, wishes(all)); err != nil {
			t.Error(err)
		}
	})
}
