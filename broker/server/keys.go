package server

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/cloister/cloister/broker/audit"
	"github.com/cloister/cloister/wire/kbs"
)

// SigningKeys are the keys of attestation tokens.
type SigningKeys interface {
	// Rotate adds a key and returns when it begins to sign. Earlier keys count until the tokens they signed have ended, or, revoked,
	// not any more.
	Rotate(ctx context.Context, revoke bool) (time.Time, error)
}

// Rotated is the answer of POST /cloister/v1/keys/token/rotate.
type Rotated struct {
	From time.Time `json:"from"`
}

func (s *Server) rotateSigningKey(w http.ResponseWriter, r *http.Request, entry *audit.Entry) error {
	revoke := r.URL.Query().Has("revoke")
	entry.Event, entry.Subject = "token-key-rotate", "keep"
	if revoke {
		entry.Subject = "revoke"
	}
	from, err := s.SigningKeys.Rotate(r.Context(), revoke)
	if err != nil {
		return refusal{http.StatusConflict, kbs.ErrorPluginInternal, err.Error()}
	}
	s.reply(w, r, Rotated{from.UTC()})
	return nil
}

// StorageKeys is what everything is sealed with.
type StorageKeys interface {
	// Rotate makes a new key the current one and returns its id.
	Rotate(ctx context.Context) (id string, err error)
	// Retire seals everything with the current key and returns the ids of those that are not needed any more.
	Retire(ctx context.Context) ([]string, error)
	// Rewrap wraps the keys anew with what the service has now, and returns how many those were.
	Rewrap(ctx context.Context) (int, error)
}

// StorageRotated is the answer of POST /cloister/v1/keys/storage/rotate, retire and rewrap.
type StorageRotated struct {
	// Current is the id of a new current key, Retired are those of keys that nothing is sealed with any more.
	Current   string   `json:"current,omitempty"`
	Retired   []string `json:"retired,omitempty"`
	Rewrapped int      `json:"rewrapped,omitempty"`
}

// storageAnswer answers what was done to storage keys.
func (s *Server) storageAnswer(w http.ResponseWriter, r *http.Request, done StorageRotated, err error) error {
	if err != nil {
		return refusal{http.StatusConflict, kbs.ErrorPluginInternal, err.Error()}
	}
	s.reply(w, r, done)
	return nil
}

func (s *Server) rotateStorageKey(w http.ResponseWriter, r *http.Request, entry *audit.Entry) error {
	entry.Event = "storage-key-rotate"
	id, err := s.StorageKeys.Rotate(r.Context())
	entry.Subject = id
	return s.storageAnswer(w, r, StorageRotated{Current: id}, err)
}

func (s *Server) retireStorageKeys(w http.ResponseWriter, r *http.Request, entry *audit.Entry) error {
	entry.Event = "storage-key-retire"
	gone, err := s.StorageKeys.Retire(r.Context())
	entry.Subject = strings.Join(gone, " ")
	return s.storageAnswer(w, r, StorageRotated{Retired: gone}, err)
}

func (s *Server) rewrapStorageKeys(w http.ResponseWriter, r *http.Request, entry *audit.Entry) error {
	entry.Event = "storage-key-rewrap"
	n, err := s.StorageKeys.Rewrap(r.Context())
	return s.storageAnswer(w, r, StorageRotated{Rewrapped: n}, err)
}
