package attest

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/cloister/cloister/wire/kbs"
)

// ErrNotFound means that the broker has no such resource.
var ErrNotFound = errors.New("resource not found")

// Resource fetches and decrypts a resource. A refusal with a token from an
// earlier handshake is answered with one new handshake; a refusal of fresh
// evidence is final and carries the broker's explanation.
func (c *KBSClient) Resource(ctx context.Context, uri kbs.ResourceURI) ([]byte, error) {
	b, err := c.resource(ctx, uri)
	if err != nil {
		return nil, fmt.Errorf("fetching %s: %w", uri, err)
	}
	return b, nil
}

func (c *KBSClient) resource(ctx context.Context, uri kbs.ResourceURI) ([]byte, error) {
	refused := ""
	for {
		token, fresh, err := c.token(ctx, refused)
		if err != nil {
			return nil, err
		}
		r, err := c.do(ctx, http.MethodGet, uri.RequestPath(), nil, token, maxResource)
		if err != nil {
			return nil, err
		}
		switch {
		case r.status == http.StatusOK:
			b, err := kbs.Decrypt(r.body, c.key)
			if err != nil {
				return nil, fmt.Errorf("opening the broker's answer: %w", err)
			}
			return b, nil
		case r.status == http.StatusNotFound:
			return nil, fmt.Errorf("%w: %w", ErrNotFound, r.refusal())
		case r.status == http.StatusUnauthorized && !fresh && refused == "":
			c.log.Info("the broker refused the cached token, attesting again", "resource", uri.String())
			refused = token
		default:
			return nil, r.refusal()
		}
	}
}
