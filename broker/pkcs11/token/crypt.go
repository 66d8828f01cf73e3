//go:build cgo

package token

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/subtle"
	"hash"

	"github.com/miekg/pkcs11"

	"github.com/cloister/cloister/broker/pkcs11/link"
)

// oaep are the parameters of a hash, for the token and for Go. Some tokens know no hash but SHA-1.
func oaep(name string) (*pkcs11.OAEPParams, func() hash.Hash) {
	if name == link.SHA1 {
		return pkcs11.NewOAEPParams(pkcs11.CKM_SHA_1, pkcs11.CKG_MGF1_SHA1, pkcs11.CKZ_DATA_SPECIFIED, nil), sha1.New
	}
	return pkcs11.NewOAEPParams(pkcs11.CKM_SHA256, pkcs11.CKG_MGF1_SHA256, pkcs11.CKZ_DATA_SPECIFIED, nil), sha256.New
}

// Encrypt is part of serve.Token. The public half is used here: that takes no work from the token.
func (t *Token) Encrypt(ctx context.Context, key, hash string, plaintext []byte) (out []byte, err error) {
	err = t.with(ctx, func(sh pkcs11.SessionHandle) error {
		h, err := t.privateRSA(sh, key)
		if err != nil {
			return err
		}
		out, err = t.encryptRSA(sh, h, key, hash, plaintext)
		return err
	})
	return out, err
}

func (t *Token) encryptRSA(sh pkcs11.SessionHandle, h pkcs11.ObjectHandle, key, hash string, plaintext []byte) ([]byte, error) {
	public, err := t.publicRSA(sh, h, key)
	if err != nil {
		return nil, err
	}
	_, digest := oaep(hash)
	if most := public.Size() - 2*digest().Size() - 2; len(plaintext) > most {
		return nil, link.Fail(link.StatusBadRequest, "%d bytes are to be encrypted, the key with label %q takes %d", len(plaintext), key, most)
	}
	out, err := rsa.EncryptOAEP(digest(), rand.Reader, public, plaintext, nil)
	if err != nil {
		return nil, link.Fail(link.StatusFailed, "encrypting with the key %q: %v", key, err)
	}
	return out, nil
}

// Decrypt is part of serve.Token.
func (t *Token) Decrypt(ctx context.Context, key, hash string, ciphertext []byte) (out []byte, err error) {
	err = t.with(ctx, func(sh pkcs11.SessionHandle) error {
		h, err := t.privateRSA(sh, key)
		if err != nil {
			return err
		}
		out, err = t.decryptRSA(sh, h, hash, ciphertext)
		return err
	})
	return out, err
}

func (t *Token) decryptRSA(sh pkcs11.SessionHandle, h pkcs11.ObjectHandle, hash string, ciphertext []byte) ([]byte, error) {
	if len(ciphertext) > maxRSASize {
		return nil, link.Fail(link.StatusBadCipher, "the ciphertext has %d bytes, no RSA key makes more than %d", len(ciphertext), maxRSASize)
	}
	params, _ := oaep(hash)
	err := t.module.ctx.DecryptInit(sh, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS_OAEP, params)}, h)
	if is(err, pkcs11.CKR_ARGUMENTS_BAD, pkcs11.CKR_MECHANISM_INVALID, pkcs11.CKR_MECHANISM_PARAM_INVALID) {
		return nil, link.Fail(link.StatusBadKey, "the token does not decrypt RSA-OAEP with %s: %v", hash, failure("starting", err))
	}
	if err != nil {
		return nil, failure("starting to decrypt with RSA-OAEP", err)
	}
	return t.decrypt(sh, ciphertext)
}

// decrypt ends an operation. What a token says about a bad ciphertext differs, and must not tell more than that it is bad.
func (t *Token) decrypt(sh pkcs11.SessionHandle, ciphertext []byte) ([]byte, error) {
	out, err := t.module.ctx.Decrypt(sh, ciphertext)
	if err == nil {
		return out, nil
	}
	if f := failure("decrypting", err); link.StatusOf(f) == link.StatusLost {
		return nil, f
	}
	return nil, link.Fail(link.StatusBadCipher, "the token does not decrypt this")
}

// A wrapped value begins with how it was made. AES-GCM authenticates the context; below RSA-OAEP the hash of the context is
// in front of the value.
const (
	wrappedGCM = 1 // 12 bytes nonce, then AES-GCM with a tag of 16 bytes
	wrappedRSA = 2 // RSA-OAEP of SHA-256(context) and the value

	nonceSize = 12
	tagSize   = 16
)

// storageKey finds the one key that wraps.
func (t *Token) storageKey(sh pkcs11.SessionHandle, label string) (pkcs11.ObjectHandle, KeyType, error) {
	aes, isAES, err := t.key(sh, pkcs11.CKO_SECRET_KEY, pkcs11.CKK_AES, label)
	if err != nil {
		return 0, "", err
	}
	private, isRSA, err := t.key(sh, pkcs11.CKO_PRIVATE_KEY, pkcs11.CKK_RSA, label)
	switch {
	case err != nil:
		return 0, "", err
	case isAES && isRSA:
		return 0, "", link.Fail(link.StatusDuplicate, "an AES key and an RSA key have label %q, want one", label)
	case isAES:
		return aes, KeyAES, t.confined(sh, aes, label)
	case isRSA:
		return private, KeyRSA, t.confined(sh, private, label)
	}
	return 0, "", link.Fail(link.StatusBadKey, "there is no AES key and no private RSA key with label %q; cloister-pkcs11 init makes one", label)
}

// Wrap is part of serve.Token.
func (t *Token) Wrap(ctx context.Context, key, hash string, plaintext, binding []byte) (out []byte, err error) {
	err = t.with(ctx, func(sh pkcs11.SessionHandle) error {
		h, kind, err := t.storageKey(sh, key)
		if err != nil {
			return err
		}
		if kind == KeyAES {
			out, err = t.wrapGCM(sh, h, plaintext, binding)
			return err
		}
		sum := sha256.Sum256(binding)
		bound := append(sum[:], plaintext...)
		defer clear(bound)
		sealed, err := t.encryptRSA(sh, h, key, hash, bound)
		if err == nil {
			out = append([]byte{wrappedRSA}, sealed...)
		}
		return err
	})
	return out, err
}

func (t *Token) wrapGCM(sh pkcs11.SessionHandle, h pkcs11.ObjectHandle, plaintext, binding []byte) ([]byte, error) {
	nonce := make([]byte, nonceSize)
	if _, err := rand.Read(nonce); err != nil {
		return nil, err
	}
	params := pkcs11.NewGCMParams(nonce, binding, tagSize*8)
	defer params.Free()
	if err := t.module.ctx.EncryptInit(sh, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_GCM, params)}, h); err != nil {
		return nil, failure("starting to encrypt with AES-GCM", err)
	}
	sealed, err := t.module.ctx.Encrypt(sh, plaintext)
	if err != nil {
		return nil, failure("encrypting with AES-GCM", err)
	}
	if iv := params.IV(); len(iv) == nonceSize {
		nonce = iv // some tokens put their own in its place
	} else if len(iv) != 0 {
		return nil, link.Fail(link.StatusFailed, "the token made a nonce of %d bytes, want %d", len(iv), nonceSize)
	}
	if len(sealed) != len(plaintext)+tagSize {
		return nil, link.Fail(link.StatusFailed, "the token made %d bytes of %d, want %d", len(sealed), len(plaintext),
			len(plaintext)+tagSize)
	}
	return append(append([]byte{wrappedGCM}, nonce...), sealed...), nil
}

// Unwrap is part of serve.Token.
func (t *Token) Unwrap(ctx context.Context, key, hash string, wrapped, binding []byte) (out []byte, err error) {
	err = t.with(ctx, func(sh pkcs11.SessionHandle) error {
		h, kind, err := t.storageKey(sh, key)
		if err != nil {
			return err
		}
		switch {
		case kind == KeyAES && wrapped[0] == wrappedGCM && len(wrapped) > 1+nonceSize+tagSize:
			out, err = t.unwrapGCM(sh, h, wrapped[1:], binding)
			return err
		case kind == KeyRSA && wrapped[0] == wrappedRSA:
			out, err = t.unwrapRSA(sh, h, hash, wrapped[1:], binding)
			return err
		}
		return link.Fail(link.StatusBadCipher, "the wrapped value is of kind %d and has %d bytes: the %s key with label %q did not make it",
			wrapped[0], len(wrapped), kind, key)
	})
	return out, err
}

func (t *Token) unwrapGCM(sh pkcs11.SessionHandle, h pkcs11.ObjectHandle, sealed, binding []byte) ([]byte, error) {
	params := pkcs11.NewGCMParams(sealed[:nonceSize], binding, tagSize*8)
	defer params.Free()
	if err := t.module.ctx.DecryptInit(sh, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_GCM, params)}, h); err != nil {
		return nil, failure("starting to decrypt with AES-GCM", err)
	}
	return t.decrypt(sh, sealed[nonceSize:])
}

func (t *Token) unwrapRSA(sh pkcs11.SessionHandle, h pkcs11.ObjectHandle, hash string, sealed, binding []byte) ([]byte, error) {
	bound, err := t.decryptRSA(sh, h, hash, sealed)
	if err != nil {
		return nil, err
	}
	defer clear(bound)
	sum := sha256.Sum256(binding)
	if len(bound) <= len(sum) || subtle.ConstantTimeCompare(bound[:len(sum)], sum[:]) != 1 {
		return nil, link.Fail(link.StatusBadCipher, "the token does not decrypt this")
	}
	return append([]byte(nil), bound[len(sum):]...), nil
}
