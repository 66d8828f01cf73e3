package microsoft

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/cloister/cloister/broker/cloud"
)

// version is the interface of Key Vault that is spoken.
const version = "7.4"

// Error is a refusal of a vault. Its text holds nothing of the answer but the codes.
type Error struct {
	Method, Path string
	Status       int
	// Code is one such as "SecretNotFound"; Inner says more, such as "AccessDenied".
	Code, Inner string
}

func (e *Error) Error() string {
	return strings.TrimSpace(fmt.Sprintf("Azure Key Vault answers %s %s with %d %s %s", e.Method, e.Path, e.Status, e.Code, e.Inner))
}

// NotFound reports whether err says that there is no such thing in the vault.
func NotFound(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Status == http.StatusNotFound
}

// Forbidden reports whether err says that the caller may not.
func Forbidden(err error) bool {
	var e *Error
	return errors.As(err, &e) && (e.Status == http.StatusForbidden || e.Status == http.StatusUnauthorized)
}

// Client asks one vault.
type Client struct {
	cfg    Config
	base   string
	http   *cloud.Client
	tokens *cloud.Cache[string]
}

// New makes a Client that takes answers of at most max bytes. It asks nobody yet.
func New(c Config, max int64, now func() time.Time) (*Client, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	c = c.WithDefaults()
	h, err := cloud.New(c.Bounds, max)
	if err != nil {
		return nil, err
	}
	from, err := newSource(c, now)
	if err != nil {
		return nil, err
	}
	return &Client{cfg: c, base: strings.TrimSuffix(c.VaultURL, "/"), http: h, tokens: cloud.NewCache(now, from)}, nil
}

// Close lets go of idle connections.
func (c *Client) Close() { c.http.Close() }

// Call asks for a path of the vault, such as "/secrets/NAME". A refusal is an *Error.
func (c *Client) Call(ctx context.Context, method, path string, query url.Values, in, out any) error {
	q := url.Values{"api-version": {version}}
	for k, v := range query {
		q[k] = v
	}
	return c.call(ctx, method, path, c.base+path+"?"+q.Encode(), in, out)
}

// Next asks for a further page, at an address that the vault gave. One elsewhere is refused: the token would go there.
func (c *Client) Next(ctx context.Context, link string, out any) error {
	u, err := url.Parse(link)
	own, _ := url.Parse(c.base)
	if err != nil || u.User != nil || u.Scheme != own.Scheme || !strings.EqualFold(trimPort(u), trimPort(own)) {
		return errors.New("the vault names a next page that is not its own, which is not asked for because the token would go along")
	}
	return c.call(ctx, http.MethodGet, u.Path, c.base+u.EscapedPath()+"?"+u.RawQuery, nil, out)
}

// trimPort is the host without the port that is the usual one: nextLink has it sometimes.
func trimPort(u *url.URL) string {
	if u.Scheme == "https" {
		return strings.TrimSuffix(u.Host, ":443")
	}
	return u.Host
}

func (c *Client) call(ctx context.Context, method, path, target string, in, out any) error {
	return c.http.Call(ctx, cloud.Call{
		Service: "Azure Key Vault", Credentials: c.cfg.Credentials, Tokens: c.tokens, Method: method, URL: target, Path: path, In: in, Out: out,
		Refused: func(a cloud.Answer) error { return refusal(method, path, a) },
	})
}

func refusal(method, path string, a cloud.Answer) error {
	var r struct {
		Error struct {
			Code  string
			Inner struct{ Code string } `json:"innererror"`
		}
	}
	_ = json.Unmarshal(a.Body, &r) // without a code, the status says it
	return &Error{Method: method, Path: path, Status: a.Status, Code: cloud.Code(r.Error.Code), Inner: cloud.Code(r.Error.Inner.Code)}
}
