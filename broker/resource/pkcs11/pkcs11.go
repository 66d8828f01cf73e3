// Package pkcs11 keeps resources in a hardware security module: one secret key object per resource, with its path as the
// label, like those of the plugin pkcs11 (kbs-protocol.md section 6.2). There are no versions, and no list.
package pkcs11

import (
	"context"
	"log/slog"

	"github.com/cloister/cloister/broker/pkcs11"
	"github.com/cloister/cloister/broker/resource"
)

// Config says which token is used, and how.
type Config = pkcs11.Config

// Backend keeps resources in a token.
type Backend struct{ client *pkcs11.Client }

// New opens the token; log may be nil.
func New(ctx context.Context, c Config, log *slog.Logger) (*Backend, error) {
	client, err := pkcs11.Open(ctx, c, log)
	if err != nil {
		return nil, err
	}
	return &Backend{client}, nil
}

// Close ends the work with the token.
func (b *Backend) Close() error { return b.client.Close() }

// Get returns a secret, or an error that wraps store.ErrNotFound.
func (b *Backend) Get(ctx context.Context, p resource.Path) ([]byte, error) {
	return b.client.Get(ctx, p.String())
}

// Put makes or replaces a secret of 1 byte to 64 KiB. Errors may wrap resource.ErrQuota or resource.ErrReadOnly.
func (b *Backend) Put(ctx context.Context, p resource.Path, secret []byte) error {
	return b.client.Put(ctx, p.String(), secret)
}

// Delete removes a secret, or returns an error that wraps store.ErrNotFound.
func (b *Backend) Delete(ctx context.Context, p resource.Path) error {
	return b.client.Delete(ctx, p.String())
}
