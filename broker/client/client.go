// Package client talks to a broker as its administrator: it puts secrets, policies and reference values, and reads
// status, audit log and verdicts.
package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"strings"
	"time"

	"github.com/cloister/cloister/broker/audit"
	"github.com/cloister/cloister/broker/refstore"
	"github.com/cloister/cloister/broker/server"
	"github.com/cloister/cloister/wire/kbs"
)

// Config says which broker to talk to.
type Config struct {
	// URL is for example "https://127.0.0.1:8080", or that of a tenant: "https://127.0.0.1:8080/ns/team-a".
	URL string
	// CertificateFile is a PEM file with the broker's certificate or its authority; empty means the system's authorities.
	CertificateFile string
	// AdminTokenFile holds the admin token; empty means that only open endpoints can be used.
	AdminTokenFile string
	// ClientCertificateFile and ClientKeyFile are PEM files of who asks, for brokers that know their admins by certificates.
	ClientCertificateFile, ClientKeyFile string
}

const (
	timeout   = 60 * time.Second
	maxAnswer = 64 << 20
)

// Client is a connection to a broker.
type Client struct {
	base  *url.URL
	token string
	http  *http.Client
}

// StatusError is an answer other than success.
type StatusError struct {
	Status int
	// Type is the error name of the protocol, empty when the answer had none.
	Type   string
	Detail string
}

// Error is part of error.
func (e *StatusError) Error() string {
	return fmt.Sprintf("broker answered %d: %s", e.Status, e.Detail)
}

// New makes a Client. It does not connect.
func New(c Config) (*Client, error) {
	base, err := url.Parse(c.URL)
	if err != nil {
		return nil, fmt.Errorf("reading broker URL: %w", err)
	}
	if base.Scheme != "https" && base.Scheme != "http" || base.Host == "" {
		return nil, fmt.Errorf("broker URL is %q, want http(s)://host:port", c.URL)
	}
	if !plainBase(base) {
		return nil, fmt.Errorf("broker URL of host %s has more than a plain path: want http(s)://host:port or http(s)://host:port/ns/TENANT", base.Host)
	}
	if (c.ClientCertificateFile == "") != (c.ClientKeyFile == "") {
		return nil, errors.New("a client certificate needs its key, and the key its certificate")
	}
	if c.ClientCertificateFile != "" && base.Scheme != "https" {
		return nil, fmt.Errorf("a client certificate is for https, the broker URL is %q", c.URL)
	}
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}, MaxIdleConnsPerHost: 2, IdleConnTimeout: 30 * time.Second,
		TLSHandshakeTimeout: 10 * time.Second, ForceAttemptHTTP2: false, Proxy: http.ProxyFromEnvironment,
	}
	if c.CertificateFile != "" {
		text, err := os.ReadFile(c.CertificateFile)
		if err != nil {
			return nil, fmt.Errorf("reading broker certificate: %w", err)
		}
		transport.TLSClientConfig.RootCAs = x509.NewCertPool()
		if !transport.TLSClientConfig.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("broker certificate file %s holds no certificate", c.CertificateFile)
		}
	}
	if c.ClientCertificateFile != "" {
		pair, err := tls.LoadX509KeyPair(c.ClientCertificateFile, c.ClientKeyFile)
		if err != nil {
			return nil, fmt.Errorf("reading the client certificate: %w", err)
		}
		transport.TLSClientConfig.Certificates = []tls.Certificate{pair}
	}
	cl := &Client{base: base, http: &http.Client{
		Transport: transport, Timeout: timeout,
		// A broker sends nobody elsewhere, and a secret must not be sent on to where an answer says.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	if c.AdminTokenFile != "" {
		text, err := os.ReadFile(c.AdminTokenFile)
		if err != nil {
			return nil, fmt.Errorf("reading admin token: %w", err)
		}
		cl.token = strings.TrimSpace(string(text))
	}
	return cl, nil
}

// plainBase tells whether a URL has nothing but a path that no two readers read differently.
func plainBase(u *url.URL) bool {
	p := strings.TrimSuffix(u.Path, "/")
	return u.User == nil && u.RawQuery == "" && u.Fragment == "" && u.RawPath == "" && (p == "" || path.Clean(p) == p)
}

// call sends a request and returns the body of a 200 answer.
func (c *Client) call(ctx context.Context, method, endpoint, query string, body []byte) ([]byte, error) {
	u := c.base.JoinPath(endpoint)
	u.RawQuery = query
	req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	if len(body) > 0 {
		req.Header.Set("Content-Type", "application/octet-stream")
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("reading the answer: %w", err)
	}
	if len(answer) > maxAnswer {
		return nil, fmt.Errorf("the answer has more than %d bytes", maxAnswer)
	}
	if res.StatusCode == http.StatusOK {
		return answer, nil
	}
	failed := &StatusError{Status: res.StatusCode, Detail: strings.TrimSpace(string(answer[:min(len(answer), 2048)]))}
	if info, err := kbs.ParseError(answer); err == nil {
		failed.Type, failed.Detail = info.Name(), info.Error()
	}
	return nil, failed
}

func (c *Client) get(ctx context.Context, path, query string, into any) error {
	body, err := c.call(ctx, http.MethodGet, path, query, nil)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("reading the answer: %w", err)
	}
	return nil
}

// RegisterReferenceValues registers values by name, all or none. They take the place of what the names had.
func (c *Client) RegisterReferenceValues(ctx context.Context, values map[string]any) error {
	return c.SendReferenceValues(ctx, values, refstore.Message{})
}

// AddReferenceValues registers values beside those that the names have. The group, which may be empty, labels them.
func (c *Client) AddReferenceValues(ctx context.Context, group string, values map[string]any) error {
	return c.SendReferenceValues(ctx, values, refstore.Message{Group: group, Mode: refstore.ModeAdd})
}

// KeepReferenceValues lets values end that are not named. Those that are keep their expiry.
func (c *Client) KeepReferenceValues(ctx context.Context, values map[string]any) error {
	renew := false
	return c.SendReferenceValues(ctx, values, refstore.Message{Renew: &renew})
}

// SendReferenceValues registers values by name as the other members of a message say.
func (c *Client) SendReferenceValues(ctx context.Context, values map[string]any, m refstore.Message) error {
	payload, err := json.Marshal(values)
	if err != nil {
		return fmt.Errorf("encoding reference values: %w", err)
	}
	m.Version, m.Type, m.Payload = refstore.MessageVersion, "sample", base64.StdEncoding.EncodeToString(payload)
	if err := c.post(ctx, "/kbs/v0/reference-value", m); err != nil {
		return fmt.Errorf("registering reference values: %w", err)
	}
	return nil
}

// DeleteReferenceGroup removes what was registered with a group and returns the names that had such values.
func (c *Client) DeleteReferenceGroup(ctx context.Context, group string) ([]string, error) {
	answer, err := c.call(ctx, http.MethodDelete, "/cloister/v1/reference-value-groups/"+url.PathEscape(group), "", nil)
	if err != nil {
		return nil, fmt.Errorf("removing group %s: %w", group, err)
	}
	var names []string
	if err := json.Unmarshal(answer, &names); err != nil {
		return nil, fmt.Errorf("removing group %s: reading the answer: %w", group, err)
	}
	return names, nil
}

// ListReferenceValues returns all reference values, expired ones too.
func (c *Client) ListReferenceValues(ctx context.Context) ([]refstore.Record, error) {
	var records []refstore.Record
	if err := c.get(ctx, "/kbs/v0/reference-value", "", &records); err != nil {
		return nil, fmt.Errorf("listing reference values: %w", err)
	}
	return records, nil
}

// DeleteReferenceValue removes a reference value.
func (c *Client) DeleteReferenceValue(ctx context.Context, name string) error {
	if _, err := c.call(ctx, http.MethodDelete, "/kbs/v0/reference-value/"+name, "", nil); err != nil {
		return fmt.Errorf("deleting reference value %s: %w", name, err)
	}
	return nil
}

// Status tells how the broker is.
func (c *Client) Status(ctx context.Context) (*server.Status, error) {
	var st server.Status
	if err := c.get(ctx, "/cloister/v1/status", "", &st); err != nil {
		return nil, fmt.Errorf("asking for status: %w", err)
	}
	return &st, nil
}

// Healthy reports whether the broker answers at all.
func (c *Client) Healthy(ctx context.Context) error {
	if _, err := c.call(ctx, http.MethodGet, "/healthz", "", nil); err != nil {
		return fmt.Errorf("asking for health: %w", err)
	}
	return nil
}

// Audit returns every audit entry after number since.
func (c *Client) Audit(ctx context.Context, since uint64) ([]audit.Entry, error) {
	var all []audit.Entry
	for {
		var page []audit.Entry
		if err := c.get(ctx, "/cloister/v1/audit", fmt.Sprintf("since=%d", since), &page); err != nil {
			return nil, fmt.Errorf("reading the audit log: %w", err)
		}
		if len(page) == 0 {
			return all, nil
		}
		all = append(all, page...)
		last := page[len(page)-1].Seq
		if last <= since {
			return nil, errors.New("reading the audit log: the broker gives the same entries again")
		}
		since = last
	}
}

func (c *Client) post(ctx context.Context, path string, message any) error {
	body, err := json.Marshal(message)
	if err != nil {
		return fmt.Errorf("encoding the request: %w", err)
	}
	_, err = c.call(ctx, http.MethodPost, path, "", body)
	return err
}
