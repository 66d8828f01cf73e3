package eventlog

import (
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"hash"
)

// Alg is the TPM_ALG_ID of a hash.
type Alg uint16

// Hash algorithms that logs are written with.
const (
	SHA1   Alg = 0x0004
	SHA256 Alg = 0x000B
	SHA384 Alg = 0x000C
	SHA512 Alg = 0x000D
	SM3    Alg = 0x0012
)

// String names the algorithm in lower case without a dash.
func (a Alg) String() string {
	switch a {
	case SHA1:
		return "sha1"
	case SHA256:
		return "sha256"
	case SHA384:
		return "sha384"
	case SHA512:
		return "sha512"
	case SM3:
		return "sm3"
	}
	return fmt.Sprintf("0x%04x", uint16(a))
}

// New returns a hash of this algorithm, or nil when it is unknown.
func (a Alg) New() hash.Hash {
	switch a {
	case SHA1:
		return sha1.New()
	case SHA256:
		return sha256.New()
	case SHA384:
		return sha512.New384()
	case SHA512:
		return sha512.New()
	case SM3:
		return newSM3()
	}
	return nil
}

// Sum hashes data, or returns nil when the algorithm is unknown.
func (a Alg) Sum(data ...[]byte) []byte {
	h := a.New()
	if h == nil {
		return nil
	}
	for _, d := range data {
		h.Write(d)
	}
	return h.Sum(nil)
}
