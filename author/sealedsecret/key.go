package sealedsecret

import (
	"crypto/ecdsa"

	"github.com/cloister/cloister/internal/pemkey"
)

// ParsePrivate reads a private key in PEM, as `cloister key new --type signing` and OpenSSL write it. Errors do not quote it.
func ParsePrivate(text []byte) (*ecdsa.PrivateKey, error) {
	key, err := pemkey.Private(text)
	if err != nil {
		return nil, err
	}
	private, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, ErrCurve
	}
	return private, nil
}

// ParsePublic reads a public key in PEM, or takes it from a private one.
func ParsePublic(text []byte) (*ecdsa.PublicKey, error) {
	key, err := pemkey.Public(text)
	if err != nil {
		return nil, err
	}
	public, ok := key.(*ecdsa.PublicKey)
	if !ok {
		return nil, ErrCurve
	}
	return public, nil
}
