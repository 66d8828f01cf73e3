// Package cocoas attests guests at an attestation service elsewhere, over the gRPC protocol of upstream's AS
// (attestation-service.md section 2), so that a key broker needs no verifiers of its own.
//
// What the service answers is not believed because of where it came from. Its token must be signed by a key that is trusted by
// configuration, name the right issuer, and be about this very request: the nonce and the key of this guest, and every piece
// of evidence that was sent. A service that is down or slow is told from evidence that was refused (package outage).
package cocoas

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cloister/cloister/broker/grpcdial"
	"github.com/cloister/cloister/broker/token"
)

// Config says where the service is, `address = "https://as.example:50004"` and the rest of grpcdial.Config, and whose tokens it
// gives.
type Config struct {
	grpcdial.Config
	// JWKSets are files or https:// addresses of the keys that tokens are signed with: a set, or an address with OIDC discovery.
	// Addresses are fetched with ca_certs and client_certificate, again when a token has another key.
	JWKSets []string `toml:"jwk_sets"`
	// TokenCertificates are PEM files of authorities that the certificate in a token (x5c) must lead to.
	TokenCertificates []string `toml:"token_certificates"`
	// Issuer is the iss of tokens; default "CoCo-Attestation-Service", upstream's.
	Issuer string `toml:"issuer"`
	// InsecureHeaderJWK believes the key inside a token, whoever made it: what comes over the connection is then all there is.
	InsecureHeaderJWK bool `toml:"insecure_header_jwk"`
}

// Validate reports every fault.
func (c Config) Validate() error {
	errs := []error{c.Config.Validate()}
	if len(c.JWKSets)+len(c.TokenCertificates) == 0 && !c.InsecureHeaderJWK {
		errs = append(errs, errors.New("jwk_sets or token_certificates: want at least one, to check the tokens of the service with; "+
			"this project's service has its set at https://HOST:PORT"+token.KeySetPath+" of rest_listen"))
	}
	for _, s := range c.JWKSets {
		if strings.HasPrefix(s, "http://") {
			errs = append(errs, fmt.Errorf("jwk_sets: %s is http://, want https:// or a file", s))
		}
	}
	return errors.Join(errs...)
}

// Insecure lists the insecure switches that are on.
func (c Config) Insecure() []string {
	out := c.Config.Insecure()
	if c.InsecureHeaderJWK {
		out = append(out, "insecure_header_jwk")
	}
	return out
}

func (c Config) issuer() string {
	if c.Issuer == "" {
		return token.Issuer
	}
	return c.Issuer
}
