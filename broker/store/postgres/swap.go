package postgres

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/cloister/cloister/broker/store"
)

const (
	sqlSwapTo = `UPDATE cloister_entries SET value = $4, version = nextval('cloister_version'), expires = NULL
		WHERE namespace = $1 AND key = $2 AND version = $3 AND (expires IS NULL OR expires > clock_timestamp())`

	sqlSwapAway = `DELETE FROM cloister_entries
		WHERE namespace = $1 AND key = $2 AND version = $3 AND (expires IS NULL OR expires > clock_timestamp())`

	// An expired row is as good as none.
	sqlSwapIn = `INSERT INTO cloister_entries AS e (namespace, key, value) VALUES ($1, $2, $3)
		ON CONFLICT (namespace, key) DO UPDATE SET value = excluded.value, version = excluded.version, expires = NULL
			WHERE e.expires <= clock_timestamp()`
)

// Swap is part of store.Store. Each statement waits for who else writes its row and then looks at it again, so that of
// two brokers that saw the same versions one changes no row, which undoes its transaction. Rows are written in the order
// of their keys, as Put does.
func (s *Store) Swap(ctx context.Context, ns string, changes map[string]store.Change) error {
	keys := slices.Sorted(maps.Keys(changes))
	for _, key := range keys {
		if err := store.CheckChange(ns, key, changes[key]); err != nil {
			return err
		}
	}
	if len(keys) == 0 {
		return errors.Join(store.CheckNamespace(ns), ctx.Err())
	}
	err := s.do(ctx, s.timeout, write, func(ctx context.Context) error {
		return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error { return swap(ctx, tx, ns, keys, changes) })
	})
	if err != nil {
		return fmt.Errorf("changing %d values of %s: %w", len(keys), ns, err)
	}
	return nil
}

func swap(ctx context.Context, tx pgx.Tx, ns string, keys []string, changes map[string]store.Change) error {
	batch := &pgx.Batch{}
	for _, key := range keys {
		switch c := changes[key]; {
		case c.Absent:
			batch.Queue(sqlSwapIn, ns, []byte(key), c.Value)
		case c.Value == nil:
			batch.Queue(sqlSwapAway, ns, []byte(key), c.Version)
		default:
			batch.Queue(sqlSwapTo, ns, []byte(key), c.Version, c.Value)
		}
	}
	results := tx.SendBatch(ctx, batch)
	for _, key := range keys {
		tag, err := results.Exec()
		if err == nil && tag.RowsAffected() != 1 {
			err = fmt.Errorf("%s: %w", key, store.ErrChanged)
		}
		if err != nil {
			return errors.Join(err, results.Close())
		}
	}
	return results.Close()
}
