package client

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/cloister/cloister/broker/server"
)

// RotateTokenKey gives the broker a new key for attestation tokens and returns when it begins to sign. Tokens of the earlier ones count
// until they end, or, revoked, not any more.
func (c *Client) RotateTokenKey(ctx context.Context, revoke bool) (time.Time, error) {
	query := url.Values{}
	if revoke {
		query.Set("revoke", "")
	}
	body, err := c.call(ctx, http.MethodPost, "/cloister/v1/keys/token/rotate", query.Encode(), nil)
	var done server.Rotated
	if err == nil {
		err = json.Unmarshal(body, &done)
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("rotating the token signing key: %w", err)
	}
	return done.From, nil
}

// RotateStorageKey does one step with the broker's storage keys: "rotate", "retire" or "rewrap".
func (c *Client) RotateStorageKey(ctx context.Context, step string) (*server.StorageRotated, error) {
	body, err := c.call(ctx, http.MethodPost, "/cloister/v1/keys/storage/"+step, "", nil)
	done := new(server.StorageRotated)
	if err == nil {
		err = json.Unmarshal(body, done)
	}
	if err != nil {
		return nil, fmt.Errorf("storage key, %s: %w", step, err)
	}
	return done, nil
}
