package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	bolt "go.etcd.io/bbolt"
)

// space is a namespace inside one bbolt transaction. Values are in a bucket of the namespace's name; their versions and
// expiries are in a second one, so that files from before there were any stay as they are.
type space struct {
	values, metas *bolt.Bucket
	now           time.Time
}

func metaName(ns string) string { return ns + ":meta" }

// meta is the version and the expiry (Unix nanoseconds, zero is never) of a value: two big-endian numbers.
type meta struct{ version, expires int64 }

const metaSize = 16

func readMeta(raw []byte) meta {
	if len(raw) != metaSize {
		return meta{}
	}
	return meta{int64(binary.BigEndian.Uint64(raw)), int64(binary.BigEndian.Uint64(raw[8:]))}
}

func (m meta) expired(now time.Time) bool { return m.expires != 0 && now.UnixNano() >= m.expires }

func (m meta) time() time.Time {
	if m.expires == 0 {
		return time.Time{}
	}
	return time.Unix(0, m.expires)
}

// view reads. Where nothing of a tenant's was stored yet, the buckets are made first.
func (b *Bolt) view(ctx context.Context, ns string, fn func(space) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	err := b.read(ns, fn)
	if !errors.Is(err, errNoBucket) {
		return err
	}
	if err := b.prepare(ns); err != nil {
		return err
	}
	return b.read(ns, fn)
}

func (b *Bolt) read(ns string, fn func(space) error) error {
	return b.db.View(func(tx *bolt.Tx) error {
		s, err := b.space(tx, ns)
		if err != nil {
			return err
		}
		return fn(s)
	})
}

// errNoBucket is how a transaction that only reads finds that a tenant has stored nothing yet.
var errNoBucket = errors.New("the namespace has no bucket")

// space is a namespace in a transaction. One that writes makes its buckets.
func (b *Bolt) space(tx *bolt.Tx, ns string) (space, error) {
	s := space{values: tx.Bucket([]byte(ns)), metas: tx.Bucket([]byte(metaName(ns))), now: b.now()}
	if s.values != nil && s.metas != nil {
		return s, nil
	}
	if err := CheckNamespace(ns); err != nil {
		return space{}, err
	}
	if !tx.Writable() {
		return space{}, errNoBucket
	}
	var err error
	if s.values, err = tx.CreateBucketIfNotExists([]byte(ns)); err == nil {
		s.metas, err = tx.CreateBucketIfNotExists([]byte(metaName(ns)))
	}
	if err != nil {
		return space{}, fmt.Errorf("making buckets for %s: %w", ns, err)
	}
	return s, nil
}

// prepare makes the buckets of namespaces.
func (b *Bolt) prepare(list ...string) error {
	return b.db.Update(func(tx *bolt.Tx) error {
		for _, ns := range list {
			if _, err := b.space(tx, ns); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s space) get(key string) ([]byte, meta, error) {
	if err := checkKey(key); err != nil {
		return nil, meta{}, err
	}
	v := s.values.Get([]byte(key))
	if v == nil {
		return nil, meta{}, ErrNotFound
	}
	m := readMeta(s.metas.Get([]byte(key)))
	if m.expired(s.now) {
		return nil, meta{}, ErrExpired
	}
	return v, m, nil
}

// put writes a value with a new version, which it returns.
func (s space) put(key string, value []byte, expires int64) (int64, error) {
	if err := checkKey(key); err != nil {
		return 0, err
	}
	version, err := s.metas.NextSequence()
	if err != nil {
		return 0, err
	}
	if value == nil {
		value = []byte{} // nil is what a transaction that put it would read as absent
	}
	raw := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, version), uint64(expires))
	return int64(version), errors.Join(s.values.Put([]byte(key), value), s.metas.Put([]byte(key), raw))
}

func (s space) remove(key []byte) error {
	return errors.Join(s.values.Delete(key), s.metas.Delete(key))
}

func (s space) usage() Usage {
	var u Usage
	cursor := s.values.Cursor()
	for k, v := cursor.First(); k != nil; k, v = cursor.Next() {
		u.Entries++
		u.Bytes += int64(len(v))
	}
	return u
}
