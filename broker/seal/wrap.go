package seal

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
)

// Wrapper protects storage keys with a key that stays elsewhere: in the key management service of a cloud, in Vault, in
// an HSM. The package seal/kms has the list of them.
//
// Wrap must be authenticated: nobody without the right to wrap can make what Unwrap takes. The context is not secret; a
// Wrapper binds it if it can, and Keys does so in any case.
type Wrapper interface {
	// Name says which key of which service it is, such as "aws-kms:arn:aws:kms:…". It is kept beside what was wrapped.
	Name() string
	// Wrap encrypts at most 64 bytes.
	Wrap(ctx context.Context, plaintext, context []byte) ([]byte, error)
	// Unwrap returns what was wrapped for the same context.
	Unwrap(ctx context.Context, wrapped, context []byte) ([]byte, error)
}

// identityContext binds wrapped keys to the brokers that share an identity.
func identityContext(identity string) []byte {
	return append([]byte("cloister storage key 1\x00"), identity...)
}

// wrapKey wraps a key with a digest of the context, so that the key is bound to it even by a service that leaves the
// context out. What comes back is unwrapped once: a service that encrypts but does not decrypt must not get our only key.
func wrapKey(ctx context.Context, w Wrapper, identity string, raw []byte) ([]byte, error) {
	bound := identityContext(identity)
	sum := sha256.Sum256(bound)
	plain := append(append(make([]byte, 0, keySize+len(sum)), raw...), sum[:]...)
	defer clear(plain)
	wrapped, err := w.Wrap(ctx, plain, bound)
	if err != nil {
		return nil, fmt.Errorf("wrapping a storage key with %s: %w", w.Name(), err)
	}
	if len(wrapped) == 0 || len(wrapped) > maxWrapped {
		return nil, fmt.Errorf("wrapping a storage key with %s: it became %d bytes, want 1 to %d", w.Name(), len(wrapped), maxWrapped)
	}
	back, err := unwrapKey(ctx, w, identity, wrapped)
	if err != nil {
		return nil, fmt.Errorf("trying whether a wrapped storage key can be read: %w", err)
	}
	defer clear(back)
	if subtle.ConstantTimeCompare(back, raw) != 1 {
		return nil, fmt.Errorf("%s unwraps another storage key than it wrapped", w.Name())
	}
	return wrapped, nil
}

func unwrapKey(ctx context.Context, w Wrapper, identity string, wrapped []byte) ([]byte, error) {
	bound := identityContext(identity)
	plain, err := w.Unwrap(ctx, wrapped, bound)
	if err != nil {
		return nil, fmt.Errorf("unwrapping a storage key with %s: %w", w.Name(), err)
	}
	defer clear(plain)
	sum := sha256.Sum256(bound)
	if len(plain) != keySize+len(sum) {
		return nil, fmt.Errorf("what %s unwraps has %d bytes and is no storage key", w.Name(), len(plain))
	}
	if subtle.ConstantTimeCompare(plain[keySize:], sum[:]) != 1 {
		return nil, fmt.Errorf("the storage key was wrapped for brokers with another identity than %q", identity)
	}
	return append([]byte(nil), plain[:keySize]...), nil
}

// keyFile is a Wrapper whose key is in a file.
type keyFile struct {
	path string
	key  *Key
}

// KeyFile makes a Wrapper whose key is in a file of 32 bytes and mode 0600, which has to exist: brokers that share a
// database each have a copy of it.
func KeyFile(path string) (Wrapper, error) {
	k, err := load(path)
	if err != nil {
		return nil, err
	}
	return &keyFile{path, k}, nil
}

// Name does not hold the path, which may differ among brokers.
func (f *keyFile) Name() string { return "key-file:" + f.key.ID() }

func (f *keyFile) Wrap(_ context.Context, plaintext, context []byte) ([]byte, error) {
	return f.key.Seal(string(context), plaintext)
}

func (f *keyFile) Unwrap(_ context.Context, wrapped, context []byte) ([]byte, error) {
	plain, err := f.key.Open(string(context), wrapped)
	if err != nil {
		return nil, errors.New("it was not wrapped with this key, or for brokers with another identity")
	}
	return plain, nil
}
