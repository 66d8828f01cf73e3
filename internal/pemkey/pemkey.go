// Package pemkey reads the keys that people keep in PEM files, as this program, OpenSSL and others write them. Errors do not quote a key.
package pemkey

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
)

// maxText bounds a file of keys, in bytes.
const maxText = 1 << 20

// Private is the first private key of a PEM text: PKCS #8, SEC 1 or PKCS #1, without a password. Other blocks before it, such as the
// parameters of a curve, are passed over.
func Private(text []byte) (crypto.Signer, error) {
	key, err := first(text, "private key", privateKey)
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a key of type %T does not sign", key)
	}
	return signer, nil
}

// Public is the first public key of a PEM text, SubjectPublicKeyInfo, or that of its first private key.
func Public(text []byte) (crypto.PublicKey, error) {
	key, err := first(text, "key", func(b *pem.Block) (any, error) {
		if b.Type == "PUBLIC KEY" {
			return x509.ParsePKIXPublicKey(b.Bytes)
		}
		return privateKey(b)
	})
	if err != nil {
		return nil, err
	}
	if signer, ok := key.(crypto.Signer); ok {
		return signer.Public(), nil
	}
	return key, nil
}

// errOther says that a block is none of those that are looked for.
var errOther = errors.New("another block")

// first reads the first block that read knows.
func first(text []byte, what string, read func(*pem.Block) (any, error)) (any, error) {
	if len(text) > maxText {
		return nil, fmt.Errorf("a text of %d bytes is no %s, the limit is %d", len(text), what, maxText)
	}
	var others []string
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			break
		}
		text = rest
		if strings.Contains(block.Type, "ENCRYPTED") || strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED") {
			return nil, errors.New("the key is encrypted with a password, which is not supported")
		}
		key, err := read(block)
		switch {
		case err == nil:
			return key, nil
		case !errors.Is(err, errOther):
			return nil, errors.New("the key is damaged, or of a kind that is not known") // the reason could quote it
		}
		if len(others) < 3 {
			others = append(others, fmt.Sprintf("%.40q", block.Type))
		}
	}
	if len(others) > 0 {
		return nil, fmt.Errorf("there is no %s, but %s", what, strings.Join(others, ", "))
	}
	return nil, fmt.Errorf("there is no %s in PEM", what)
}

func privateKey(b *pem.Block) (any, error) {
	switch b.Type {
	case "PRIVATE KEY":
		return x509.ParsePKCS8PrivateKey(b.Bytes)
	case "EC PRIVATE KEY":
		return x509.ParseECPrivateKey(b.Bytes)
	case "RSA PRIVATE KEY":
		return x509.ParsePKCS1PrivateKey(b.Bytes)
	}
	return nil, errOther
}
