package seal

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"

	"github.com/cloister/cloister/broker/atomicfile"
	"github.com/cloister/cloister/broker/store"
)

// RecordKey is the key in the namespace store.Keys that wrapped storage keys are under. It is not sealed: whoever seals
// that namespace anew leaves it out.
const RecordKey = "storage_keys"

// Record is what a KeyStore holds.
type Record struct {
	Value []byte
	// Version changes with every write.
	Version int64
	// Now is the time by the clock that all who share the KeyStore go by.
	Now time.Time
}

// KeyStore keeps one record, the wrapped keys.
type KeyStore interface {
	// Load returns the record, or an error that wraps store.ErrNotFound.
	Load(ctx context.Context) (Record, error)
	// Create stores the first record, or returns an error that wraps store.ErrExists.
	Create(ctx context.Context, value []byte) error
	// Swap replaces the record if it still has the version, or returns an error that wraps store.ErrChanged.
	Swap(ctx context.Context, version int64, value []byte) error
}

type database interface {
	Load(ctx context.Context, ns, key string) (store.Entry, error)
	Create(ctx context.Context, ns, key string, value []byte, lifetime time.Duration, limit store.Limit) (store.Entry, error)
	CompareAndSwap(ctx context.Context, ns, key string, version int64, value []byte, limit store.Limit) (int64, error)
}

type inDatabase struct{ db database }

// InDatabase keeps wrapped keys in the store, for brokers that share one.
func InDatabase(db database) KeyStore { return inDatabase{db} }

func (s inDatabase) Load(ctx context.Context) (Record, error) {
	e, err := s.db.Load(ctx, store.Keys, RecordKey)
	return Record{e.Value, e.Version, e.Now}, err
}

func (s inDatabase) Create(ctx context.Context, value []byte) error {
	_, err := s.db.Create(ctx, store.Keys, RecordKey, value, 0, store.Limit{})
	return err
}

func (s inDatabase) Swap(ctx context.Context, version int64, value []byte) error {
	_, err := s.db.CompareAndSwap(ctx, store.Keys, RecordKey, version, value, store.Limit{})
	return err
}

type inFile struct {
	path string
	now  func() time.Time
}

// InFile keeps wrapped keys in a file, for one broker.
func InFile(path string, now func() time.Time) KeyStore { return inFile{path, now} }

func (s inFile) Load(context.Context) (Record, error) {
	f, err := os.Open(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return Record{}, fmt.Errorf("%s: %w", s.path, store.ErrNotFound)
	}
	if err != nil {
		return Record{}, fmt.Errorf("reading storage keys: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return Record{}, fmt.Errorf("reading storage keys: %w", err)
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		return Record{}, fmt.Errorf("the file of storage keys %s has mode %04o, want 0600", s.path, perm)
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxDocument+1))
	if err != nil {
		return Record{}, fmt.Errorf("reading storage keys: %w", err)
	}
	return Record{raw, fileVersion(raw), s.now()}, nil
}

// fileVersion is a digest: a file has no counter.
func fileVersion(raw []byte) int64 {
	sum := sha256.Sum256(raw)
	return int64(binary.BigEndian.Uint64(sum[:]))
}

func (s inFile) Create(_ context.Context, value []byte) error {
	err := atomicfile.WriteNew(s.path, value, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s: %w", s.path, store.ErrExists)
	}
	return err
}

// Swap holds a lock on a file beside, so that a command and a broker do not write over each other.
func (s inFile) Swap(ctx context.Context, version int64, value []byte) error {
	lock, err := os.OpenFile(s.path+".lock", os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("locking storage keys: %w", err)
	}
	defer lock.Close() // lets go of the lock
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return fmt.Errorf("%s is being changed: %w", s.path, store.ErrChanged)
	}
	now, err := s.Load(ctx)
	if err != nil {
		return err
	}
	if now.Version != version {
		return fmt.Errorf("%s: %w", s.path, store.ErrChanged)
	}
	return atomicfile.Write(s.path, value, 0o600)
}
