package keyset

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// discovery is what is read of an OpenID Connect discovery document.
type discovery struct {
	Issuer  string `json:"issuer"`
	JWKSURI string `json:"jwks_uri"`
}

// discover fetches the key set that the discovery document of an issuer leads to. With strict, the document must be that of
// this issuer by its own words: then a document that was put on another's address by mistake is noticed.
func (s *Set) discover(ctx context.Context, issuer string, strict bool) ([]Key, error) {
	if !strings.HasPrefix(issuer, "https://") {
		return nil, errors.New("an issuer is an https:// address")
	}
	text, err := s.fetch(ctx, strings.TrimSuffix(issuer, "/")+"/.well-known/openid-configuration")
	if err != nil {
		return nil, err
	}
	var doc discovery
	if err := json.Unmarshal(text, &doc); err != nil || !strings.HasPrefix(doc.JWKSURI, "https://") {
		return nil, fmt.Errorf("its discovery document has jwks_uri %.128q, want an https:// address", doc.JWKSURI)
	}
	if strict && doc.Issuer != issuer {
		return nil, fmt.Errorf("its discovery document has issuer %.128q, want %q", doc.Issuer, issuer)
	}
	if text, err = s.fetch(ctx, doc.JWKSURI); err != nil {
		return nil, err
	}
	keys, err := parseJWKSet(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doc.JWKSURI, err)
	}
	return keys, nil
}
