package postgres

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/cloister/cloister/broker/store"
)

const (
	sqlLoad = `SELECT value, version, expires, clock_timestamp() FROM cloister_entries WHERE namespace = $1 AND key = $2`

	sqlPut = `INSERT INTO cloister_entries (namespace, key, value) VALUES ($1, $2, $3)
		ON CONFLICT (namespace, key) DO UPDATE SET value = excluded.value, version = excluded.version, expires = NULL`

	// An expired row is as good as none. The lifetime is in microseconds, NULL is for ever.
	sqlCreate = `INSERT INTO cloister_entries AS e (namespace, key, value, expires)
		VALUES ($1, $2, $3, clock_timestamp() + $4::bigint * interval '1 microsecond')
		ON CONFLICT (namespace, key) DO UPDATE SET value = excluded.value, version = excluded.version, expires = excluded.expires
			WHERE e.expires <= clock_timestamp()
		RETURNING version, expires, clock_timestamp()`

	sqlSwap = `UPDATE cloister_entries SET value = $4, version = nextval('cloister_version')
		WHERE namespace = $1 AND key = $2 AND version = $3 AND (expires IS NULL OR expires > clock_timestamp())
		RETURNING version`

	sqlDelete = `DELETE FROM cloister_entries
		WHERE namespace = $1 AND key = $2 AND (expires IS NULL OR expires > clock_timestamp())`

	sqlDeleteVersion = `DELETE FROM cloister_entries WHERE namespace = $1 AND key = $2 AND version = $3`

	sqlEach = `SELECT key, value FROM cloister_entries
		WHERE namespace = $1 AND (expires IS NULL OR expires > clock_timestamp()) ORDER BY key`

	sqlBack = `SELECT key, value FROM cloister_entries
		WHERE namespace = $1 AND ($2::bytea = ''::bytea OR key < $2) AND (expires IS NULL OR expires > clock_timestamp())
		ORDER BY key DESC LIMIT $3`

	sqlDropOldest = `DELETE FROM cloister_entries WHERE namespace = $1 AND key <=
		(SELECT key FROM cloister_entries WHERE namespace = $1 ORDER BY key DESC OFFSET $2 LIMIT 1)`

	// Rows that another broker sweeps at the moment are left to it.
	sqlSweep = `DELETE FROM cloister_entries WHERE ctid = ANY (ARRAY(SELECT ctid FROM cloister_entries
		WHERE namespace = $1 AND expires <= clock_timestamp() LIMIT $2 FOR UPDATE SKIP LOCKED))`

	sqlUsage = `SELECT count(*), coalesce(sum(octet_length(value)), 0)::bigint FROM cloister_entries WHERE namespace = $1`
)

// sweepBatch bounds the rows of one sweeping transaction.
const sweepBatch = 1000

// Get is part of store.Store.
func (s *Store) Get(ctx context.Context, ns, key string) ([]byte, error) {
	e, err := s.Load(ctx, ns, key)
	return e.Value, err
}

// Load is part of store.Store.
func (s *Store) Load(ctx context.Context, ns, key string) (store.Entry, error) {
	if err := store.Check(ns, key); err != nil {
		return store.Entry{}, err
	}
	var e store.Entry
	err := s.do(ctx, s.timeout, read, func(ctx context.Context) error {
		var expires *time.Time
		if err := s.pool.QueryRow(ctx, sqlLoad, ns, []byte(key)).Scan(&e.Value, &e.Version, &expires, &e.Now); err != nil {
			return err
		}
		if expires != nil {
			e.Expires = *expires
		}
		return nil
	})
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return store.Entry{}, store.ErrNotFound
	case err != nil:
		return store.Entry{}, fmt.Errorf("reading %s/%s: %w", ns, key, err)
	case !e.Expires.IsZero() && !e.Now.Before(e.Expires):
		return store.Entry{}, store.ErrExpired
	}
	return e, nil
}

// Put is part of store.Store. Rows are written in the order of their keys, so that two brokers wait for each other at
// most, and do not lock each other out.
func (s *Store) Put(ctx context.Context, ns string, values map[string][]byte) error {
	if err := store.CheckNamespace(ns); err != nil {
		return err
	}
	batch := &pgx.Batch{}
	for _, key := range slices.Sorted(maps.Keys(values)) {
		if err := errors.Join(store.Check(ns, key), store.CheckValue(values[key])); err != nil {
			return err
		}
		batch.Queue(sqlPut, ns, []byte(key), notNil(values[key]))
	}
	if batch.Len() == 0 {
		return ctx.Err()
	}
	err := s.do(ctx, s.timeout, write, func(ctx context.Context) error {
		return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error { return tx.SendBatch(ctx, batch).Close() })
	})
	if err != nil {
		return fmt.Errorf("writing %d values to %s: %w", len(values), ns, err)
	}
	return nil
}

// PutNew is part of store.Store.
func (s *Store) PutNew(ctx context.Context, ns, key string, value []byte) (bool, error) {
	_, err := s.Create(ctx, ns, key, value, 0, store.Limit{})
	if errors.Is(err, store.ErrExists) {
		return false, nil
	}
	return err == nil, err
}

// Create is part of store.Store. It writes first and counts afterwards, and takes the value back when there are too many.
// So the last of several callers to count sees all others, and none needs a lock: there are never more values that were
// accepted than the limit, though for a moment more may be in the table, and callers at the limit may refuse each other.
func (s *Store) Create(ctx context.Context, ns, key string, value []byte, lifetime time.Duration, limit store.Limit) (store.Entry, error) {
	if err := errors.Join(store.Check(ns, key), store.CheckValue(value)); err != nil {
		return store.Entry{}, err
	}
	e := store.Entry{Value: value}
	err := s.do(ctx, s.timeout, write, func(ctx context.Context) error {
		var micros *int64
		if lifetime > 0 {
			n := lifetime.Microseconds()
			micros = &n
		}
		var expires *time.Time
		err := s.pool.QueryRow(ctx, sqlCreate, ns, []byte(key), notNil(value), micros).Scan(&e.Version, &expires, &e.Now)
		if err == nil && expires != nil {
			e.Expires = *expires
		}
		return err
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return store.Entry{}, store.ErrExists
	}
	if err != nil {
		return store.Entry{}, fmt.Errorf("making %s/%s: %w", ns, key, err)
	}
	if limit == (store.Limit{}) {
		return e, nil
	}
	u, err := s.Usage(ctx, ns)
	if err == nil && u.Exceeds(limit) {
		err = store.ErrFull
	}
	if err != nil {
		return store.Entry{}, errors.Join(err, s.takeBack(ctx, ns, key, e.Version))
	}
	return e, nil
}

// takeBack removes what Create has just written, also when the caller is gone.
func (s *Store) takeBack(ctx context.Context, ns, key string, version int64) error {
	return s.do(context.WithoutCancel(ctx), s.timeout, read, func(ctx context.Context) error {
		_, err := s.pool.Exec(ctx, sqlDeleteVersion, ns, []byte(key), version)
		return err
	})
}

// CompareAndSwap is part of store.Store.
func (s *Store) CompareAndSwap(ctx context.Context, ns, key string, version int64, value []byte, limit store.Limit) (int64, error) {
	if err := errors.Join(store.Check(ns, key), store.CheckValue(value)); err != nil {
		return 0, err
	}
	if limit.Bytes > 0 {
		u, err := s.Usage(ctx, ns)
		if err != nil {
			return 0, err
		}
		if u.Bytes+int64(len(value)) > limit.Bytes {
			return 0, store.ErrFull
		}
	}
	var next int64
	err := s.do(ctx, s.timeout, write, func(ctx context.Context) error {
		return s.pool.QueryRow(ctx, sqlSwap, ns, []byte(key), version, notNil(value)).Scan(&next)
	})
	if errors.Is(err, pgx.ErrNoRows) {
		if _, err := s.Load(ctx, ns, key); err != nil {
			return 0, err
		}
		return 0, store.ErrChanged
	}
	if err != nil {
		return 0, fmt.Errorf("changing %s/%s: %w", ns, key, err)
	}
	return next, nil
}

// Delete is part of store.Store.
func (s *Store) Delete(ctx context.Context, ns, key string) error {
	if err := store.Check(ns, key); err != nil {
		return err
	}
	var n int64
	err := s.do(ctx, s.timeout, write, func(ctx context.Context) error {
		tag, err := s.pool.Exec(ctx, sqlDelete, ns, []byte(key))
		n = tag.RowsAffected()
		return err
	})
	if err != nil {
		return fmt.Errorf("deleting %s/%s: %w", ns, key, err)
	}
	if n == 0 {
		return store.ErrNotFound
	}
	return nil
}

// Each is part of store.Store. Rows come one by one: memory is bounded by the largest.
func (s *Store) Each(ctx context.Context, ns string, fn func(key string, value []byte) error) error {
	if err := store.CheckNamespace(ns); err != nil {
		return err
	}
	return s.do(ctx, scanTimeout, once, func(ctx context.Context) error {
		rows, err := s.pool.Query(ctx, sqlEach, ns)
		if err != nil {
			return fmt.Errorf("reading %s: %w", ns, err)
		}
		defer rows.Close()
		for rows.Next() {
			var key, value []byte
			if err := rows.Scan(&key, &value); err != nil {
				return fmt.Errorf("reading %s: %w", ns, err)
			}
			if err := fn(string(key), value); err != nil {
				return err
			}
		}
		if err := rows.Err(); err != nil {
			return fmt.Errorf("reading %s: %w", ns, err)
		}
		return nil
	})
}

// backPage is how many values are asked for at once by Back, whose callers mostly stop early.
const backPage = 64

// Back is part of store.Store.
func (s *Store) Back(ctx context.Context, ns, before string, fn func(key string, value []byte) error) error {
	if err := store.CheckNamespace(ns); err != nil {
		return err
	}
	for {
		n := 0
		err := s.do(ctx, scanTimeout, once, func(ctx context.Context) error {
			rows, err := s.pool.Query(ctx, sqlBack, ns, []byte(before), backPage)
			if err != nil {
				return fmt.Errorf("reading %s: %w", ns, err)
			}
			defer rows.Close()
			for ; rows.Next(); n++ {
				var key, value []byte
				if err := rows.Scan(&key, &value); err != nil {
					return fmt.Errorf("reading %s: %w", ns, err)
				}
				before = string(key)
				if err := fn(before, value); err != nil {
					return err
				}
			}
			if err := rows.Err(); err != nil {
				return fmt.Errorf("reading %s: %w", ns, err)
			}
			return nil
		})
		if err != nil || n < backPage {
			return err
		}
	}
}

// Append is part of store.Store. Finding the oldest keys walks over all others, so it is done once in a hundredth of max.
func (s *Store) Append(ctx context.Context, ns, key string, value []byte, max int) error {
	if err := errors.Join(store.Check(ns, key), store.CheckValue(value)); err != nil {
		return err
	}
	drop := s.dropNow(ns, max)
	err := s.do(ctx, s.timeout, write, func(ctx context.Context) error {
		return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, sqlPut, ns, []byte(key), notNil(value)); err != nil || !drop {
				return err
			}
			_, err := tx.Exec(ctx, sqlDropOldest, ns, max)
			return err
		})
	})
	if err != nil {
		return fmt.Errorf("appending to %s: %w", ns, err)
	}
	return nil
}

func (s *Store) dropNow(ns string, max int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.appended[ns]++
	if s.appended[ns] < max/100 {
		return false
	}
	s.appended[ns] = 0
	return true
}

// DeleteExpired is part of store.Store. Several brokers may sweep at once.
func (s *Store) DeleteExpired(ctx context.Context, ns string) (int, error) {
	if err := store.CheckNamespace(ns); err != nil {
		return 0, err
	}
	total := 0
	for {
		var n int64
		err := s.do(ctx, s.timeout, read, func(ctx context.Context) error {
			tag, err := s.pool.Exec(ctx, sqlSweep, ns, sweepBatch)
			n = tag.RowsAffected()
			return err
		})
		if err != nil {
			return total, fmt.Errorf("sweeping %s: %w", ns, err)
		}
		if total += int(n); n < sweepBatch {
			return total, nil
		}
	}
}

// Usage is part of store.Store.
func (s *Store) Usage(ctx context.Context, ns string) (store.Usage, error) {
	if err := store.CheckNamespace(ns); err != nil {
		return store.Usage{}, err
	}
	return s.usage.get(ctx, ns)
}

func (s *Store) readUsage(ctx context.Context, ns string) (store.Usage, error) {
	var u store.Usage
	err := s.do(ctx, s.timeout, read, func(ctx context.Context) error {
		return s.pool.QueryRow(ctx, sqlUsage, ns).Scan(&u.Entries, &u.Bytes)
	})
	if err != nil {
		return u, fmt.Errorf("counting %s: %w", ns, err)
	}
	return u, nil
}

// notNil makes an empty value of none: a row has a value.
func notNil(value []byte) []byte {
	if value == nil {
		return []byte{}
	}
	return value
}
