// Package trustauthority attests guests at Intel Trust Authority (kbs-protocol.md sections 2.1 and 12): TDX and SGX guests, TDX
// guests on Azure, and NVIDIA GPUs beside them.
//
// The service verifies quotes and appraises them by policies that are kept there; reference values and policies of this
// broker play no part, nor does init data. Its token is believed for its signature alone: by a key of the configured set, with
// the configured issuer, unexpired, and about the runtime data of this very request. What this broker can see for itself is not
// left to the service: the report data of a quote and the nonce of a GPU's report are compared before anything is sent.
//
// The service has nonces of its own (/appraisal/v2/nonce), which would have to be hashed by the guest together with its
// runtime data. Guests of the KBS protocol do not do that; the nonce is this broker's, and part of the runtime data.
package trustauthority

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"time"
)

// Where the service is for most of the world; the one in Europe has other names.
const (
	DefaultBaseURL = "https://api.trustauthority.intel.com"
	DefaultJWKSet  = "https://portal.trustauthority.intel.com/certs"
)

// The issuers of its tokens: that of the present form and that of the one before.
const (
	issuerURL  = "https://portal.trustauthority.intel.com"
	issuerName = "Intel Trust Authority"
)

const (
	defaultTimeout = 30 * time.Second
	maxTimeout     = 45 * time.Second // the server gives a request of a guest 50 s
	maxPolicies    = 10
)

// Config says where the service is and what it is to appraise by.
type Config struct {
	// BaseURL is https://HOST[:PORT]; default DefaultBaseURL.
	BaseURL string `toml:"base_url"`
	// APIKeyFile holds the API key; it is read for every request, so a new key counts at once.
	APIKeyFile string `toml:"api_key_file"`
	// JWKSet is a file or an https:// address of the keys that tokens are signed with; default DefaultJWKSet. An address is fetched again
	// when a token has another key.
	JWKSet string `toml:"jwk_set"`
	// Issuers are the values of iss that are accepted; default those of the service at DefaultBaseURL.
	Issuers []string `toml:"issuers"`
	// PolicyIDs are UUIDs of policies at the service, at most 10.
	PolicyIDs []string `toml:"policy_ids"`
	// AllowUnmatchedPolicy takes tokens of guests that one of the policies does not match: the resource policy must then look at
	// policy_ids_matched. Default false.
	AllowUnmatchedPolicy bool `toml:"allow_unmatched_policy"`
	// CACerts are PEM files with the authorities of the service's certificates; none means those of the system.
	CACerts []string `toml:"ca_certs"`
	// TimeoutMS bounds one attestation with its repetitions, in milliseconds; default 30000.
	TimeoutMS int `toml:"timeout_ms"`
}

var uuid = regexp.MustCompile(`\A[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\z`)

func (c Config) withDefaults() Config {
	if c.BaseURL == "" {
		c.BaseURL = DefaultBaseURL
	}
	if c.JWKSet == "" {
		c.JWKSet = DefaultJWKSet
	}
	if len(c.Issuers) == 0 {
		c.Issuers = []string{issuerURL, issuerName}
	}
	if c.TimeoutMS == 0 {
		c.TimeoutMS = int(defaultTimeout / time.Millisecond)
	}
	c.BaseURL = strings.TrimSuffix(c.BaseURL, "/")
	return c
}

// Validate reports every fault.
func (c Config) Validate() error {
	c = c.withDefaults()
	var errs []error
	u, err := url.Parse(c.BaseURL)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.Path != "" || u.RawQuery != "" || u.Fragment != "" {
		errs = append(errs, errors.New("base_url: want https://HOST[:PORT] and nothing else: the API key goes there"))
	}
	if strings.HasPrefix(c.JWKSet, "http://") {
		errs = append(errs, errors.New("jwk_set: want https:// or a file: its keys are believed"))
	}
	if c.APIKeyFile == "" {
		errs = append(errs, errors.New("api_key_file: want a file that holds the API key"))
	}
	if len(c.PolicyIDs) > maxPolicies {
		errs = append(errs, fmt.Errorf("policy_ids are %d, at most %d are sent", len(c.PolicyIDs), maxPolicies))
	}
	for _, id := range c.PolicyIDs {
		if !uuid.MatchString(id) {
			errs = append(errs, fmt.Errorf("policy_ids: %.64q is not a UUID", id))
		}
	}
	if c.TimeoutMS < 1 || time.Duration(c.TimeoutMS)*time.Millisecond > maxTimeout {
		errs = append(errs, fmt.Errorf("timeout_ms is %d, want 1 to %d", c.TimeoutMS, maxTimeout/time.Millisecond))
	}
	return errors.Join(errs...)
}

// TEEKeyPaths are places, beyond those of the protocol, where tokens of the service carry the guest's key.
func TEEKeyPaths() []string { return []string{"/sgx/attester_runtime_data/tee-pubkey"} }
