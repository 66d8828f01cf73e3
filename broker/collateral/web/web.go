// Package web asks vendors' servers over HTTP, the same careful way for all: within a time, with a bounded body, over TLS that is
// verified, through the proxy the environment names, and never led to another host.
package web

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/cloister/cloister/broker/collateral"
)

// Options make a Client. The zero value of a member means its default.
type Options struct {
	Timeout time.Duration // of one request and its answer, default 15 s
	MaxBody int64         // bytes, default collateral.MaxDocument
	// Roots are trusted instead of the system's, for a PCCS with a certificate of its own.
	Roots *x509.CertPool
}

// Client asks servers.
type Client struct {
	http    *http.Client
	maxBody int64
}

// maxRedirects bounds redirections, which stay on the host.
const maxRedirects = 3

// New makes a client.
func New(o Options) *Client {
	if o.Timeout <= 0 {
		o.Timeout = 15 * time.Second
	}
	if o.MaxBody <= 0 {
		o.MaxBody = collateral.MaxDocument
	}
	transport := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: o.Timeout / 2}).DialContext,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: o.Roots},
		TLSHandshakeTimeout:    o.Timeout / 2,
		ResponseHeaderTimeout:  o.Timeout,
		MaxResponseHeaderBytes: 256 << 10, // Intel puts certificate chains into headers
		MaxIdleConnsPerHost:    4,
		IdleConnTimeout:        time.Minute,
		ForceAttemptHTTP2:      true,
	}
	return &Client{maxBody: o.MaxBody, http: &http.Client{Transport: transport, Timeout: o.Timeout, CheckRedirect: stayOnHost}}
}

func stayOnHost(r *http.Request, via []*http.Request) error {
	first := via[0].URL
	if r.URL.Host != first.Host || r.URL.Scheme != first.Scheme {
		return fmt.Errorf("got a redirection to %s://%s, expected to stay on %s://%s", r.URL.Scheme, r.URL.Host, first.Scheme, first.Host)
	}
	if len(via) > maxRedirects {
		return fmt.Errorf("got more than %d redirections", maxRedirects)
	}
	return nil
}

// Roots reads a PEM file with certificates to trust.
func Roots(file string) (*x509.CertPool, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s holds no certificate in PEM", file)
	}
	return pool, nil
}

// Response is a complete answer with status 200.
type Response struct {
	Body   []byte
	Header http.Header
	// MaxAge is how long the answer may be kept by its Cache-Control or Expires header; zero when it has none.
	MaxAge time.Duration
}

// Get asks for a document. Errors wrap collateral.ErrNotFound or are a *collateral.BusyError where that is what they mean.
func (c *Client) Get(ctx context.Context, target string) (*Response, error) {
	return c.do(ctx, http.MethodGet, target, "", nil)
}

// Post sends a request.
func (c *Client) Post(ctx context.Context, target, contentType string, body []byte) (*Response, error) {
	return c.do(ctx, http.MethodPost, target, contentType, body)
}

func (c *Client) do(ctx context.Context, method, target, contentType string, body []byte) (*Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "cloister-broker")
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	res, err := c.http.Do(req)
	if err != nil {
		var outer *url.Error // names a redirection's address only
		if errors.As(err, &outer) {
			err = outer.Err
		}
		err = fmt.Errorf("%s %s: %w", method, target, err)
		if ctx.Err() != nil { // the caller's time is over, which says nothing about this server
			return nil, err
		}
		return nil, &collateral.BusyError{Err: err}
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, statusError(method, target, res)
	}
	data, err := io.ReadAll(io.LimitReader(res.Body, c.maxBody+1))
	if err != nil {
		err = fmt.Errorf("%s %s: reading the answer after %d bytes: %w", method, target, len(data), err)
		if timeout(err) && ctx.Err() == nil {
			return nil, &collateral.BusyError{Err: err}
		}
		return nil, err
	}
	if int64(len(data)) > c.maxBody {
		return nil, fmt.Errorf("%s %s: the answer has more than %d bytes", method, target, c.maxBody)
	}
	return &Response{Body: data, Header: res.Header, MaxAge: maxAge(res.Header)}, nil
}

func timeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

func statusError(method, target string, res *http.Response) error {
	_, _ = io.CopyN(io.Discard, res.Body, 4096) // so that the connection can be used again
	err := fmt.Errorf("%s %s: status is %s, expected 200", method, target, res.Status)
	switch res.StatusCode {
	case http.StatusNotFound, http.StatusGone:
		return fmt.Errorf("%w: %w", err, collateral.ErrNotFound)
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return &collateral.BusyError{Err: err, Wait: retryAfter(res.Header)}
	}
	return err
}

// retryAfter reads seconds or a date, relative to the server's own clock.
func retryAfter(h http.Header) time.Duration {
	text := strings.TrimSpace(h.Get("Retry-After"))
	if n, err := strconv.ParseUint(text, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	return until(h, text)
}

func maxAge(h http.Header) time.Duration {
	for field := range strings.SplitSeq(h.Get("Cache-Control"), ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(field), "=")
		switch strings.ToLower(name) {
		case "no-cache", "no-store":
			return 1 // the least there is: the cache has a floor
		case "max-age":
			if n, err := strconv.ParseUint(strings.Trim(value, `"`), 10, 31); err == nil {
				return max(time.Duration(n)*time.Second, 1)
			}
		}
	}
	return until(h, h.Get("Expires"))
}

// until is the time from the server's Date to an HTTP date; zero without either.
func until(h http.Header, text string) time.Duration {
	at, err := http.ParseTime(text)
	if err != nil {
		return 0
	}
	date, err := http.ParseTime(h.Get("Date"))
	if err != nil {
		return 0
	}
	return max(at.Sub(date), 1)
}

// Base checks the address of a server, see collateral.CheckURL, and takes off a slash at its end.
func Base(text string) (string, error) {
	if err := collateral.CheckURL(text); err != nil {
		return "", err
	}
	return strings.TrimRight(text, "/"), nil
}
