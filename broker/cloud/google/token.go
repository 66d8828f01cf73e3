package google

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/cloister/cloister/broker/cloud"
)

const (
	scope = "https://www.googleapis.com/auth/cloud-platform"
	// assertionLifetime is how long a signed claim may be used; it is used at once.
	assertionLifetime = 10 * time.Minute
	// backdate is by how much our clock may be ahead.
	backdate = 10 * time.Second
	who      = "Google's token service"
)

type fetch = func(context.Context) (string, time.Time, error)

// newSource is the list of where tokens come from.
func newSource(c Config, now func() time.Time) (fetch, error) {
	if c.Credentials == FromMetadata {
		h := cloud.NewMetadata()
		return func(ctx context.Context) (string, time.Time, error) { return metadata(ctx, h, c, now) }, nil
	}
	h, err := cloud.New(c.Bounds, cloud.MaxFile)
	if c.Credentials == FromWorkload {
		return func(ctx context.Context) (string, time.Time, error) { return workload(ctx, h, c, now) }, err
	}
	clock := cloud.NewClock(now)
	return func(ctx context.Context) (string, time.Time, error) { return serviceAccount(ctx, h, c, clock, now) }, err
}

// accountKey is what is used of a key file.
type accountKey struct {
	Type     string `json:"type"`
	Email    string `json:"client_email"`
	ID       string `json:"private_key_id"`
	Private  string `json:"private_key"`
	TokenURI string `json:"token_uri"`
	key      *rsa.PrivateKey
}

func readAccount(file string) (accountKey, error) {
	var k accountKey
	raw, err := cloud.ReadFile("key_file", file)
	if err != nil {
		return k, err
	}
	defer clear(raw)
	if json.Unmarshal(raw, &k) != nil || k.Type != "service_account" || !account.MatchString(k.Email) {
		return k, fmt.Errorf("key_file: %s is not the JSON file of a service account", file)
	}
	if err := cloud.CheckURL("token_uri in key_file", k.TokenURI); err != nil {
		return k, err
	}
	block, _ := pem.Decode([]byte(k.Private))
	if block == nil {
		return k, fmt.Errorf("key_file: private_key in %s is not PEM", file)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	key, ok := parsed.(*rsa.PrivateKey)
	if err != nil || !ok || key.N.BitLen() < 2048 {
		return k, fmt.Errorf("key_file: private_key in %s is not an RSA key of at least 2048 bits", file)
	}
	k.key = key
	return k, nil
}

// serviceAccount is the OAuth 2.0 grant of a signed claim (RFC 7523).
func serviceAccount(ctx context.Context, h *cloud.Client, c Config, clock *cloud.Clock, now func() time.Time) (string, time.Time, error) {
	k, err := readAccount(c.KeyFile)
	if err != nil {
		return "", time.Time{}, err
	}
	for again := false; ; again = true {
		assertion, err := k.assertion(clock.Now())
		if err != nil {
			return "", time.Time{}, err
		}
		form := url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:jwt-bearer"}, "assertion": {assertion}}
		asked := now()
		a, err := post(ctx, h, k.TokenURI, "application/x-www-form-urlencoded", "", []byte(form.Encode()))
		if err != nil {
			return "", time.Time{}, err
		}
		if a.Status == http.StatusBadRequest && !again && clock.Learn(a) {
			continue
		}
		return parseToken(who, a, asked)
	}
}

func (k accountKey) assertion(now time.Time) (string, error) {
	options := (&jose.SignerOptions{}).WithType("JWT")
	if k.ID != "" {
		options = options.WithHeader("kid", k.ID)
	}
	bad := errors.New("signing the claim of the service account")
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: k.key}, options)
	if err != nil {
		return "", bad
	}
	claims, err := json.Marshal(map[string]any{"iss": k.Email, "aud": k.TokenURI, "scope": scope,
		"iat": now.Add(-backdate).Unix(), "exp": now.Add(assertionLifetime).Unix()})
	if err != nil {
		return "", bad
	}
	signed, err := signer.Sign(claims)
	if err != nil {
		return "", bad
	}
	return signed.CompactSerialize()
}

// workload is a token exchange (RFC 8693), and then the token of a service account if one is named.
func workload(ctx context.Context, h *cloud.Client, c Config, now func() time.Time) (string, time.Time, error) {
	subject, err := cloud.ReadToken("subject_token_file", c.SubjectTokenFile)
	if err != nil {
		return "", time.Time{}, err
	}
	form := url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "audience": {c.Audience}, "scope": {scope},
		"requested_token_type": {"urn:ietf:params:oauth:token-type:access_token"},
		"subject_token_type":   {"urn:ietf:params:oauth:token-type:jwt"}, "subject_token": {subject}}
	asked := now()
	exchange := strings.TrimSuffix(c.STSEndpoint, "/") + "/v1/token"
	a, err := post(ctx, h, exchange, "application/x-www-form-urlencoded", "", []byte(form.Encode()))
	if err != nil {
		return "", time.Time{}, err
	}
	token, expires, err := parseToken(who, a, asked)
	if err != nil || c.ServiceAccount == "" {
		return token, expires, err
	}
	target := strings.TrimSuffix(c.IAMEndpoint, "/") + "/v1/projects/-/serviceAccounts/" + c.ServiceAccount + ":generateAccessToken"
	a, err = post(ctx, h, target, "application/json", token, []byte(`{"scope":["`+scope+`"],"lifetime":"3600s"}`))
	if err != nil {
		return "", time.Time{}, err
	}
	var r struct {
		Token   string    `json:"accessToken"`
		Expires time.Time `json:"expireTime"`
	}
	if a.Status != http.StatusOK || json.Unmarshal(a.Body, &r) != nil || !cloud.TokenText(r.Token) {
		return "", time.Time{}, fmt.Errorf("the IAM of Google Cloud answers %d, want a token of %s; "+
			"hint: the identity needs roles/iam.workloadIdentityUser on it", a.Status, c.ServiceAccount)
	}
	return r.Token, r.Expires, nil
}

func post(ctx context.Context, h *cloud.Client, target, kind, bearer string, body []byte) (cloud.Answer, error) {
	return h.Do(ctx, who, func(ctx context.Context) (*http.Request, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, target, bytes.NewReader(body))
		if err != nil {
			return nil, err
		}
		req.Header.Set("Content-Type", kind)
		if bearer != "" {
			req.Header.Set("Authorization", "Bearer "+bearer)
		}
		return req, nil
	}, nil)
}

// metadata asks the metadata service, which proves with a head of its own that it is one.
func metadata(ctx context.Context, h *cloud.Client, c Config, now func() time.Time) (string, time.Time, error) {
	const flavor, google = "Metadata-Flavor", "Google"
	target := strings.TrimSuffix(c.MetadataURL, "/") + "/computeMetadata/v1/instance/service-accounts/default/token"
	asked := now()
	a, err := h.Do(ctx, "the metadata service", func(ctx context.Context) (*http.Request, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
		if err == nil {
			req.Header.Set(flavor, google)
		}
		return req, err
	}, nil)
	if err != nil {
		return "", time.Time{}, err
	}
	if a.Header.Get(flavor) != google {
		return "", time.Time{}, errors.New("what answers is not the metadata service of Google Cloud")
	}
	return parseToken("the metadata service", a, asked)
}

// parseToken takes an answer; the lifetime counts from when it was asked for, so the clocks need not agree.
func parseToken(from string, a cloud.Answer, asked time.Time) (string, time.Time, error) {
	var r struct {
		Token   string `json:"access_token"`
		Type    string `json:"token_type"`
		Seconds int    `json:"expires_in"`
		Error   string `json:"error"`
	}
	bad := json.Unmarshal(a.Body, &r) != nil
	if a.Status != http.StatusOK {
		return "", time.Time{}, fmt.Errorf("%s answers %d %s, want a token", from, a.Status, cloud.Code(r.Error))
	}
	if bad || r.Seconds < 1 || r.Seconds > 7*24*3600 || !strings.EqualFold(r.Type, "Bearer") || !cloud.TokenText(r.Token) {
		return "", time.Time{}, fmt.Errorf("the answer of %s is not a token", from)
	}
	return r.Token, asked.Add(time.Duration(r.Seconds) * time.Second), nil
}
