package sealedsecret

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// ParsePrivate reads a private key in PEM, as `cloister key new --type signing` and OpenSSL write it. Errors do not quote it.
func ParsePrivate(text []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("the key is not PEM")
	}
	var key any
	var err error
	switch block.Type {
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	default:
		return nil, fmt.Errorf("the key is a PEM block %.40q, want \"PRIVATE KEY\"", block.Type)
	}
	if err != nil {
		return nil, errors.New("the key cannot be read") // the reason could quote it
	}
	private, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, ErrCurve
	}
	return private, nil
}

// ParsePublic reads a public key in PEM, or takes it from a private one.
func ParsePublic(text []byte) (*ecdsa.PublicKey, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "PUBLIC KEY" {
		private, err := ParsePrivate(text)
		if err != nil {
			return nil, err
		}
		return &private.PublicKey, nil
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("reading the public key: %w", err)
	}
	public, ok := key.(*ecdsa.PublicKey)
	if !ok {
		return nil, ErrCurve
	}
	return public, nil
}
