package vault

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/cloister/cloister/broker/cloud"
	"github.com/cloister/cloister/broker/resource"
	"github.com/cloister/cloister/broker/store"
	"github.com/cloister/cloister/internal/smallfile"
)

const (
	// maxAnswer has room for a secret of the greatest size as an array of numbers.
	maxAnswer = 4*resource.MaxSize + 64<<10
	maxToken  = 8 << 10
)

// call does one request. A status of 404 is store.ErrNotFound; an answer that is not 2xx is an error without its text.
func (b *Backend) call(ctx context.Context, method, path string, query url.Values, body []byte) ([]byte, error) {
	token, err := b.token()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(b.cfg.TimeoutMS)*time.Millisecond)
	defer cancel()
	target := strings.TrimSuffix(b.cfg.URL, "/") + "/v1/" + path
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("asking Vault for %s: %w", path, err)
	}
	req.Header.Set("X-Vault-Token", token)
	req.Header.Set("X-Vault-Request", "true")
	if b.cfg.Namespace != "" {
		req.Header.Set("X-Vault-Namespace", b.cfg.Namespace)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := b.http.Do(req)
	if err != nil {
		var named *url.Error
		if errors.As(err, &named) {
			err = named.Err // the URL is in the text below already
		}
		return nil, fmt.Errorf("asking Vault at %s for %s: %w", b.cfg.URL, path, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case resp.StatusCode == http.StatusNotFound:
		return nil, fmt.Errorf("%s in Vault: %w", path, store.ErrNotFound)
	case resp.StatusCode/100 == 3:
		return nil, fmt.Errorf("asking Vault at %s for %s: it answers %d, a redirect, which is not followed because the token would go along",
			b.cfg.URL, path, resp.StatusCode)
	case resp.StatusCode == http.StatusForbidden:
		return nil, fmt.Errorf("asking Vault at %s for %s: it answers 403: the token in %s is not valid or may not %s there",
			b.cfg.URL, path, b.cfg.TokenFile, method)
	case resp.StatusCode == http.StatusServiceUnavailable:
		return nil, fmt.Errorf("asking Vault at %s for %s: it answers 503: it is sealed or in maintenance", b.cfg.URL, path)
	case resp.StatusCode/100 != 2:
		return nil, fmt.Errorf("asking Vault at %s for %s: it answers %d, want 200", b.cfg.URL, path, resp.StatusCode)
	case err != nil:
		return nil, fmt.Errorf("reading the answer of Vault at %s for %s: %w", b.cfg.URL, path, err)
	case len(answer) > maxAnswer:
		return nil, fmt.Errorf("the answer of Vault at %s for %s has more than %d bytes", b.cfg.URL, path, maxAnswer)
	}
	return answer, nil
}

// tokenText is what may stand in a header.
var tokenText = regexp.MustCompile(`\A[\x21-\x7e]+\z`)

// token reads the token file; its errors never hold what is in it.
func (b *Backend) token() (string, error) {
	f, err := os.Open(b.cfg.TokenFile)
	if err != nil {
		return "", fmt.Errorf("reading the Vault token: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("reading the Vault token: %w", err)
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("the Vault token file %s is not a regular file", b.cfg.TokenFile)
	}
	if info.Mode().Perm()&0o002 != 0 {
		return "", fmt.Errorf("the Vault token file %s has mode %04o: others could replace the token", b.cfg.TokenFile, info.Mode().Perm())
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxToken+1))
	if err != nil {
		return "", fmt.Errorf("reading the Vault token: %w", err)
	}
	token := strings.TrimSpace(string(raw))
	if len(raw) > maxToken || !tokenText.MatchString(token) {
		return "", fmt.Errorf("the Vault token file %s holds %d bytes that are not a token", b.cfg.TokenFile, len(raw))
	}
	return token, nil
}

// client talks to the one server and nobody else: no proxy, no redirect.
func client(c Config) (*http.Client, error) {
	roots, err := smallfile.Roots(c.CACerts...)
	if err != nil {
		return nil, fmt.Errorf("reading ca_certs: %w", err)
	}
	timeout := time.Duration(c.TimeoutMS) * time.Millisecond
	return cloud.Transport(roots, timeout), nil
}
