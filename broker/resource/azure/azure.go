// Package azure serves resources from the secrets of an Azure Key Vault. It never writes.
//
// Names there are letters, digits and '-', and do not tell case apart; package mapping makes them of paths. A value is
// text: one whose content type is "application/octet-stream;base64" is decoded, all others are served as they are.
// Versions of Azure have no numbers, so only the current one is served.
package azure

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/cloister/cloister/broker/cloud/microsoft"
	"github.com/cloister/cloister/broker/resource"
	"github.com/cloister/cloister/broker/resource/mapping"
	"github.com/cloister/cloister/broker/store"
)

// Config says where the secrets are.
type Config struct {
	microsoft.Config
	Names mapping.Config `toml:"names"`
}

// Validate reports every fault.
func (c Config) Validate() error {
	return errors.Join(c.Config.Validate(), mapping.Azure.Validate(c.Names))
}

// Insecure lists the insecure switches that are on.
func (c Config) Insecure() []string { return c.Names.Insecure() }

const (
	// maxAnswer is more than the 25 KB that Azure takes for a secret.
	maxAnswer = 1 << 20
	// binary is the content type of secrets that are not text.
	binary = "application/octet-stream;base64"
)

// Backend reads secrets.
type Backend struct {
	cfg    Config
	client *microsoft.Client
}

// New makes a Backend. It asks nobody yet.
func New(c Config, now func() time.Time) (*Backend, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	client, err := microsoft.New(c.Config, maxAnswer, now)
	if err != nil {
		return nil, err
	}
	return &Backend{c, client}, nil
}

// Put is refused.
func (b *Backend) Put(context.Context, resource.Path, []byte) error { return resource.ErrReadOnly }

// Delete is refused.
func (b *Backend) Delete(context.Context, resource.Path) error { return resource.ErrReadOnly }

// Get returns a secret, or an error that wraps store.ErrNotFound.
func (b *Backend) Get(ctx context.Context, p resource.Path) ([]byte, error) {
	name, ok := mapping.Azure.Name(b.cfg.Names, p)
	if !ok {
		return nil, fmt.Errorf("resource %s has no name in Azure Key Vault: %w", p, store.ErrNotFound)
	}
	var out struct {
		ID    string  `json:"id"`
		Value *string `json:"value"`
		Type  string  `json:"contentType"`
	}
	err := b.client.Call(ctx, http.MethodGet, "/secrets/"+name, nil, nil, &out)
	switch {
	case microsoft.NotFound(err):
		return nil, fmt.Errorf("resource %s in Azure Key Vault: %w", p, store.ErrNotFound)
	case microsoft.Forbidden(err):
		return nil, fmt.Errorf("resource %s: %w; hint: give the identity the role Key Vault Secrets User, or enable the secret", p, err)
	case err != nil:
		return nil, fmt.Errorf("resource %s: %w", p, err)
	case out.Value == nil:
		return nil, fmt.Errorf("resource %s: the secret %s has no value", p, name)
	}
	if got, ok := secretName(out.ID); !ok || !strings.EqualFold(got, name) {
		return nil, fmt.Errorf("resource %s: Azure sent another secret than %s", p, name)
	}
	secret := []byte(*out.Value)
	if strings.EqualFold(strings.ReplaceAll(out.Type, " ", ""), binary) {
		if secret, err = base64.StdEncoding.DecodeString(*out.Value); err != nil {
			return nil, fmt.Errorf("resource %s: the content type of the secret %s is %s, but it is not base64", p, name, binary)
		}
	}
	return secret, nil
}

// secretName is the name in an id: https://HOST/secrets/NAME[/VERSION].
func secretName(id string) (string, bool) {
	u, err := url.Parse(id)
	if err != nil {
		return "", false
	}
	rest, ok := strings.CutPrefix(u.Path, "/secrets/")
	name, _, _ := strings.Cut(rest, "/")
	return name, ok && name != ""
}

// List tells names; see resource.Store.List.
func (b *Backend) List(ctx context.Context, prefix, after string, limit int) ([]resource.Info, error) {
	return mapping.Azure.List(ctx, b.cfg.Names, b.page, prefix, after, limit)
}

// Count tells how many resources there are.
func (b *Backend) Count(ctx context.Context) (int, error) {
	return mapping.Azure.Count(ctx, b.cfg.Names, b.page)
}

func (b *Backend) page(ctx context.Context, from string) ([]string, string, error) {
	var out struct {
		Value []struct {
			ID string `json:"id"`
		} `json:"value"`
		Next string `json:"nextLink"`
	}
	var err error
	if from == "" {
		err = b.client.Call(ctx, http.MethodGet, "/secrets", url.Values{"maxresults": {"25"}}, nil, &out)
	} else {
		err = b.client.Next(ctx, from, &out)
	}
	if err != nil {
		return nil, "", err
	}
	var names []string
	for _, s := range out.Value {
		if name, ok := secretName(s.ID); ok {
			names = append(names, strings.ToLower(name))
		}
	}
	return names, out.Next, nil
}
