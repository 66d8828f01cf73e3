package tpm

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/binary"
	"fmt"
	"math/big"
	"strings"
)

// Attributes is a TPMA_OBJECT.
type Attributes uint32

// Attributes of a key that say what its TPM will and will not do with it.
const (
	AttrFixedTPM            Attributes = 1 << 1
	AttrFixedParent         Attributes = 1 << 4
	AttrSensitiveDataOrigin Attributes = 1 << 5
	AttrUserWithAuth        Attributes = 1 << 6
	AttrAdminWithPolicy     Attributes = 1 << 7
	AttrNoDA                Attributes = 1 << 10
	AttrRestricted          Attributes = 1 << 16
	AttrDecrypt             Attributes = 1 << 17
	AttrSign                Attributes = 1 << 18
)

// Scheme is an asymmetric scheme with its hash; AlgNull when the key has none.
type Scheme struct {
	Scheme Alg
	Hash   Alg
}

// Public is the public area of an RSA or ECC key.
type Public struct {
	Type       Alg
	NameAlg    Alg
	Attributes Attributes
	AuthPolicy []byte
	Scheme     Scheme
	Key        crypto.PublicKey // *rsa.PublicKey or *ecdsa.PublicKey

	raw []byte
}

// ParsePublic reads a marshalled TPMT_PUBLIC.
func ParsePublic(b []byte) (*Public, error) {
	r := newReader("TPMT_PUBLIC", b)
	p := &Public{
		Type:       Alg(r.u16("type")),
		NameAlg:    Alg(r.u16("name algorithm")),
		Attributes: Attributes(r.u32("attributes")),
		AuthPolicy: r.sized("auth policy", 64),
		raw:        append([]byte(nil), b...),
	}
	if _, ok := p.NameAlg.Hash(); r.err == nil && !ok {
		r.fail("name algorithm is %v, expected a SHA hash", p.NameAlg)
	}
	switch {
	case r.err != nil:
	case p.Type == AlgRSA:
		p.rsaParams(r)
	case p.Type == AlgECC:
		p.eccParams(r)
	default:
		r.fail("key type is %v, expected rsa or ecc", p.Type)
	}
	if err := r.end(); err != nil {
		return nil, err
	}
	return p, nil
}

// ParsePublic2B reads a TPM2B_PUBLIC: a size and the TPMT_PUBLIC.
func ParsePublic2B(b []byte) (*Public, error) {
	if len(b) < 2 {
		return nil, fmt.Errorf("parsing TPM2B_PUBLIC: %d bytes, expected at least 2", len(b))
	}
	if n := int(binary.BigEndian.Uint16(b)); n != len(b)-2 {
		return nil, fmt.Errorf("parsing TPM2B_PUBLIC: size field says %d, %d bytes follow", n, len(b)-2)
	}
	return ParsePublic(b[2:])
}

func (p *Public) rsaParams(r *reader) {
	r.symmetric()
	p.Scheme = r.scheme()
	bits := int(r.u16("key bits"))
	exp := r.u32("exponent")
	n := r.sized("modulus", maxRSABytes)
	if r.err != nil {
		return
	}
	if exp == 0 {
		exp = 65537 // the TPM writes its default exponent as zero
	}
	if exp < 3 || exp%2 == 0 || exp > 1<<31-1 {
		r.fail("RSA exponent is %d", exp)
		return
	}
	key := &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: int(exp)}
	if key.N.BitLen() != bits {
		r.fail("RSA modulus has %d bits, key bits says %d", key.N.BitLen(), bits)
		return
	}
	p.Key = key
}

func (p *Public) eccParams(r *reader) {
	r.symmetric()
	p.Scheme = r.scheme()
	id := r.u16("curve")
	if kdf := Alg(r.u16("KDF")); r.err == nil && kdf != AlgNull {
		r.u16("KDF hash")
	}
	x, y := r.sized("x", maxECCBytes), r.sized("y", maxECCBytes)
	if r.err != nil {
		return
	}
	curve := map[uint16]elliptic.Curve{3: elliptic.P256(), 4: elliptic.P384(), 5: elliptic.P521()}[id]
	if curve == nil {
		r.fail("curve is 0x%04x, expected P-256, P-384 or P-521", id)
		return
	}
	size := (curve.Params().BitSize + 7) / 8
	if len(x) > size || len(y) > size {
		r.fail("coordinates are %d and %d bytes, expected at most %d", len(x), len(y), size)
		return
	}
	point := make([]byte, 1+2*size)
	point[0] = 4 // uncompressed
	copy(point[1+size-len(x):], x)
	copy(point[1+2*size-len(y):], y)
	key, err := ecdsa.ParseUncompressedPublicKey(curve, point)
	if err != nil {
		r.fail("point is not on curve %s", curve.Params().Name)
		return
	}
	p.Key = key
}

func (r *reader) symmetric() {
	if alg := Alg(r.u16("symmetric algorithm")); r.err == nil && alg != AlgNull {
		r.u16("symmetric key bits")
		r.u16("symmetric mode")
	}
}

func (r *reader) scheme() Scheme {
	s := Scheme{Scheme: Alg(r.u16("scheme")), Hash: AlgNull}
	switch {
	case r.err != nil, s.Scheme == AlgNull, s.Scheme == AlgRSAES:
	case s.Scheme == AlgECDAA:
		s.Hash = Alg(r.u16("scheme hash"))
		r.u16("scheme count")
	default:
		s.Hash = Alg(r.u16("scheme hash"))
	}
	return s
}

// Bytes returns the marshalled TPMT_PUBLIC the key was parsed from.
func (p *Public) Bytes() []byte { return append([]byte(nil), p.raw...) }

// Name is the TPM name of the key: its name algorithm and the digest of its
// public area. A credential made for a name can only be opened beside that key.
func (p *Public) Name() []byte {
	h, _ := p.NameAlg.Hash() // checked when parsed
	d := h.New()
	d.Write(p.raw)
	return d.Sum(binary.BigEndian.AppendUint16(nil, uint16(p.NameAlg)))
}

// CheckAttestationKey reports why a key cannot be trusted to sign quotes: it
// must live in one TPM, have been made there, and sign only what the TPM itself
// produced (restricted).
func (p *Public) CheckAttestationKey() error {
	var wrong []string
	for _, want := range []struct {
		bit  Attributes
		name string
		set  bool
	}{
		{AttrFixedTPM, "fixedTPM", true},
		{AttrFixedParent, "fixedParent", true},
		{AttrSensitiveDataOrigin, "sensitiveDataOrigin", true},
		{AttrRestricted, "restricted", true},
		{AttrSign, "sign", true},
		{AttrDecrypt, "decrypt", false},
	} {
		if got := p.Attributes&want.bit != 0; got != want.set {
			wrong = append(wrong, fmt.Sprintf("%s is %t, expected %t", want.name, got, want.set))
		}
	}
	if p.NameAlg == AlgSHA1 {
		wrong = append(wrong, "name algorithm is sha1, expected sha256 or stronger")
	}
	if len(wrong) > 0 {
		return fmt.Errorf("key is no attestation key: %s", strings.Join(wrong, "; "))
	}
	return nil
}
