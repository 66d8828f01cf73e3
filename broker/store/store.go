// Package store keeps the broker's state so that it survives a crash at any point.
//
// Values live in namespaces, and every write is one transaction that is on disk before the call returns. The package
// knows nothing about what it stores; callers that keep secrets here seal them first (see broker/seal). There are two
// back ends with the same meaning, which the suite in store/storetest holds them to: Bolt, one file for one broker, and
// store/postgres, a database that several brokers share.
package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// The namespaces in use. Their names are those of upstream's key-value layer where it has one.
const (
	Policies        = "attestation_service_policy"
	ReferenceValues = "reference_value"
	Resources       = "repository"
	KBS             = "kbs"
	Keys            = "cloister_keys"
	Decisions       = "cloister_decisions"
	Sessions        = "cloister_sessions"
	Tenants         = "cloister_tenants"
	Provisioner     = "provisioner"
)

var namespaces = []string{Policies, ReferenceValues, Resources, KBS, Keys, Decisions, Sessions, Tenants, Provisioner}

const (
	// maxKey bounds keys, in bytes: bbolt's own limit is 32 KiB, no name of ours needs a fraction of it.
	maxKey = 1024
	// MaxValue bounds one value, in bytes: twice the largest secret.
	MaxValue = 16 << 20
)

// Sentinels a caller answers differently.
var (
	// ErrNotFound is returned for a key that has no value.
	ErrNotFound = errors.New("not found")
	// ErrExpired is the ErrNotFound of a value whose time is over and that no sweep has removed yet.
	ErrExpired = fmt.Errorf("%w: its time is over", ErrNotFound)
	// ErrExists is returned by Create for a key that has a value.
	ErrExists = errors.New("exists already")
	// ErrChanged is returned by CompareAndSwap and Swap for a value that is not the one the caller has read.
	ErrChanged = errors.New("was changed by somebody else")
	// ErrFull is returned for a write that would pass a Limit.
	ErrFull = errors.New("the store is full")
)

// Entry is a value with what the store knows about it.
type Entry struct {
	Value []byte
	// Version changes with every write of the key and never comes back, not even after the key was deleted and made
	// anew. It tells nothing about the order of writes of different keys. Zero is the version of a value that was
	// written before there were versions.
	Version int64
	// Expires is when the value goes away; zero means never.
	Expires time.Time
	// Now is the time by the clock that Expires is measured with. That is the store's own: brokers that share a store
	// need not agree about the time.
	Now time.Time
}

// Limit bounds a namespace. Zero means no bound.
type Limit struct {
	Entries int
	// Bytes counts values, not keys.
	Bytes int64
}

// String says the bounds that there are.
func (l Limit) String() string {
	switch {
	case l == (Limit{}):
		return "any number"
	case l.Bytes == 0:
		return fmt.Sprintf("%d entries", l.Entries)
	case l.Entries == 0:
		return fmt.Sprintf("%d bytes", l.Bytes)
	}
	return fmt.Sprintf("%d entries of %d bytes", l.Entries, l.Bytes)
}

// Usage is what a namespace holds, values included that are expired but not swept yet.
type Usage struct {
	Entries int
	Bytes   int64
}

// Exceeds tells whether u is above the limit.
func (u Usage) Exceeds(l Limit) bool {
	return l.Entries > 0 && u.Entries > l.Entries || l.Bytes > 0 && u.Bytes > l.Bytes
}

// Store is what both back ends do. A consumer names the methods it needs in an interface of its own; this one exists so
// that back ends can be told to be alike and the broker can hold either.
//
// A write that returns nil survives the crash of anything. A write that returns an error that is none of the sentinels
// may or may not have happened (the answer can get lost on the way): Load tells. Expired values are absent to every
// method but Usage.
type Store interface {
	// Get returns the value of a key, or ErrNotFound.
	Get(ctx context.Context, ns, key string) ([]byte, error)
	// Put stores values, all of them or none; a present key is overwritten, and an expiry it had is gone.
	Put(ctx context.Context, ns string, values map[string][]byte) error
	// PutNew stores a value only when the key is absent and reports whether it did.
	PutNew(ctx context.Context, ns, key string, value []byte) (bool, error)
	// Delete removes a key, or returns ErrNotFound.
	Delete(ctx context.Context, ns, key string) error
	// Each calls fn for every pair of a namespace in key order (byte by byte) until fn returns an error. It sees one
	// moment of the store. fn must not keep value and must not write to the store.
	Each(ctx context.Context, ns string, fn func(key string, value []byte) error) error
	// Back calls fn for the pairs whose key is below before ("" is above all keys), in falling key order, until fn returns
	// an error. Pairs that are written or removed meanwhile may be seen or not. fn must not keep value and must not write
	// to the store.
	Back(ctx context.Context, ns, before string, fn func(key string, value []byte) error) error
	// Append stores value under a key and then drops the oldest keys, in key order, above max. Keys that sort by time
	// make this a bounded history. A back end may drop late and then keep up to a hundredth more.
	Append(ctx context.Context, ns, key string, value []byte, max int) error

	// Load returns the entry of a key, or ErrNotFound, or ErrExpired.
	Load(ctx context.Context, ns, key string) (Entry, error)
	// Create stores a value that goes away after lifetime (zero: never), or returns ErrExists or ErrFull. No number of
	// concurrent calls of any number of brokers that keep to the same limit succeeds beyond Limit.Entries.
	Create(ctx context.Context, ns, key string, value []byte, lifetime time.Duration, limit Limit) (Entry, error)
	// CompareAndSwap replaces the value of a key that still has the version and returns its new one, or ErrNotFound,
	// ErrChanged or ErrFull. Its expiry stays. Of concurrent calls for one version exactly one succeeds. Only the bytes
	// of limit count; concurrent calls may pass them by what they write at the same moment.
	CompareAndSwap(ctx context.Context, ns, key string, version int64, value []byte, limit Limit) (int64, error)
	// Swap makes all of several changes of a namespace, or none: when one key is not what its change says it is, it returns
	// ErrChanged. An expiry that a value had is gone.
	Swap(ctx context.Context, ns string, changes map[string]Change) error
	// DeleteExpired removes what has expired in a namespace and returns how many values that were.
	DeleteExpired(ctx context.Context, ns string) (int, error)
	// Usage is what a namespace takes.
	Usage(ctx context.Context, ns string) (Usage, error)

	// Health is nil when the store can be written to.
	Health(ctx context.Context) error
	// Close lets go of the store after calls under way have ended.
	Close() error
}

// Check refuses names of namespaces and keys that no back end takes.
func Check(ns, key string) error {
	if err := CheckNamespace(ns); err != nil {
		return err
	}
	return checkKey(key)
}

// CheckNamespace refuses a namespace that is neither in the list above nor a tenant's part of one.
func CheckNamespace(ns string) error {
	base, tenant, scoped := strings.Cut(ns, scopeMark)
	if !slices.Contains(namespaces, base) || scoped && !ValidScope(tenant) {
		return fmt.Errorf("store has no namespace %.128q", ns)
	}
	return nil
}

// CheckValue refuses values that no back end takes.
func CheckValue(value []byte) error {
	if len(value) > MaxValue {
		return fmt.Errorf("store value of %d bytes: at most %d are taken", len(value), MaxValue)
	}
	return nil
}

func checkKey(key string) error {
	if key == "" || len(key) > maxKey {
		return fmt.Errorf("store key of %d bytes: want 1 to %d", len(key), maxKey)
	}
	return nil
}
