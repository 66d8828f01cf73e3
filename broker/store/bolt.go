package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// Bolt is a store in one bbolt file. A second process that opens the same file is refused instead of corrupting it.
type Bolt struct {
	db     *bolt.DB
	now    func() time.Time
	writes group
}

// Option changes how Open opens a store.
type Option func(*Bolt)

// WithClock makes now the clock of expiry.
func WithClock(now func() time.Time) Option { return func(b *Bolt) { b.now = now } }

// Open opens the store file, making it if it does not exist. It waits a short time for another process to let go.
func Open(path string, options ...Option) (*Bolt, error) {
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: 2 * time.Second})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("opening store %s: another broker process holds it", path)
	}
	if err != nil {
		return nil, fmt.Errorf("opening store %s: %w", path, err)
	}
	b := &Bolt{db: db, now: time.Now}
	if err := b.prepare(namespaces...); err != nil {
		return nil, errors.Join(fmt.Errorf("preparing store %s: %w", path, err), db.Close())
	}
	for _, o := range options {
		o(b)
	}
	return b, nil
}

// Close releases the file.
func (b *Bolt) Close() error { return b.db.Close() }

// Health is part of Store.
func (b *Bolt) Health(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := b.db.View(func(*bolt.Tx) error { return nil }); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	return nil
}

// Get is part of Store.
func (b *Bolt) Get(ctx context.Context, ns, key string) ([]byte, error) {
	e, err := b.Load(ctx, ns, key)
	return e.Value, err
}

// Load is part of Store.
func (b *Bolt) Load(ctx context.Context, ns, key string) (Entry, error) {
	var e Entry
	err := b.view(ctx, ns, func(s space) error {
		v, m, err := s.get(key)
		if err != nil {
			return err
		}
		e = Entry{Value: append([]byte{}, v...), Version: m.version, Expires: m.time(), Now: s.now}
		return nil
	})
	return e, err
}

// Put is part of Store.
func (b *Bolt) Put(ctx context.Context, ns string, values map[string][]byte) error {
	return b.update(ctx, ns, func(s space) error {
		for key, value := range values {
			if err := errors.Join(checkKey(key), CheckValue(value)); err != nil {
				return err
			}
			if _, err := s.put(key, value, 0); err != nil {
				return fmt.Errorf("writing %s/%s: %w", ns, key, err)
			}
		}
		return nil
	})
}

// PutNew is part of Store.
func (b *Bolt) PutNew(ctx context.Context, ns, key string, value []byte) (bool, error) {
	_, err := b.Create(ctx, ns, key, value, 0, Limit{})
	if errors.Is(err, ErrExists) {
		return false, nil
	}
	return err == nil, err
}

// Create is part of Store.
func (b *Bolt) Create(ctx context.Context, ns, key string, value []byte, lifetime time.Duration, limit Limit) (Entry, error) {
	if err := CheckValue(value); err != nil {
		return Entry{}, err
	}
	var e Entry
	err := b.update(ctx, ns, func(s space) error {
		_, _, err := s.get(key)
		if err == nil {
			return ErrExists
		}
		if !errors.Is(err, ErrNotFound) {
			return err
		}
		if errors.Is(err, ErrExpired) {
			if err := s.remove([]byte(key)); err != nil {
				return err
			}
		}
		if limit != (Limit{}) {
			u := s.usage()
			u.Entries++
			u.Bytes += int64(len(value))
			if u.Exceeds(limit) {
				return ErrFull
			}
		}
		var m meta
		if lifetime > 0 {
			m.expires = s.now.Add(lifetime).UnixNano()
		}
		if m.version, err = s.put(key, value, m.expires); err != nil {
			return fmt.Errorf("writing %s/%s: %w", ns, key, err)
		}
		e = Entry{Value: value, Version: m.version, Expires: m.time(), Now: s.now}
		return nil
	})
	return e, err
}

// CompareAndSwap is part of Store.
func (b *Bolt) CompareAndSwap(ctx context.Context, ns, key string, version int64, value []byte, limit Limit) (int64, error) {
	if err := CheckValue(value); err != nil {
		return 0, err
	}
	var next int64
	err := b.update(ctx, ns, func(s space) error {
		old, m, err := s.get(key)
		if err != nil {
			return err
		}
		if m.version != version {
			return ErrChanged
		}
		if limit.Bytes > 0 && s.usage().Bytes+int64(len(value)-len(old)) > limit.Bytes && len(value) > len(old) {
			return ErrFull
		}
		next, err = s.put(key, value, m.expires)
		return err
	})
	return next, err
}

// Delete is part of Store.
func (b *Bolt) Delete(ctx context.Context, ns, key string) error {
	return b.update(ctx, ns, func(s space) error {
		if _, _, err := s.get(key); err != nil {
			return err
		}
		return s.remove([]byte(key))
	})
}

// DeleteExpired is part of Store.
func (b *Bolt) DeleteExpired(ctx context.Context, ns string) (int, error) {
	n := 0
	err := b.update(ctx, ns, func(s space) error {
		var gone [][]byte
		err := s.metas.ForEach(func(k, raw []byte) error {
			if m := readMeta(raw); m.expired(s.now) {
				gone = append(gone, append([]byte{}, k...))
			}
			return ctx.Err()
		})
		if err != nil {
			return err
		}
		for _, k := range gone {
			if err := s.remove(k); err != nil {
				return err
			}
		}
		n = len(gone)
		return nil
	})
	return n, err
}

// Usage is part of Store.
func (b *Bolt) Usage(ctx context.Context, ns string) (Usage, error) {
	var u Usage
	err := b.view(ctx, ns, func(s space) error { u = s.usage(); return nil })
	return u, err
}

// Each is part of Store.
func (b *Bolt) Each(ctx context.Context, ns string, fn func(key string, value []byte) error) error {
	return b.view(ctx, ns, func(s space) error {
		return s.values.ForEach(func(k, v []byte) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			if readMeta(s.metas.Get(k)).expired(s.now) {
				return nil
			}
			return fn(string(k), v)
		})
	})
}

// Back is part of Store.
func (b *Bolt) Back(ctx context.Context, ns, before string, fn func(key string, value []byte) error) error {
	return b.view(ctx, ns, func(s space) error {
		cursor := s.values.Cursor()
		k, v := cursor.Last()
		if before != "" {
			if k, _ = cursor.Seek([]byte(before)); k == nil { // all keys are below it
				k, v = cursor.Last()
			} else {
				k, v = cursor.Prev()
			}
		}
		for ; k != nil; k, v = cursor.Prev() {
			if err := ctx.Err(); err != nil {
				return err
			}
			if readMeta(s.metas.Get(k)).expired(s.now) {
				continue
			}
			if err := fn(string(k), v); err != nil {
				return err
			}
		}
		return nil
	})
}

// Append is part of Store. The sequence of the bucket counts its keys.
func (b *Bolt) Append(ctx context.Context, ns, key string, value []byte, max int) error {
	if err := CheckValue(value); err != nil {
		return err
	}
	return b.update(ctx, ns, func(s space) error {
		bk := s.values
		if bk.Get([]byte(key)) == nil {
			if err := bk.SetSequence(bk.Sequence() + 1); err != nil {
				return err
			}
		}
		if _, err := s.put(key, value, 0); err != nil {
			return err
		}
		for bk.Sequence() > uint64(max) {
			k, _ := bk.Cursor().First()
			if k == nil {
				return bk.SetSequence(0)
			}
			if err := s.remove(append([]byte{}, k...)); err != nil {
				return err
			}
			if err := bk.SetSequence(bk.Sequence() - 1); err != nil {
				return err
			}
		}
		return nil
	})
}
