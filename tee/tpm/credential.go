package tpm

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// MaxCredential is the longest secret a credential can carry: the size of the
// endorsement key's name digest.
const MaxCredential = 32

// MakeCredential encrypts secret so that only the TPM holding the endorsement
// key ekPub, beside a key named akName, can recover it (TPM2_ActivateCredential).
//
// ekPub is the key of a verified endorsement certificate. The other parameters
// of the endorsement key are those of the TCG default templates (RSA-2048 or
// ECC P-256, SHA-256, AES-128-CFB), so nothing the guest says about its
// endorsement key has to be believed.
//
// credentialBlob is the TPMS_ID_OBJECT and encryptedSecret the contents of the
// TPM2B_ENCRYPTED_SECRET, both without the outer 16-bit size.
func MakeCredential(ekPub crypto.PublicKey, akName, secret []byte) (credentialBlob, encryptedSecret []byte, err error) {
	if len(secret) == 0 || len(secret) > MaxCredential {
		return nil, nil, fmt.Errorf("making credential: secret is %d bytes, expected 1 to %d", len(secret), MaxCredential)
	}
	if len(akName) < 2+20 || len(akName) > maxName {
		return nil, nil, fmt.Errorf("making credential: name is %d bytes, expected a name algorithm and a digest", len(akName))
	}
	public, err := endorsementPublic(ekPub)
	if err != nil {
		return nil, nil, fmt.Errorf("making credential: %w", err)
	}
	ek, err := tpm2.ImportEncapsulationKey(public)
	if err != nil {
		return nil, nil, fmt.Errorf("making credential: importing endorsement key: %w", err)
	}
	credentialBlob, encryptedSecret, err = tpm2.CreateCredential(rand.Reader, ek, akName, secret)
	if err != nil {
		return nil, nil, fmt.Errorf("making credential: %w", err)
	}
	return credentialBlob, encryptedSecret, nil
}

// endorsementPublic puts ekPub into the TCG default endorsement key template.
func endorsementPublic(ekPub crypto.PublicKey) (*tpm2.TPMTPublic, error) {
	switch key := ekPub.(type) {
	case *rsa.PublicKey:
		if key.N.BitLen() != 2048 || key.E != 65537 {
			return nil, fmt.Errorf("endorsement key is RSA-%d with exponent %d, expected RSA-2048 with 65537", key.N.BitLen(), key.E)
		}
		public := tpm2.RSAEKTemplate
		public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: key.N.FillBytes(make([]byte, 256))})
		return &public, nil
	case *ecdsa.PublicKey:
		if key.Curve != elliptic.P256() {
			return nil, fmt.Errorf("endorsement key is on curve %s, expected P-256", key.Curve.Params().Name)
		}
		point, err := key.Bytes() // 4 ‖ x ‖ y
		if err != nil {
			return nil, fmt.Errorf("endorsement key: %w", err)
		}
		public := tpm2.ECCEKTemplate
		public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: point[1:33]},
			Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
		})
		return &public, nil
	default:
		return nil, fmt.Errorf("endorsement key is a %T, expected RSA-2048 or ECDSA P-256", ekPub)
	}
}
