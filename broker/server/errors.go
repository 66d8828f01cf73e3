package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/cloister/cloister/broker/outage"
	"github.com/cloister/cloister/wire/kbs"
)

// errSerde is the one error name that no client reads.
const errSerde = "SerdeError"

// refusal is an answer that is not what the client asked for.
type refusal struct {
	status int
	name   string
	detail string
}

// Error is part of error, so that handlers can return refusals.
func (f refusal) Error() string { return f.detail }

// fail sends a refusal. The request id ends the text when the text does not name it already.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, f refusal) {
	if f.name != kbs.ErrorPolicyDeny {
		f.detail = fmt.Sprintf("%s (request %s)", f.detail, requestID(r))
	}
	body, err := json.Marshal(kbs.NewError(f.name, f.detail))
	if err != nil {
		http.Error(w, "encoding the error", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(f.status)
	if _, err := w.Write(body); err != nil {
		s.Log.DebugContext(r.Context(), "the client went away before the answer", "request", requestID(r), "error", err)
	}
}

// statusOf is the status of a handshake that failed. Where a service that the broker needs is away, the guest is not at fault and is told
// when to come again.
func statusOf(w http.ResponseWriter, err error) int {
	if !errors.Is(err, outage.ErrUnavailable) {
		return http.StatusUnauthorized
	}
	w.Header().Set("Retry-After", outage.RetryAfter)
	return http.StatusServiceUnavailable
}

// failBody answers an error of reading the body.
func (s *Server) failBody(w http.ResponseWriter, r *http.Request, name string, err error) {
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		http.Error(w, "payload reached size limit", http.StatusRequestEntityTooLarge)
		return
	}
	s.fail(w, r, refusal{http.StatusUnauthorized, name, "reading the body: " + err.Error()})
}
