//go:build cgo

package token

import (
	"crypto/rsa"
	"math/big"

	"github.com/miekg/pkcs11"

	"github.com/cloister/cloister/broker/pkcs11/link"
)

const (
	minRSABits = 2048
	maxRSABits = 16384
	maxRSASize = maxRSABits / 8
)

// key finds the one key of a class with a label; ok is false when there is none.
func (t *Token) key(sh pkcs11.SessionHandle, class, kind uint, label string) (h pkcs11.ObjectHandle, ok bool, err error) {
	found, err := t.find(sh, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, class),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, kind),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, label),
	}, label)
	if err != nil || len(found) == 0 {
		return 0, false, err
	}
	if len(found) > 1 {
		return 0, false, link.Fail(link.StatusDuplicate, "%d keys have label %q, want one", len(found), label)
	}
	return found[0].handle, true, nil
}

// privateRSA finds the private key with a label.
func (t *Token) privateRSA(sh pkcs11.SessionHandle, label string) (pkcs11.ObjectHandle, error) {
	h, ok, err := t.key(sh, pkcs11.CKO_PRIVATE_KEY, pkcs11.CKK_RSA, label)
	if err == nil && !ok {
		err = link.Fail(link.StatusBadKey, "there is no private RSA key with label %q", label)
	}
	return h, err
}

// publicRSA returns the public half of a private key. It is read from the private key: a public object beside it may have
// been made without the PIN.
func (t *Token) publicRSA(sh pkcs11.SessionHandle, private pkcs11.ObjectHandle, label string) (*rsa.PublicKey, error) {
	got, err := t.module.ctx.GetAttributeValue(sh, private, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_MODULUS, nil), pkcs11.NewAttribute(pkcs11.CKA_PUBLIC_EXPONENT, nil)})
	if err != nil {
		return nil, failure("reading the modulus and the public exponent of a private key", err)
	}
	if len(got[0].Value) > maxRSASize || len(got[1].Value) > 8 {
		return nil, link.Fail(link.StatusBadKey, "the RSA key with label %q has a modulus of %d bytes and an exponent of %d",
			label, len(got[0].Value), len(got[1].Value))
	}
	n, e := new(big.Int).SetBytes(got[0].Value), new(big.Int).SetBytes(got[1].Value)
	if n.BitLen() < minRSABits || !e.IsInt64() || e.Int64() < 3 || e.Int64() > 1<<31-1 || e.Bit(0) == 0 {
		return nil, link.Fail(link.StatusBadKey, "the RSA key with label %q has %d bits and exponent %s, want at least %d bits", label,
			n.BitLen(), e, minRSABits)
	}
	return &rsa.PublicKey{N: n, E: int(e.Int64())}, nil
}

// confined refuses a key whose value could leave the token.
func (t *Token) confined(sh pkcs11.SessionHandle, h pkcs11.ObjectHandle, label string) error {
	got, err := t.module.ctx.GetAttributeValue(sh, h, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, nil),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, nil), pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, nil)})
	if err != nil {
		return failure("reading about a key", err)
	}
	if !yes(got[0]) || !yes(got[1]) || yes(got[2]) {
		return link.Fail(link.StatusBadKey, "the key with label %q is private=%t sensitive=%t extractable=%t, want true true false: its value "+
			"could leave the token", label, yes(got[0]), yes(got[1]), yes(got[2]))
	}
	return nil
}

// yes reads a truth value.
func yes(a *pkcs11.Attribute) bool { return len(a.Value) == 1 && a.Value[0] != 0 }

// KeyType is a kind of storage key.
type KeyType string

// The kinds of storage keys; KeyAuto is AES when the token has AES-GCM.
const (
	KeyAuto KeyType = "auto"
	KeyAES  KeyType = "aes"
	KeyRSA  KeyType = "rsa"

	rsaBits = 3072
)

// Generate makes a key that never leaves the token, and returns its kind. The label must be free.
func (t *Token) Generate(label string, kind KeyType) (KeyType, error) {
	sh := <-t.sessions
	defer func() { t.sessions <- sh }()
	used, err := t.find(sh, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_LABEL, label)}, label)
	if err != nil {
		return "", err
	}
	if len(used) > 0 {
		return "", link.Fail(link.StatusDuplicate, "%d objects have label %q: choose another one", len(used), label)
	}
	if kind == KeyAuto {
		if kind = KeyRSA; t.gcm {
			kind = KeyAES
		}
	}
	private := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true), pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, false),
		pkcs11.NewAttribute(pkcs11.CKA_MODIFIABLE, false), pkcs11.NewAttribute(pkcs11.CKA_LABEL, label),
		pkcs11.NewAttribute(pkcs11.CKA_ID, []byte(label)), pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, true),
	}
	switch {
	case kind == KeyAES && !t.gcm:
		return "", link.Fail(link.StatusBadKey, "the token does not encrypt with AES-GCM, use --type rsa")
	case kind == KeyAES:
		_, err = t.module.ctx.GenerateKey(sh, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}, append(private,
			pkcs11.NewAttribute(pkcs11.CKA_ENCRYPT, true), pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, 32)))
	case kind == KeyRSA:
		_, _, err = t.module.ctx.GenerateKeyPair(sh, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, nil)},
			[]*pkcs11.Attribute{
				pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_LABEL, label),
				pkcs11.NewAttribute(pkcs11.CKA_ID, []byte(label)), pkcs11.NewAttribute(pkcs11.CKA_ENCRYPT, true),
				pkcs11.NewAttribute(pkcs11.CKA_MODULUS_BITS, rsaBits), pkcs11.NewAttribute(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}),
			}, private)
	default:
		return "", link.Fail(link.StatusBadRequest, "the type is %.16q, want %s, %s or %s", string(kind), KeyAuto, KeyAES, KeyRSA)
	}
	if err != nil {
		return "", failure("making a key of type "+string(kind), err)
	}
	return kind, nil
}

// Describe says which key of type AES or RSA has a label, and refuses one whose value could leave the token.
func (t *Token) Describe(label string) (KeyType, error) {
	sh := <-t.sessions
	defer func() { t.sessions <- sh }()
	_, kind, err := t.storageKey(sh, label)
	return kind, err
}
