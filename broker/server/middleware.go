package server

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"path"
	"runtime/debug"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/cloister/cloister/broker/audit"
	"github.com/cloister/cloister/broker/decision"
	"github.com/cloister/cloister/broker/span"
	"github.com/cloister/cloister/wire/kbs"
)

type contextKey int

const requestIDKey contextKey = 0

// requestID is the id of a request that came through wrap.
func requestID(r *http.Request) string {
	id, _ := r.Context().Value(requestIDKey).(string)
	return id
}

// answer notes the status that was sent.
type answer struct {
	http.ResponseWriter
	status int
	size   int
}

func (a *answer) WriteHeader(status int) {
	if a.status != 0 {
		return // answered already
	}
	a.status = status
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(p []byte) (int, error) {
	if a.status == 0 {
		a.status = http.StatusOK
	}
	n, err := a.ResponseWriter.Write(p)
	a.size += n
	return n, err
}

// Unwrap lets http.ResponseController reach the connection.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// wrap gives every request an id, limits and a log line, and turns panics into errors.
func (s *Server) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		id, err := decision.NewID(s.Now())
		if err != nil {
			http.Error(w, "making a request id failed", http.StatusInternalServerError)
			return
		}
		ctx, cancel := context.WithTimeout(context.WithValue(r.Context(), requestIDKey, id), handleTimeout)
		defer cancel()
		r = r.WithContext(ctx)
		a := &answer{ResponseWriter: w}
		a.Header().Set("X-Request-Id", id)
		a.Header().Set("Cache-Control", "no-store")
		s.metrics.active.Inc()
		defer func() {
			s.metrics.active.Dec()
			if p := recover(); p != nil {
				s.Log.ErrorContext(ctx, "handler panicked", "request", id, "panic", p, "stack", string(debug.Stack()))
				if a.status == 0 {
					http.Error(a, "internal error", http.StatusInternalServerError)
				}
			}
			s.metrics.observe(r, a, time.Since(start))
			s.Log.DebugContext(ctx, "request", "id", id, "method", r.Method, "status", a.status, "remote", s.remote(r))
		}()
		if limited(r.URL.Path) && !s.Limiter.admit(s.remote(r)) {
			s.metrics.limited.Inc()
			a.Header().Set("Retry-After", "1")
			http.Error(a, "too many requests from this address", http.StatusTooManyRequests)
			return
		}
		// After the address: one that asks too often does not use up what a tenant may ask.
		if s.Rate != nil && !s.Rate() {
			s.metrics.limited.Inc()
			a.Header().Set("Retry-After", "1")
			http.Error(a, "too many requests for this tenant", http.StatusTooManyRequests)
			return
		}
		release, limit, ok := s.Limiter.body(r, s.remote(r))
		if !ok {
			a.Header().Set("Retry-After", "5")
			http.Error(a, "the broker is busy with other large requests", http.StatusServiceUnavailable)
			return
		}
		defer release()
		if r.ContentLength != 0 {
			r.Body = hurry(a, r.Body)
		}
		r.Body = http.MaxBytesReader(a, r.Body, limit)
		if !plainPath(r.URL) {
			s.fail(a, r, refusal{http.StatusNotFound, kbs.ErrorInvalidRequestPath, "the path is not in plain form: no escapes, no empty, \".\" or \"..\" parts"})
			return
		}
		if _, err := url.ParseQuery(r.URL.RawQuery); err != nil {
			http.Error(a, "the query string is malformed", http.StatusBadRequest)
			return
		}
		next.ServeHTTP(a, r)
	})
}

// hurried is a body that has to come within bodyTime. When it is there, the time for reading is that of the whole request again: net/http
// goes on reading, to notice a client that hangs up, and would take the end of the shorter time for that.
type hurried struct {
	io.ReadCloser
	there func()
}

func hurry(w http.ResponseWriter, body io.ReadCloser) io.ReadCloser {
	c := http.NewResponseController(w)
	// A writer without a connection behind it cannot do this, and needs no time.
	if c.SetReadDeadline(time.Now().Add(bodyTime)) != nil {
		return body
	}
	return hurried{body, func() { _ = c.SetReadDeadline(time.Now().Add(2 * handleTimeout)) }}
}

func (h hurried) Read(p []byte) (int, error) {
	n, err := h.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		h.there()
	}
	return n, err
}

// plainPath refuses paths that two readers could read differently. Names of the API need no escapes. Control characters,
// which their usual escapes can carry this far, would end on the terminal of who reads the audit log.
func plainPath(u *url.URL) bool {
	if u.RawPath != "" || strings.Contains(u.Path, "\\") || strings.ContainsFunc(u.Path, unicode.IsControl) || !utf8.ValidString(u.Path) {
		return false
	}
	if u.Path == "/console/" {
		return true // what people type
	}
	return u.Path == path.Clean(u.Path) && strings.HasPrefix(u.Path, "/")
}

// remote is the client's address without its port.
func (s *Server) remote(r *http.Request) string { return s.Proxies.Client(r) }

// Remote is the client's address without its port, for handlers that were added.
func (s *Server) Remote(r *http.Request) string { return s.remote(r) }

// Note writes an audit entry about a request, for handlers that were added.
func (s *Server) Note(r *http.Request, e audit.Entry) error { return s.note(r, e) }

// note writes an audit entry about a request. A client that hangs up ends the request's context, but not the entry: it
// could otherwise probe for secrets without leaving a trace.
func (s *Server) note(r *http.Request, e audit.Entry) error {
	e.RequestID, e.Remote = requestID(r), s.remote(r)
	ctx, end := span.Start(context.WithoutCancel(r.Context()), span.Audit)
	err := s.Audit.Append(ctx, e)
	end(err)
	if err != nil {
		s.Log.ErrorContext(r.Context(), "writing the audit log", "request", e.RequestID, "error", err)
		return err
	}
	return nil
}

// noteRefusal writes an audit entry about a refusal. The refusal stands even when the entry cannot be written.
func (s *Server) noteRefusal(r *http.Request, e audit.Entry) {
	if err := s.note(r, e); err != nil {
		s.metrics.auditErrors.Inc()
	}
}

func readAll(r *http.Request) ([]byte, error) { return io.ReadAll(r.Body) }

// sessionTag names a session in logs without giving away its cookie.
func sessionTag(id string) string {
	const shown = 8
	if len(id) < shown {
		return ""
	}
	return id[:shown]
}
