package trustauthority

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/cloister/cloister/broker/grpcdial"
	"github.com/cloister/cloister/broker/outage"
	"github.com/cloister/cloister/broker/token"
)

const (
	maxAnswer     = token.MaxSize + 4<<10
	maxReason     = 1 << 10
	attempts      = 4
	firstDelay    = 250 * time.Millisecond
	maxRetryAfter = 5 * time.Second

	pathAttest = "/appraisal/v2/attest"
	pathAzure  = "/appraisal/v2/attest/azure"
)

// post sends a request until there is an answer that another try would not change. It gives up after some tries, or with ctx.
func (c *Client) post(ctx context.Context, path string, b body) (string, error) {
	text, err := json.Marshal(b)
	if err != nil {
		return "", fmt.Errorf("encoding the request: %w", err)
	}
	delay := firstDelay
	for n := 1; ; n++ {
		answer, after, err := c.once(ctx, path, text)
		if err == nil || !errors.Is(err, outage.ErrUnavailable) || n == attempts {
			return answer, err
		}
		pause := max(delay/2+rand.N(delay/2+1), after)
		if !wait(ctx, pause) {
			return "", err
		}
		delay *= 2
	}
}

func wait(ctx context.Context, d time.Duration) bool {
	if end, ok := ctx.Deadline(); ok && time.Until(end) < d {
		return false
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// once does one request. After is how long the service wants to be left alone.
func (c *Client) once(ctx context.Context, path string, text []byte) (answer string, after time.Duration, err error) {
	key, err := grpcdial.Secret(c.cfg.APIKeyFile)
	if err != nil {
		return "", 0, fmt.Errorf("reading api_key_file: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.cfg.BaseURL+path, bytes.NewReader(text))
	if err != nil {
		return "", 0, fmt.Errorf("asking Intel Trust Authority: %w", err)
	}
	req.Header.Set("x-api-key", key)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", userAgent)
	resp, err := c.http.Do(req)
	if err != nil {
		var named *url.Error
		if errors.As(err, &named) {
			err = named.Err // the URL is in the text below already
		}
		return "", 0, fmt.Errorf("asking %s: %w: %w", c.cfg.BaseURL, outage.ErrUnavailable, err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch code := resp.StatusCode; {
	case code == http.StatusTooManyRequests || code >= 500:
		return "", retryAfter(resp.Header), fmt.Errorf("asking %s: %w: it answers %d%s", c.cfg.BaseURL, outage.ErrUnavailable, code, reason(raw))
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		return "", 0, fmt.Errorf("asking %s: it answers %d: the API key in %s is not valid or may not attest",
			c.cfg.BaseURL, code, c.cfg.APIKeyFile)
	case code/100 == 3:
		return "", 0, fmt.Errorf("asking %s: it answers %d, a redirect, which is not followed because the API key would go along",
			c.cfg.BaseURL, code)
	case code != http.StatusOK:
		return "", 0, fmt.Errorf("evidence is refused by %s, status %d%s", c.cfg.BaseURL, code, reason(raw))
	case err != nil:
		return "", 0, fmt.Errorf("reading the answer of %s: %w: %w", c.cfg.BaseURL, outage.ErrUnavailable, err)
	case len(raw) > maxAnswer:
		return "", 0, fmt.Errorf("the answer of %s has more than %d bytes", c.cfg.BaseURL, maxAnswer)
	}
	return readAnswer(raw)
}

func readAnswer(raw []byte) (string, time.Duration, error) {
	var m struct {
		Token string `json:"token"`
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return "", 0, fmt.Errorf("the answer of Intel Trust Authority is not JSON: %w", err)
	}
	if m.Token == "" {
		return "", 0, errors.New("the answer of Intel Trust Authority has no token")
	}
	return m.Token, 0, nil
}

// reason is what the service says of an error, fit for one line.
func reason(raw []byte) string {
	var m struct {
		Error   string `json:"error"`
		Message string `json:"message"`
	}
	if len(raw) > maxAnswer || json.Unmarshal(raw, &m) != nil {
		return ""
	}
	text := m.Error
	if text == "" {
		text = m.Message
	}
	if len(text) > maxReason {
		text = text[:maxReason]
	}
	text = strings.Join(strings.FieldsFunc(strings.ToValidUTF8(text, ""), func(r rune) bool { return unicode.IsControl(r) || r == ' ' }), " ")
	if text == "" {
		return ""
	}
	return ": " + text
}

// retryAfter reads the seconds of a Retry-After header; a date counts as none, a long time as the longest that is waited.
func retryAfter(h http.Header) time.Duration {
	n, err := strconv.ParseUint(h.Get("Retry-After"), 10, 16)
	if err != nil {
		return 0
	}
	return min(time.Duration(n)*time.Second, maxRetryAfter)
}

// client talks to the one service: no redirect. A proxy of the environment is used, as the service is on the internet.
func client(c Config) (*http.Client, error) {
	conf, err := grpcdial.Config{CACerts: c.CACerts}.ClientTLS()
	if err != nil {
		return nil, err
	}
	timeout := time.Duration(c.TimeoutMS) * time.Millisecond
	return &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            (&net.Dialer{Timeout: timeout}).DialContext,
			TLSClientConfig:        conf,
			TLSHandshakeTimeout:    timeout,
			ResponseHeaderTimeout:  timeout,
			MaxResponseHeaderBytes: 64 << 10,
			MaxConnsPerHost:        64,
			MaxIdleConnsPerHost:    16,
			IdleConnTimeout:        time.Minute,
			DisableCompression:     true, // a small answer must not unpack to a big one
			ForceAttemptHTTP2:      true,
		},
	}, nil
}
