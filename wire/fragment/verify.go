package fragment

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"errors"
	"fmt"
	"math/big"
	"time"

	// The hashes of the algorithms.
	_ "crypto/sha256"
	_ "crypto/sha512"

	"github.com/cloister/cloister/wire/didx509"
)

// Verify checks that the issuer that m names has signed it: the certificate chain is the issuer's (didx509) and valid at the given time,
// and the signature of header and payload is by the key of its first certificate, made with an algorithm that fits the key.
//
// It says nothing about whether the issuer, the feed or the version are wanted: that is a policy's part. An error that wraps
// didx509.ErrExpired is of a fragment of which all is right but the time: signer and policy may have agreed that this is no matter,
// since versions, not dates, take fragments back, and the host sets a guest's clock.
func (m *Message) Verify(at time.Time) error {
	if err := m.signed(); err != nil {
		return fmt.Errorf("verifying a policy fragment: %w", err)
	}
	name, err := didx509.Parse(m.Issuer)
	if err == nil {
		err = name.Resolve(m.Chain, at)
	}
	if err != nil {
		return fmt.Errorf("verifying a policy fragment: %w", err)
	}
	return nil
}

var errSignature = errors.New("the signature is wrong")

// minRSABits is the smallest RSA key whose signatures are accepted.
const minRSABits = 2048

func (m *Message) signed() error {
	hash, kind, err := m.Algorithm.needs()
	if err != nil {
		return err
	}
	message := toBeSigned(m.protected, m.Payload)
	switch key := m.Chain[0].PublicKey.(type) {
	case *ecdsa.PublicKey:
		if kind != kindECDSA || key.Curve == elliptic.P224() {
			break
		}
		// COSE does not tie the hash to the curve (RFC 9053, section 2.1), and not all signers do.
		size := (key.Curve.Params().BitSize + 7) / 8
		if len(m.signature) != 2*size {
			return errSignature
		}
		r, s := new(big.Int).SetBytes(m.signature[:size]), new(big.Int).SetBytes(m.signature[size:])
		if !ecdsa.Verify(key, digest(hash, message), r, s) {
			return errSignature
		}
		return nil
	case *rsa.PublicKey:
		if kind != kindPSS {
			break
		}
		if key.N.BitLen() < minRSABits {
			return fmt.Errorf("the signer's RSA key has %d bits, want %d or more", key.N.BitLen(), minRSABits)
		}
		if rsa.VerifyPSS(key, hash, digest(hash, message), m.signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) != nil {
			return errSignature
		}
		return nil
	case ed25519.PublicKey:
		if kind != kindEd25519 {
			break
		}
		if !ed25519.Verify(key, message, m.signature) {
			return errSignature
		}
		return nil
	}
	return fmt.Errorf("%s is no algorithm for the signer's key (%T)", m.Algorithm, m.Chain[0].PublicKey)
}

type keyKind int

const (
	kindECDSA keyKind = iota
	kindPSS
	kindEd25519
)

// needs gives the hash of an algorithm and the kind of key that it is for.
func (a Algorithm) needs() (crypto.Hash, keyKind, error) {
	switch a {
	case ES256:
		return crypto.SHA256, kindECDSA, nil
	case ES384:
		return crypto.SHA384, kindECDSA, nil
	case ES512:
		return crypto.SHA512, kindECDSA, nil
	case PS256:
		return crypto.SHA256, kindPSS, nil
	case PS384:
		return crypto.SHA384, kindPSS, nil
	case PS512:
		return crypto.SHA512, kindPSS, nil
	case EdDSA:
		return 0, kindEd25519, nil
	}
	return 0, 0, fmt.Errorf("%s is not accepted", a)
}

func digest(h crypto.Hash, message []byte) []byte {
	d := h.New()
	d.Write(message)
	return d.Sum(nil)
}
