// Package postgres is a store in a PostgreSQL database (12 or later) that several brokers share.
//
// Every value is a row of one table. Nearly every call is one prepared statement, which PostgreSQL makes atomic by
// itself; those of several statements do not decide by what they have read, so none needs an isolation above read
// committed. Conflicts between brokers are settled by the version of a row.
//
// Time is the server's: the clocks of brokers do not count. Every call has a deadline. A call that could not reach the
// server is tried again within it; so is a read whose connection broke. A write whose connection broke is not: it may
// have happened, and the caller is told that it does not know.
package postgres

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/cloister/cloister/broker/store"
)

// Store is a store in a database.
type Store struct {
	pool     *pgxpool.Pool
	timeout  time.Duration
	password string // of the URL, to be kept out of errors
	usage    counter

	mu       sync.Mutex
	appended map[string]int // namespace: appends since old keys were dropped
}

var _ store.Store = (*Store)(nil)

// Open connects to a database and brings its schema up to date.
func Open(ctx context.Context, c Config) (*Store, error) {
	pc, err := c.pool()
	if err != nil {
		return nil, fmt.Errorf("opening the database: %w", err)
	}
	s := &Store{timeout: c.OperationTimeout, password: pc.ConnConfig.Password, appended: map[string]int{}}
	if s.timeout == 0 {
		s.timeout = DefaultOperationTimeout
	}
	s.usage.read = s.readUsage
	if s.pool, err = pgxpool.NewWithConfig(ctx, pc); err != nil {
		return nil, fmt.Errorf("opening the database: %w", s.clean(err))
	}
	// The steps are all or nothing, and they see themselves what is done: they may be tried again.
	if err = s.do(ctx, s.timeout, read, s.pool.Ping); err == nil {
		err = s.do(ctx, scanTimeout, read, s.migrate)
	}
	if err != nil {
		s.pool.Close()
		return nil, fmt.Errorf("opening the database: %w", err)
	}
	return s, nil
}

// Close waits for calls under way and closes all connections.
func (s *Store) Close() error { s.pool.Close(); return nil }

// Health is part of store.Store: it tells whether a server that takes writes answers and has our schema.
func (s *Store) Health(ctx context.Context) error {
	var readOnly bool
	var schema int
	err := s.do(ctx, s.timeout, once, func(ctx context.Context) error {
		return s.pool.QueryRow(ctx, `SELECT current_setting('transaction_read_only')::boolean, version FROM cloister_schema`).
			Scan(&readOnly, &schema)
	})
	switch {
	case err != nil:
		return fmt.Errorf("database: %w", err)
	case readOnly:
		return errors.New("database: the server takes no writes")
	case schema != len(migrations):
		return fmt.Errorf("database: schema is %d, want %d", schema, len(migrations))
	}
	return nil
}

// mode is what a broken connection means for a call.
type mode int

const (
	once  mode = iota // report it
	write             // try again when nothing was sent
	read              // try again
)

const (
	firstPause = 20 * time.Millisecond
	maxPause   = 500 * time.Millisecond
)

// do runs fn with a deadline and tries it again as its mode allows.
func (s *Store) do(ctx context.Context, timeout time.Duration, m mode, fn func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	pause := firstPause
	for {
		err := fn(ctx)
		if err == nil || !again(err, m) {
			return s.clean(err)
		}
		timer := time.NewTimer(pause/2 + rand.N(pause))
		select {
		case <-ctx.Done():
			timer.Stop()
			return s.clean(err)
		case <-timer.C:
		}
		pause = min(2*pause, maxPause)
	}
}

// again tells whether a call may be repeated after err.
func again(err error, m mode) bool {
	if m == once || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	var connect *pgconn.ConnectError
	var server *pgconn.PgError
	var stranger *tls.CertificateVerificationError
	switch {
	case errors.As(err, &stranger):
		return false
	case errors.As(err, &connect):
		// A refused password does not get better. A server that starts, stops, or is not there (yet) does.
		return !errors.As(err, &server) || startingUp(server.Code)
	case errors.As(err, &server):
		switch server.Code {
		case "40001", "40P01": // serialisation failure, deadlock: nothing was written
			return true
		}
		return m == read && startingUp(server.Code)
	case pgconn.SafeToRetry(err):
		return true
	}
	return m == read && broken(err)
}

// startingUp is the class of errors of a server that is going down or coming up, or has no connection to spare.
func startingUp(code string) bool { return strings.HasPrefix(code, "57P0") || code == "53300" }

// broken tells whether an error is that of a connection rather than that of a caller.
func broken(err error) bool {
	for _, own := range []error{store.ErrNotFound, store.ErrExists, store.ErrChanged, store.ErrFull} {
		if errors.Is(err, own) {
			return false
		}
	}
	var op interface{ Timeout() bool } // net.Error without its deprecated half
	return errors.As(err, &op) || isEOF(err)
}

// clean keeps the password out of an error.
func (s *Store) clean(err error) error {
	if err == nil || s.password == "" || !strings.Contains(err.Error(), s.password) {
		return err
	}
	return errors.New(strings.ReplaceAll(err.Error(), s.password, "…"))
}
