// Package cca verifies the tokens of Arm CCA realms, without asking a remote verifier.
//
// Verify checks: the platform token's signature under the CPAK of the platform it names; that its nonce is the digest of
// the realm's key (RAK); the realm token's signature under that key; that the platform's life cycle is a secured one,
// unless the options allow others; that the challenge is the report data and the personalization value the digest of the
// init data. The curve of a key decides the algorithm (P-256 ES256, P-384 ES384, P-521 ES512); a token that says otherwise
// is refused, as are points off their curve.
//
// Claims are those of attestation-service.md section 4.9, and beyond them the rest of the platform token (life cycle,
// configuration, firmware, profile) under the names Veraison uses. Upstream's rv-store does not decide anything here either:
// cca-platform-reference-values and cca-realm-reference-values are "match", "mismatch" or, without a store, "none".
package cca

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/veraison/go-cose"

	"github.com/cloister/cloister/tee/cca"
)

const maxEvidence = 512 << 10

// Options is what the evidence is held against.
type Options struct {
	// ExpectedReportData must be the realm's challenge, padded with zeros to 64 bytes.
	ExpectedReportData []byte
	// InitDataDigest must be the personalization value, as it is or padded with zeros to 64 bytes (upstream: as it is). Nil
	// leaves the value to the policy.
	InitDataDigest []byte
	// TrustAnchors know the platforms.
	TrustAnchors TrustAnchors
	// ReferenceValues are compared with for two claims; nil compares nothing.
	ReferenceValues *ReferenceValues
	// AllowUnsecured accepts platforms that are in a life cycle in which they can be debugged.
	AllowUnsecured bool
	// Now is not looked at: tokens and trust anchors have no dates.
	Now time.Time
	// Offline leaves out report data and init data: the evidence may be a replay.
	Offline bool
}

// Verify checks evidence and returns its claims.
func Verify(ctx context.Context, evidence json.RawMessage, o Options) (map[string]any, error) {
	if len(evidence) > maxEvidence {
		return nil, fmt.Errorf("CCA evidence of %d bytes, at most %d are read", len(evidence), maxEvidence)
	}
	var e struct {
		Token []uint16 `json:"token"` // encoding/json takes []uint8 for base64
	}
	if err := json.Unmarshal(evidence, &e); err != nil {
		return nil, fmt.Errorf("reading CCA evidence: %w", err)
	}
	token := make([]byte, len(e.Token))
	for i, v := range e.Token {
		if v > 0xff {
			return nil, fmt.Errorf("reading CCA evidence: element %d of token is %d, expected a byte", i, v)
		}
		token[i] = byte(v)
	}
	return VerifyToken(ctx, token, o)
}

// VerifyToken is Verify for a token that was not wrapped in JSON.
func VerifyToken(_ context.Context, token []byte, o Options) (map[string]any, error) {
	t, err := cca.Parse(token)
	if err != nil {
		return nil, err
	}
	if err := checkPlatform(t, o); err != nil {
		return nil, fmt.Errorf("platform token: %w", err)
	}
	if err := checkRealm(t); err != nil {
		return nil, fmt.Errorf("realm token: %w", err)
	}
	if !o.Offline {
		if err := checkBinding(t.Realm, o); err != nil {
			return nil, err
		}
	}
	return claims(t, o.ReferenceValues), nil
}

func checkPlatform(t *cca.Token, o Options) error {
	if o.TrustAnchors == nil {
		return errors.New("no trust anchors are configured")
	}
	cpak, err := o.TrustAnchors.Lookup(t.Platform.ImplementationID, t.Platform.InstanceID)
	if err != nil {
		return err
	}
	if err := checkSignature(t.PlatformToken, cpak); err != nil {
		return err
	}
	if !t.Platform.Secured() && !o.AllowUnsecured {
		return fmt.Errorf("cca-platform-lifecycle = %#x, expected 0x3000 to 0x30ff (secured)", t.Platform.Lifecycle)
	}
	return nil
}

// checkRealm trusts the realm's key only because the platform's nonce names it.
func checkRealm(t *cca.Token) error {
	digest, err := hashed(t.Realm.PublicKeyHash, t.Realm.PublicKey)
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(digest, t.Platform.Nonce) != 1 {
		return fmt.Errorf("the %s of its key is %x, the platform vouches for %x", t.Realm.PublicKeyHash, digest, t.Platform.Nonce)
	}
	point, err := t.Realm.KeyPoint()
	if err != nil {
		return err
	}
	rak, err := publicKey(point)
	if err != nil {
		return fmt.Errorf("its key: %w", err)
	}
	return checkSignature(t.RealmToken, rak)
}

func hashed(name string, b []byte) ([]byte, error) {
	switch name {
	case "sha-256":
		sum := sha256.Sum256(b)
		return sum[:], nil
	case "sha-384":
		sum := sha512.Sum384(b)
		return sum[:], nil
	case "sha-512":
		sum := sha512.Sum512(b)
		return sum[:], nil
	}
	return nil, fmt.Errorf("hash algorithm %.32q, expected sha-256, sha-384 or sha-512", name)
}

func checkSignature(s cca.Signed, key *ecdsa.PublicKey) error {
	alg := map[int]cose.Algorithm{256: cose.AlgorithmES256, 384: cose.AlgorithmES384, 521: cose.AlgorithmES512}[key.Curve.Params().BitSize]
	verifier, err := cose.NewVerifier(alg, key)
	if err != nil {
		return err
	}
	var m cose.Sign1Message
	if err := m.UnmarshalCBOR(s.Object); err != nil {
		return fmt.Errorf("reading COSE_Sign1: %w", err)
	}
	if _, ok := m.Headers.Protected[cose.HeaderLabelCritical]; ok {
		return errors.New("COSE_Sign1 has critical headers, which nobody here understands")
	}
	if !bytes.Equal(m.Payload, s.Payload) {
		return errors.New("COSE_Sign1 has another payload than its claims were read from")
	}
	return m.Verify(nil, verifier)
}

func checkBinding(r *cca.Realm, o Options) error {
	if n := len(o.ExpectedReportData); n == 0 || n > cca.ChallengeSize {
		return fmt.Errorf("report data of %d bytes to bind a realm token to, expected 1 to %d", n, cca.ChallengeSize)
	}
	if want := padded(o.ExpectedReportData); subtle.ConstantTimeCompare(r.Challenge, want) != 1 {
		return fmt.Errorf("cca-realm-challenge = %x, expected %x: the token was made for another session", r.Challenge, want)
	}
	if o.InitDataDigest == nil {
		return nil
	}
	if n := len(o.InitDataDigest); n < 32 || n > cca.PersonalizationSize {
		return fmt.Errorf("init-data digest of %d bytes, expected 32 to %d", n, cca.PersonalizationSize)
	}
	if want := padded(o.InitDataDigest); subtle.ConstantTimeCompare(r.Personalization, want) != 1 {
		return fmt.Errorf("cca-realm-personalization-value = %x, expected %x: the realm was not started with the init-data sent",
			r.Personalization, want)
	}
	return nil
}

func padded(b []byte) []byte { return append(bytes.Clone(b), make([]byte, 64-len(b))...) }

func claims(t *cca.Token, v *ReferenceValues) map[string]any {
	b64 := base64.StdEncoding.EncodeToString
	p, r := t.Platform, t.Realm
	components := make([]any, 0, len(p.Components))
	for _, c := range p.Components {
		m := map[string]any{"measurement-value": b64(c.Value), "signer-id": b64(c.SignerID)}
		for name, text := range map[string]string{"measurement-type": c.Type, "version": c.Version, "hash-algo-id": c.HashAlg} {
			if text != "" {
				m[name] = text
			}
		}
		components = append(components, m)
	}
	extensible := make([]any, 0, len(r.Extensible))
	for _, m := range r.Extensible {
		extensible = append(extensible, b64(m))
	}
	platformValues, realmValues := "none", "none"
	if v != nil {
		platformValues, realmValues = matchText(v.platform(p)), matchText(v.realm(r))
	}
	return map[string]any{
		"platform": map[string]any{
			"cca-platform-instance-id":       b64(p.InstanceID),
			"cca-platform-implementation-id": b64(p.ImplementationID),
			"cca-platform-profile":           p.Profile,
			"cca-platform-lifecycle":         int64(p.Lifecycle),
			"cca-platform-config":            b64(p.Config),
			"cca-platform-sw-components":     components,
			"cca-platform-hash-algo-id":      p.HashAlg,
			"cca-platform-reference-values":  platformValues,
		},
		"realm": map[string]any{
			"cca-realm-challenge":               b64(r.Challenge),
			"cca-realm-personalization-value":   b64(r.Personalization),
			"cca-realm-initial-measurement":     b64(r.Initial),
			"cca-realm-extensible-measurements": extensible,
			"cca-realm-hash-algo-id":            r.HashAlg,
			"cca-realm-reference-values":        realmValues,
		},
		"report_data": hex.EncodeToString(r.Challenge),
		"init_data":   hex.EncodeToString(r.Personalization),
	}
}

func matchText(ok bool) string {
	if ok {
		return "match"
	}
	return "mismatch"
}
