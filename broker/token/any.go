package token

import (
	"errors"
	"fmt"
)

// Any accepts the broker's own tokens and those of services it trusts.
type Any struct {
	// Own is nil when this broker signs nothing: a key broker whose attestation service is elsewhere.
	Own *Signer
	// Policy is the id of the policy that every part of a guest must be appraised by for one of the broker's own tokens to count; "" is
	// any. Whoever reaches the attestation API chooses the policy of its tokens, which are signed with the same key.
	Policy string
	// Others is nil when no other service is trusted.
	Others *Trust
	// Service is the trust in the attestation service that this broker uses, when that is elsewhere; else nil.
	Service *Trust
}

// Verify returns the claims of a token.
func (a Any) Verify(compact string) (map[string]any, error) {
	var errs []error
	if a.Own != nil {
		claims, err := a.Own.Verify(compact)
		if err == nil {
			err = a.appraisedBy(claims)
		}
		if err == nil {
			return claims, nil
		}
		errs = append(errs, err)
	}
	for _, other := range []struct {
		as    string
		trust *Trust
	}{{"as a token of the attestation service", a.Service}, {"as a token of another service", a.Others}} {
		if other.trust == nil {
			continue
		}
		claims, err := other.trust.Verify(compact)
		if err == nil {
			return claims, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", other.as, err))
	}
	switch len(errs) {
	case 0:
		return nil, fmt.Errorf("%w: no issuer of tokens is trusted", ErrInvalid)
	case 1:
		return nil, errs[0]
	case 2:
		return nil, fmt.Errorf("%w; %w", errs[0], errs[1])
	}
	return nil, fmt.Errorf("%w; %w", errs[0], errors.Join(errs[1:]...))
}

// appraisedBy refuses claims of a guest that was appraised by another policy than Policy.
func (a Any) appraisedBy(claims map[string]any) error {
	if a.Policy == "" {
		return nil
	}
	parts, _ := claims["submods"].(map[string]any)
	for name, v := range parts {
		part, _ := v.(map[string]any)
		if id, _ := part["ear.appraisal-policy-id"].(string); id != a.Policy {
			return fmt.Errorf("%w: policy %.128q appraised %.64s, want %q: a token of the attestation API by a policy of the caller's choice "+
				"opens nothing here", ErrInvalid, id, name, a.Policy)
		}
	}
	return nil
}

// KeySet is the set of the broker's own keys.
func (a Any) KeySet() map[string][]JWK {
	if a.Own == nil {
		return map[string][]JWK{"keys": {}}
	}
	return a.Own.KeySet()
}
