package cloud

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
)

// Call is one question, as JSON, to a service that takes bearer tokens.
type Call struct {
	// Service names it in errors, Credentials where its tokens come from.
	Service, Credentials string
	Tokens               *Cache[string]
	Method, URL          string
	// Path names the question in errors.
	Path string
	// In is nil for a question without a body.
	In, Out any
	// Refused makes an error of an answer that is none.
	Refused func(Answer) error
}

// Call asks. A token that is refused is fetched anew once: it may have been withdrawn before its time.
func (c *Client) Call(ctx context.Context, q Call) error {
	var body []byte
	if q.In != nil {
		var err error
		if body, err = json.Marshal(q.In); err != nil {
			return fmt.Errorf("asking %s for %s: the request does not become JSON", q.Service, q.Path)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	var serial uint64
	build := func(ctx context.Context) (*http.Request, error) {
		token, s, err := q.Tokens.Get(ctx)
		if err != nil {
			return nil, fmt.Errorf("getting a token for %s (%s): %w", q.Service, q.Credentials, err)
		}
		serial = s
		req, err := http.NewRequestWithContext(ctx, q.Method, q.URL, bytes.NewReader(body))
		if err != nil {
			return nil, fmt.Errorf("asking %s for %s: %w", q.Service, q.Path, err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		if q.In != nil {
			req.Header.Set("Content-Type", "application/json")
		}
		return req, nil
	}
	for renewed := false; ; renewed = true {
		a, err := c.Do(ctx, q.Service, build, nil)
		switch {
		case err != nil:
			return err
		case a.Status == http.StatusUnauthorized && !renewed:
			q.Tokens.Drop(serial)
			continue
		case a.Status/100 != 2:
			return q.Refused(a)
		case json.Unmarshal(a.Body, q.Out) != nil:
			return fmt.Errorf("the answer of %s to %s %s is not the JSON of one", q.Service, q.Method, q.Path)
		}
		return nil
	}
}
