package token

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/cloister/cloister/broker/keyset"
)

// leeway is how far the clocks of issuer and broker may be apart (kbs-protocol.md section 9).
const leeway = time.Minute

// Trust checks tokens of other attestation services (kbs-protocol.md section 9). It is what a broker without verifiers of its own,
// the second one of the passport mode, believes.
type Trust struct {
	// Roots are the certificates that the x5c chain of a token must lead to; nil refuses such tokens.
	Roots *x509.CertPool
	// CurrentRoots, when it is set, is asked for Roots each time: they may be replaced.
	CurrentRoots func() *x509.CertPool
	// Keys are looked up by the kid of a token; nil refuses such tokens.
	Keys *keyset.Set
	// InsecureHeaderJWK believes the key inside the token, whoever made it.
	InsecureHeaderJWK bool
	// Issuers are the values of iss that are accepted; none means any: the key is what a token is believed for.
	Issuers []string
	Now     func() time.Time
}

// Verify returns the claims of a token that is trusted and still good. The error wraps ErrInvalid.
func (t *Trust) Verify(compact string) (map[string]any, error) {
	if len(compact) > MaxSize {
		return nil, fmt.Errorf("%w: it has %d bytes, at most %d are read", ErrInvalid, len(compact), MaxSize)
	}
	jws, err := jose.ParseSignedCompact(compact, keyset.AllAlgorithms())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	payload, err := t.payload(jws)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	claims, err := decodeClaims(payload)
	if err != nil {
		return nil, err
	}
	if err := t.issuer(claims); err != nil {
		return nil, err
	}
	return claims, checkTimes(claims, t.Now(), leeway)
}

func (t *Trust) issuer(claims map[string]any) error {
	if len(t.Issuers) == 0 {
		return nil
	}
	iss, _ := claims["iss"].(string)
	if !slices.Contains(t.Issuers, iss) {
		return fmt.Errorf("%w: its iss is %.128q, want %q", ErrInvalid, iss, t.Issuers)
	}
	return nil
}

func (t *Trust) payload(jws *jose.JSONWebSignature) ([]byte, error) {
	header := jws.Signatures[0].Protected
	if header.JSONWebKey == nil {
		if t.Keys == nil {
			return nil, errors.New("it carries no key, and no JWK set is configured")
		}
		found := t.Keys.Find(header.KeyID)
		if len(found) == 0 {
			return nil, fmt.Errorf("its key id %.64q is in none of the JWK sets", header.KeyID)
		}
		for _, key := range found {
			if payload, err := key.Verify(jws, header.Algorithm); err == nil {
				return payload, nil
			}
		}
		return nil, fmt.Errorf("its signature does not hold under key %.64q", header.KeyID)
	}
	jwk := header.JSONWebKey
	if !jwk.IsPublic() || !jwk.Valid() {
		return nil, errors.New("the key in its header is not a public key")
	}
	if !t.InsecureHeaderJWK && !t.listed(jwk.Key) {
		if err := t.chain(jwk); err != nil {
			return nil, err
		}
	}
	key := keyset.Key{Algorithm: jwk.Algorithm, Public: jwk.Key}
	payload, err := key.Verify(jws, header.Algorithm)
	if err != nil {
		return nil, fmt.Errorf("its signature does not hold: %w", err)
	}
	return payload, nil
}

// listed reports whether a key that a token brings is in one of the JWK sets: services such as this broker publish the key that
// they also put into their tokens, without an id.
func (t *Trust) listed(key any) bool {
	if t.Keys == nil {
		return false
	}
	for _, k := range t.Keys.Keys() {
		if sameKey(k.Public, key) {
			return true
		}
	}
	return false
}

// chain checks that the certificates beside a key lead to a trusted one, and that the first is of that very key.
func (t *Trust) chain(jwk *jose.JSONWebKey) error {
	roots := t.Roots
	if t.CurrentRoots != nil {
		roots = t.CurrentRoots()
	}
	if roots == nil {
		return errors.New("it brings its own key, and no certificates to check that with are configured")
	}
	if len(jwk.Certificates) == 0 {
		return errors.New("it brings its own key without certificates (x5c)")
	}
	leaf := jwk.Certificates[0]
	if !sameKey(jwk.Key, leaf.PublicKey) {
		return errors.New("its first certificate is of another key than the one it brings")
	}
	between := x509.NewCertPool()
	for _, c := range jwk.Certificates[1:] {
		between.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: t.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return fmt.Errorf("its certificate leads to no trusted one: %w", err)
	}
	return nil
}

// sameKey compares keys by their encoding.
func sameKey(a, b any) bool {
	x, errA := x509.MarshalPKIXPublicKey(a)
	y, errB := x509.MarshalPKIXPublicKey(b)
	return errA == nil && errB == nil && bytes.Equal(x, y)
}

// decodeClaims reads the payload of a token, numbers as they stand.
func decodeClaims(payload []byte) (map[string]any, error) {
	dec := json.NewDecoder(bytes.NewReader(payload))
	dec.UseNumber()
	var claims map[string]any
	if err := dec.Decode(&claims); err != nil {
		return nil, fmt.Errorf("%w: reading claims: %w", ErrInvalid, err)
	}
	return claims, nil
}

// checkTimes wants an exp that is not over, and an nbf, when there is one, that has come.
func checkTimes(claims map[string]any, now time.Time, leeway time.Duration) error {
	exp, ok, err := instant(claims, "exp")
	switch {
	case err != nil:
		return err
	case !ok:
		return fmt.Errorf("%w: it has no exp", ErrInvalid)
	case !now.Before(exp.Add(leeway)):
		return fmt.Errorf("%w: it expired at %s", ErrInvalid, exp.UTC().Format(time.RFC3339))
	}
	nbf, ok, err := instant(claims, "nbf")
	if err != nil {
		return err
	}
	if ok && now.Add(leeway).Before(nbf) {
		return fmt.Errorf("%w: it is not good before %s", ErrInvalid, nbf.UTC().Format(time.RFC3339))
	}
	return nil
}

// instant reads a claim of seconds since 1970.
func instant(claims map[string]any, name string) (time.Time, bool, error) {
	v, there := claims[name]
	if !there {
		return time.Time{}, false, nil
	}
	number, ok := v.(json.Number)
	if !ok {
		return time.Time{}, false, fmt.Errorf("%w: %s is %T, want a number of seconds", ErrInvalid, name, v)
	}
	sec, err := number.Int64()
	if err != nil {
		return time.Time{}, false, fmt.Errorf("%w: %s is %q, want a whole number of seconds", ErrInvalid, name, number)
	}
	return time.Unix(sec, 0), true, nil
}
