package extract

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
)

// verifyMessage checks a signature as DSSE's tools make them: ECDSA in DER with the digest of the curve's size, Ed25519, RSA in
// either padding with SHA-256.
func verifyMessage(key crypto.PublicKey, message, sig []byte) bool {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(k, curveDigest(k, message), sig)
	case ed25519.PublicKey:
		return len(sig) == ed25519.SignatureSize && ed25519.Verify(k, message, sig)
	case *rsa.PublicKey:
		sum := sha256.Sum256(message)
		if rsa.VerifyPSS(k, crypto.SHA256, sum[:], sig, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto}) == nil {
			return true
		}
		return rsa.VerifyPKCS1v15(k, crypto.SHA256, sum[:], sig) == nil
	}
	return false
}

func curveDigest(k *ecdsa.PublicKey, message []byte) []byte {
	switch k.Params().BitSize {
	case 384:
		sum := sha512.Sum384(message)
		return sum[:]
	case 521:
		sum := sha512.Sum512(message)
		return sum[:]
	}
	sum := sha256.Sum256(message)
	return sum[:]
}
