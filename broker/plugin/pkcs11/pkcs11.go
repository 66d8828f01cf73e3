// Package pkcs11 is the plugin that keeps secrets in a hardware security module and wraps keys with it (kbs-protocol.md
// section 6.2).
//
//	GET, POST, DELETE  resource/<repository>/<type>/<tag>   a secret
//	POST               wrap-key                             the body, encrypted to the RSA key lookup_label
//	GET                wrap-key                             the body, decrypted with it
//
// Unlike upstream's, POST replaces a secret, secrets outlive the session with the token, the token is selected by its label
// or serial number instead of a slot index, and the PIN comes from a file.
package pkcs11

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"

	"github.com/cloister/cloister/broker/pkcs11"
	"github.com/cloister/cloister/broker/pkcs11/link"
	"github.com/cloister/cloister/broker/plugin"
	"github.com/cloister/cloister/broker/resource"
	"github.com/cloister/cloister/broker/store"
)

// Name selects the plugin.
const Name = "pkcs11"

const (
	wrapKey   = "wrap-key"
	resources = "resource"
)

// Config of the plugin.
type Config struct {
	pkcs11.Config
	// RSAMechanism is RsaPkcsOaep, the default, or RsaPkcsTest.
	RSAMechanism string `toml:"rsa_mechanism"`
	// LookupLabel is the label of the RSA key; without, there is no wrap-key.
	LookupLabel string `toml:"lookup_label"`
}

// Validate reports every fault.
func (c Config) Validate() error {
	_, err := pkcs11.Hash(c.RSAMechanism)
	if len(c.LookupLabel) > link.MaxLabel {
		err = errors.Join(err, fmt.Errorf("lookup_label has %d bytes, at most %d are taken", len(c.LookupLabel), link.MaxLabel))
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

// token is what the plugin needs of pkcs11.Client.
type token interface {
	Get(ctx context.Context, label string) ([]byte, error)
	Put(ctx context.Context, label string, value []byte) error
	Delete(ctx context.Context, label string) error
	Encrypt(ctx context.Context, key, hash string, plaintext []byte) ([]byte, error)
	Decrypt(ctx context.Context, key, hash string, ciphertext []byte) ([]byte, error)
	Close() error
}

// Plugin answers requests with a token.
type Plugin struct {
	token       token
	label, hash string
}

// New opens the token and tries the RSA key, so that a wrong label or mechanism is found at the start. log may be nil.
func New(ctx context.Context, c Config, log *slog.Logger) (*Plugin, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	client, err := pkcs11.Open(ctx, c.Config, log)
	if err != nil {
		return nil, err
	}
	hash, err := pkcs11.Hash(c.RSAMechanism)
	p := &Plugin{client, c.LookupLabel, hash}
	if err == nil && p.label != "" {
		err = p.try(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("trying the RSA key %q: %w", p.label, err), client.Close())
	}
	return p, nil
}

// try encrypts and decrypts once.
func (p *Plugin) try(ctx context.Context) error {
	probe := make([]byte, 32)
	if _, err := rand.Read(probe); err != nil {
		return err
	}
	sealed, err := p.token.Encrypt(ctx, p.label, p.hash, probe)
	if err != nil {
		return err
	}
	got, err := p.token.Decrypt(ctx, p.label, p.hash, sealed)
	if err == nil && !bytes.Equal(got, probe) {
		err = errors.New("the token decrypts to something else")
	}
	return err
}

// Close ends the work with the token.
func (p *Plugin) Close() error { return p.token.Close() }

// Name is part of plugin.Plugin.
func (*Plugin) Name() string { return Name }

// route checks a request. The path is nil for wrap-key.
func (p *Plugin) route(r *plugin.Request) (*resource.Path, error) {
	switch {
	case len(r.Path) == 1 && r.Path[0] == wrapKey:
		if r.Method != http.MethodGet && r.Method != http.MethodPost {
			return nil, fmt.Errorf("%.16s is not a thing to do with %s, GET and POST are: %w", r.Method, wrapKey, plugin.ErrRequest)
		}
		if p.label == "" {
			return nil, fmt.Errorf("no lookup_label is configured, so nothing is wrapped: %w", store.ErrNotFound)
		}
		return nil, nil
	case len(r.Path) > 0 && r.Path[0] == resources:
		path, err := resource.ParsePath(r.Path[1:])
		if err != nil {
			return nil, err
		}
		if r.Method != http.MethodGet && r.Method != http.MethodPost && r.Method != http.MethodDelete {
			return nil, fmt.Errorf("%.16s is not a thing to do with a resource, GET, POST and DELETE are: %w", r.Method, plugin.ErrRequest)
		}
		return &path, nil
	}
	return nil, fmt.Errorf("the path is neither %s/<repository>/<type>/<tag> nor %s: %w", resources, wrapKey, plugin.ErrRequest)
}

// NeedsAdmin is part of plugin.Plugin. It refuses bad paths before anybody is asked anything.
func (p *Plugin) NeedsAdmin(_ context.Context, r *plugin.Request) (bool, error) {
	_, err := p.route(r)
	return r.Method != http.MethodGet, err
}

// NeedsEncryption is part of plugin.Plugin.
func (*Plugin) NeedsEncryption(context.Context, *plugin.Request) (bool, error) { return true, nil }

// Handle is part of plugin.Plugin.
func (p *Plugin) Handle(ctx context.Context, r *plugin.Request) (*plugin.Response, error) {
	path, err := p.route(r)
	if err != nil {
		return nil, err
	}
	body, err := p.answer(ctx, r, path)
	if err != nil {
		return nil, explain(err)
	}
	return &plugin.Response{Body: body}, nil
}

func (p *Plugin) answer(ctx context.Context, r *plugin.Request, path *resource.Path) ([]byte, error) {
	switch {
	case path == nil && r.Method == http.MethodPost:
		return p.token.Encrypt(ctx, p.label, p.hash, r.Body)
	case path == nil:
		return p.token.Decrypt(ctx, p.label, p.hash, r.Body)
	case r.Method == http.MethodPost:
		return nil, p.token.Put(ctx, path.String(), r.Body)
	case r.Method == http.MethodDelete:
		return nil, p.token.Delete(ctx, path.String())
	}
	return p.token.Get(ctx, path.String())
}

// explain tells the client what is its own fault.
func explain(err error) error {
	switch link.StatusOf(err) {
	case link.StatusBadRequest, link.StatusBadCipher:
		return fmt.Errorf("%w: %w", plugin.ErrRequest, err)
	}
	return err
}
