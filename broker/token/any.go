package token

import "fmt"

// Any accepts the broker's own tokens and those of services it trusts.
type Any struct {
	Own *Signer
	// Others is nil when no other service is trusted.
	Others *Trust
}

// Verify returns the claims of a token.
func (a Any) Verify(compact string) (map[string]any, error) {
	claims, err := a.Own.Verify(compact)
	if err == nil || a.Others == nil {
		return claims, err
	}
	claims, oerr := a.Others.Verify(compact)
	if oerr != nil {
		return nil, fmt.Errorf("%w; as a token of another service: %w", err, oerr)
	}
	return claims, nil
}

// KeySet is the set of the broker's own keys.
func (a Any) KeySet() map[string][]JWK { return a.Own.KeySet() }
