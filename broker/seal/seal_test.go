package seal

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

func TestSeal(t *testing.T) {
	path := t.TempDir() + "/key"
	k, err := LoadOrCreate(path)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := k.Seal("a", []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	again, err := LoadOrCreate(path)
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := again.Open("a", sealed); err != nil || string(plain) != "secret" {
		t.Errorf("opened %q, %v", plain, err)
	}
	if _, err := k.Open("b", sealed); err == nil {
		t.Error("a value opens in another place")
	}
	for i := range sealed {
		bad := bytes.Clone(sealed)
		bad[i] ^= 1
		if _, err := k.Open("a", bad); err == nil {
			t.Errorf("a value with byte %d changed opens", i)
		}
	}
	for n := range sealed {
		if _, err := k.Open("a", sealed[:n]); err == nil {
			t.Errorf("a value cut to %d bytes opens", n)
		}
	}
	other, err := New(bytes.Repeat([]byte{7}, keySize))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Open("a", sealed); err == nil || !strings.Contains(err.Error(), k.ID()) {
		t.Errorf("another key: %v, want an error that names the key", err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadOrCreate(path); err == nil || !strings.Contains(err.Error(), "0644") {
		t.Errorf("a key that all may read: %v", err)
	}
}
