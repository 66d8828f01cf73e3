// Package csv reads the evidence of Hygon CSV guests: attestation reports of both versions, the certificates of Hygon's
// own binary form, and the JSON that CoCo guests wrap them in. evidence-layouts.md section 6 has the layouts.
//
// Nothing is verified here. All structures have a fixed size, integers are little-endian, and so are the numbers of SM2,
// which come in fields of 72 bytes with 32 in use; they are handed out big-endian, as cryptography wants them.
package csv

import (
	"encoding/binary"
	"fmt"
)

// Sizes of the structures, in bytes.
const (
	RootCertSize = 832
	CertSize     = 2084
	// ChainSize is that of a hsk_cek file: the certificate of the signing key, then that of the chip.
	ChainSize = RootCertSize + CertSize

	fieldSize  = 72
	numberSize = 32
	maxUserID  = 254
	curveSM2   = 3
)

// Usage says what a key is for, and thereby its place in the chain.
type Usage uint32

// Key usages.
const (
	UsageHRK Usage = 0x0    // root
	UsageHSK Usage = 0x13   // signing key of Hygon
	UsageOCA Usage = 0x1001 // owner of the machine
	UsagePEK Usage = 0x1002 // platform, signs reports
	UsageCEK Usage = 0x1004 // chip
)

// AlgSM2 is the only signature algorithm: SM2 with SM3.
const AlgSM2 = 4

// String names the usage as Hygon does.
func (u Usage) String() string {
	switch u {
	case UsageHRK:
		return "HRK"
	case UsageHSK:
		return "HSK"
	case UsageOCA:
		return "OCA"
	case UsagePEK:
		return "PEK"
	case UsageCEK:
		return "CEK"
	}
	return fmt.Sprintf("usage %#x", uint32(u))
}

// PublicKey is a point that nobody has checked to be on the curve, with the user id that SM2 mixes into what it signs.
type PublicKey struct {
	X, Y   [numberSize]byte
	UserID []byte
}

// Signature is an SM2 signature.
type Signature struct {
	R, S [numberSize]byte
}

// RootCert is the certificate of the root or of the signing key.
type RootCert struct {
	Version   uint32
	KeyID     [16]byte
	SignerID  [16]byte
	Usage     Usage
	Key       PublicKey
	Signed    []byte // what the signature is over
	Signature Signature
}

// CertSignature is one of the two signatures of a Cert; Signer says whose.
type CertSignature struct {
	Signer    Usage
	Algorithm uint32
	Signature Signature
}

// Cert is the certificate of a chip or platform key.
type Cert struct {
	Version    uint32
	Usage      Usage
	Algorithm  uint32
	Key        PublicKey
	Signed     []byte // what the signatures are over
	Signatures [2]CertSignature
}

// ParseRootCert reads a certificate of 832 bytes. Slices point into b.
func ParseRootCert(b []byte) (*RootCert, error) {
	if len(b) != RootCertSize {
		return nil, fmt.Errorf("parsing CSV root certificate: %d bytes, expected %d", len(b), RootCertSize)
	}
	c := &RootCert{Version: u32(b, 0), Usage: Usage(u32(b, 36)), Signed: b[:576]}
	copy(c.KeyID[:], b[4:20])
	copy(c.SignerID[:], b[20:36])
	var err error
	if c.Key, err = parseKey(b[64:468]); err != nil {
		return nil, fmt.Errorf("parsing CSV root certificate: %w", err)
	}
	if c.Signature, err = parseSignature(b[576:720]); err != nil {
		return nil, fmt.Errorf("parsing CSV root certificate: %w", err)
	}
	return c, nil
}

// ParseCert reads a certificate of 2084 bytes. Slices point into b.
func ParseCert(b []byte) (*Cert, error) {
	if len(b) != CertSize {
		return nil, fmt.Errorf("parsing CSV certificate: %d bytes, expected %d", len(b), CertSize)
	}
	c := &Cert{Version: u32(b, 0), Usage: Usage(u32(b, 8)), Algorithm: u32(b, 12), Signed: b[:1044]}
	var err error
	if c.Key, err = parseKey(b[16:420]); err != nil {
		return nil, fmt.Errorf("parsing CSV certificate: %w", err)
	}
	for i := range c.Signatures {
		s := b[1044+520*i:]
		c.Signatures[i].Signer, c.Signatures[i].Algorithm = Usage(u32(s, 0)), u32(s, 4)
		if c.Signatures[i].Algorithm != AlgSM2 {
			continue // an empty place; what it holds is not looked at
		}
		if c.Signatures[i].Signature, err = parseSignature(s[8:152]); err != nil {
			return nil, fmt.Errorf("parsing CSV certificate: signature %d: %w", i+1, err)
		}
	}
	return c, nil
}

// ParseChain reads a hsk_cek file.
func ParseChain(b []byte) (*RootCert, *Cert, error) {
	if len(b) != ChainSize {
		return nil, nil, fmt.Errorf("parsing hsk_cek: %d bytes, expected %d", len(b), ChainSize)
	}
	hsk, err := ParseRootCert(b[:RootCertSize])
	if err != nil {
		return nil, nil, fmt.Errorf("parsing hsk_cek: HSK: %w", err)
	}
	cek, err := ParseCert(b[RootCertSize:])
	if err != nil {
		return nil, nil, fmt.Errorf("parsing hsk_cek: CEK: %w", err)
	}
	return hsk, cek, nil
}

// parseKey reads curve, point, and user id: 404 bytes.
func parseKey(b []byte) (PublicKey, error) {
	var k PublicKey
	if curve := u32(b, 0); curve != curveSM2 {
		return k, fmt.Errorf("curve %d, expected %d (SM2)", curve, curveSM2)
	}
	var err error
	if k.X, err = number("x", b[4:76]); err != nil {
		return k, err
	}
	if k.Y, err = number("y", b[76:148]); err != nil {
		return k, err
	}
	n := int(binary.LittleEndian.Uint16(b[148:]))
	if n > maxUserID {
		return k, fmt.Errorf("user id of %d bytes, at most %d fit", n, maxUserID)
	}
	k.UserID = b[150 : 150+n : 150+n]
	return k, nil
}

func parseSignature(b []byte) (s Signature, err error) {
	if s.R, err = number("signature r", b[:fieldSize]); err != nil {
		return s, err
	}
	s.S, err = number("signature s", b[fieldSize:2*fieldSize])
	return s, err
}

// number turns a field around. Bytes above the 32 in use would be a number no SM2 key or signature has.
func number(name string, b []byte) (n [numberSize]byte, err error) {
	for _, v := range b[numberSize:fieldSize] {
		if v != 0 {
			return n, fmt.Errorf("%s is longer than %d bytes", name, numberSize)
		}
	}
	for i := range n {
		n[i] = b[numberSize-1-i]
	}
	return n, nil
}

func u32(b []byte, off int) uint32 { return binary.LittleEndian.Uint32(b[off:]) }
