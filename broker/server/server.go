// Package server is the broker's HTTP API: the KBS protocol (kbs-protocol.md) under /kbs/v0 and Cloister's additions
// under /cloister/v1.
//
// A request lives like this: it gets an id; its path is refused when it is not in plain form; its handler decides; the
// decision is written to the audit log; only then does the answer leave. Every refusal names its cause and the request
// id, and the grounds of attestation verdicts stay available under that id.
package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/cloister/cloister/broker/adminauth"
	"github.com/cloister/cloister/broker/attestation"
	"github.com/cloister/cloister/broker/audit"
	"github.com/cloister/cloister/broker/decision"
	"github.com/cloister/cloister/broker/refstore"
	"github.com/cloister/cloister/broker/rego"
	"github.com/cloister/cloister/broker/resource"
	"github.com/cloister/cloister/broker/session"
	"github.com/cloister/cloister/broker/token"
	"github.com/cloister/cloister/broker/verifier"
)

// Limits of a request.
const (
	MaxBody = 2 << 20
	maxHead = 1 << 20

	readHeaderTimeout = 10 * time.Second
	readTimeout       = 60 * time.Second
	writeTimeout      = 60 * time.Second
	idleTimeout       = 2 * time.Minute
	handleTimeout     = 50 * time.Second
	sweepInterval     = 60 * time.Second
)

type sessions interface {
	New(tee, nonce, hash string, challenge any) (*session.Session, error)
	Get(id string) (*session.Session, error)
	Len() int
	Run(ctx context.Context, interval time.Duration)
}

type verifiers interface {
	Status() []verifier.Status
}

// attester is the attestation service, here or elsewhere.
type attester interface {
	Challenge(ctx context.Context, tee string, params json.RawMessage) (*verifier.Challenge, error)
	Evaluate(ctx context.Context, id, policy string, items []attestation.Item) (*attestation.Verdict, error)
}

type tokens interface {
	Verify(compact string) (map[string]any, error)
	KeySet() map[string][]token.JWK
}

type gate interface {
	Decide(ctx context.Context, r resource.Request) (*resource.Decision, error)
}

type resources interface {
	Get(ctx context.Context, p resource.Path) ([]byte, error)
	Put(ctx context.Context, p resource.Path, secret []byte) error
	Delete(ctx context.Context, p resource.Path) error
	Count(ctx context.Context) (int, error)
}

type policySet interface {
	Put(ctx context.Context, id, text string) error
	IDs(ctx context.Context) ([]string, error)
}

type references interface {
	Register(ctx context.Context, message []byte, by string) ([]string, error)
	Get(ctx context.Context, name string) (*refstore.Record, error)
	List(ctx context.Context) ([]refstore.Record, error)
	Delete(ctx context.Context, name string) error
	DeleteGroup(ctx context.Context, group string) ([]string, error)
}

type auditLog interface {
	Append(ctx context.Context, e audit.Entry) error
	Since(ctx context.Context, seq uint64, max int) ([]audit.Entry, error)
	Head() (uint64, string)
}

type decisions interface {
	Put(ctx context.Context, r decision.Record) error
	Get(ctx context.Context, id string) (*decision.Record, error)
}

type admins interface {
	// Admit returns the name of the administrator who makes a call, or an error.
	Admit(ctx context.Context, c adminauth.Call) (string, error)
}

// Parts is what a Server is put together from.
type Parts struct {
	Log                 *slog.Logger
	Now                 func() time.Time
	Sessions            sessions
	Verifiers           verifiers
	Attestation         attester
	Tokens              tokens
	Gate                gate
	Resources           resources
	AttestationPolicies policySet
	ResourcePolicies    policySet
	References          references
	Audit               auditLog
	Decisions           decisions
	Admins              admins
	Trials              trials
	Limits              Limits
	// TEEKeyPaths are more places, as JSON pointers, where tokens of other services carry the guest's key.
	TEEKeyPaths []string
	// Secure says that clients reach the server over TLS, so that cookies may be bound to it.
	Secure bool
	// Insecure lists the insecure switches that are on; the status shows it.
	Insecure []string
	Version  string
}

// Server answers requests.
type Server struct {
	Parts
	metrics *metrics
	limiter *limiter
	started time.Time
	handler http.Handler
}

// New makes a Server.
func New(p Parts) *Server {
	s := &Server{Parts: p, started: p.Now(), limiter: newLimiter(p.Limits, p.Now)}
	s.metrics = newMetrics(p.Version, func() float64 { return float64(p.Sessions.Len()) })
	mux := http.NewServeMux()
	mux.HandleFunc("POST /kbs/v0/auth", s.auth)
	mux.HandleFunc("POST /kbs/v0/attest", s.attest)
	mux.HandleFunc("POST /kbs/v0/attestation-policy", s.admin(kindAdmin, s.setAttestationPolicy))
	mux.HandleFunc("POST /kbs/v0/resource-policy", s.admin(kindAdmin, s.setResourcePolicy))
	mux.HandleFunc("GET /kbs/v0/resource-policy", s.admin(kindAdmin, s.listResourcePolicies))
	mux.HandleFunc("POST /kbs/v0/reference-value", s.admin(kindAdmin, s.registerReferenceValues))
	mux.HandleFunc("GET /kbs/v0/reference-value", s.admin(kindAdmin, s.listReferenceValues))
	mux.HandleFunc("GET /kbs/v0/reference-value/{id...}", s.admin(kindAdmin, s.getReferenceValue))
	mux.HandleFunc("DELETE /kbs/v0/reference-value/{id...}", s.admin(kindAdmin, s.deleteReferenceValue))
	mux.HandleFunc("GET /kbs/v0/resource/{path...}", s.getResource)
	mux.HandleFunc("POST /kbs/v0/resource/{path...}", s.admin(kindPlugin, s.putResource))
	mux.HandleFunc("DELETE /kbs/v0/resource/{path...}", s.admin(kindPlugin, s.deleteResource))
	mux.HandleFunc("/kbs/v0/{rest...}", s.unknownPlugin)
	mux.HandleFunc("GET /cloister/v1/status", s.admin(kindAdmin, s.status))
	mux.HandleFunc("DELETE /cloister/v1/reference-value-groups/{group}", s.admin(kindAdmin, s.deleteReferenceGroup))
	mux.HandleFunc("GET /cloister/v1/resources", s.admin(kindAdmin, s.listResources))
	mux.HandleFunc("GET /cloister/v1/audit", s.admin(kindAdmin, s.auditSince))
	mux.HandleFunc("GET /cloister/v1/attestations/{id}", s.admin(kindAdmin, s.explain))
	mux.HandleFunc("POST /cloister/v1/appraisals/dry-run", s.admin(kindAdmin, s.dryRun))
	mux.HandleFunc("GET /.well-known/jwks.json", s.keySet)
	mux.HandleFunc("GET /healthz", func(http.ResponseWriter, *http.Request) {})
	mux.Handle("GET /metrics", s.metrics.handler())
	s.handler = s.wrap(mux)
	return s
}

// ServeHTTP is part of http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }

// Serve answers requests on a listener until ctx ends, then lets those under way finish for at most grace.
func (s *Server) Serve(ctx context.Context, ln net.Listener, grace time.Duration) error {
	h := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHead,
		ErrorLog:          slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug),
	}
	sweep, stopSweep := context.WithCancel(ctx)
	swept := make(chan struct{})
	go func() { defer close(swept); s.Sessions.Run(sweep, sweepInterval) }()
	done := make(chan error, 1)
	go func() { done <- h.Serve(ln) }()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
		defer cancel()
		if err = h.Shutdown(end); err != nil {
			err = errors.Join(fmt.Errorf("ending requests that are under way: %w", err), h.Close())
		}
		if served := <-done; !errors.Is(served, http.ErrServerClosed) {
			err = errors.Join(err, served)
		}
	}
	stopSweep()
	<-swept
	return err
}

func (s *Server) keySet(w http.ResponseWriter, r *http.Request) {
	s.reply(w, r, s.Tokens.KeySet())
}

// reply sends a value as JSON.
func (s *Server) reply(w http.ResponseWriter, r *http.Request, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		s.fail(w, r, refusal{http.StatusInternalServerError, errSerde, "encoding the answer: " + err.Error()})
		return
	}
	s.send(w, r, "application/json", body)
}

func (s *Server) send(w http.ResponseWriter, r *http.Request, contentType string, body []byte) {
	w.Header().Set("Content-Type", contentType)
	if _, err := w.Write(body); err != nil {
		s.Log.DebugContext(r.Context(), "the client went away before the answer", "request", requestID(r), "error", err)
	}
}

// unusable reports whether an error means that the text of a policy is at fault.
func unusable(err error) bool { return errors.Is(err, rego.ErrPolicy) }
