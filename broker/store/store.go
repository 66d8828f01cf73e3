// Package store keeps the broker's state in one file that survives a crash at any point.
//
// It is a thin layer over bbolt: values live in namespaces, every write is one transaction that is on disk before the
// call returns, and a second process that opens the same file is refused instead of corrupting it. The package knows
// nothing about what it stores; callers that keep secrets here seal them first (see broker/seal).
package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// The namespaces in use. Their names are those of upstream's key-value layer where it has one.
const (
	Policies        = "attestation_service_policy"
	ReferenceValues = "reference_value"
	Resources       = "repository"
	KBS             = "kbs"
	Keys            = "cloister_keys"
	Decisions       = "cloister_decisions"
)

var namespaces = []string{Policies, ReferenceValues, Resources, KBS, Keys, Decisions}

// ErrNotFound is returned for a key that has no value.
var ErrNotFound = errors.New("not found")

// maxKey bounds keys: bbolt's own limit is 32 KiB, no name of ours needs a fraction of it.
const maxKey = 1024

// Bolt is a store in one bbolt file.
type Bolt struct {
	db *bolt.DB
}

// Open opens the store file, making it if it does not exist. It waits a short time for another process to let go.
func Open(path string) (*Bolt, error) {
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: 2 * time.Second})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("opening store %s: another broker process holds it", path)
	}
	if err != nil {
		return nil, fmt.Errorf("opening store %s: %w", path, err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		for _, ns := range namespaces {
			if _, err := tx.CreateBucketIfNotExists([]byte(ns)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("preparing store %s: %w", path, err), db.Close())
	}
	return &Bolt{db: db}, nil
}

// Close releases the file.
func (b *Bolt) Close() error { return b.db.Close() }

func bucket(tx *bolt.Tx, ns string) (*bolt.Bucket, error) {
	bk := tx.Bucket([]byte(ns))
	if bk == nil {
		return nil, fmt.Errorf("store has no namespace %q", ns)
	}
	return bk, nil
}

func checkKey(key string) error {
	if key == "" || len(key) > maxKey {
		return fmt.Errorf("store key of %d bytes: want 1 to %d", len(key), maxKey)
	}
	return nil
}

// Get returns the value of a key, or ErrNotFound.
func (b *Bolt) Get(ctx context.Context, ns, key string) ([]byte, error) {
	if err := errors.Join(ctx.Err(), checkKey(key)); err != nil {
		return nil, err
	}
	var out []byte
	err := b.db.View(func(tx *bolt.Tx) error {
		bk, err := bucket(tx, ns)
		if err != nil {
			return err
		}
		v := bk.Get([]byte(key))
		if v == nil {
			return ErrNotFound
		}
		out = append([]byte{}, v...)
		return nil
	})
	return out, err
}

// Put stores values, all of them or none; a present key is overwritten.
func (b *Bolt) Put(ctx context.Context, ns string, values map[string][]byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return b.db.Update(func(tx *bolt.Tx) error {
		bk, err := bucket(tx, ns)
		if err != nil {
			return err
		}
		for key, value := range values {
			if err := checkKey(key); err != nil {
				return err
			}
			if err := bk.Put([]byte(key), value); err != nil {
				return fmt.Errorf("writing %s/%s: %w", ns, key, err)
			}
		}
		return nil
	})
}

// PutNew stores a value only when the key is absent and reports whether it did.
func (b *Bolt) PutNew(ctx context.Context, ns, key string, value []byte) (bool, error) {
	if err := errors.Join(ctx.Err(), checkKey(key)); err != nil {
		return false, err
	}
	written := false
	err := b.db.Update(func(tx *bolt.Tx) error {
		bk, err := bucket(tx, ns)
		if err != nil {
			return err
		}
		if bk.Get([]byte(key)) != nil {
			return nil
		}
		written = true
		return bk.Put([]byte(key), value)
	})
	return written && err == nil, err
}

// Delete removes a key, or returns ErrNotFound.
func (b *Bolt) Delete(ctx context.Context, ns, key string) error {
	if err := errors.Join(ctx.Err(), checkKey(key)); err != nil {
		return err
	}
	return b.db.Update(func(tx *bolt.Tx) error {
		bk, err := bucket(tx, ns)
		if err != nil {
			return err
		}
		if bk.Get([]byte(key)) == nil {
			return ErrNotFound
		}
		return bk.Delete([]byte(key))
	})
}

// Each calls fn for every pair of a namespace in key order until fn returns an error. fn must not keep value.
func (b *Bolt) Each(ctx context.Context, ns string, fn func(key string, value []byte) error) error {
	return b.db.View(func(tx *bolt.Tx) error {
		bk, err := bucket(tx, ns)
		if err != nil {
			return err
		}
		return bk.ForEach(func(k, v []byte) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return fn(string(k), v)
		})
	})
}

// Append stores value under a key and then drops the oldest keys, in key order, above max. Keys that sort by time make
// this a bounded history.
func (b *Bolt) Append(ctx context.Context, ns, key string, value []byte, max int) error {
	if err := errors.Join(ctx.Err(), checkKey(key)); err != nil {
		return err
	}
	return b.db.Update(func(tx *bolt.Tx) error {
		bk, err := bucket(tx, ns)
		if err != nil {
			return err
		}
		if bk.Get([]byte(key)) == nil {
			if err := bk.SetSequence(bk.Sequence() + 1); err != nil {
				return err
			}
		}
		if err := bk.Put([]byte(key), value); err != nil {
			return err
		}
		for cursor := bk.Cursor(); bk.Sequence() > uint64(max); {
			k, _ := cursor.First()
			if k == nil {
				return bk.SetSequence(0)
			}
			if err := cursor.Delete(); err != nil {
				return err
			}
			if err := bk.SetSequence(bk.Sequence() - 1); err != nil {
				return err
			}
		}
		return nil
	})
}
