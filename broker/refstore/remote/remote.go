package remote

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/cloister/cloister/broker/grpcdial"
	"github.com/cloister/cloister/broker/refstore"
	"github.com/cloister/cloister/broker/store"
	"github.com/cloister/cloister/wire/rvps"
)

const (
	maxName  = 512
	maxValue = 1 << 20
)

// ErrUnsupported is wrapped by what the protocol has no words for.
var ErrUnsupported = fmt.Errorf("%w: reference values are kept by a service elsewhere, whose protocol cannot do that; hint: do it there", errors.ErrUnsupported)

// Client asks for reference values.
type Client struct {
	pool  *grpcdial.Pool
	rvps  rvps.ReferenceValueProviderServiceClient
	cache *cache
}

// Open makes a client. It does not wait for the service.
func Open(c Config, now func() time.Time) (*Client, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	pool, err := grpcdial.Open(c.Config)
	if err != nil {
		return nil, err
	}
	return On(pool, c.cache(), now), nil
}

// On makes a client on connections that are there: an attestation service forwards to its reference values.
func On(pool *grpcdial.Pool, cached time.Duration, now func() time.Time) *Client {
	return &Client{pool: pool, rvps: rvps.NewReferenceValueProviderServiceClient(pool), cache: newCache(min(cached, maxCache), now)}
}

// Close ends the connections.
func (c *Client) Close() error { return c.pool.Close() }

// Check asks the service whether it is there.
func (c *Client) Check(ctx context.Context) error { return c.pool.Check(ctx) }

// Lookup returns a value, or nil when the service knows none of that name. An error, one that wraps outage.ErrUnavailable when the
// service cannot be asked, means that nobody knows; it is never to be taken for "none".
func (c *Client) Lookup(ctx context.Context, name string) (json.RawMessage, error) {
	if name == "" || len(name) > maxName {
		return nil, fmt.Errorf("the name of a reference value has %d bytes, want 1 to %d", len(name), maxName)
	}
	if v, ok := c.cache.get(name); ok {
		return v, nil
	}
	asked, epoch := c.cache.begin()
	r, err := c.rvps.QueryReferenceValue(ctx, &rvps.ReferenceValueQueryRequest{ReferenceValueId: name})
	if err != nil {
		return nil, fmt.Errorf("asking the reference value service for %q: %w", name, err)
	}
	if r.ReferenceValueResults == nil {
		return nil, nil // not kept: a value that is registered counts at once
	}
	value, err := readValue(r.GetReferenceValueResults())
	if err != nil {
		return nil, fmt.Errorf("answer of the reference value service for %q: %w", name, err)
	}
	if value != nil {
		c.cache.put(name, value, asked, epoch)
	}
	return value, nil
}

// readValue checks that an answer is one JSON text; null counts as none.
func readValue(text string) (json.RawMessage, error) {
	if len(text) > maxValue {
		return nil, fmt.Errorf("it has %d bytes, at most %d are read", len(text), maxValue)
	}
	value := json.RawMessage(bytes.TrimSpace([]byte(text)))
	if !json.Valid(value) {
		return nil, errors.New("it is not JSON")
	}
	if string(value) == "null" {
		return nil, nil
	}
	return value, nil
}

// Get is Lookup as a record, which has no expiry and no registrant: the protocol does not tell. A missing value is
// store.ErrNotFound.
func (c *Client) Get(ctx context.Context, name string) (*refstore.Record, error) {
	v, err := c.Lookup(ctx, name)
	if err != nil {
		return nil, err
	}
	if v == nil {
		return nil, store.ErrNotFound
	}
	return &refstore.Record{Name: name, Value: v}, nil
}

// Register sends a message to the service, with the token of admin_token_file. It returns the names the message registers as far
// as it shows them: those of the type "sample".
func (c *Client) Register(ctx context.Context, message []byte, by string) ([]string, error) {
	names, err := namesOf(message)
	if err != nil {
		return nil, err
	}
	if ctx, err = c.pool.AsAdmin(ctx); err != nil {
		return nil, err
	}
	defer c.cache.forget() // also when it failed: it may have been done
	if _, err := c.rvps.RegisterReferenceValue(ctx, &rvps.ReferenceValueRegisterRequest{Message: string(message)}); err != nil {
		return nil, fmt.Errorf("registering reference values of %s at the service: %w", by, err)
	}
	return names, nil
}

// namesOf reads the names out of a message whose payload is an object of names and values; others are for the service to read.
func namesOf(message []byte) ([]string, error) {
	var m struct {
		Type    string `json:"type"`
		Payload string `json:"payload"`
	}
	if err := json.Unmarshal(message, &m); err != nil {
		return nil, fmt.Errorf("reading the reference value message: %w", err)
	}
	if m.Type != "sample" {
		return nil, nil
	}
	raw, err := base64.StdEncoding.DecodeString(m.Payload)
	if err != nil {
		return nil, fmt.Errorf("reading the payload of the message: %w", err)
	}
	var values map[string]json.RawMessage
	if err := json.Unmarshal(raw, &values); err != nil {
		return nil, fmt.Errorf("reading the payload of the message: %w", err)
	}
	return slices.Sorted(maps.Keys(values)), nil
}

// List is not in the protocol.
func (c *Client) List(context.Context) ([]refstore.Record, error) {
	return nil, fmt.Errorf("listing reference values: %w", ErrUnsupported)
}

// Delete is not in the protocol.
func (c *Client) Delete(context.Context, string) error {
	return fmt.Errorf("removing a reference value: %w", ErrUnsupported)
}

// Remove is not in the protocol.
func (c *Client) Remove(context.Context, string, json.RawMessage) error {
	return fmt.Errorf("removing a reference value: %w", ErrUnsupported)
}

// DeleteGroup is not in the protocol.
func (c *Client) DeleteGroup(context.Context, string) ([]string, error) {
	return nil, fmt.Errorf("removing a group of reference values: %w", ErrUnsupported)
}
