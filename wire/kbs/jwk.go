package kbs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"strings"
)

// Key management algorithms of a JWK and of the reply encrypted to it.
const (
	AlgECDHES  = "ECDH-ES+A256KW"
	AlgRSAOAEP = "RSA-OAEP-256"
	// AlgRSA15 is deprecated; it is used only where a caller allows it by name.
	AlgRSA15 = "RSA1_5"
)

const (
	minRSABytes = 2048 / 8
	maxRSABytes = 8192 / 8
)

// JWK is a guest's public key. Exactly the members of its key type are set: any
// other member would change the digest that the evidence is bound to.
type JWK struct {
	Kty string `json:"kty"`
	Alg string `json:"alg"`
	Crv string `json:"crv,omitempty"`
	X   string `json:"x,omitempty"`
	Y   string `json:"y,omitempty"`
	N   string `json:"n,omitempty"`
	E   string `json:"e,omitempty"`
}

// NewJWK describes an *ecdsa.PublicKey on P-256 or P-521, or an *rsa.PublicKey.
func NewJWK(pub crypto.PublicKey) (JWK, error) {
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		crv, size, err := curveName(pub.Curve)
		if err != nil {
			return JWK{}, err
		}
		point, err := pub.Bytes()
		if err != nil {
			return JWK{}, fmt.Errorf("describing the public key: %w", err)
		}
		return JWK{
			Kty: "EC", Alg: AlgECDHES, Crv: crv,
			X: b64(point[1 : 1+size]), Y: b64(point[1+size:]),
		}, nil
	case *rsa.PublicKey:
		if n := pub.Size(); n < minRSABytes || n > maxRSABytes {
			return JWK{}, fmt.Errorf("describing the public key: RSA key has %d bits, expected %d to %d", n*8, minRSABytes*8, maxRSABytes*8)
		}
		return JWK{
			Kty: "RSA", Alg: AlgRSAOAEP,
			N: b64(pub.N.Bytes()), E: b64(big.NewInt(int64(pub.E)).Bytes()),
		}, nil
	default:
		return JWK{}, fmt.Errorf("describing the public key: type %T is not supported", pub)
	}
}

// PublicKey is the key as *ecdsa.PublicKey or *rsa.PublicKey. Coordinates must
// have the full length of the curve, numbers no leading zero.
func (k JWK) PublicKey() (crypto.PublicKey, error) {
	switch k.Kty {
	case "EC":
		return k.ecKey()
	case "RSA":
		return k.rsaKey()
	default:
		return nil, fmt.Errorf("reading the public key: kty is %q, expected EC or RSA", k.Kty)
	}
}

func (k JWK) ecKey() (*ecdsa.PublicKey, error) {
	if k.Alg != AlgECDHES {
		return nil, fmt.Errorf("reading the public key: alg is %q, expected %q for an EC key", k.Alg, AlgECDHES)
	}
	return parsePoint(k.Crv, k.X, k.Y)
}

func (k JWK) rsaKey() (*rsa.PublicKey, error) {
	if k.Alg != AlgRSAOAEP && k.Alg != AlgRSA15 {
		return nil, fmt.Errorf("reading the public key: alg is %q, expected %q for an RSA key", k.Alg, AlgRSAOAEP)
	}
	n, err := unb64("n", k.N, maxRSABytes)
	if err != nil {
		return nil, fmt.Errorf("reading the public key: %w", err)
	}
	if len(n) < minRSABytes || n[0] == 0 || n[len(n)-1]&1 == 0 {
		return nil, fmt.Errorf("reading the public key: n is no RSA modulus of at least %d bits", minRSABytes*8)
	}
	e, err := unb64("e", k.E, 4)
	if err != nil {
		return nil, fmt.Errorf("reading the public key: %w", err)
	}
	exponent := int64(0)
	for _, b := range e {
		exponent = exponent<<8 | int64(b)
	}
	if len(e) == 0 || e[0] == 0 || exponent < 3 || exponent&1 == 0 || exponent > 1<<31-1 {
		return nil, errors.New("reading the public key: e is no RSA exponent")
	}
	return &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: int(exponent)}, nil
}

func parsePoint(crv, x, y string) (*ecdsa.PublicKey, error) {
	curve, size, err := curveByName(crv)
	if err != nil {
		return nil, err
	}
	point := []byte{4}
	for _, c := range []struct{ name, text string }{{"x", x}, {"y", y}} {
		raw, err := unb64(c.name, c.text, size)
		if err != nil {
			return nil, fmt.Errorf("reading the public key: %w", err)
		}
		if len(raw) != size {
			return nil, fmt.Errorf("reading the public key: %s has %d bytes, expected %d for %s", c.name, len(raw), size, crv)
		}
		point = append(point, raw...)
	}
	key, err := ecdsa.ParseUncompressedPublicKey(curve, point)
	if err != nil {
		return nil, fmt.Errorf("reading the public key: %w", err)
	}
	return key, nil
}

func curveByName(crv string) (elliptic.Curve, int, error) {
	switch crv {
	case "P-256":
		return elliptic.P256(), 32, nil
	case "P-521":
		return elliptic.P521(), 66, nil
	default:
		return nil, 0, fmt.Errorf("reading the public key: crv is %q, expected P-256 or P-521", crv)
	}
}

func curveName(c elliptic.Curve) (string, int, error) {
	switch c {
	case elliptic.P256():
		return "P-256", 32, nil
	case elliptic.P521():
		return "P-521", 66, nil
	default:
		return "", 0, errors.New("describing the public key: the curve is not P-256 or P-521")
	}
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// unb64 decodes unpadded URL-safe base64 of at most limit bytes. The decoder of
// the standard library skips line breaks; here they are refused.
func unb64(name, s string, limit int) ([]byte, error) {
	if n := base64.RawURLEncoding.DecodedLen(len(s)); n > limit {
		return nil, fmt.Errorf("%s has %d bytes, more than %d", name, n, limit)
	}
	if strings.ContainsAny(s, "\r\n") {
		return nil, fmt.Errorf("%s is not unpadded URL-safe base64", name)
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil {
		return nil, fmt.Errorf("%s is not unpadded URL-safe base64: %w", name, err)
	}
	return b, nil
}
