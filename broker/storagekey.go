package broker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/cloister/cloister/broker/pkcs11/storagekey"
	"github.com/cloister/cloister/broker/resource"
	"github.com/cloister/cloister/broker/seal"
	"github.com/cloister/cloister/broker/seal/kms"
	"github.com/cloister/cloister/broker/session"
	"github.com/cloister/cloister/broker/store"
	"github.com/cloister/cloister/broker/token"
)

// storageKey is what everything is sealed with: keys of a file, or keys that a service wraps.
type storageKey interface {
	sealer
	ID() string
	Reseal(place string, sealed []byte) (out []byte, changed bool, err error)
}

// WrappedKeysFile of the data directory holds wrapped storage keys, where they are not in the database.
const WrappedKeysFile = "store.keys"

// openStorageKey opens the storage key, making one only for a store that is sealed with none yet.
func (b *Broker) openStorageKey(ctx context.Context) (storageKey, error) {
	used, err := b.sealed(ctx)
	if err != nil {
		return nil, err
	}
	c := b.cfg.StorageKey
	if !c.Wrapped() {
		return b.openKeyFile(used)
	}
	keep := seal.InFile(b.file(WrappedKeysFile), b.now)
	if c.Keep == kms.InDatabase {
		keep = seal.InDatabase(b.db)
	}
	outside := kms.Outside{}
	if c.PKCS11 != nil {
		outside.PKCS11 = func(ctx context.Context) (seal.Wrapper, error) {
			w, err := storagekey.New(ctx, *c.PKCS11, b.log)
			if err != nil {
				return nil, err
			}
			b.closers = append(b.closers, w.Close)
			return w, nil
		}
	}
	// What plain key files sealed is no reason to have wrapped keys already: this is how a broker gets its first.
	keys, err := c.Open(ctx, keep, outside, used && len(c.OldFiles) == 0, b.now)
	if err != nil {
		return nil, fmt.Errorf("storage_key: %w", err)
	}
	return keys, nil
}

// sealed reports whether the store has something that is sealed.
func (b *Broker) sealed(ctx context.Context) (bool, error) {
	for _, place := range token.KeyPlaces() {
		_, err := b.db.Get(ctx, store.Keys, place)
		if err == nil {
			return true, nil
		}
		if !errors.Is(err, store.ErrNotFound) {
			return false, fmt.Errorf("looking whether the store is sealed: %w", err)
		}
	}
	return false, nil
}

// keyFile is a storage key in a file, with the earlier ones beside it.
type keyFile struct {
	path string
	ring atomic.Pointer[seal.Ring]
	mu   sync.Mutex // held while it is rotated
}

// openKeyFile reads store.key, and beside it keys it had before.
func (b *Broker) openKeyFile(used bool) (*keyFile, error) {
	k := &keyFile{path: b.file(StoreKeyFile)}
	if _, err := os.Stat(k.path); errors.Is(err, fs.ErrNotExist) && used {
		return nil, fmt.Errorf("%s is missing, and the store is sealed with it; hint: put the key back from a backup or copy it from another "+
			"broker of the database, secrets cannot be read without it", k.path)
	}
	return k, k.load(b.cfg.StorageKey.OldFiles)
}

func (k *keyFile) load(more []string) error {
	old, err := filepath.Glob(k.path + ".*")
	if err != nil {
		return fmt.Errorf("looking for earlier storage keys: %w", err)
	}
	ring, err := seal.LoadRing(k.path, append(old, more...)...)
	if err != nil {
		return err
	}
	k.ring.Store(ring)
	return nil
}

// ID is part of storageKey, as are those below.
func (k *keyFile) ID() string { return k.ring.Load().ID() }

// Seal seals with the current key.
func (k *keyFile) Seal(place string, plaintext []byte) ([]byte, error) {
	return k.ring.Load().Seal(place, plaintext)
}

// Open opens what any of the keys has sealed.
func (k *keyFile) Open(place string, sealed []byte) ([]byte, error) {
	return k.ring.Load().Open(place, sealed)
}

// Reseal seals anew with the current key.
func (k *keyFile) Reseal(place string, sealed []byte) ([]byte, bool, error) {
	return k.ring.Load().Reseal(place, sealed)
}

// storageRotation rotates the storage key of a running broker.
type storageRotation struct{ b *Broker }

var errCopyKey = errors.New("brokers that share a database and have their storage key in files change it in three steps, see " +
	"docs/howto/replicas.md; hint: keys wrapped by a service (storage_key.provider) rotate by themselves")

// Rotate is part of server.StorageKeys.
func (r storageRotation) Rotate(ctx context.Context) (id string, err error) {
	b := r.b
	switch k := b.key.(type) {
	case *seal.Keys:
		return k.Rotate(ctx)
	case *keyFile:
		if b.shared() {
			return "", errCopyKey
		}
		k.mu.Lock()
		defer k.mu.Unlock()
		if _, err := seal.Rotate(k.path); err != nil {
			return "", err
		}
		if err := k.load(b.cfg.StorageKey.OldFiles); err != nil {
			return "", err
		}
		return k.ID(), b.resealAll(ctx)
	}
	return "", errors.ErrUnsupported
}

// Retire is part of server.StorageKeys.
func (r storageRotation) Retire(ctx context.Context) ([]string, error) {
	b := r.b
	switch k := b.key.(type) {
	case *seal.Keys:
		gone, err := k.Retire(ctx, b.resealAll)
		if len(b.cfg.StorageKey.OldFiles) > 0 && (err == nil || errors.Is(err, seal.ErrEarly)) {
			err = b.resealAll(ctx) // what the plain key files sealed
		}
		return gone, err
	case *keyFile:
		if err := b.resealAll(ctx); err != nil {
			return nil, err
		}
		var gone []string
		for _, id := range k.ring.Load().IDs() {
			if id != k.ID() {
				gone = append(gone, id)
			}
		}
		return gone, nil
	}
	return nil, errors.ErrUnsupported
}

// Rewrap is part of server.StorageKeys.
func (r storageRotation) Rewrap(ctx context.Context) (int, error) {
	if k, ok := r.b.key.(*seal.Keys); ok {
		return k.Rewrap(ctx)
	}
	return 0, errors.New("the storage key is a file (storage_key.provider), which no service wraps")
}

// resealAll seals everything that is kept with the current key.
func (b *Broker) resealAll(ctx context.Context) error {
	if err := b.reseal(ctx, b.db, b.key); err != nil {
		return err
	}
	list, err := b.tenants.list.List(ctx)
	if err != nil {
		return err
	}
	for _, t := range list {
		part, err := t.Scope(b.db, nil)
		if err != nil {
			return err
		}
		if err := b.reseal(ctx, part, placed{b.key, sealPrefix(&t)}); err != nil {
			return fmt.Errorf("tenant %s: %w", t.Name, err)
		}
	}
	return nil
}

// reseal does it for one realm's part of the store.
func (b *Broker) reseal(ctx context.Context, db store.Store, key storageKey) error {
	for _, space := range []struct {
		ns    string
		place func(name string) (string, bool)
	}{
		{store.Keys, func(name string) (string, bool) {
			for _, p := range token.KeyPlaces() {
				if name == p {
					return p, true
				}
			}
			return "", false
		}},
		{store.Sessions, func(name string) (string, bool) { return session.Place(name), true }},
		{store.Provisioner, func(name string) (string, bool) { return "provisioner:" + name, true }},
	} {
		if _, err := seal.ResealAll(ctx, db, space.ns, key, space.place); err != nil {
			return err
		}
	}
	secrets, err := resource.OpenStore(db, key, resource.DefaultConfig(), b.now)
	if err != nil {
		return err
	}
	_, err = secrets.Reseal(ctx)
	return err
}
