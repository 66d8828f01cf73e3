package kms

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/cloister/cloister/broker/seal"
)

// The values of StorageKey.Keep.
const (
	InDatabase = "database"
	InFile     = "file"
)

// File is the Provider of a plain key file, which wraps nothing: seal.LoadRing and seal.Rotate do that.
const File = "file"

// StorageKey is the configuration of how the storage key is protected.
type StorageKey struct {
	// Identity is the name of the brokers that share the store.
	Identity string `toml:"identity"`
	// Keep is InDatabase or InFile.
	Keep string `toml:"keep"`
	// OldFiles are plain key files whose values are still to be read.
	OldFiles []string `toml:"old_files"`
	Config
	// Previous are services that can still unwrap what was wrapped before.
	Previous []Config `toml:"previous"`
}

// DefaultStorageKey is a plain key file.
func DefaultStorageKey() StorageKey { return StorageKey{Config: Config{Provider: File}, Keep: InFile} }

// Wrapped tells whether storage keys are wrapped, so that Open is to be called.
func (c StorageKey) Wrapped() bool { return c.Provider != File }

// Validate reports every fault.
func (c StorageKey) Validate() error {
	var errs []error
	for _, f := range c.OldFiles {
		if !filepath.IsAbs(f) {
			errs = append(errs, fmt.Errorf("old_files has %.128q, want absolute paths", f))
		}
	}
	if !c.Wrapped() {
		return errors.Join(errs...)
	}
	errs = append(errs, seal.CheckIdentity(c.Identity), c.Config.Validate())
	if c.Keep != InDatabase && c.Keep != InFile {
		errs = append(errs, fmt.Errorf("keep is %.32q, want %s or %s", c.Keep, InDatabase, InFile))
	}
	for i, p := range c.Previous {
		if err := p.Validate(); err != nil {
			errs = append(errs, fmt.Errorf("previous service %d: %w", i+1, err))
		}
	}
	return errors.Join(errs...)
}

// Open opens the storage keys that keep has, making the first one unless noCreate: the store holds sealed values already.
func (c StorageKey) Open(ctx context.Context, keep seal.KeyStore, o Outside, noCreate bool, now func() time.Time) (*seal.Keys, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	src := seal.Source{Identity: c.Identity, Keep: keep, OldFiles: c.OldFiles, NoCreate: noCreate, Now: now}
	var err error
	if src.Wrap, err = Open(ctx, c.Config, o, now); err != nil {
		return nil, err
	}
	for i, p := range c.Previous {
		w, err := Open(ctx, p, o, now)
		if err != nil {
			return nil, fmt.Errorf("previous service %d: %w", i+1, err)
		}
		src.Previous = append(src.Previous, w)
	}
	return seal.Open(ctx, src)
}
