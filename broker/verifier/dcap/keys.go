package dcap

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
)

// pointKey reads a P-256 key from x ‖ y, 64 bytes big-endian. A point off the curve is an error.
func pointKey(xy []byte) (*ecdsa.PublicKey, error) {
	return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append([]byte{4}, xy...))
}

// p256Key returns the key of a certificate; Intel's are all on P-256.
func p256Key(c *x509.Certificate) (*ecdsa.PublicKey, error) {
	key, ok := c.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("certificate of %q has a key of type %v, expected EC P-256", c.Subject.CommonName, c.PublicKeyAlgorithm)
	}
	return key, nil
}

// verifyRaw checks r ‖ s, 64 bytes big-endian, over the SHA-256 of message.
func verifyRaw(key *ecdsa.PublicKey, message, signature []byte) bool {
	if len(signature) != 64 {
		return false
	}
	digest := sha256.Sum256(message)
	r, s := new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])
	return ecdsa.Verify(key, digest[:], r, s)
}

// verifyHex checks a signature as collateral writes it: 128 hexadecimal digits.
func verifyHex(key *ecdsa.PublicKey, message []byte, text string) error {
	if len(text) != 128 {
		return fmt.Errorf("signature has %d characters, expected 128 hexadecimal digits", len(text))
	}
	sig, err := hex.DecodeString(text)
	if err != nil {
		return fmt.Errorf("reading signature: %w", err)
	}
	if !verifyRaw(key, message, sig) {
		return errors.New("signature is not by the TCB signing key")
	}
	return nil
}
