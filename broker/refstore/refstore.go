// Package refstore keeps reference values: the measurements and settings an operator approved.
//
// A value is any JSON and has a name. It expires (12 months by default), and it remembers who registered it and when, so
// that a denial can say how old the approved values are. An expired value is treated as absent: an approval that nobody
// renews ends. The message format is that of upstream's RVPS (attestation-service.md section 9).
package refstore

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"strings"
	"time"

	"github.com/cloister/cloister/broker/store"
)

// DefaultLifetime is how long a registered value is good for.
const DefaultLifetime = 365 * 24 * time.Hour

// MessageVersion is the only version of the registration message.
const MessageVersion = "0.1.0"

const (
	maxName  = 512
	maxNames = 4096
)

// Record is one reference value. The first four members are upstream's stored form.
type Record struct {
	Version    string          `json:"version"`
	Name       string          `json:"name"`
	Expiration time.Time       `json:"expiration"`
	Value      json.RawMessage `json:"value"`
	Registered time.Time       `json:"registered"`
	By         string          `json:"by"`
	Source     string          `json:"source"`
}

// Message is what a tool sends to register values.
type Message struct {
	Version string `json:"version,omitempty"`
	Type    string `json:"type"`
	Payload string `json:"payload"`
}

type backend interface {
	Get(ctx context.Context, ns, key string) ([]byte, error)
	Put(ctx context.Context, ns string, values map[string][]byte) error
	Delete(ctx context.Context, ns, key string) error
	Each(ctx context.Context, ns string, fn func(key string, value []byte) error) error
}

// extractor turns the payload of a message into named values.
type extractor func(payload []byte) (map[string]json.RawMessage, error)

// extractors is the whole list of message types.
var extractors = map[string]extractor{
	"sample": extractSample,
}

// Store is a set of reference values.
type Store struct {
	db       backend
	now      func() time.Time
	lifetime time.Duration
}

// New makes a Store; a lifetime of zero means DefaultLifetime.
func New(db backend, now func() time.Time, lifetime time.Duration) *Store {
	if lifetime == 0 {
		lifetime = DefaultLifetime
	}
	return &Store{db: db, now: now, lifetime: lifetime}
}

// Register stores the values of a message, all or none, and returns their names.
func (s *Store) Register(ctx context.Context, message []byte, by string) ([]string, error) {
	var m Message
	if err := json.Unmarshal(message, &m); err != nil {
		return nil, fmt.Errorf("reading reference value message: %w", err)
	}
	if m.Version != "" && m.Version != MessageVersion {
		return nil, fmt.Errorf("reference value message has version %q, want %q", m.Version, MessageVersion)
	}
	extract, ok := extractors[m.Type]
	if !ok {
		return nil, fmt.Errorf("reference value message has type %q, known: %s", m.Type, strings.Join(types(), ", "))
	}
	payload, err := base64.StdEncoding.DecodeString(m.Payload)
	if err != nil {
		return nil, fmt.Errorf("reading reference value payload: %w", err)
	}
	values, err := extract(payload)
	if err != nil {
		return nil, fmt.Errorf("reading reference values of type %q: %w", m.Type, err)
	}
	if len(values) > maxNames {
		return nil, fmt.Errorf("message names %d reference values, at most %d are taken at once", len(values), maxNames)
	}
	now := s.now().UTC().Truncate(time.Second)
	batch := make(map[string][]byte, len(values))
	names := make([]string, 0, len(values))
	for name, value := range values {
		if err := checkName(name); err != nil {
			return nil, err
		}
		record, err := json.Marshal(Record{
			Version: MessageVersion, Name: name, Expiration: now.Add(s.lifetime), Value: value,
			Registered: now, By: by, Source: m.Type,
		})
		if err != nil {
			return nil, fmt.Errorf("encoding reference value %q: %w", name, err)
		}
		batch[name] = record
		names = append(names, name)
	}
	sort.Strings(names)
	if err := s.db.Put(ctx, store.ReferenceValues, batch); err != nil {
		return nil, fmt.Errorf("storing reference values: %w", err)
	}
	return names, nil
}

// Lookup returns an unexpired value, or nil when there is none.
func (s *Store) Lookup(ctx context.Context, name string) (json.RawMessage, error) {
	r, err := s.Get(ctx, name)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return r.Value, nil
}

// Get returns the record of an unexpired value, or store.ErrNotFound.
func (s *Store) Get(ctx context.Context, name string) (*Record, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	raw, err := s.db.Get(ctx, store.ReferenceValues, name)
	if err != nil {
		return nil, err
	}
	var r Record
	if err := json.Unmarshal(raw, &r); err != nil {
		return nil, fmt.Errorf("reading reference value %q: %w", name, err)
	}
	if !s.now().Before(r.Expiration) {
		return nil, store.ErrNotFound
	}
	return &r, nil
}

// List returns all records in name order, expired ones too.
func (s *Store) List(ctx context.Context) ([]Record, error) {
	records := []Record{}
	err := s.db.Each(ctx, store.ReferenceValues, func(key string, value []byte) error {
		var r Record
		if err := json.Unmarshal(value, &r); err != nil {
			return fmt.Errorf("reading reference value %q: %w", key, err)
		}
		records = append(records, r)
		return nil
	})
	return records, err
}

// Delete removes a value, or returns store.ErrNotFound.
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	return s.db.Delete(ctx, store.ReferenceValues, name)
}

func extractSample(payload []byte) (map[string]json.RawMessage, error) {
	var values map[string]json.RawMessage
	if err := json.Unmarshal(payload, &values); err != nil {
		return nil, fmt.Errorf("payload is not a JSON object: %w", err)
	}
	if len(values) == 0 {
		return nil, errors.New("payload names no value")
	}
	return values, nil
}

func checkName(name string) error {
	if name == "" || len(name) > maxName {
		return fmt.Errorf("reference value name has %d bytes, want 1 to %d", len(name), maxName)
	}
	for _, r := range name {
		if r < 0x20 || r == 0x7f || r == 0xfffd {
			return fmt.Errorf("reference value name %q has a control character", name)
		}
	}
	return nil
}

func types() []string {
	out := make([]string, 0, len(extractors))
	for t := range extractors {
		out = append(out, t)
	}
	sort.Strings(out)
	return out
}
