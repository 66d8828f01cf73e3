package config

import (
	"github.com/cloister/cloister/broker/pkcs11/storagekey"
	"github.com/cloister/cloister/broker/seal/kms"
)

// StorageKey says what protects the key that everything is sealed with.
type StorageKey struct {
	kms.StorageKey
	// PKCS11 is the token of the provider of that name.
	PKCS11 *storagekey.Config `toml:"pkcs11"`
}

func defaultStorageKey() StorageKey {
	k := StorageKey{StorageKey: kms.DefaultStorageKey()}
	k.OldFiles = []string{}
	return k
}

func (c Config) validateStorageKey(fault func(format string, args ...any)) {
	k := c.StorageKey
	if err := k.Validate(); err != nil {
		fault("storage_key: %w", err)
	}
	switch used := k.Provider == kms.PKCS11; {
	case used && k.PKCS11 == nil:
		fault("storage_key.provider is %q, which needs a table [storage_key.pkcs11]", k.Provider)
	case used:
		if err := k.PKCS11.Validate(); err != nil {
			fault("storage_key.pkcs11: %w", err)
		}
	case k.PKCS11 != nil:
		fault("[storage_key.pkcs11] has no effect with storage_key.provider = %q", k.Provider)
	}
	if k.Wrapped() && c.Database.Backend == DatabasePostgreSQL && k.Keep != kms.InDatabase {
		fault("storage_key.keep is %q, want %q: brokers that share a database must have the same keys", k.Keep, kms.InDatabase)
	}
}

func (k StorageKey) insecure() []string {
	if k.PKCS11 == nil {
		return nil
	}
	return k.PKCS11.Insecure()
}
