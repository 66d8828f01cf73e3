// Package cloud is what the clients of cloud services have in common: one way to ask over HTTPS, one way to keep
// credentials fresh, one way to read files that hold them.
//
// A service is not trusted to behave: answers are bounded in time and size, redirects are not followed because the
// credentials would go along, no proxy is used, and nothing of an answer gets into an error but its status and a code of
// a known form, as it may hold a secret. What a service asks to try again later is tried again, within the time given.
package cloud

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"time"

	"github.com/cloister/cloister/broker/loopback"
	"github.com/cloister/cloister/internal/smallfile"
)

const (
	// DefaultTimeout is for one call with all its tries and the credentials it needs.
	DefaultTimeout = 10 * time.Second
	maxTimeout     = 40 * time.Second // the server gives a request of a guest 50 s

	maxTries   = 4
	firstPause = 100 * time.Millisecond
	longPause  = 2 * time.Second
)

// Bounds is the part of a configuration that every service has.
type Bounds struct {
	// CACerts are PEM files with the authorities of the service's certificate; none means those of the system.
	CACerts []string `toml:"ca_certs"`
	// TimeoutMS bounds one call with all its tries, in milliseconds; default 10000.
	TimeoutMS int `toml:"timeout_ms"`
}

// Validate reports every fault.
func (b Bounds) Validate() error {
	if b.TimeoutMS < 0 || time.Duration(b.TimeoutMS)*time.Millisecond > maxTimeout {
		return fmt.Errorf("timeout_ms is %d, want 1 to %d", b.TimeoutMS, maxTimeout/time.Millisecond)
	}
	return nil
}

// Timeout is that of the configuration or the default.
func (b Bounds) Timeout() time.Duration {
	if b.TimeoutMS == 0 {
		return DefaultTimeout
	}
	return time.Duration(b.TimeoutMS) * time.Millisecond
}

// Answer is what a service said, whatever its status but a redirect.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// Client asks services.
type Client struct {
	http    *http.Client
	timeout time.Duration
	max     int64
	tries   int
}

// New makes a Client that takes answers of at most max bytes.
func New(b Bounds, max int64) (*Client, error) {
	if err := b.Validate(); err != nil {
		return nil, err
	}
	roots, err := smallfile.Roots(b.CACerts...)
	if err != nil {
		return nil, fmt.Errorf("reading ca_certs: %w", err)
	}
	return &Client{http: Transport(roots, b.Timeout()), timeout: b.Timeout(), max: max, tries: maxTries}, nil
}

// metadataTimeout bounds one question to a metadata service: it is on this machine or next to it.
const metadataTimeout = 3 * time.Second

// NewMetadata makes a Client for the metadata service of a machine.
func NewMetadata() *Client {
	return &Client{http: Transport(nil, metadataTimeout), timeout: metadataTimeout, max: MaxFile, tries: 2}
}

// Close lets go of idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Timeout is how long one call may take.
func (c *Client) Timeout() time.Duration { return c.timeout }

// Do asks until there is an answer that is not a "try again later". build makes the request anew for each try, because
// a signature holds the time; more says which further answers are to be tried again (may be nil). what names the
// service in errors.
func (c *Client) Do(
	ctx context.Context, what string, build func(context.Context) (*http.Request, error), more func(Answer) bool,
) (Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	for try, pause := 1, firstPause; ; try, pause = try+1, min(2*pause, longPause) {
		req, err := build(ctx)
		if err != nil {
			return Answer{}, err
		}
		a, again, err := c.once(req, what)
		if err == nil && again == nil && (more == nil || !more(a)) {
			return a, nil
		}
		if err != nil && again == nil || try == c.tries {
			return a, errors.Join(err, again)
		}
		// Half of the pause is random, so that brokers that failed together do not come back together.
		wait := max(pause/2+rand.N(pause/2), retryAfter(a))
		if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < wait {
			return a, errors.Join(err, again)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return a, fmt.Errorf("asking %s: %w", what, errors.Join(ctx.Err(), again))
		}
	}
}

// once asks one time. again is an error after which another try makes sense, err one after which it does not.
func (c *Client) once(req *http.Request, what string) (a Answer, again, err error) {
	at := req.URL.Scheme + "://" + req.URL.Host
	resp, err := c.http.Do(req)
	if err != nil {
		var named *url.Error
		if errors.As(err, &named) {
			err = named.Err // its URL may hold more than the address
		}
		err = fmt.Errorf("asking %s at %s: %w", what, at, err)
		if req.Context().Err() != nil {
			return a, nil, err
		}
		var certificate *tls.CertificateVerificationError
		if errors.As(err, &certificate) {
			return a, nil, err
		}
		return a, err, nil
	}
	defer resp.Body.Close()
	a = Answer{Status: resp.StatusCode, Header: resp.Header}
	if a.Body, err = io.ReadAll(io.LimitReader(resp.Body, c.max+1)); err != nil {
		return Answer{Status: a.Status}, fmt.Errorf("reading the answer of %s at %s: %w", what, at, err), nil
	}
	switch {
	case int64(len(a.Body)) > c.max:
		return Answer{Status: a.Status}, nil, fmt.Errorf("the answer of %s at %s has more than %d bytes", what, at, c.max)
	case a.Status/100 == 3:
		return a, nil, fmt.Errorf("asking %s at %s: it answers %d, a redirect, which is not followed because the credentials would go along",
			what, at, a.Status)
	case a.Status == http.StatusTooManyRequests || a.Status == http.StatusRequestTimeout || a.Status/100 == 5:
		return a, fmt.Errorf("asking %s at %s: it answers %d, also after being asked again", what, at, a.Status), nil
	}
	return a, nil, nil
}

func retryAfter(a Answer) time.Duration {
	seconds, err := strconv.Atoi(a.Header.Get("Retry-After"))
	if err != nil || seconds < 0 || seconds > 3600 {
		return 0
	}
	return time.Duration(seconds) * time.Second
}

// Transport talks to services that get credentials: to nobody but the one that is named, so over no proxy and after no redirect. timeout
// bounds each step of a connection; the caller bounds the whole.
func Transport(roots *x509.CertPool, timeout time.Duration) *http.Client {
	return &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialContext:            (&net.Dialer{Timeout: timeout}).DialContext,
			TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout:    timeout,
			ResponseHeaderTimeout:  timeout,
			MaxResponseHeaderBytes: 64 << 10,
			MaxConnsPerHost:        64,
			MaxIdleConnsPerHost:    16,
			IdleConnTimeout:        time.Minute,
			DisableCompression:     true, // a small answer must not unpack to a big one
			ForceAttemptHTTP2:      true,
		},
	}
}

// CheckURL refuses an address that credentials may not be sent to: it is https://HOST[:PORT][/PATH]; http:// is taken for
// this machine and for the hosts named, which are metadata services.
func CheckURL(key, text string, plain ...string) error {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return fmt.Errorf("%s: want https://HOST[:PORT]", key)
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("%s: want https://HOST[:PORT] without user, query or fragment", key)
	}
	if u.Scheme == "https" || loopback.Is(u.Hostname()) {
		return nil
	}
	for _, host := range plain {
		if u.Hostname() == host {
			return nil
		}
	}
	return fmt.Errorf("%s: http:// to %.128q shows credentials and secrets to the network; use https://", key, u.Hostname())
}

var code = regexp.MustCompile(`\A[A-Za-z][A-Za-z0-9_.]{0,63}\z`)

// Code is an error code of a service if it has the form of one, so that nothing else gets from an answer into a text.
func Code(text string) string {
	if code.MatchString(text) {
		return text
	}
	return ""
}
