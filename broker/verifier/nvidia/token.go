package nvidia

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const (
	maxToken = 64 << 10
	maxKeys  = 64
	// tokenSkew is how far ahead the service's clock may be.
	tokenSkew = time.Minute
	// refetchAfter bounds how often an unknown key makes us ask for the keys anew.
	refetchAfter = time.Minute
)

// keySet is the keys of NRAS. They are fetched when first needed, and again when a token names a key not seen: NVIDIA
// changes them now and then.
type keySet struct {
	url  string
	http Doer

	mu      sync.Mutex
	keys    jose.JSONWebKeySet
	fetched time.Time // on the caller's clock
}

// verify returns the claims of a token that NRAS signed for the nonce and that is good now.
func (k *keySet) verify(ctx context.Context, token, nonce string, now time.Time) (map[string]any, error) {
	if len(token) > maxToken {
		return nil, fmt.Errorf("it has %d bytes, at most %d are read", len(token), maxToken)
	}
	jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES384})
	if err != nil {
		return nil, fmt.Errorf("want a JWS signed with ES384: %w", err)
	}
	kid := jws.Signatures[0].Protected.KeyID
	if kid == "" {
		return nil, errors.New("it names no key (kid)")
	}
	key, err := k.find(ctx, kid, now)
	if err != nil {
		return nil, err
	}
	payload, err := jws.Verify(key)
	if err != nil {
		return nil, fmt.Errorf("it is not signed with the key %.80q", kid)
	}
	dec := json.NewDecoder(bytes.NewReader(payload))
	dec.UseNumber()
	var claims map[string]any
	if err := dec.Decode(&claims); err != nil {
		return nil, fmt.Errorf("reading its claims: %w", err)
	}
	if claims == nil {
		return nil, errors.New("reading its claims: they are null")
	}
	return claims, checkToken(claims, nonce, now)
}

// checkToken checks what every token of NRAS has: who issued it, when it holds, and what it was asked for.
func checkToken(claims map[string]any, nonce string, now time.Time) error {
	if iss, _ := claims["iss"].(string); iss != nrasIssuer {
		return fmt.Errorf("iss is %.80q, want %q", iss, nrasIssuer)
	}
	if got, _ := claims["eat_nonce"].(string); !strings.EqualFold(got, nonce) {
		return fmt.Errorf("eat_nonce is %.80q, want %q", got, nonce)
	}
	exp, err := when(claims, "exp")
	if err != nil {
		return err
	}
	if !now.Before(exp) {
		return fmt.Errorf("it expired at %s", exp.UTC().Format(timeFormat))
	}
	for _, name := range []string{"iat", "nbf"} {
		if _, ok := claims[name]; !ok && name == "nbf" {
			continue
		}
		t, err := when(claims, name)
		if err != nil {
			return err
		}
		if t.After(now.Add(tokenSkew)) {
			return fmt.Errorf("%s is %s, which is to come", name, t.UTC().Format(timeFormat))
		}
	}
	return nil
}

func when(claims map[string]any, name string) (time.Time, error) {
	n, ok := claims[name].(json.Number)
	if !ok {
		return time.Time{}, fmt.Errorf("%s is missing or no number", name)
	}
	sec, err := n.Int64()
	if err != nil {
		return time.Time{}, fmt.Errorf("%s is %q, want a whole number of seconds", name, n)
	}
	return time.Unix(sec, 0), nil
}

// checkDigest checks that the overall token vouches for the device's: submods.<name> = ["DIGEST", ["SHA-256", hex]].
func checkDigest(overall map[string]any, r reply) error {
	submods, _ := overall["submods"].(map[string]any)
	entry, _ := submods[r.name].([]any)
	if len(submods) != 1 || len(entry) != 2 || entry[0] != "DIGEST" {
		return fmt.Errorf("overall token has no digest of the token of %.32q alone", r.name)
	}
	pair, _ := entry[1].([]any)
	if len(pair) != 2 || pair[0] != "SHA-256" && pair[0] != "SHA256" {
		return fmt.Errorf("digest of the token of %.32q is not SHA-256", r.name)
	}
	want := sha256.Sum256([]byte(r.device))
	if got, _ := pair[1].(string); !strings.EqualFold(got, hex.EncodeToString(want[:])) {
		return fmt.Errorf("overall token vouches for %.64q, the token of %.32q is %x", got, r.name, want)
	}
	return nil
}

func (k *keySet) find(ctx context.Context, kid string, now time.Time) (*ecdsa.PublicKey, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if key := k.lookup(kid); key != nil {
		return key, nil
	}
	if age := now.Sub(k.fetched); k.fetched.IsZero() || age >= refetchAfter || age < 0 {
		if err := k.fetch(ctx); err != nil {
			return nil, fmt.Errorf("fetching the keys of NRAS: %w", err)
		}
		k.fetched = now
	}
	if key := k.lookup(kid); key != nil {
		return key, nil
	}
	return nil, fmt.Errorf("it names the key %.80q, which is not among the %d of NRAS that sign with ES384", kid, len(k.keys.Keys))
}

func (k *keySet) lookup(kid string) *ecdsa.PublicKey {
	for _, jwk := range k.keys.Key(kid) {
		key, ok := jwk.Key.(*ecdsa.PublicKey)
		if ok && key.Curve == elliptic.P384() && (jwk.Algorithm == "" || jwk.Algorithm == string(jose.ES384)) &&
			(jwk.Use == "" || jwk.Use == "sig") {
			return key
		}
	}
	return nil
}

func (k *keySet) fetch(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, jwksTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, k.url, nil)
	if err != nil {
		return err
	}
	body, err := send(k.http, req)
	if err != nil {
		return err
	}
	var keys jose.JSONWebKeySet
	if err := json.Unmarshal(body, &keys); err != nil {
		return fmt.Errorf("reading them: %w", err)
	}
	if len(keys.Keys) == 0 || len(keys.Keys) > maxKeys {
		return fmt.Errorf("there are %d, want 1 to %d", len(keys.Keys), maxKeys)
	}
	k.keys = keys
	return nil
}
