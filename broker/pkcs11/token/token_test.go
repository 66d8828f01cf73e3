//go:build cgo

package token

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/cloister/cloister/broker/pkcs11/link"
	"github.com/cloister/cloister/test/softhsm"
)

// begin opens a token of SoftHSM in this process.
func begin(t *testing.T) *Token {
	t.Helper()
	softhsm.New(t)
	k, err := Open(Options{Module: softhsm.Module, Label: softhsm.Label, Sessions: 2}, []byte(softhsm.PIN), Login{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() }) // some tests end the session themselves
	return k
}

// make makes an object the way another program would.
func (t *Token) make(tb testing.TB, class, kind uint, label string, more ...*pkcs11.Attribute) {
	tb.Helper()
	sh := <-t.sessions
	defer func() { t.sessions <- sh }()
	if _, err := t.module.ctx.CreateObject(sh, append([]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, class),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, kind), pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, label)}, more...)); err != nil {
		tb.Fatal(err)
	}
}

func attributes(private, sensitive, extractable bool, value string) []*pkcs11.Attribute {
	return []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, private), pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, sensitive),
		pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, extractable), pkcs11.NewAttribute(pkcs11.CKA_VALUE, value)}
}

func TestGCMAgainstGo(t *testing.T) {
	k := begin(t)
	raw := bytes.Repeat([]byte("0123456789abcdef"), 2)
	k.make(t, pkcs11.CKO_SECRET_KEY, pkcs11.CKK_AES, "storage", append(attributes(true, true, false, string(raw)),
		pkcs11.NewAttribute(pkcs11.CKA_ENCRYPT, true), pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, true))...)
	block, err := aes.NewCipher(raw)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{1, 31, 32, 4096, link.MaxValue} {
		for _, binding := range []string{"", "place"} {
			plain := bytes.Repeat([]byte{7}, n)
			wrapped, err := k.Wrap(t.Context(), "storage", link.SHA256, plain, []byte(binding))
			if err != nil {
				t.Fatal(err)
			}
			got, err := gcm.Open(nil, wrapped[1:1+nonceSize], wrapped[1+nonceSize:], []byte(binding))
			if err != nil || !bytes.Equal(got, plain) || wrapped[0] != wrappedGCM {
				t.Fatalf("Go opens %d bytes, want %d: %v", len(got), n, err)
			}
			nonce := []byte("nonce of Go.")
			ours := gcm.Seal(append([]byte{wrappedGCM}, nonce...), nonce, plain, []byte(binding))
			if got, err = k.Unwrap(t.Context(), "storage", link.SHA256, ours, []byte(binding)); err != nil || !bytes.Equal(got, plain) {
				t.Fatalf("the token opens %d bytes, want %d: %v", len(got), n, err)
			}
		}
	}
}

func TestStorageKeysThatCouldLeave(t *testing.T) {
	k := begin(t)
	for label, a := range map[string][]*pkcs11.Attribute{
		"extractable": attributes(true, true, true, "0123456789abcdef"),
		"readable":    attributes(true, false, false, "0123456789abcdef"),
		"public":      attributes(false, true, false, "0123456789abcdef"),
	} {
		k.make(t, pkcs11.CKO_SECRET_KEY, pkcs11.CKK_AES, label, a...)
		if _, err := k.Wrap(t.Context(), label, link.SHA256, []byte("x"), nil); link.StatusOf(err) != link.StatusBadKey {
			t.Errorf("%s: %v", label, err)
		}
	}
}

func TestObjectsOfOthers(t *testing.T) {
	k := begin(t)
	get := func(label string) (string, link.Status) {
		v, err := k.Get(t.Context(), label)
		return string(v), link.StatusOf(err)
	}
	generic := func(label string, a []*pkcs11.Attribute) {
		k.make(t, pkcs11.CKO_SECRET_KEY, pkcs11.CKK_GENERIC_SECRET, label, a...)
	}
	// One is taken, and replaced.
	generic("r/t/one", attributes(true, false, true, "theirs"))
	if v, s := get("r/t/one"); v != "theirs" || s != link.StatusOK {
		t.Errorf("%q, %d", v, s)
	}
	if err := k.Put(t.Context(), "r/t/one", []byte("ours")); err != nil {
		t.Fatal(err)
	}
	if v, s := get("r/t/one"); v != "ours" || s != link.StatusOK {
		t.Errorf("%q, %d", v, s)
	}
	// One that comes later is not weighed against ours.
	generic("r/t/one", attributes(true, false, true, "theirs"))
	if v, s := get("r/t/one"); s != link.StatusDuplicate {
		t.Errorf("%q, %d", v, s)
	}
	// Several are refused, for writing too.
	generic("r/t/two", attributes(true, false, true, "a"))
	generic("r/t/two", attributes(true, false, true, "a"))
	if v, s := get("r/t/two"); s != link.StatusDuplicate {
		t.Errorf("%q, %d", v, s)
	}
	for name, err := range map[string]error{"put": k.Put(t.Context(), "r/t/two", []byte("b")), "delete": k.Delete(t.Context(), "r/t/two")} {
		if link.StatusOf(err) != link.StatusDuplicate {
			t.Errorf("%s: %v", name, err)
		}
	}
	// What can be made without the PIN does not count.
	generic("r/t/planted", attributes(false, false, true, "planted"))
	if v, s := get("r/t/planted"); s != link.StatusNotFound {
		t.Errorf("%q, %d", v, s)
	}
	generic("r/t/sensitive", attributes(true, true, false, "x"))
	if v, s := get("r/t/sensitive"); s != link.StatusBadKey {
		t.Errorf("%q, %d", v, s)
	}
	generic("r/t/large", attributes(true, false, true, string(make([]byte, link.MaxValue+1))))
	if v, s := get("r/t/large"); s != link.StatusFailed {
		t.Errorf("%d bytes, %d", len(v), s)
	}
}

// TestLeftovers is a crash between writing an object and removing the old one.
func TestLeftovers(t *testing.T) {
	k := begin(t)
	var ids [][]byte
	for _, value := range []string{"old", "new"} {
		var all []object
		for _, id := range ids {
			all = append(all, object{id: id})
		}
		id, err := next(all, "r/t/g")
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
		k.make(t, pkcs11.CKO_SECRET_KEY, pkcs11.CKK_GENERIC_SECRET, "r/t/g",
			append(attributes(true, false, true, value), pkcs11.NewAttribute(pkcs11.CKA_ID, id))...)
	}
	if v, err := k.Get(t.Context(), "r/t/g"); err != nil || string(v) != "new" {
		t.Fatalf("%q, %v", v, err)
	}
	if err := k.Put(t.Context(), "r/t/g", []byte("newest")); err != nil {
		t.Fatal(err)
	}
	sh := <-k.sessions
	found, err := k.find(sh, secretTemplate("r/t/g"), "r/t/g")
	k.sessions <- sh
	if err != nil || len(found) != 1 {
		t.Fatalf("%d objects are left, %v", len(found), err)
	}
	if err := k.Delete(t.Context(), "r/t/g"); err != nil {
		t.Fatal(err)
	}
}

func TestTheSessionEnds(t *testing.T) {
	for name, end := range map[string]func(k *Token) error{
		"closed":    func(k *Token) error { return k.module.ctx.CloseAllSessions(k.info.slot) },
		"finalised": func(k *Token) error { return k.module.ctx.Finalize() },
		"logged out": func(k *Token) error {
			sh := <-k.sessions
			defer func() { k.sessions <- sh }()
			return k.module.ctx.Logout(sh)
		},
	} {
		t.Run(name, func(t *testing.T) {
			k := begin(t)
			if err := k.Put(t.Context(), "r/t/g", []byte("x")); err != nil {
				t.Fatal(err)
			}
			if err := end(k); err != nil {
				t.Fatal(err)
			}
			for what, err := range map[string]error{
				"put": k.Put(t.Context(), "r/t/g", []byte("x")), "delete": k.Delete(t.Context(), "r/t/g"),
				"get": func() error { _, err := k.Get(t.Context(), "r/t/g"); return err }(),
				"key": func() error { _, err := k.Decrypt(t.Context(), "k", link.SHA1, []byte("x")); return err }(),
			} {
				if link.StatusOf(err) != link.StatusLost {
					t.Errorf("%s: %v", what, err)
				}
			}
		})
	}
}

func TestLogin(t *testing.T) {
	h := softhsm.New(t)
	o := Options{Module: softhsm.Module, Label: softhsm.Label, Sessions: 1}
	pin := []byte(softhsm.PIN)
	k, err := Open(o, pin, Login{})
	if err != nil || !bytes.Equal(pin, make([]byte, len(pin))) {
		t.Fatalf("%v; the PIN is %q afterwards", err, pin)
	}
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	asked := 0
	stop := errors.New("stop")
	for range 3 {
		_, err = Open(o, []byte("0000"), Login{Before: func() error { asked++; return nil }})
		if link.StatusOf(err) != link.StatusPIN {
			t.Errorf("a wrong PIN: %v", err)
		}
	}
	if asked != 1 {
		t.Errorf("the token was asked %d times, want once", asked)
	}
	if _, err = Open(o, []byte(softhsm.PIN), Login{AfterWrongPIN: true, Before: func() error { return stop }}); !errors.Is(err, stop) {
		t.Errorf("it was not stopped: %v", err)
	}
	h.AddToken(t, "another")
	o.Label, o.Serial = "", "none"
	if _, err = Open(o, []byte(softhsm.PIN), Login{}); link.StatusOf(err) != link.StatusAbsent {
		t.Error(err)
	}
}
