package storagekey

import (
	"bytes"
	"strings"
	"testing"

	"github.com/cloister/cloister/broker/pkcs11"
	"github.com/cloister/cloister/broker/pkcs11/link"
	"github.com/cloister/cloister/test/softhsm"
)

func config(h *softhsm.HSM, helper, label string) Config {
	return Config{Config: pkcs11.Config{Module: softhsm.Module, TokenLabel: softhsm.Label, PINFile: h.PINFile, Helper: helper,
		Environment: []string{softhsm.Variable}}, KeyLabel: label, RSAMechanism: pkcs11.RSAPKCSTest}
}

func start(t *testing.T, c Config) *Wrapper {
	t.Helper()
	w, err := New(t.Context(), c, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

func TestWrapWithSoftHSM(t *testing.T) {
	h := softhsm.New(t)
	helper := softhsm.Helper(t)
	key := bytes.Repeat([]byte("k"), 32)
	wrapped := map[string][]byte{}
	for _, kind := range []string{"aes", "rsa"} {
		if out, err := h.Run(t, helper, "init", "--key-label", kind, "--type", kind); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if out, err := h.Run(t, helper, "init", "--key-label", kind, "--type", kind); err == nil || !strings.Contains(out, "have label") {
			t.Errorf("a second key: %v: %s", err, out)
		}
		if out, err := h.Run(t, helper, "check", "--key-label", kind); err != nil || !strings.Contains(out, "key \""+kind+"\": "+kind) {
			t.Errorf("%v: %s", err, out)
		}
		w := start(t, config(h, helper, kind))
		if w.Name() != "pkcs11:"+softhsm.Label+"/"+kind {
			t.Errorf("it is called %s", w.Name())
		}
		first, err := w.Wrap(t.Context(), key, []byte("place"))
		if err != nil {
			t.Fatal(err)
		}
		second, err := w.Wrap(t.Context(), key, []byte("place"))
		if err != nil || bytes.Equal(first, second) || bytes.Contains(first, key[:8]) {
			t.Errorf("%x and %x, %v", first, second, err)
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		wrapped[kind] = first
		w = start(t, config(h, helper, kind)) // another start of the broker
		if got, err := w.Unwrap(t.Context(), first, []byte("place")); err != nil || !bytes.Equal(got, key) {
			t.Fatalf("%x, %v", got, err)
		}
		for i := 0; i < len(first); i += 3 {
			damaged := bytes.Clone(first)
			damaged[i] ^= 0x10
			if got, err := w.Unwrap(t.Context(), damaged, []byte("place")); link.StatusOf(err) != link.StatusBadCipher {
				t.Fatalf("%s, byte %d flipped: %x, %v", kind, i, got, err)
			}
		}
		for _, place := range []string{"", "Place", "place ", strings.Repeat("x", link.MaxLabel)} {
			if got, err := w.Unwrap(t.Context(), first, []byte(place)); link.StatusOf(err) != link.StatusBadCipher {
				t.Errorf("%s, context %.16q: %x, %v", kind, place, got, err)
			}
		}
		for _, n := range []int{1, 2, 12, 13, 28, 29, len(first) - 1} {
			if got, err := w.Unwrap(t.Context(), first[:n], []byte("place")); link.StatusOf(err) != link.StatusBadCipher {
				t.Errorf("%s, %d bytes of it: %x, %v", kind, n, got, err)
			}
		}
		for _, value := range [][]byte{nil, make([]byte, link.MaxValue+1)} {
			if _, err := w.Wrap(t.Context(), value, nil); link.StatusOf(err) != link.StatusBadRequest {
				t.Errorf("wrapping %d bytes: %v", len(value), err)
			}
		}
		if _, err := w.Wrap(t.Context(), key, make([]byte, link.MaxLabel+1)); link.StatusOf(err) != link.StatusBadRequest {
			t.Errorf("a long context: %v", err)
		}
	}
	// What one key made the other one does not open.
	if got, err := start(t, config(h, helper, "aes")).Unwrap(t.Context(), wrapped["rsa"], []byte("place")); err == nil {
		t.Errorf("got %x", got)
	}
}

func TestKeysThatAreRefused(t *testing.T) {
	h := softhsm.New(t)
	helper := softhsm.Helper(t)
	c := config(h, helper, "storage")
	if w, err := New(t.Context(), c, nil); link.StatusOf(err) != link.StatusBadKey {
		t.Errorf("no key: %v, %v", w, err)
	}
	if out, err := h.Run(t, helper, "init", "--key-label", "storage", "--type", "des"); err == nil {
		t.Errorf("a kind that is none: %s", out)
	}
	for _, kind := range []string{"aes", "rsa"} {
		if out, err := h.Run(t, helper, "init", "--key-label", kind, "--type", kind); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	c.KeyLabel = ""
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "key_label") {
		t.Error(err)
	}
	c.KeyLabel, c.RSAMechanism = "rsa", pkcs11.RSAPKCSOAEP // which SoftHSM does not do
	if w, err := New(t.Context(), c, nil); link.StatusOf(err) != link.StatusBadKey {
		t.Errorf("a mechanism that is not there: %v, %v", w, err)
	}
}
