// Package storagekey wraps the key that the broker's store is encrypted with by a key that never leaves a hardware security
// module. cloister-pkcs11 init makes that key.
//
// With AES-GCM the token authenticates the value and its context. With RSA-OAEP, for tokens without AES-GCM, the context is
// bound too, but whoever knows the public key can make a wrapped value: there the file must be kept from being replaced.
package storagekey

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"

	"github.com/cloister/cloister/broker/pkcs11"
	"github.com/cloister/cloister/broker/pkcs11/link"
)

// Config names the key.
type Config struct {
	pkcs11.Config
	// KeyLabel is the label of an AES key, or of an RSA key pair.
	KeyLabel string `toml:"key_label"`
	// RSAMechanism is RsaPkcsOaep, the default, or RsaPkcsTest; it counts for an RSA key.
	RSAMechanism string `toml:"rsa_mechanism"`
}

// Validate reports every fault.
func (c Config) Validate() error {
	_, err := pkcs11.Hash(c.RSAMechanism)
	if c.KeyLabel == "" || len(c.KeyLabel) > link.MaxLabel {
		err = errors.Join(err, fmt.Errorf("key_label has %d bytes, want 1 to %d", len(c.KeyLabel), link.MaxLabel))
	}
	return errors.Join(c.Config.Validate(), err)
}

// Insecure lists the insecure switches that are on.
func (c Config) Insecure() []string {
	if c.RSAMechanism == pkcs11.RSAPKCSTest {
		return []string{"rsa_mechanism=" + pkcs11.RSAPKCSTest}
	}
	return nil
}

// Wrapper wraps keys. It is safe for use by several goroutines.
type Wrapper struct {
	client            *pkcs11.Client
	name, label, hash string
}

// New opens the token and tries the key. A key whose value could leave the token is refused. log may be nil.
func New(ctx context.Context, c Config, log *slog.Logger) (*Wrapper, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	hash, err := pkcs11.Hash(c.RSAMechanism)
	if err != nil {
		return nil, err
	}
	client, err := pkcs11.Open(ctx, c.Config, log)
	if err != nil {
		return nil, err
	}
	w := &Wrapper{client, "pkcs11:" + cmp.Or(c.TokenLabel, c.TokenSerial) + "/" + c.KeyLabel, c.KeyLabel, hash}
	if err := w.try(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("trying the storage key %q of the token: %w", c.KeyLabel, err), client.Close())
	}
	return w, nil
}

func (w *Wrapper) try(ctx context.Context) error {
	probe, place := make([]byte, 32), []byte("cloister storage key probe")
	if _, err := rand.Read(probe); err != nil {
		return err
	}
	wrapped, err := w.Wrap(ctx, probe, place)
	if err != nil {
		return err
	}
	got, err := w.Unwrap(ctx, wrapped, place)
	if err == nil && !bytes.Equal(got, probe) {
		err = errors.New("the token unwraps to something else")
	}
	return err
}

// Name says which key wraps: pkcs11:TOKEN/KEY.
func (w *Wrapper) Name() string { return w.name }

// Wrap encrypts a key and binds it to a context of at most 1024 bytes.
func (w *Wrapper) Wrap(ctx context.Context, plaintext, binding []byte) ([]byte, error) {
	return w.client.Wrap(ctx, w.label, w.hash, plaintext, binding)
}

// Unwrap decrypts what Wrap made for the same context.
func (w *Wrapper) Unwrap(ctx context.Context, wrapped, binding []byte) ([]byte, error) {
	return w.client.Unwrap(ctx, w.label, w.hash, wrapped, binding)
}

// Close ends the work with the token.
func (w *Wrapper) Close() error { return w.client.Close() }
