// Package cca reads Arm CCA attestation tokens: a platform token and a realm token, each a COSE_Sign1 over a CBOR map of
// claims. evidence-layouts.md section 8 has the numbers.
//
// Nothing is verified here. CBOR is read strictly: no indefinite lengths, no duplicate keys, bounded nesting and counts.
// Claims that are unknown are ignored, claims that are missing or of a wrong size are an error.
package cca

import (
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"
)

const (
	maxToken = 64 << 10

	tagCollection = 399
	tagSign1      = 18
	keyPlatform   = 44234
	keyRealm      = 44241
)

// Profiles of tokens. The realm token of the older form has none.
const (
	ProfilePlatformLegacy = "http://arm.com/CCA-SSD/1.0.0"
	ProfilePlatform       = "tag:arm.com,2023:cca_platform#1.0.0"
	ProfileRealm          = "tag:arm.com,2023:realm#1.0.0"
)

// Sizes of claims in bytes.
const (
	ImplementationIDSize = 32
	InstanceIDSize       = 33
	ChallengeSize        = 64
	PersonalizationSize  = 64
	ExtensibleCount      = 4
)

// SWComponent is a piece of firmware of the platform.
type SWComponent struct {
	Type     string `cbor:"1,keyasint,omitempty"`
	Value    []byte `cbor:"2,keyasint"`
	Version  string `cbor:"4,keyasint,omitempty"`
	SignerID []byte `cbor:"5,keyasint"`
	HashAlg  string `cbor:"6,keyasint,omitempty"`
}

// Platform is the claims of a platform token.
type Platform struct {
	Profile             string        `cbor:"265,keyasint"`
	Nonce               []byte        `cbor:"10,keyasint"` // digest of the realm's key
	ImplementationID    []byte        `cbor:"2396,keyasint"`
	InstanceID          []byte        `cbor:"256,keyasint"`
	Config              []byte        `cbor:"2401,keyasint"`
	Lifecycle           uint16        `cbor:"2395,keyasint"`
	Components          []SWComponent `cbor:"2399,keyasint"`
	VerificationService string        `cbor:"2400,keyasint,omitempty"`
	HashAlg             string        `cbor:"2402,keyasint"`
}

// Secured reports whether the life cycle is one in which nobody can debug the platform.
func (p *Platform) Secured() bool { return p.Lifecycle >= 0x3000 && p.Lifecycle <= 0x30ff }

// Realm is the claims of a realm token.
type Realm struct {
	Profile         string   `cbor:"265,keyasint,omitempty"` // empty: older form
	Challenge       []byte   `cbor:"10,keyasint"`
	Personalization []byte   `cbor:"44235,keyasint"`
	HashAlg         string   `cbor:"44236,keyasint"`
	PublicKey       []byte   `cbor:"44237,keyasint"` // as the platform's nonce is a digest of; see KeyPoint
	Initial         []byte   `cbor:"44238,keyasint"`
	Extensible      [][]byte `cbor:"44239,keyasint"`
	PublicKeyHash   string   `cbor:"44240,keyasint"` // algorithm of that digest
}

// Signed is a COSE_Sign1 with its tag, and the payload that claims were read from.
type Signed struct {
	Object, Payload []byte
}

// Token is both tokens, with their claims.
type Token struct {
	PlatformToken, RealmToken Signed
	Platform                  *Platform
	Realm                     *Realm
}

// sign1 is a COSE_Sign1 of which only the payload interests here.
type sign1 struct {
	_           struct{} `cbor:",toarray"`
	Protected   []byte
	Unprotected cbor.RawMessage
	Payload     []byte
	Signature   []byte
}

func decoder() (cbor.DecMode, error) {
	return cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden,
		MaxNestedLevels: 8, MaxArrayElements: 128, MaxMapPairs: 128,
		ByteStringToString: cbor.ByteStringToStringForbidden,
	}.DecMode()
}

// Parse reads a token.
func Parse(b []byte) (*Token, error) {
	t, err := parse(b)
	if err != nil {
		return nil, fmt.Errorf("parsing CCA token: %w", err)
	}
	return t, nil
}

func parse(b []byte) (*Token, error) {
	if len(b) > maxToken {
		return nil, fmt.Errorf("%d bytes, at most %d are read", len(b), maxToken)
	}
	dec, err := decoder()
	if err != nil {
		return nil, err
	}
	var tag cbor.RawTag
	if err := dec.Unmarshal(b, &tag); err != nil {
		return nil, err
	}
	if tag.Number != tagCollection {
		return nil, fmt.Errorf("tag %d, expected %d", tag.Number, tagCollection)
	}
	var parts map[uint64]cbor.RawMessage
	if err := dec.Unmarshal(tag.Content, &parts); err != nil {
		return nil, err
	}
	t := &Token{}
	if t.PlatformToken, err = openSign1(dec, parts, keyPlatform); err != nil {
		return nil, fmt.Errorf("platform token: %w", err)
	}
	if t.Platform, err = parsePlatform(dec, t.PlatformToken.Payload); err != nil {
		return nil, fmt.Errorf("platform token: %w", err)
	}
	if t.RealmToken, err = openSign1(dec, parts, keyRealm); err != nil {
		return nil, fmt.Errorf("realm token: %w", err)
	}
	if t.Realm, err = parseRealm(dec, t.RealmToken.Payload); err != nil {
		return nil, fmt.Errorf("realm token: %w", err)
	}
	return t, nil
}

func openSign1(dec cbor.DecMode, parts map[uint64]cbor.RawMessage, key uint64) (Signed, error) {
	part, ok := parts[key]
	if !ok {
		return Signed{}, fmt.Errorf("no member %d in the collection", key)
	}
	var object []byte
	if err := dec.Unmarshal(part, &object); err != nil {
		return Signed{}, err
	}
	var tag cbor.RawTag
	if err := dec.Unmarshal(object, &tag); err != nil {
		return Signed{}, err
	}
	if tag.Number != tagSign1 {
		return Signed{}, fmt.Errorf("tag %d, expected %d (COSE_Sign1)", tag.Number, tagSign1)
	}
	var s sign1
	if err := dec.Unmarshal(tag.Content, &s); err != nil {
		return Signed{}, err
	}
	if len(s.Payload) == 0 {
		return Signed{}, errors.New("no payload")
	}
	return Signed{object, s.Payload}, nil
}

func parsePlatform(dec cbor.DecMode, payload []byte) (*Platform, error) {
	var p Platform
	if err := dec.Unmarshal(payload, &p); err != nil {
		return nil, err
	}
	if p.Profile != ProfilePlatform && p.Profile != ProfilePlatformLegacy {
		return nil, fmt.Errorf("profile = %.64q, expected %q or %q", p.Profile, ProfilePlatform, ProfilePlatformLegacy)
	}
	for _, f := range []struct {
		name string
		got  []byte
		size int
	}{{"implementation id", p.ImplementationID, ImplementationIDSize}, {"instance id", p.InstanceID, InstanceIDSize}} {
		if len(f.got) != f.size {
			return nil, fmt.Errorf("%s has %d bytes, expected %d", f.name, len(f.got), f.size)
		}
	}
	if p.InstanceID[0] != 1 {
		return nil, fmt.Errorf("instance id is of type %d, expected 1", p.InstanceID[0])
	}
	var lifecycle struct { // zero is a life cycle too (unknown), so its absence does not show above
		Value *uint16 `cbor:"2395,keyasint"`
	}
	if err := dec.Unmarshal(payload, &lifecycle); err != nil {
		return nil, err
	}
	if lifecycle.Value == nil {
		return nil, errors.New("life cycle is missing")
	}
	if !hashSized(p.Nonce) {
		return nil, fmt.Errorf("nonce has %d bytes, expected 32, 48 or 64", len(p.Nonce))
	}
	if len(p.Config) == 0 || len(p.Components) == 0 || p.HashAlg == "" {
		return nil, errors.New("config, software components or hash algorithm are missing")
	}
	for i, c := range p.Components {
		if !hashSized(c.Value) || !hashSized(c.SignerID) {
			return nil, fmt.Errorf("software component %d has a value of %d and a signer id of %d bytes, expected 32, 48 or 64",
				i, len(c.Value), len(c.SignerID))
		}
	}
	return &p, nil
}

func parseRealm(dec cbor.DecMode, payload []byte) (*Realm, error) {
	var r Realm
	if err := dec.Unmarshal(payload, &r); err != nil {
		return nil, err
	}
	if r.Profile != "" && r.Profile != ProfileRealm {
		return nil, fmt.Errorf("profile = %.64q, expected %q or none", r.Profile, ProfileRealm)
	}
	if n := len(r.Challenge); n != ChallengeSize {
		return nil, fmt.Errorf("challenge has %d bytes, expected %d", n, ChallengeSize)
	}
	if n := len(r.Personalization); n != PersonalizationSize {
		return nil, fmt.Errorf("personalization value has %d bytes, expected %d", n, PersonalizationSize)
	}
	if !hashSized(r.Initial) {
		return nil, fmt.Errorf("initial measurement has %d bytes, expected 32, 48 or 64", len(r.Initial))
	}
	if n := len(r.Extensible); n != ExtensibleCount {
		return nil, fmt.Errorf("%d extensible measurements, expected %d", n, ExtensibleCount)
	}
	for i, m := range r.Extensible {
		if !hashSized(m) {
			return nil, fmt.Errorf("extensible measurement %d has %d bytes, expected 32, 48 or 64", i, len(m))
		}
	}
	if len(r.PublicKey) == 0 || r.HashAlg == "" || r.PublicKeyHash == "" {
		return nil, errors.New("public key or hash algorithms are missing")
	}
	return &r, nil
}

func hashSized(b []byte) bool { return len(b) == 32 || len(b) == 48 || len(b) == 64 }
