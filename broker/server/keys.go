package server

import (
	"context"
	"net/http"
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
