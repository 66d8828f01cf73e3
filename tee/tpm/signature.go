package tpm

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"errors"
	"fmt"
	"math/big"
)

const (
	maxRSABytes = 512 // 4096-bit keys
	maxECCBytes = 66  // P-521
	minRSABits  = 2048
)

// Signature is a TPMT_SIGNATURE of one of the schemes quotes are made with.
type Signature struct {
	Scheme Alg // AlgRSASSA, AlgRSAPSS or AlgECDSA
	Hash   Alg
	RSA    []byte // RSASSA and RSAPSS
	R, S   []byte // ECDSA, big-endian
}

// ParseSignature reads a marshalled TPMT_SIGNATURE.
func ParseSignature(b []byte) (*Signature, error) {
	r := newReader("TPMT_SIGNATURE", b)
	s := &Signature{Scheme: Alg(r.u16("scheme"))}
	switch {
	case r.err != nil:
	case s.Scheme == AlgRSASSA, s.Scheme == AlgRSAPSS:
		s.Hash = Alg(r.u16("hash"))
		s.RSA = r.sized("RSA signature", maxRSABytes)
	case s.Scheme == AlgECDSA:
		s.Hash = Alg(r.u16("hash"))
		s.R = r.sized("ECDSA r", maxECCBytes)
		s.S = r.sized("ECDSA s", maxECCBytes)
	default:
		r.fail("scheme is %v, expected rsassa, rsapss or ecdsa", s.Scheme)
	}
	if err := r.end(); err != nil {
		return nil, err
	}
	return s, nil
}

// ErrBadSignature means that a signature does not verify under the key given.
var ErrBadSignature = errors.New("signature does not verify under this key")

// VerifySignature checks sig over message. SHA-1 signatures and RSA keys below
// 2048 bits are refused.
func VerifySignature(pub crypto.PublicKey, message []byte, sig *Signature) error {
	h, ok := sig.Hash.Hash()
	if !ok || sig.Hash == AlgSHA1 {
		return fmt.Errorf("verifying TPM signature: hash is %v, expected sha256, sha384 or sha512", sig.Hash)
	}
	d := h.New()
	d.Write(message)
	digest := d.Sum(nil)

	switch key := pub.(type) {
	case *rsa.PublicKey:
		return verifyRSA(key, h, digest, sig)
	case *ecdsa.PublicKey:
		if sig.Scheme != AlgECDSA {
			return fmt.Errorf("verifying TPM signature: scheme is %v, expected ecdsa for an ECC key", sig.Scheme)
		}
		if !ecdsa.Verify(key, digest, new(big.Int).SetBytes(sig.R), new(big.Int).SetBytes(sig.S)) {
			return fmt.Errorf("verifying TPM signature (ecdsa, %v): %w", sig.Hash, ErrBadSignature)
		}
		return nil
	default:
		return fmt.Errorf("verifying TPM signature: key is a %T, expected RSA or ECDSA", pub)
	}
}

func verifyRSA(key *rsa.PublicKey, h crypto.Hash, digest []byte, sig *Signature) error {
	if bits := key.N.BitLen(); bits < minRSABits {
		return fmt.Errorf("verifying TPM signature: RSA key has %d bits, expected at least %d", bits, minRSABits)
	}
	var err error
	switch sig.Scheme {
	case AlgRSASSA:
		err = rsa.VerifyPKCS1v15(key, h, digest, sig.RSA)
	case AlgRSAPSS:
		// TPMs use a salt of the digest's size or the longest that fits, by revision.
		err = rsa.VerifyPSS(key, h, digest, sig.RSA, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto})
	default:
		return fmt.Errorf("verifying TPM signature: scheme is %v, expected rsassa or rsapss for an RSA key", sig.Scheme)
	}
	if err != nil {
		return fmt.Errorf("verifying TPM signature (%v, %v): %w", sig.Scheme, sig.Hash, ErrBadSignature)
	}
	return nil
}
