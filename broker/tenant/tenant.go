// Package tenant keeps who shares a broker: each tenant has administrators, policies, reference values, secrets, sessions, signing
// keys and quotas of its own, and nothing of another's.
//
// A tenant NAME is reached below /ns/NAME, where everything is as at the root: a guest whose initdata names
// https://broker:8080/ns/NAME as its key broker shakes hands with that tenant. This package keeps the list of tenants and the hashes of
// their administrators' tokens; what belongs to a tenant is in its part of the store (store.Scope).
package tenant

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/cloister/cloister/broker/appraise"
	"github.com/cloister/cloister/broker/store"
)

// ErrName is wrapped by refusals of names.
var ErrName = errors.New("want up to 63 letters a to z, digits and inner hyphens")

// ErrQuota is wrapped by refusals of quotas.
var ErrQuota = errors.New("a quota is 0, which is no limit, or more")

// ErrToken is returned for a token that is not that of the tenant's administrators.
var ErrToken = errors.New("the token is not that of this tenant's administrators")

// Quota bounds what a tenant may keep and ask for; zero is no limit.
type Quota struct {
	Resources         int     `json:"resources"`
	Bytes             int64   `json:"bytes"` // of all secrets, sealed and with the versions that are kept
	ReferenceValues   int     `json:"reference_values"`
	Policies          int     `json:"policies"`
	Sessions          int     `json:"sessions"`
	RequestsPerSecond float64 `json:"requests_per_second"`
}

func (q Quota) validate() error {
	if q.Resources < 0 || q.Bytes < 0 || q.ReferenceValues < 0 || q.Policies < 0 || q.Sessions < 0 || !(q.RequestsPerSecond >= 0) {
		return fmt.Errorf("quota %+v: %w", q, ErrQuota)
	}
	return nil
}

// Limit is what the quota says of a namespace of the tenant's part of the store.
func (q Quota) Limit(ns string) store.Limit {
	switch ns {
	case store.Resources:
		return store.Limit{Entries: q.Resources, Bytes: q.Bytes}
	case store.ReferenceValues:
		return store.Limit{Entries: q.ReferenceValues}
	case store.Sessions:
		return store.Limit{Entries: q.Sessions}
	case store.Policies:
		if q.Policies > 0 { // those that a tenant has from the start do not count
			return store.Limit{Entries: q.Policies + len(appraise.Classes())}
		}
	}
	return store.Limit{}
}

// Usage is what a tenant keeps.
type Usage struct {
	Resources       int   `json:"resources"`
	Bytes           int64 `json:"bytes"`
	ReferenceValues int   `json:"reference_values"`
	Policies        int   `json:"policies"`
	Sessions        int   `json:"sessions"`
}

// Tenant is one of those who share the broker.
type Tenant struct {
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
	Quota   Quota     `json:"quota"`
	// Key names the tenant in what is sealed for it. A tenant that is made anew under an old name has another one.
	Key       string `json:"key"`
	TokenHash []byte `json:"token_hash"`
	// Space names the tenant's part of the store; "" is Name, of tenants from before there was a Space. Like Key it is of this tenant
	// alone: a request that an earlier one of the name has under way cannot write into what a later one has.
	Space string `json:"space,omitempty"`
}

// Scope returns the tenant's part of the broker's store. limit tells that of a namespace as it is now; nil means none.
func (t *Tenant) Scope(db store.Store, limit func(ns string) store.Limit) (*store.Scoped, error) {
	return store.Scope(db, cmp.Or(t.Space, t.Name), limit)
}

// Store keeps the list.
type Store struct {
	db  store.Store
	now func() time.Time
}

// NewStore makes a Store over the broker's store.
func NewStore(db store.Store, now func() time.Time) *Store { return &Store{db, now} }

func newToken() (token string, hash []byte, err error) {
	raw := make([]byte, 32)
	if _, err := rand.Read(raw); err != nil {
		return "", nil, fmt.Errorf("making a token: %w", err)
	}
	token = "cloister-tenant-" + base64.RawURLEncoding.EncodeToString(raw)
	sum := sha256.Sum256([]byte(token))
	return token, sum[:], nil
}

// Create adds a tenant and returns the token of its administrators, which is kept nowhere. A name that is taken is store.ErrExists.
func (s *Store) Create(ctx context.Context, name string, q Quota) (token string, err error) {
	if !store.ValidTenant(name) {
		return "", fmt.Errorf("tenant name %.64q: %w", name, ErrName)
	}
	if err := q.validate(); err != nil {
		return "", err
	}
	token, hash, err := newToken()
	if err != nil {
		return "", err
	}
	key := make([]byte, 16)
	if _, err := rand.Read(key); err != nil {
		return "", fmt.Errorf("making the key name of a tenant: %w", err)
	}
	sum := sha256.Sum256(key)
	t := Tenant{
		Name: name, Created: s.now().UTC(), Quota: q, Key: base64.RawURLEncoding.EncodeToString(key), TokenHash: hash,
		Space: name + "." + hex.EncodeToString(sum[:8]),
	}
	raw, err := json.Marshal(t)
	if err != nil {
		return "", fmt.Errorf("encoding a tenant: %w", err)
	}
	if _, err := s.db.Create(ctx, store.Tenants, name, raw, 0, store.Limit{}); err != nil {
		return "", fmt.Errorf("making tenant %s: %w", name, err)
	}
	return token, nil
}

// Get returns a tenant, or store.ErrNotFound.
func (s *Store) Get(ctx context.Context, name string) (*Tenant, error) {
	t, _, err := s.load(ctx, name)
	return t, err
}

func (s *Store) load(ctx context.Context, name string) (t *Tenant, version int64, err error) {
	e, err := s.db.Load(ctx, store.Tenants, name)
	if err != nil {
		return nil, 0, fmt.Errorf("reading tenant %.64q: %w", name, err)
	}
	t = new(Tenant)
	if err := json.Unmarshal(e.Value, t); err != nil {
		return nil, 0, fmt.Errorf("reading tenant %s: %w", name, err)
	}
	return t, e.Version, nil
}

// List returns all tenants in the order of their names.
func (s *Store) List(ctx context.Context) ([]Tenant, error) {
	list := []Tenant{}
	err := s.db.Each(ctx, store.Tenants, func(name string, raw []byte) error {
		var t Tenant
		if err := json.Unmarshal(raw, &t); err != nil {
			return fmt.Errorf("reading tenant %s: %w", name, err)
		}
		list = append(list, t)
		return nil
	})
	return list, err
}

// Names returns the names of all tenants.
func (s *Store) Names(ctx context.Context) (map[string]bool, error) {
	names := map[string]bool{}
	err := s.db.Each(ctx, store.Tenants, func(name string, _ []byte) error { names[name] = true; return nil })
	if err != nil {
		return nil, fmt.Errorf("reading the names of tenants: %w", err)
	}
	return names, nil
}

// change replaces the entry of a tenant.
func (s *Store) change(ctx context.Context, name string, fn func(t *Tenant) error) error {
	for {
		t, version, err := s.load(ctx, name)
		if err != nil {
			return err
		}
		if err := fn(t); err != nil {
			return err
		}
		raw, err := json.Marshal(t)
		if err != nil {
			return fmt.Errorf("encoding a tenant: %w", err)
		}
		if _, err = s.db.CompareAndSwap(ctx, store.Tenants, name, version, raw, store.Limit{}); err == nil {
			return nil
		}
		if !errors.Is(err, store.ErrChanged) {
			return fmt.Errorf("changing tenant %s: %w", name, err)
		}
	}
}

// SetQuota changes what a tenant may keep. What it keeps already stays.
func (s *Store) SetQuota(ctx context.Context, name string, q Quota) error {
	if err := q.validate(); err != nil {
		return err
	}
	return s.change(ctx, name, func(t *Tenant) error { t.Quota = q; return nil })
}

// NewToken gives the administrators of a tenant another token; the one they had ends.
func (s *Store) NewToken(ctx context.Context, name string) (string, error) {
	token, hash, err := newToken()
	if err != nil {
		return "", err
	}
	return token, s.change(ctx, name, func(t *Tenant) error { t.TokenHash = hash; return nil })
}

// Delete removes a tenant and then all that it kept. After a failure the tenant is gone, and what is left of it is nobody's: a tenant
// that gets its name later has another part of the store.
func (s *Store) Delete(ctx context.Context, name string) error {
	for {
		t, version, err := s.load(ctx, name)
		if err != nil {
			return err
		}
		part, err := t.Scope(s.db, nil)
		if err != nil {
			return err
		}
		err = s.db.Swap(ctx, store.Tenants, map[string]store.Change{name: {Version: version}})
		if errors.Is(err, store.ErrChanged) {
			continue
		}
		if err != nil {
			return fmt.Errorf("removing tenant %s: %w", name, err)
		}
		return part.Clear(ctx)
	}
}

// Usage counts what a tenant keeps.
func (s *Store) Usage(ctx context.Context, t *Tenant) (Usage, error) {
	part, err := t.Scope(s.db, nil)
	if err != nil {
		return Usage{}, err
	}
	var out Usage
	for _, c := range []struct {
		ns   string
		into *int
	}{
		{store.Resources, &out.Resources}, {store.ReferenceValues, &out.ReferenceValues}, {store.Policies, &out.Policies},
		{store.Sessions, &out.Sessions},
	} {
		u, err := part.Usage(ctx, c.ns)
		if err != nil {
			return Usage{}, fmt.Errorf("counting what tenant %s keeps: %w", t.Name, err)
		}
		*c.into = u.Entries
		if c.ns == store.Resources {
			out.Bytes = u.Bytes
		}
	}
	return out, nil
}

// Info is what an administrator of the broker learns of a tenant.
type Info struct {
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
	Quota   Quota     `json:"quota"`
	Usage   Usage     `json:"usage"`
}

// Infos tells about all tenants in the order of their names.
func (s *Store) Infos(ctx context.Context) ([]Info, error) {
	list, err := s.List(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]Info, 0, len(list))
	for _, t := range list {
		u, err := s.Usage(ctx, &t)
		if err != nil {
			return nil, err
		}
		out = append(out, Info{t.Name, t.Created, t.Quota, u})
	}
	return out, nil
}

// Check reports whether a token is that of the tenant's administrators.
func (t *Tenant) Check(token string) error {
	sum := sha256.Sum256([]byte(token))
	if token == "" || subtle.ConstantTimeCompare(sum[:], t.TokenHash) != 1 {
		return ErrToken
	}
	return nil
}
