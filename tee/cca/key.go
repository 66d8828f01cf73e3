package cca

import (
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"
)

// Point is an EC point that nobody has checked to be on its curve.
type Point struct {
	Curve        string // as in a JWK: P-256, P-384, P-521
	Uncompressed []byte
}

// KeyPoint reads the realm's key: a raw uncompressed point in tokens of the older form, a COSE_Key in those with a profile.
func (r *Realm) KeyPoint() (Point, error) {
	p, err := r.keyPoint()
	if err != nil {
		return Point{}, fmt.Errorf("parsing the realm's public key: %w", err)
	}
	return p, nil
}

func (r *Realm) keyPoint() (Point, error) {
	if r.Profile == "" {
		for _, c := range curves {
			if len(r.PublicKey) == 1+2*c.size && r.PublicKey[0] == 4 {
				return Point{c.name, r.PublicKey}, nil
			}
		}
		return Point{}, fmt.Errorf("%d bytes are not an uncompressed point of P-256, P-384 or P-521", len(r.PublicKey))
	}
	dec, err := decoder()
	if err != nil {
		return Point{}, err
	}
	var k struct {
		Type  int64           `cbor:"1,keyasint"`
		Curve int64           `cbor:"-1,keyasint"`
		X     []byte          `cbor:"-2,keyasint"`
		Y     cbor.RawMessage `cbor:"-3,keyasint"`
		D     cbor.RawMessage `cbor:"-4,keyasint"`
	}
	if err := dec.Unmarshal(r.PublicKey, &k); err != nil {
		return Point{}, err
	}
	if k.Type != 2 {
		return Point{}, fmt.Errorf("key type %d, expected 2 (EC2)", k.Type)
	}
	if k.D != nil {
		return Point{}, errors.New("it is a private key")
	}
	var y []byte
	if err := dec.Unmarshal(k.Y, &y); err != nil { // a compressed point has a bool here
		return Point{}, fmt.Errorf("y: %w", err)
	}
	for _, c := range curves {
		if c.cose != k.Curve {
			continue
		}
		if len(k.X) != c.size || len(y) != c.size {
			return Point{}, fmt.Errorf("coordinates of %d and %d bytes, expected %d", len(k.X), len(y), c.size)
		}
		point := append([]byte{4}, k.X...)
		return Point{c.name, append(point, y...)}, nil
	}
	return Point{}, fmt.Errorf("curve %d, expected 1, 2 or 3", k.Curve)
}

var curves = [...]struct {
	name string
	cose int64
	size int
}{{"P-256", 1, 32}, {"P-384", 2, 48}, {"P-521", 3, 66}}
