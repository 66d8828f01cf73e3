// Package aws serves resources from AWS Secrets Manager. It never writes.
//
// The name of a secret is the path of the resource, repository/type/tag, or what package mapping says. Its binary value
// counts before its text, as upstream has it (kbs-protocol.md section 6.1). Versions of AWS have no numbers, so only the
// current one is served.
package aws

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cloister/cloister/broker/cloud/amazon"
	"github.com/cloister/cloister/broker/resource"
	"github.com/cloister/cloister/broker/resource/mapping"
	"github.com/cloister/cloister/broker/store"
)

// Config says where the secrets are.
type Config struct {
	amazon.Config
	Names mapping.Config `toml:"names"`
}

// Validate reports every fault.
func (c Config) Validate() error {
	return errors.Join(c.Config.Validate(), mapping.AWS.Validate(c.Names))
}

// Insecure lists the insecure switches that are on.
func (c Config) Insecure() []string { return c.Names.Insecure() }

// maxAnswer is more than the 64 KiB that AWS takes for a secret, in base64, or a page of names with their tags.
const maxAnswer = 1 << 20

// Backend reads secrets.
type Backend struct {
	cfg    Config
	client *amazon.Client
}

// New makes a Backend. It asks nobody yet.
func New(c Config, now func() time.Time) (*Backend, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	client, err := amazon.New(c.Config, "secretsmanager", maxAnswer, now)
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
	name, ok := mapping.AWS.Name(b.cfg.Names, p)
	if !ok {
		return nil, fmt.Errorf("resource %s has no name in AWS Secrets Manager: %w", p, store.ErrNotFound)
	}
	var out struct {
		Name         string
		SecretBinary []byte
		SecretString *string
	}
	err := b.client.Call(ctx, "secretsmanager.GetSecretValue", map[string]string{"SecretId": name}, &out)
	switch {
	case amazon.Is(err, "ResourceNotFoundException"):
		return nil, fmt.Errorf("resource %s in AWS Secrets Manager: %w", p, store.ErrNotFound)
	case amazon.Is(err, "AccessDeniedException"):
		return nil, fmt.Errorf("resource %s: %w; hint: allow secretsmanager:GetSecretValue for the secret, and kms:Decrypt for its key", p, err)
	case err != nil:
		return nil, fmt.Errorf("resource %s: %w", p, err)
	case out.Name != name:
		return nil, fmt.Errorf("resource %s: AWS sent another secret than %s", p, name)
	}
	secret := out.SecretBinary
	if secret == nil {
		if out.SecretString == nil {
			return nil, fmt.Errorf("resource %s: the secret %s has no value", p, name)
		}
		secret = []byte(*out.SecretString)
	}
	if len(secret) > resource.MaxSize {
		return nil, fmt.Errorf("resource %s: the secret has %d bytes, at most %d are served", p, len(secret), resource.MaxSize)
	}
	return secret, nil
}

// List tells names; see resource.Store.List.
func (b *Backend) List(ctx context.Context, prefix, after string, limit int) ([]resource.Info, error) {
	return mapping.AWS.List(ctx, b.cfg.Names, b.page, prefix, after, limit)
}

// Count tells how many resources there are.
func (b *Backend) Count(ctx context.Context) (int, error) {
	return mapping.AWS.Count(ctx, b.cfg.Names, b.page)
}

func (b *Backend) page(ctx context.Context, from string) ([]string, string, error) {
	type filter struct{ Key, Values any }
	in := map[string]any{"MaxResults": 100}
	if b.cfg.Names.NamePrefix != "" {
		in["Filters"] = []filter{{"name", []string{b.cfg.Names.NamePrefix}}}
	}
	if from != "" {
		in["NextToken"] = from
	}
	var out struct {
		SecretList []struct{ Name string }
		NextToken  string
	}
	if err := b.client.Call(ctx, "secretsmanager.ListSecrets", in, &out); err != nil {
		return nil, "", err
	}
	var names []string
	for _, s := range out.SecretList {
		names = append(names, s.Name)
	}
	return names, out.NextToken, nil
}
