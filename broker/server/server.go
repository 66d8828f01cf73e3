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
	"log/slog"
	"net/http"
	"time"

	"github.com/cloister/cloister/broker/adminauth"
	"github.com/cloister/cloister/broker/attestation"
	"github.com/cloister/cloister/broker/audit"
	"github.com/cloister/cloister/broker/decision"
	"github.com/cloister/cloister/broker/plugin"
	"github.com/cloister/cloister/broker/ratelimit"
	"github.com/cloister/cloister/broker/refstore"
	"github.com/cloister/cloister/broker/rego"
	"github.com/cloister/cloister/broker/reload"
	"github.com/cloister/cloister/broker/resource"
	"github.com/cloister/cloister/broker/session"
	"github.com/cloister/cloister/broker/token"
	"github.com/cloister/cloister/broker/verifier"
	"github.com/cloister/cloister/wire/kbs"
)

// Limits of a request.
const (
	MaxBody = 2 << 20
	// MaxAttestation bounds the body of an attestation: event logs can be long.
	MaxAttestation = 8 << 20

	handleTimeout = 50 * time.Second
)

// Sessions are the handshakes under way.
type Sessions interface {
	New(ctx context.Context, tee, nonce, hash string, challenge json.RawMessage) (*session.Session, error)
	Get(ctx context.Context, id string) (*session.Session, error)
	Len() int
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

// plugins answer what is below /kbs/v0/NAME/.
type plugins interface {
	Lookup(name string) (plugin.Plugin, bool)
	Status() []plugin.Status
}

// resourceList knows what resources there are.
type resourceList interface {
	List(ctx context.Context, prefix, after string, limit int) ([]resource.Info, error)
	Count(ctx context.Context) (int, error)
}

type policySet interface {
	Put(ctx context.Context, id, text string) error
	IDs(ctx context.Context) ([]string, error)
	Text(ctx context.Context, id string) (string, error)
}

type references interface {
	Register(ctx context.Context, message []byte, by string) ([]string, error)
	Get(ctx context.Context, name string) (*refstore.Record, error)
	List(ctx context.Context) ([]refstore.Record, error)
	Delete(ctx context.Context, name string) error
	DeleteGroup(ctx context.Context, group string) ([]string, error)
}

// AuditLog is where every decision is written before it has an effect.
type AuditLog interface {
	Append(ctx context.Context, e audit.Entry) error
	// Queue does not wait for the disk; it is for what gives nothing away.
	Queue(ctx context.Context, e audit.Entry) error
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

// reloads are the files that are read again while the broker runs.
type reloads interface {
	Status() []reload.Status
}

// Parts is what a Server is put together from.
type Parts struct {
	Log                 *slog.Logger
	Now                 func() time.Time
	Sessions            Sessions
	Verifiers           verifiers
	Attestation         attester
	Tokens              tokens
	Gate                gate
	Plugins             plugins
	Resources           resourceList
	AttestationPolicies policySet
	ResourcePolicies    policySet
	References          references
	Audit               AuditLog
	Decisions           decisions
	Admins              admins
	// Tenants is nil for the server of a tenant, which has none.
	Tenants     Tenants
	SigningKeys SigningKeys
	StorageKeys StorageKeys
	Trials      trials
	// Reloads is nil for the server of a tenant: files are the root's.
	Reloads reloads
	Metrics *Metrics
	// Limiter may be nil: then there are no limits but those of bodies.
	Limiter *Limiter
	// Rate reports whether a tenant's own rate lets one more request through; nil means that there is none.
	Rate func() bool
	// Ready tells why the server cannot do its work now; nil means that it is never asked.
	Ready func(ctx context.Context) error
	// Proxies are those whose word on a client's address counts; nil means none.
	Proxies *ratelimit.Proxies
	// Clients tells whose certificate a connection has; nil when none counts.
	Clients adminauth.Identifier
	// TEEKeyPaths are more places, as JSON pointers, where tokens of other services carry the guest's key.
	TEEKeyPaths []string
	// Prefix is what comes before the paths of this server, "" or that of a tenant: "/ns/NAME".
	Prefix string
	// RSA15 lets guests ask for RSA1_5.
	RSA15 bool
	// Secure says that clients reach the server over TLS, so that cookies may be bound to it.
	Secure bool
	// Insecure lists the insecure switches that are on; the status shows it.
	Insecure []string
	Version  string
}

// Server answers requests.
type Server struct {
	Parts
	metrics *Metrics
	started time.Time
	handler http.Handler
	mux     *http.ServeMux
}

// New makes a Server.
func New(p Parts) *Server {
	if p.Limiter == nil {
		p.Limiter = NewLimiter(Limits{}, p.Now)
	}
	s := &Server{Parts: p, started: p.Now(), metrics: p.Metrics}
	mux := http.NewServeMux()
	s.mux = mux
	mux.HandleFunc("POST /kbs/v0/auth", s.auth)
	mux.HandleFunc("POST /kbs/v0/attest", s.attest)
	mux.HandleFunc("POST /kbs/v0/attestation-policy", s.admin(kindAdmin, s.setAttestationPolicy))
	mux.HandleFunc("POST /kbs/v0/resource-policy", s.admin(kindAdmin, s.setResourcePolicy))
	mux.HandleFunc("GET /kbs/v0/resource-policy", s.admin(kindAdmin, s.listResourcePolicies))
	mux.HandleFunc("GET /kbs/v0/attestation-policy", s.admin(kindAdmin, s.listAttestationPolicies))
	mux.HandleFunc("GET /kbs/v0/resource-policy/{id}", s.admin(kindAdmin, s.readPolicy(p.ResourcePolicies, kbs.ErrorPolicyEngine)))
	mux.HandleFunc("GET /kbs/v0/attestation-policy/{id}", s.admin(kindAdmin, s.readPolicy(p.AttestationPolicies, kbs.ErrorAttestation)))
	mux.HandleFunc("POST /kbs/v0/reference-value", s.admin(kindAdmin, s.registerReferenceValues))
	mux.HandleFunc("GET /kbs/v0/reference-value", s.admin(kindAdmin, s.listReferenceValues))
	mux.HandleFunc("GET /kbs/v0/reference-value/{id...}", s.admin(kindAdmin, s.getReferenceValue))
	mux.HandleFunc("DELETE /kbs/v0/reference-value/{id...}", s.admin(kindAdmin, s.deleteReferenceValue))
	mux.HandleFunc("/kbs/v0/{rest...}", s.plugin)
	mux.HandleFunc("GET /cloister/v1/status", s.admin(kindAdmin, s.status))
	mux.HandleFunc("DELETE /cloister/v1/reference-value-groups/{group}", s.admin(kindAdmin, s.deleteReferenceGroup))
	mux.HandleFunc("GET /cloister/v1/resources", s.admin(kindAdmin, s.listResources))
	mux.HandleFunc("POST /cloister/v1/keys/token/rotate", s.admin(kindAdmin, s.rotateSigningKey))
	mux.HandleFunc("GET /cloister/v1/audit", s.admin(kindAdmin, s.auditSince))
	mux.HandleFunc("GET /cloister/v1/attestations/{id}", s.admin(kindAdmin, s.explain))
	if p.Trials != nil {
		mux.HandleFunc("POST /cloister/v1/appraisals/dry-run", s.admin(kindAdmin, s.dryRun))
	}
	mux.HandleFunc("GET "+token.KeySetPath, s.keySet)
	mux.Handle("GET "+token.DiscoveryPath, token.OIDC(""))
	if p.Tenants != nil {
		s.tenantRoutes(mux)
		mux.HandleFunc("POST /cloister/v1/keys/storage/rotate", s.admin(kindAdmin, s.rotateStorageKey))
		mux.HandleFunc("POST /cloister/v1/keys/storage/retire", s.admin(kindAdmin, s.retireStorageKeys))
		mux.HandleFunc("POST /cloister/v1/keys/storage/rewrap", s.admin(kindAdmin, s.rewrapStorageKeys))
		mux.HandleFunc("GET /healthz", func(http.ResponseWriter, *http.Request) {})
		mux.HandleFunc("GET /readyz", s.readiness)
		mux.Handle("GET /metrics", s.metrics.handler())
	}
	s.handler = s.wrap(mux)
	return s
}

// Handle adds a handler that is served like everything else: with a request id, limits and a log line. It is for before the server
// is used.
func (s *Server) Handle(pattern string, h http.Handler) { s.mux.Handle(pattern, h) }

// ServeHTTP is part of http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }

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
