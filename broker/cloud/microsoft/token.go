package microsoft

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/cloister/cloister/broker/cloud"
)

type fetch = func(context.Context) (string, time.Time, error)

// newSource is the list of where tokens come from.
func newSource(c Config, now func() time.Time) (fetch, error) {
	if c.Credentials == FromManaged {
		h := cloud.NewMetadata()
		return func(ctx context.Context) (string, time.Time, error) { return managed(ctx, h, c, now) }, nil
	}
	h, err := cloud.New(c.Bounds, cloud.MaxFile)
	return func(ctx context.Context) (string, time.Time, error) { return application(ctx, h, c, now) }, err
}

// application is the OAuth 2.0 grant of client credentials (RFC 6749 section 4.4), the proof being a secret or the token
// of a provider that the application trusts (RFC 7523).
func application(ctx context.Context, h *cloud.Client, c Config, now func() time.Time) (string, time.Time, error) {
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {c.ClientID}, "scope": {c.Audience + "/.default"}}
	if c.Credentials == FromSecret {
		secret, err := cloud.ReadToken("client_secret_file", c.ClientSecretFile)
		if err != nil {
			return "", time.Time{}, err
		}
		form.Set("client_secret", secret)
	} else {
		token, err := cloud.ReadToken("federated_token_file", c.FederatedTokenFile)
		if err != nil {
			return "", time.Time{}, err
		}
		form.Set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
		form.Set("client_assertion", token)
	}
	target := strings.TrimSuffix(c.Authority, "/") + "/" + c.TenantID + "/oauth2/v2.0/token"
	text := form.Encode()
	asked := now()
	a, err := h.Do(ctx, "Microsoft Entra ID", func(ctx context.Context) (*http.Request, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, target, strings.NewReader(text))
		if err == nil {
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
		return req, err
	}, nil)
	if err != nil {
		return "", time.Time{}, err
	}
	return parseToken("Microsoft Entra ID", a, asked)
}

// managed asks the metadata service of a VM.
func managed(ctx context.Context, h *cloud.Client, c Config, now func() time.Time) (string, time.Time, error) {
	query := url.Values{"api-version": {"2018-02-01"}, "resource": {c.Audience}}
	if c.ClientID != "" {
		query.Set("client_id", c.ClientID)
	}
	target := strings.TrimSuffix(c.MetadataURL, "/") + "/metadata/identity/oauth2/token?" + query.Encode()
	asked := now()
	a, err := h.Do(ctx, "the metadata service", func(ctx context.Context) (*http.Request, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
		if err == nil {
			req.Header.Set("Metadata", "true")
		}
		return req, err
	}, nil)
	if err != nil {
		return "", time.Time{}, err
	}
	return parseToken("the metadata service", a, asked)
}

// parseToken takes an answer; the lifetime counts from when it was asked for, so the clocks need not agree. The metadata
// service writes it as text.
func parseToken(who string, a cloud.Answer, asked time.Time) (string, time.Time, error) {
	var r struct {
		Token   string          `json:"access_token"`
		Type    string          `json:"token_type"`
		Seconds json.RawMessage `json:"expires_in"`
		Error   string          `json:"error"`
	}
	bad := json.Unmarshal(a.Body, &r) != nil
	if a.Status != http.StatusOK {
		return "", time.Time{}, fmt.Errorf("%s answers %d %s, want a token", who, a.Status, cloud.Code(r.Error))
	}
	seconds, err := strconv.Atoi(strings.Trim(string(r.Seconds), `"`))
	if bad || err != nil || seconds < 1 || seconds > 7*24*3600 || !strings.EqualFold(r.Type, "Bearer") || !cloud.TokenText(r.Token) {
		return "", time.Time{}, fmt.Errorf("the answer of %s is not a token", who)
	}
	return r.Token, asked.Add(time.Duration(seconds) * time.Second), nil
}
