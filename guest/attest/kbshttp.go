package attest

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/cloister/cloister/wire/kbs"
)

const (
	userAgent      = "attestation-agent-kbs-client/0.4.0"
	requestTimeout = 60 * time.Second
	maxAttempts    = 5
	maxBackoff     = 4 * time.Second

	maxChallenge = 64 << 10
	maxToken     = 1 << 20
	maxResource  = 8 << 20 // a JWE is a third larger than what it holds
)

// reply is an answer of the broker, read within its limit.
type reply struct {
	status int
	body   []byte
}

// do sends one request and reads the answer. Failures to reach the broker are
// tried again with growing pauses; every answer of the broker is final here.
func (c *KBSClient) do(ctx context.Context, method, path string, body any, token string, limit int) (*reply, error) {
	var payload []byte
	if body != nil {
		var err error
		if payload, err = json.Marshal(body); err != nil {
			return nil, fmt.Errorf("writing the request: %w", err)
		}
	}
	pause := c.backoff
	for attempt := 1; ; attempt++ {
		r, err := c.once(ctx, method, path, payload, token, limit)
		if err == nil {
			return r, nil
		}
		if attempt == maxAttempts || ctx.Err() != nil || !transient(err) {
			return nil, err
		}
		c.log.Info("the key broker does not answer, trying again", "error", err, "attempt", attempt, "pause", pause)
		if err := wait(ctx, pause); err != nil {
			return nil, err
		}
		pause = min(2*pause, maxBackoff)
	}
}

// wait waits for d or for the end of ctx.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// errTooLarge means an answer larger than its limit.
var errTooLarge = errors.New("the answer is too large")

// transient reports whether trying again can help. An untrusted certificate or
// an oversized answer stays what it is.
func transient(err error) bool {
	var cert *tls.CertificateVerificationError
	var authority x509.UnknownAuthorityError
	var host x509.HostnameError
	var record tls.RecordHeaderError
	return !errors.As(err, &cert) && !errors.As(err, &authority) && !errors.As(err, &host) &&
		!errors.As(err, &record) && !errors.Is(err, errTooLarge)
}

func (c *KBSClient) once(ctx context.Context, method, path string, payload []byte, token string, limit int) (*reply, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base.String()+path, bytes.NewReader(payload))
	if err != nil {
		return nil, fmt.Errorf("making the request: %w", err)
	}
	req.Header.Set("User-Agent", userAgent)
	req.Header.Set("Accept", "application/json")
	if payload != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	rsp, err := c.http.Do(req)
	if err != nil {
		return nil, err // names method and URL
	}
	defer rsp.Body.Close()
	if rsp.StatusCode != http.StatusOK {
		limit = kbs.MaxErrorBody
	}
	if rsp.ContentLength > int64(limit) {
		return nil, fmt.Errorf("%w: %d bytes, expected at most %d", errTooLarge, rsp.ContentLength, limit)
	}
	body, err := readBounded(rsp.Body, limit, "the broker's answer")
	if err != nil {
		return nil, err
	}
	return &reply{rsp.StatusCode, body}, nil
}

// refusal makes an error of an answer that is not 200: the broker's own words
// when it gave any, wrapped so that errors.As finds the *kbs.ErrorInformation.
func (r *reply) refusal() error {
	info, err := kbs.ParseError(r.body)
	if err != nil {
		return fmt.Errorf("the broker answered %d %s without an explanation", r.status, http.StatusText(r.status))
	}
	return fmt.Errorf("the broker answered %d: %w", r.status, info)
}
