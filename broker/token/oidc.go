package token

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
)

// Where a service publishes its discovery document and its keys.
const (
	DiscoveryPath = "/.well-known/openid-configuration"
	KeySetPath    = "/.well-known/jwks.json"
)

// Discovery is the OpenID Connect discovery document of a service that signs tokens. It leads relying parties that know only the
// service's address to its keys (attestation-service.md section 8.3; upstream has none).
type Discovery struct {
	Issuer        string   `json:"issuer"`
	JWKSURI       string   `json:"jwks_uri"`
	ResponseTypes []string `json:"response_types_supported"`
	SubjectTypes  []string `json:"subject_types_supported"`
	Algorithms    []string `json:"id_token_signing_alg_values_supported"`
	Claims        []string `json:"claims_supported"`
}

// OIDC answers with the discovery document of issuer, the https:// address that relying parties know the service by. With ""
// that is the address the request came to. The keys are below it, at KeySetPath.
//
// The iss claim of tokens stays the name that upstream's relying parties compare (Issuer), so the document serves to find keys,
// not to compare issuers.
func OIDC(issuer string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		base := strings.TrimSuffix(issuer, "/")
		if base == "" {
			scheme := "http"
			if r.TLS != nil {
				scheme = "https"
			}
			u := url.URL{Scheme: scheme, Host: r.Host}
			if back, err := url.Parse(u.String()); r.Host == "" || err != nil || back.Host != r.Host || back.User != nil || back.Path != "" {
				http.Error(w, "the request names no host", http.StatusBadRequest)
				return
			}
			base = u.String()
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(Discovery{ // the client may be gone
			Issuer: base, JWKSURI: base + KeySetPath, ResponseTypes: []string{"id_token"}, SubjectTypes: []string{"public"},
			Algorithms: []string{"ES256"}, Claims: []string{"iss", "iat", "exp", "jti", "eat_profile", "submods"},
		})
	})
}
