// Package tpm parses and checks the TPM 2.0 structures that cross a trust
// boundary: quotes (TPMS_ATTEST), their signatures (TPMT_SIGNATURE), public
// areas of keys (TPMT_PUBLIC), PCR digests, and the credential challenge that
// ties an attestation key to an endorsement key.
//
// It does no I/O and holds no policy. Parsers are strict: every length is
// checked against what is left before it is used, and bytes left over are an
// error. Layouts follow TPM 2.0 Library part 2; integers are big-endian.
package tpm

import (
	"crypto"
	_ "crypto/sha1"   // links SHA-1 for reading old PCR banks; never accepted in a signature
	_ "crypto/sha256" // links SHA-256
	_ "crypto/sha512" // links SHA-384 and SHA-512
	"fmt"
)

// Alg is a TPM_ALG_ID.
type Alg uint16

// Algorithm identifiers this package understands.
const (
	AlgRSA    Alg = 0x0001
	AlgSHA1   Alg = 0x0004
	AlgSHA256 Alg = 0x000B
	AlgSHA384 Alg = 0x000C
	AlgSHA512 Alg = 0x000D
	AlgNull   Alg = 0x0010
	AlgSM3    Alg = 0x0012
	AlgRSASSA Alg = 0x0014
	AlgRSAES  Alg = 0x0015
	AlgRSAPSS Alg = 0x0016
	AlgOAEP   Alg = 0x0017
	AlgECDSA  Alg = 0x0018
	AlgECDAA  Alg = 0x001A
	AlgECC    Alg = 0x0023
)

// String names the algorithm as TPM tools do, or gives its number.
func (a Alg) String() string {
	switch a {
	case AlgRSA:
		return "rsa"
	case AlgSHA1:
		return "sha1"
	case AlgSHA256:
		return "sha256"
	case AlgSHA384:
		return "sha384"
	case AlgSHA512:
		return "sha512"
	case AlgNull:
		return "null"
	case AlgSM3:
		return "sm3"
	case AlgRSASSA:
		return "rsassa"
	case AlgRSAES:
		return "rsaes"
	case AlgRSAPSS:
		return "rsapss"
	case AlgOAEP:
		return "oaep"
	case AlgECDSA:
		return "ecdsa"
	case AlgECDAA:
		return "ecdaa"
	case AlgECC:
		return "ecc"
	}
	return fmt.Sprintf("0x%04x", uint16(a))
}

// Hash returns the Go hash of a hash algorithm. ok is false for algorithms
// that are not hashes or have no implementation here.
func (a Alg) Hash() (h crypto.Hash, ok bool) {
	switch a {
	case AlgSHA1:
		return crypto.SHA1, true
	case AlgSHA256:
		return crypto.SHA256, true
	case AlgSHA384:
		return crypto.SHA384, true
	case AlgSHA512:
		return crypto.SHA512, true
	}
	return 0, false
}
