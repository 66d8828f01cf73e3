// Package decision remembers recent verdicts so that they can be explained later.
//
// The audit log says what was decided; a record here says on what grounds: the claims of the evidence and the findings
// of the policies. Records are a bounded history, keyed by the id of the request that caused them, which every denial
// shows to the guest. They hold no secret.
package decision

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/cloister/cloister/broker/rego"
	"github.com/cloister/cloister/broker/store"
)

// The kinds of record.
const (
	KindAttestation = "attestation"
	KindResource    = "resource"
)

// DefaultMax is how many records are kept.
const DefaultMax = 4096

// Record is one verdict with its grounds.
type Record struct {
	ID       string    `json:"id"`
	Time     time.Time `json:"time"`
	Kind     string    `json:"kind"`
	Decision string    `json:"decision"`
	TEE      string    `json:"tee,omitempty"`
	// Subject is the path of the resource that was asked for.
	Subject string `json:"subject,omitempty"`
	// Reason is the text the guest was given.
	Reason string `json:"reason,omitempty"`
	// Policy is the id of the policy that said no.
	Policy   string         `json:"policy,omitempty"`
	Findings []rego.Finding `json:"findings,omitempty"`
	// Parts are the appraisals of an attestation.
	Parts []Part `json:"parts,omitempty"`
	// AttestationID is the attestation that a resource request relied on.
	AttestationID string `json:"attestation_id,omitempty"`
	// Attestation is that record; Get fills it in.
	Attestation *Record `json:"attestation,omitempty"`
}

// Part is the appraisal of one device.
type Part struct {
	Name     string          `json:"name"`
	TEE      string          `json:"tee"`
	Status   string          `json:"status"`
	Policy   string          `json:"policy"`
	Vector   map[string]int  `json:"vector"`
	Findings []rego.Finding  `json:"findings,omitempty"`
	Evidence json.RawMessage `json:"evidence,omitempty"`
}

// Summary is the findings of all parts in one line, and the policies they come from.
func (r *Record) Summary() (text string, policies []string) {
	var all []rego.Finding
	for _, p := range r.Parts {
		if len(p.Findings) > 0 {
			all = append(all, p.Findings...)
			policies = append(policies, p.Policy)
		}
	}
	return rego.Summary(all), policies
}

type backend interface {
	Get(ctx context.Context, ns, key string) ([]byte, error)
	Append(ctx context.Context, ns, key string, value []byte, max int) error
	Back(ctx context.Context, ns, before string, fn func(key string, value []byte) error) error
}

// Store keeps records.
type Store struct {
	db  backend
	max int
}

// NewStore makes a Store of at most max records; zero means DefaultMax.
func NewStore(db backend, max int) *Store {
	if max == 0 {
		max = DefaultMax
	}
	return &Store{db: db, max: max}
}

// Put keeps a record.
func (s *Store) Put(ctx context.Context, r Record) error {
	r.Attestation = nil
	raw, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encoding decision %s: %w", r.ID, err)
	}
	if err := s.db.Append(ctx, store.Decisions, r.ID, raw, s.max); err != nil {
		return fmt.Errorf("keeping decision %s: %w", r.ID, err)
	}
	return nil
}

// Get returns a record with the attestation it relied on, or an error that wraps store.ErrNotFound.
func (s *Store) Get(ctx context.Context, id string) (*Record, error) {
	r, err := s.one(ctx, id)
	if err != nil {
		return nil, err
	}
	if r.AttestationID != "" {
		r.Attestation, err = s.one(ctx, r.AttestationID)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return nil, err
		}
	}
	return r, nil
}

func (s *Store) one(ctx context.Context, id string) (*Record, error) {
	if !ValidID(id) {
		return nil, fmt.Errorf("request id %.64q: %w", id, store.ErrNotFound)
	}
	raw, err := s.db.Get(ctx, store.Decisions, id)
	if err != nil {
		return nil, fmt.Errorf("decision %s: %w", id, err)
	}
	var r Record
	if err := json.Unmarshal(raw, &r); err != nil {
		return nil, fmt.Errorf("reading decision %s: %w", id, err)
	}
	return &r, nil
}

// NewID makes a request id: a version 7 UUID as 32 hex digits, so that ids sort by time.
func NewID(now time.Time) (string, error) {
	var b [16]byte
	if _, err := rand.Read(b[6:]); err != nil {
		return "", fmt.Errorf("making request id: %w", err)
	}
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(now.UnixMilli()))
	copy(b[:6], ms[2:])
	b[6] = b[6]&0x0f | 0x70
	b[8] = b[8]&0x3f | 0x80
	return hex.EncodeToString(b[:]), nil
}

// ValidID reports whether id has the form of a request id.
func ValidID(id string) bool {
	raw, err := hex.DecodeString(id)
	return err == nil && len(raw) == 16
}
