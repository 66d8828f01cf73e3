package server

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/cloister/cloister/broker/audit"
	"github.com/cloister/cloister/broker/session"
	"github.com/cloister/cloister/wire/kbs"
)

// auth gives a challenge (kbs-protocol.md section 2.1).
func (s *Server) auth(w http.ResponseWriter, r *http.Request) {
	s.metrics.authRequests.Inc()
	body, err := readAll(r)
	if err != nil {
		s.metrics.authErrors.Inc()
		s.failBody(w, r, kbs.ErrorAttestation, err)
		return
	}
	entry := audit.Entry{Event: "auth"}
	sess, challenge, err := s.challenge(r, body, &entry)
	if err != nil {
		s.metrics.authErrors.Inc()
		entry.Decision, entry.Reason = audit.Deny, err.Error()
		s.noteRefusal(r, entry)
		status := statusOf(w, err)
		if errors.Is(err, session.ErrFull) {
			status = http.StatusServiceUnavailable
			w.Header().Set("Retry-After", "5")
		}
		s.fail(w, r, refusal{status, kbs.ErrorAttestation, "Attestation error: RCAR handshake Auth failed: " + err.Error()})
		return
	}
	entry.Decision, entry.Session = audit.Allow, sessionTag(sess.ID)
	entry.RequestID, entry.Remote = requestID(r), s.remote(r)
	if err := s.Audit.Queue(context.WithoutCancel(r.Context()), entry); err != nil { // a challenge gives nothing away
		s.metrics.authErrors.Inc()
		s.fail(w, r, refusal{http.StatusUnauthorized, kbs.ErrorAttestation, "Attestation error: RCAR handshake Auth failed: the audit log cannot be written"})
		return
	}
	s.metrics.authSuccesses.Inc()
	s.setCookie(w, sess)
	s.reply(w, r, challenge)
}

func (s *Server) challenge(r *http.Request, body []byte, entry *audit.Entry) (*session.Session, *kbs.Challenge, error) {
	var req kbs.Request
	if err := json.Unmarshal(body, &req); err != nil {
		return nil, nil, fmt.Errorf("reading the request: %w", err)
	}
	if req.Version != kbs.Version {
		return nil, nil, fmt.Errorf("KBS Client Protocol Version Mismatch: expect =%s while the request is %.32s", kbs.Version, req.Version)
	}
	entry.TEE = req.TEE
	c, err := s.Attestation.Challenge(r.Context(), req.TEE, req.ExtraParams)
	if err != nil {
		return nil, nil, err
	}
	params := json.RawMessage(`""`)
	if c.Params != nil {
		if params, err = json.Marshal(c.Params); err != nil {
			return nil, nil, fmt.Errorf("encoding the challenge: %w", err)
		}
	}
	sess, err := s.Sessions.New(r.Context(), req.TEE, c.Nonce, cmp.Or(c.Hash, kbs.DefaultHash), c.Remember)
	if err != nil {
		return nil, nil, err
	}
	return sess, &kbs.Challenge{Nonce: sess.Nonce, ExtraParams: params}, nil
}

func (s *Server) setCookie(w http.ResponseWriter, sess *session.Session) {
	http.SetCookie(w, &http.Cookie{
		Name: kbs.SessionCookie, Value: sess.ID, Path: s.Prefix + kbs.PathPrefix, Expires: sess.Expires.UTC(), HttpOnly: true, Secure: s.Secure,
	})
}

// session returns the live session of a request's cookie.
func (s *Server) session(r *http.Request) (*session.Session, error) {
	cookie, err := r.Cookie(kbs.SessionCookie)
	if err != nil {
		return nil, errors.New("the request has no session cookie")
	}
	return s.Sessions.Get(r.Context(), cookie.Value)
}
