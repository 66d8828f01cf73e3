package console

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"time"

	"github.com/cloister/cloister/broker/adminauth"
	"github.com/cloister/cloister/broker/audit"
	"github.com/cloister/cloister/broker/decision"
	"github.com/cloister/cloister/broker/refstore"
	"github.com/cloister/cloister/broker/resource"
)

type admins interface {
	// Admit returns the name of the administrator who makes a call, or an error.
	Admit(ctx context.Context, c adminauth.Call) (string, error)
}

type decisions interface {
	// List leaves out evidence.
	List(ctx context.Context, o decision.ListOptions) ([]decision.Record, error)
	// Get returns an error that wraps store.ErrNotFound for an id without a record.
	Get(ctx context.Context, id string) (*decision.Record, error)
}

type auditLog interface {
	// Since checks the chain of what it returns.
	Since(ctx context.Context, seq uint64, max int) ([]audit.Entry, error)
	Head() (uint64, string)
}

type references interface {
	List(ctx context.Context) ([]refstore.Record, error)
	Register(ctx context.Context, message []byte, by string) ([]string, error)
	Remove(ctx context.Context, name string, value json.RawMessage) error
	Delete(ctx context.Context, name string) error
	DeleteGroup(ctx context.Context, group string) ([]string, error)
}

type policySet interface {
	IDs(ctx context.Context) ([]string, error)
	// Text returns an error that wraps rego.ErrUnknown for an id without a policy.
	Text(ctx context.Context, id string) (string, error)
	Put(ctx context.Context, id, text string) error
}

// Resources is where secrets are kept. It is not asked for their values.
type Resources interface {
	List(ctx context.Context, prefix, after string, limit int) ([]resource.Info, error)
	Put(ctx context.Context, p resource.Path, secret []byte) error
	Delete(ctx context.Context, p resource.Path) error
}

// Tenants manages tenants.
type Tenants interface {
	List(ctx context.Context) ([]Tenant, error)
	// Create returns the token of the tenant's administrator, which is shown once.
	Create(ctx context.Context, name string, q Quota) (token string, err error)
	Delete(ctx context.Context, name string) error
}

// DryRun appraises the evidence that a record kept with the text of a policy that is not in force. It tells of the parts whose class
// the policy id is for; the parts carry status, vector and findings.
type DryRun interface {
	DryRun(ctx context.Context, record decision.Record, policyID, text string) ([]decision.Part, error)
}

// Tenant is a namespace with administrators of its own.
type Tenant struct {
	Name    string
	Created time.Time
	Quota   Quota
	Usage   Usage
}

// Quota is what a tenant may use. Zero is no limit.
type Quota struct {
	Resources         int
	Bytes             int64
	RequestsPerSecond float64
}

// Usage is what a tenant uses.
type Usage struct {
	Resources int
	Bytes     int64
}

// Counters are what the overview shows, counted since the start of this replica.
type Counters struct {
	Version string
	Started time.Time
	// Sessions is how many handshakes are open now.
	Sessions int
	// Handshakes is how many were begun.
	Handshakes uint64
	// Attested and AttestationsRefused count verdicts, Released and ResourcesRefused requests for resources.
	Attested, AttestationsRefused uint64
	Released, ResourcesRefused    uint64
	// Resources and ReferenceValues are how many are stored.
	Resources, ReferenceValues int
	// Insecure lists the insecure switches that are on.
	Insecure []string
}

// Parts is what a console is put together from.
type Parts struct {
	Log *slog.Logger
	Now func() time.Time
	// Secure says that browsers reach the console over TLS, so that the cookie is bound to it.
	Secure bool
	Admins admins
	// Caller returns the call of a request whose client certificate names an administrator, with what names the administrator and
	// nothing else, or the zero Call. It may be nil: nobody is named by a certificate.
	Caller func(*http.Request) adminauth.Call
	// Remote is the address of a request's client without its port; nil means the peer of the connection.
	Remote func(*http.Request) string
	// Note writes an audit entry about a request, of which the console fills in Event, Decision, Subject, Policy and Reason, and
	// returns when it is on disk.
	Note func(r *http.Request, e audit.Entry) error

	Decisions           decisions
	Audit               auditLog
	References          references
	AttestationPolicies policySet
	ResourcePolicies    policySet
	Counters            func(ctx context.Context) (Counters, error)

	// Those below may be nil: the console then offers nothing of the kind.

	Resources Resources
	DryRun    DryRun
	Tenants   Tenants
}
