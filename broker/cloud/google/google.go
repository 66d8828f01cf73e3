package google

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"net/http"
	"strings"
	"time"

	"github.com/cloister/cloister/broker/cloud"
)

// Error is a refusal of a service. Its text holds nothing of the answer but the code.
type Error struct {
	Method, Path string
	Status       int
	// Code is one such as "NOT_FOUND".
	Code string
}

func (e *Error) Error() string {
	return strings.TrimSpace(fmt.Sprintf("Google Cloud answers %s %s with %d %s", e.Method, e.Path, e.Status, e.Code))
}

// NotFound reports whether err says that there is no such thing.
func NotFound(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Status == http.StatusNotFound
}

// Forbidden reports whether err says that the caller may not.
func Forbidden(err error) bool {
	var e *Error
	return errors.As(err, &e) && (e.Status == http.StatusForbidden || e.Status == http.StatusUnauthorized)
}

// Client asks one service.
type Client struct {
	cfg    Config
	base   string
	http   *cloud.Client
	tokens *cloud.Cache[string]
}

// New makes a Client of the service at base that takes answers of at most max bytes. It asks nobody yet.
func New(c Config, base string, max int64, now func() time.Time) (*Client, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	c = c.WithDefaults()
	h, err := cloud.New(c.Bounds, max)
	if err != nil {
		return nil, err
	}
	if c.Endpoint != "" {
		base = c.Endpoint
	}
	from, err := newSource(c, now)
	if err != nil {
		return nil, err
	}
	return &Client{cfg: c, base: strings.TrimSuffix(base, "/"), http: h, tokens: cloud.NewCache(now, from)}, nil
}

// Close lets go of idle connections.
func (c *Client) Close() { c.http.Close() }

// Call asks for a path with its query, such as "/v1/projects/p/secrets". A refusal is an *Error.
func (c *Client) Call(ctx context.Context, method, path string, in, out any) error {
	return c.http.Call(ctx, cloud.Call{
		Service: "Google Cloud", Credentials: c.cfg.Credentials, Tokens: c.tokens, Method: method, URL: c.base + path, Path: path, In: in, Out: out,
		Refused: func(a cloud.Answer) error {
			var r struct{ Error struct{ Status string } }
			_ = json.Unmarshal(a.Body, &r) // without a code, the status says it
			return &Error{Method: method, Path: path, Status: a.Status, Code: cloud.Code(r.Error.Status)}
		},
	})
}

// Checksum is the CRC-32C that Google's services send along, as the text of a number.
func Checksum(data []byte) string {
	return fmt.Sprint(crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli)))
}
