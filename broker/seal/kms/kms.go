// Package kms has the services that wrap storage keys: seal.Wrapper for AWS KMS, Azure Key Vault, Google Cloud KMS, the
// transit engine of Vault or OpenBao, a file, and a PKCS#11 token that the caller brings.
//
// Every service is asked once per key at start, and again when keys are rotated or wrapped anew; not for each secret.
package kms

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cloister/cloister/broker/seal"
)

// The providers.
const (
	KeyFile = "key-file"
	AWS     = "aws-kms"
	Azure   = "azure-key-vault"
	GCP     = "gcp-kms"
	Transit = "vault-transit"
	PKCS11  = "pkcs11"
)

// Config selects a provider; of the tables only that of the one in use counts.
type Config struct {
	Provider string        `toml:"provider"`
	KeyFile  KeyFileConfig `toml:"key_file"`
	AWS      AWSConfig     `toml:"aws_kms"`
	Azure    AzureConfig   `toml:"azure_key_vault"`
	GCP      GCPConfig     `toml:"gcp_kms"`
	Transit  TransitConfig `toml:"vault_transit"`
}

// KeyFileConfig is a key in a file of 32 bytes and mode 0600, the same at every broker.
type KeyFileConfig struct {
	File string `toml:"file"`
}

// Validate reports every fault.
func (c KeyFileConfig) Validate() error {
	if !filepath.IsAbs(c.File) {
		return fmt.Errorf("file is %.128q, want an absolute path", c.File)
	}
	return nil
}

// Outside opens wrappers whose code is elsewhere; nil is not there.
type Outside struct {
	PKCS11 func(ctx context.Context) (seal.Wrapper, error)
}

// provider is an entry of the list.
type provider struct {
	name     string
	validate func(Config) error
	open     func(context.Context, Config, Outside, func() time.Time) (seal.Wrapper, error)
}

// providers is the list of what there is.
func providers() []provider {
	return []provider{
		{KeyFile, func(c Config) error { return c.KeyFile.Validate() },
			func(_ context.Context, c Config, _ Outside, _ func() time.Time) (seal.Wrapper, error) {
				return seal.KeyFile(c.KeyFile.File)
			}},
		{AWS, func(c Config) error { return c.AWS.Validate() },
			func(_ context.Context, c Config, _ Outside, now func() time.Time) (seal.Wrapper, error) {
				return newAWS(c.AWS, now)
			}},
		{Azure, func(c Config) error { return c.Azure.Validate() },
			func(_ context.Context, c Config, _ Outside, now func() time.Time) (seal.Wrapper, error) {
				return newAzure(c.Azure, now)
			}},
		{GCP, func(c Config) error { return c.GCP.Validate() },
			func(_ context.Context, c Config, _ Outside, now func() time.Time) (seal.Wrapper, error) {
				return newGCP(c.GCP, now)
			}},
		{Transit, func(c Config) error { return c.Transit.Validate() },
			func(_ context.Context, c Config, _ Outside, _ func() time.Time) (seal.Wrapper, error) {
				return newTransit(c.Transit)
			}},
		{PKCS11, func(Config) error { return nil },
			func(ctx context.Context, _ Config, o Outside, _ func() time.Time) (seal.Wrapper, error) {
				if o.PKCS11 == nil {
					return nil, errors.New("this broker has no PKCS#11 token")
				}
				return o.PKCS11(ctx)
			}},
	}
}

func (c Config) find() (provider, error) {
	var names []string
	for _, p := range providers() {
		if p.name == c.Provider {
			return p, nil
		}
		names = append(names, p.name)
	}
	slices.Sort(names)
	return provider{}, fmt.Errorf("provider is %.32q, want one of %s", c.Provider, strings.Join(names, ", "))
}

// Validate reports every fault of the provider in use.
func (c Config) Validate() error {
	p, err := c.find()
	if err != nil {
		return err
	}
	if err := p.validate(c); err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	return nil
}

// Insecure lists the insecure switches that are on: there are none.
func (Config) Insecure() []string { return nil }

// Open makes the wrapper of a configuration. Only a PKCS#11 token is asked anything yet.
func Open(ctx context.Context, c Config, o Outside, now func() time.Time) (seal.Wrapper, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	p, err := c.find()
	if err != nil {
		return nil, err
	}
	w, err := p.open(ctx, c, o, now)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.name, err)
	}
	return w, nil
}

// maxAnswer is far more than any of these services sends.
const maxAnswer = 256 << 10
