package attest

import (
	"context"
	"crypto"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/cloister/cloister/wire/kbs"
)

const (
	// tokenMargin is how long before its expiry a token is no longer used.
	tokenMargin = 30 * time.Second
	// tokenDefault bounds the use of a token that does not say when it expires.
	tokenDefault = 4 * time.Minute
	maxNonce     = 4096
)

// hashAlgorithms are offered to the broker.
var hashAlgorithms = []string{"sha256", "sha384", "sha512"}

type cachedToken struct {
	token string
	until time.Time
}

// Token returns an attestation token and the private key it is bound to. Tokens
// are kept until shortly before they expire.
func (c *KBSClient) Token(ctx context.Context) (token string, key crypto.PrivateKey, err error) {
	token, _, err = c.token(ctx, "")
	if err != nil {
		return "", nil, err
	}
	return token, c.key, nil
}

// token returns the cached token unless it is stale or the one the broker just
// refused. fresh tells whether a handshake was made for this call.
func (c *KBSClient) token(ctx context.Context, refused string) (token string, fresh bool, err error) {
	if err := c.lockHandshake(ctx); err != nil {
		return "", false, err
	}
	defer c.unlockHandshake()
	if c.cached.token != "" && c.cached.token != refused && c.now().Before(c.cached.until) {
		return c.cached.token, false, nil
	}
	c.cached = cachedToken{}
	token, err = c.handshake(ctx)
	if err != nil {
		return "", false, fmt.Errorf("attesting to %s: %w", c.base.Host, err)
	}
	until, err := tokenLifetime(token, c.now())
	if err != nil {
		return "", false, fmt.Errorf("attesting to %s: %w", c.base.Host, err)
	}
	c.cached = cachedToken{token, until}
	c.log.Info("attested", "broker", c.base.Host, "tee", c.attester.TEE(), "valid_until", until)
	return token, true, nil
}

// handshake runs the protocol once: request, challenge, attestation, token.
func (c *KBSClient) handshake(ctx context.Context) (string, error) {
	params := kbs.RequestParams{SupportedHashAlgorithms: hashAlgorithms}
	enroller, _ := c.attester.(Enroller)
	if enroller != nil {
		enrol, err := enroller.EnrolParams(ctx)
		if err != nil {
			return "", err
		}
		if len(enrol.EKCertificate) > 0 {
			params.TPM = enrol
		} else {
			c.log.Warn("the TPM has no endorsement certificate, its attestation key cannot be endorsed")
		}
	}
	extra, err := json.Marshal(params)
	if err != nil {
		return "", fmt.Errorf("writing the request: %w", err)
	}
	request := kbs.Request{Version: kbs.Version, TEE: c.attester.TEE(), ExtraParams: extra}
	r, err := c.do(ctx, http.MethodPost, kbs.PathPrefix+"/auth", request, "", maxChallenge)
	if err != nil {
		return "", fmt.Errorf("asking for a challenge: %w", err)
	}
	if r.status != http.StatusOK {
		return "", fmt.Errorf("asking for a challenge: %w", r.refusal())
	}
	var challenge kbs.Challenge
	if err := json.Unmarshal(r.body, &challenge); err != nil {
		return "", fmt.Errorf("reading the challenge: %w", err)
	}
	attestation, err := c.answer(ctx, &challenge, enroller, params.TPM != nil)
	if err != nil {
		return "", err
	}
	if r, err = c.do(ctx, http.MethodPost, kbs.PathPrefix+"/attest", attestation, "", maxToken); err != nil {
		return "", fmt.Errorf("sending the evidence: %w", err)
	}
	if r.status != http.StatusOK {
		return "", fmt.Errorf("sending the evidence: %w", r.refusal())
	}
	var token kbs.TokenResponse
	if err := json.Unmarshal(r.body, &token); err != nil {
		return "", fmt.Errorf("reading the token: %w", err)
	}
	return token.Token, nil
}

// answer collects the evidence that a challenge asks for.
func (c *KBSClient) answer(ctx context.Context, challenge *kbs.Challenge, enroller Enroller, enrolled bool) (*kbs.Attestation, error) {
	if challenge.Nonce == "" || len(challenge.Nonce) > maxNonce {
		return nil, fmt.Errorf("reading the challenge: nonce has %d characters, expected 1 to %d", len(challenge.Nonce), maxNonce)
	}
	params, err := challenge.Params()
	if err != nil {
		return nil, err
	}
	alg := params.HashAlgorithm()
	if !slices.Contains(hashAlgorithms, alg) {
		return nil, fmt.Errorf("reading the challenge: selected hash algorithm is %q, expected one of %s", alg, strings.Join(hashAlgorithms, ", "))
	}
	a := &kbs.Attestation{RuntimeData: kbs.RuntimeData{Nonce: challenge.Nonce, TEEPubKey: c.jwk}}
	if c.initData != "" {
		a.InitData = &kbs.InitData{Format: "toml", Body: c.initData}
	}
	reportData, err := kbs.ReportData(a.RuntimeData, &a.TEEEvidence.Additional, alg)
	if err != nil {
		return nil, fmt.Errorf("binding the evidence: %w", err)
	}
	if params.TPM == nil { // also every broker that does not know the extension
		a.TEEEvidence.Primary, err = c.attester.Evidence(ctx, reportData)
		return a, err
	}
	if !enrolled {
		return nil, errors.New("reading the challenge: it has a TPM credential that was not asked for")
	}
	credential, err := enroller.ActivateCredential(ctx, params.TPM)
	if err != nil {
		return nil, err
	}
	a.TEEEvidence.Primary, err = enroller.EvidenceWithCredential(ctx, reportData, credential)
	return a, err
}

// tokenLifetime reads from a token until when to use it. The signature is the
// broker's business; the guest only looks at the times.
func tokenLifetime(token string, now time.Time) (time.Time, error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return time.Time{}, fmt.Errorf("reading the token: it has %d parts, expected 3", len(parts))
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return time.Time{}, fmt.Errorf("reading the token: %w", err)
	}
	var claims struct {
		Exp *float64 `json:"exp"`
	}
	if err := json.Unmarshal(payload, &claims); err != nil {
		return time.Time{}, fmt.Errorf("reading the token: %w", err)
	}
	if claims.Exp == nil {
		return now.Add(tokenDefault), nil
	}
	if *claims.Exp < 0 || *claims.Exp > 1<<40 {
		return time.Time{}, fmt.Errorf("reading the token: exp is %g", *claims.Exp)
	}
	return time.Unix(int64(*claims.Exp), 0).Add(-tokenMargin), nil
}
