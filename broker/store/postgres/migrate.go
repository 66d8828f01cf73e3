package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// migrations are the steps from an empty database to the present schema, in order. A step that was released never
// changes; new ones go to the end.
//
// Keys are bytea: they sort byte by byte whatever the collation of the database, and take any byte. Values are mostly
// sealed, so compressing them would be in vain. Versions come from one sequence, so none ever comes back.
var migrations = []string{
	`CREATE SEQUENCE cloister_version;
	CREATE TABLE cloister_entries (
		namespace text   COLLATE "C" NOT NULL,
		key       bytea  NOT NULL,
		value     bytea  NOT NULL,
		version   bigint NOT NULL DEFAULT nextval('cloister_version'),
		expires   timestamptz,
		PRIMARY KEY (namespace, key)
	) WITH (fillfactor = 80);
	ALTER TABLE cloister_entries ALTER COLUMN value SET STORAGE EXTERNAL;
	CREATE INDEX cloister_expires ON cloister_entries (namespace, expires) WHERE expires IS NOT NULL;`,
}

// migrationLock is the advisory lock brokers that start at once take in turn ("cloister" as a number).
const migrationLock = 0x636c6f6973746572

// migrate brings the schema up to date: all steps in one transaction, so that a crash leaves the old schema or the new.
func (s *Store) migrate(ctx context.Context) error {
	return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(migrationLock)); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `CREATE TABLE IF NOT EXISTS cloister_schema (version integer NOT NULL)`); err != nil {
			return err
		}
		var have int
		err := tx.QueryRow(ctx, `SELECT version FROM cloister_schema`).Scan(&have)
		if errors.Is(err, pgx.ErrNoRows) {
			_, err = tx.Exec(ctx, `INSERT INTO cloister_schema VALUES (0)`)
		}
		if err != nil {
			return err
		}
		if have > len(migrations) {
			return fmt.Errorf("the database has schema %d, this broker knows up to %d: it was used by a newer broker", have, len(migrations))
		}
		for _, step := range migrations[have:] {
			// The simple protocol takes several statements at once.
			if _, err := tx.Conn().PgConn().Exec(ctx, step).ReadAll(); err != nil {
				return err
			}
		}
		_, err = tx.Exec(ctx, `UPDATE cloister_schema SET version = $1`, len(migrations))
		return err
	})
}
