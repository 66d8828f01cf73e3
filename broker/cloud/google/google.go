package google

import (
	"bytes"
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
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return fmt.Errorf("asking Google Cloud for %s: the request does not become JSON", path)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, c.http.Timeout())
	defer cancel()
	var serial uint64
	build := func(ctx context.Context) (*http.Request, error) {
		token, s, err := c.tokens.Get(ctx)
		if err != nil {
			return nil, fmt.Errorf("getting a token for Google Cloud (%s): %w", c.cfg.Credentials, err)
		}
		serial = s
		req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
		if err != nil {
			return nil, fmt.Errorf("asking Google Cloud for %s: %w", path, err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		if in != nil {
			req.Header.Set("Content-Type", "application/json")
		}
		return req, nil
	}
	for renewed := false; ; renewed = true {
		a, err := c.http.Do(ctx, "Google Cloud", build, nil)
		if err != nil {
			return err
		}
		if a.Status == http.StatusUnauthorized && !renewed {
			c.tokens.Drop(serial) // it may have been withdrawn before its time
			continue
		}
		if a.Status/100 != 2 {
			var r struct{ Error struct{ Status string } }
			_ = json.Unmarshal(a.Body, &r) // without a code, the status says it
			return &Error{Method: method, Path: path, Status: a.Status, Code: cloud.Code(r.Error.Status)}
		}
		if json.Unmarshal(a.Body, out) != nil {
			return fmt.Errorf("the answer of Google Cloud to %s %s is not the JSON of one", method, path)
		}
		return nil
	}
}

// Checksum is the CRC-32C that Google's services send along, as the text of a number.
func Checksum(data []byte) string {
	return fmt.Sprint(crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli)))
}
