// Package builtin lists the plugins of the broker.
package builtin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/cloister/cloister/broker/plugin"
	"github.com/cloister/cloister/broker/plugin/external"
	"github.com/cloister/cloister/broker/plugin/nebulaca"
	"github.com/cloister/cloister/broker/plugin/pkcs11"
	"github.com/cloister/cloister/broker/plugin/provisioner"
	"github.com/cloister/cloister/broker/plugin/resources"
	"github.com/cloister/cloister/broker/plugin/sample"
)

// Config of all plugins. Those that are nil are off.
type Config struct {
	Sample      *sample.Config      `toml:"sample"`
	NebulaCA    *nebulaca.Config    `toml:"nebula-ca"`
	Provisioner *provisioner.Config `toml:"provisioner"`
	PKCS11      *pkcs11.Config      `toml:"pkcs11"`
	External    *external.Config    `toml:"external"`
}

// Validate reports every fault.
func (c Config) Validate() error {
	var errs []error
	check := func(name string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	if c.Sample != nil {
		check(sample.Name, c.Sample.Validate())
	}
	if c.NebulaCA != nil {
		check(nebulaca.Name, c.NebulaCA.Validate())
	}
	if c.Provisioner != nil {
		check(provisioner.Name, c.Provisioner.Validate())
	}
	if c.PKCS11 != nil {
		check(pkcs11.Name, c.PKCS11.Validate())
	}
	if c.External != nil {
		check(external.Name, c.External.Validate())
	}
	return errors.Join(errs...)
}

// Insecure lists the insecure switches that are on.
func (c Config) Insecure() []string {
	var out []string
	if c.PKCS11 != nil {
		for _, s := range c.PKCS11.Insecure() {
			out = append(out, pkcs11.Name+"."+s)
		}
	}
	if c.External != nil {
		out = append(out, c.External.Insecure()...)
	}
	return out
}

// Parts is what plugins work with.
type Parts struct {
	// Resources is the back end of resources; see resources.Open.
	Resources resources.Backend
	// Store and Key keep what plugins make themselves.
	Store Store
	Key   Sealer
	Now   func() time.Time
	// Log hears of what happens between requests; it may be nil.
	Log *slog.Logger
}

// Store is the broker's state; it has the namespace provisioner.Namespace.
type Store interface {
	Get(ctx context.Context, ns, key string) ([]byte, error)
	PutNew(ctx context.Context, ns, key string, value []byte) (bool, error)
	Delete(ctx context.Context, ns, key string) error
}

// Sealer encrypts what is kept.
type Sealer interface {
	Seal(place string, plaintext []byte) ([]byte, error)
	Open(place string, sealed []byte) ([]byte, error)
}

type start = func(ctx context.Context) (plugin.Plugin, error)

// when starts a plugin only if it is configured.
func when(configured bool, s start) start {
	if !configured {
		return nil
	}
	return s
}

// List is every plugin there is.
func List(c Config, p Parts) []plugin.Entry {
	return []plugin.Entry{
		{Name: resources.Name, New: func(context.Context) (plugin.Plugin, error) { return resources.New(p.Resources), nil }},
		{Name: sample.Name, New: when(c.Sample != nil, func(context.Context) (plugin.Plugin, error) { return sample.New(*c.Sample) })},
		{Name: nebulaca.Name, New: when(c.NebulaCA != nil, func(context.Context) (plugin.Plugin, error) {
			return nebulaca.New(*c.NebulaCA, p.Now)
		})},
		{Name: provisioner.Name, New: when(c.Provisioner != nil, func(ctx context.Context) (plugin.Plugin, error) {
			return provisioner.New(ctx, *c.Provisioner, p.Store, p.Key)
		})},
		{Name: pkcs11.Name, New: when(c.PKCS11 != nil, func(ctx context.Context) (plugin.Plugin, error) {
			return pkcs11.New(ctx, *c.PKCS11, p.Log)
		})},
		{Name: external.Name, New: when(c.External != nil, func(ctx context.Context) (plugin.Plugin, error) {
			return external.New(ctx, *c.External)
		})},
	}
}
