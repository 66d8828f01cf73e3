package seal

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/cloister/cloister/broker/store"
)

// maxTries is how often a value that others change at the same time is tried.
const maxTries = 8

type backend interface {
	Load(ctx context.Context, ns, key string) (store.Entry, error)
	CompareAndSwap(ctx context.Context, ns, key string, version int64, value []byte, limit store.Limit) (int64, error)
	Each(ctx context.Context, ns string, fn func(key string, value []byte) error) error
}

// resealer is a Ring or Keys.
type resealer interface {
	// ID names the current key.
	ID() string
	Reseal(place string, sealed []byte) (out []byte, changed bool, err error)
}

// ResealAll seals the values of a namespace anew that are sealed with another key than the current one, and tells how many
// those were. place is where the value of a key is sealed for, ok is false for keys whose values are not sealed. Brokers
// may read and write at the same time: a value that changes meanwhile is not overwritten. When it returns no error, no
// value that was there when it began is sealed with another key; after an error it may be called again.
func ResealAll(ctx context.Context, db backend, ns string, r resealer, place func(key string) (place string, ok bool)) (int, error) {
	var keys []string
	current := r.ID()
	err := db.Each(ctx, ns, func(key string, value []byte) error {
		if _, ok := place(key); !ok {
			return nil
		}
		if id, err := keyID(value); err != nil || hex.EncodeToString(id[:]) != current {
			keys = append(keys, key)
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("listing %s: %w", ns, err)
	}
	n := 0
	for _, key := range keys {
		p, _ := place(key)
		changed, err := resealOne(ctx, db, ns, key, p, r)
		if err != nil {
			return n, fmt.Errorf("sealing %s/%s anew: %w", ns, key, err)
		}
		if changed {
			n++
		}
	}
	return n, nil
}

func resealOne(ctx context.Context, db backend, ns, key, place string, r resealer) (bool, error) {
	for range maxTries {
		e, err := db.Load(ctx, ns, key)
		if errors.Is(err, store.ErrNotFound) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		out, changed, err := r.Reseal(place, e.Value)
		if err != nil || !changed {
			return false, err
		}
		_, err = db.CompareAndSwap(ctx, ns, key, e.Version, out, store.Limit{})
		if !errors.Is(err, store.ErrChanged) && !errors.Is(err, store.ErrNotFound) {
			return err == nil, err
		}
	}
	return false, errors.New("it changes all the time")
}
