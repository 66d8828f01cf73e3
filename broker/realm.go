package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cloister/cloister/broker/adminauth"
	"github.com/cloister/cloister/broker/appraise"
	"github.com/cloister/cloister/broker/audit"
	"github.com/cloister/cloister/broker/config"
	"github.com/cloister/cloister/broker/decision"
	"github.com/cloister/cloister/broker/plugin"
	"github.com/cloister/cloister/broker/plugin/builtin"
	"github.com/cloister/cloister/broker/plugin/resources"
	"github.com/cloister/cloister/broker/rego"
	"github.com/cloister/cloister/broker/resource"
	"github.com/cloister/cloister/broker/server"
	"github.com/cloister/cloister/broker/session"
	"github.com/cloister/cloister/broker/store"
	"github.com/cloister/cloister/broker/token"
)

// realm is everything that belongs to one tenant, or to the root, which is the one without a name: policies, reference values,
// secrets, sessions, signing key, administrators.
type realm struct {
	server    *server.Server
	sessions  sessions
	plugins   *plugin.Set
	judge     *judge
	decisions *decision.Store
	signer    *token.Signer
	keys      *signingKeys

	stop    context.CancelFunc
	running sync.WaitGroup
	closers []func() error
}

type sessions interface {
	server.Sessions
	Run(ctx context.Context, interval time.Duration)
}

type sealer interface {
	Seal(place string, plaintext []byte) ([]byte, error)
	Open(place string, sealed []byte) ([]byte, error)
}

// realmParts is what tells realms apart.
type realmParts struct {
	prefix    string // of its paths
	db        store.Store
	key       sealer
	audit     server.AuditLog
	admins    adminauth.Authority
	tenants   server.Tenants // nil but for the root
	resources resources.Config
	plugins   builtin.Config
	sessions  int
	rate      func() bool // nil without a limit of its own
}

// rootRealm has what the configuration says.
func rootRealm(b *Broker) realmParts {
	return realmParts{
		db: b.db, key: b.key, audit: b.audit, admins: b.admins, tenants: b.tenants, resources: b.cfg.Resources, plugins: b.cfg.Plugins,
		sessions: b.cfg.Attestation.MaxSessions,
	}
}

// sweepInterval is how often expired sessions are removed.
const sweepInterval = time.Minute

// openRealm puts the parts of a realm together, making what a new one lacks.
func (b *Broker) openRealm(ctx context.Context, p realmParts) (*realm, error) {
	r := &realm{}
	r.keys = &signingKeys{Keys: token.NewKeys(p.db, p.key, b.now), now: b.now, lifetime: time.Duration(b.cfg.Attestation.TokenLifetime)}
	if p.prefix == "" {
		r.keys.keyFile, r.keys.certificateFile = b.cfg.Attestation.SigningKey, b.cfg.Attestation.SigningCertificates
	}
	list, err := r.keys.load(ctx)
	if err != nil {
		return nil, err
	}
	if r.signer, err = token.NewSigner(b.now, r.keys.lifetime, list...); err != nil {
		return nil, err
	}
	r.decisions = decision.NewStore(p.db, b.cfg.Records.MaxDecisions)
	if r.judge, err = b.openJudge(ctx, r, p); err != nil {
		return nil, err
	}
	var resourcePolicies policySet = rego.NewSet(p.db, resource.PolicyNamespace)
	if b.policyDir != nil && p.tenants != nil {
		resourcePolicies = b.policyDir.Resource()
	}
	gate, err := resource.NewGate(ctx, resourcePolicies)
	if err != nil {
		return nil, err
	}
	resourceList, err := b.openPlugins(ctx, r, p)
	if err != nil {
		return nil, err
	}
	r.sessions = b.openSessions(p)
	parts := server.Parts{
		Log: b.log, Now: b.now, Prefix: p.prefix,
		Sessions: r.sessions, Verifiers: b.verifiers, Tokens: token.Any{Own: r.signer, Policy: appraise.DefaultPolicy, Service: r.judge.service, Others: b.trusted}, Gate: gate,
		Attestation: r.judge.attestation, Plugins: r.plugins, Resources: resourceList,
		AttestationPolicies: r.judge.policies, ResourcePolicies: resourcePolicies,
		References: r.judge.references, Audit: p.audit, Decisions: r.decisions, Admins: p.admins, Tenants: p.tenants, StorageKeys: storageRotation{b}, SigningKeys: rotation{r.keys, r.signer},
		Limiter: b.limiter, Rate: p.rate,
		Metrics: b.metrics, RSA15: b.cfg.Server.InsecureRSA15, TEEKeyPaths: b.keyPaths(), Secure: b.cert != nil, Insecure: b.cfg.Insecure(), Version: b.version,
		Proxies: b.proxies, Clients: b.identifier(), Ready: b.db.Health,
	}
	if p.tenants != nil {
		parts.Reloads = b.reloads
	}
	if r.judge.trials != nil {
		parts.Trials = r.judge.trials
	}
	r.server = server.New(parts)
	if p.tenants != nil {
		if err := b.openConsole(r, p, resourceList, resourcePolicies); err != nil {
			return nil, err
		}
	}
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	r.stop = stop
	r.running.Go(func() { r.sessions.Run(run, sweepInterval) })
	r.running.Go(func() { r.keys.follow(run, r.signer, b.log) })
	return r, nil
}

// openPlugins starts the plugins, the resources among them.
func (b *Broker) openPlugins(ctx context.Context, r *realm, p realmParts) (*resources.Plugin, error) {
	backend, err := resources.Open(ctx, p.resources, b.log, func(c resource.Config) (*resource.Store, error) {
		c.Shared = b.shared()
		return resource.OpenStore(p.db, p.key, c, b.now)
	})
	if err != nil {
		return nil, fmt.Errorf("opening the store of resources: %w", err)
	}
	r.plugins, err = plugin.NewSet(ctx, builtin.List(p.plugins, builtin.Parts{Resources: backend, Store: p.db, Key: p.key, Now: b.now, Log: b.log}))
	return resources.New(backend), err
}

// shared reports whether other brokers use the store as well.
func (b *Broker) shared() bool { return b.cfg.Database.Backend == config.DatabasePostgreSQL }

// openSessions keeps sessions where all who may answer a guest see them.
func (b *Broker) openSessions(p realmParts) sessions {
	lifetime := time.Duration(b.cfg.Attestation.SessionLifetime)
	if !b.shared() {
		return session.NewManager(b.now, lifetime, p.sessions)
	}
	return session.NewShared(p.db, p.key, session.Options{Log: b.log, Now: b.now, Lifetime: lifetime, Max: p.sessions})
}

// keyPaths are more places where tokens carry the guest's key.
func (b *Broker) keyPaths() []string {
	if b.service == nil {
		return b.cfg.TrustedTokens.ExtraTEEKeyPaths
	}
	return slices.Concat(b.cfg.TrustedTokens.ExtraTEEKeyPaths, b.service.keyPaths)
}

// close ends what the realm runs.
func (r *realm) close() error {
	r.stop()
	r.running.Wait()
	errs := []error{r.plugins.Close()}
	for _, c := range r.closers {
		errs = append(errs, c())
	}
	return errors.Join(errs...)
}

// tenantAudit is the audit log as one tenant sees it: its own entries.
type tenantAudit struct {
	log    *audit.Log
	tenant string
}

// Append is part of server.AuditLog.
func (a tenantAudit) Append(ctx context.Context, e audit.Entry) error {
	e.Tenant = a.tenant
	return a.log.Append(ctx, e)
}

// Queue is part of server.AuditLog.
func (a tenantAudit) Queue(ctx context.Context, e audit.Entry) error {
	e.Tenant = a.tenant
	return a.log.Queue(ctx, e)
}

// Head is part of server.AuditLog. It tells how the whole log goes on, and nothing of what others do.
func (a tenantAudit) Head() (uint64, string) { return a.log.Head() }

// Since is part of server.AuditLog. What it leaves out shows in the numbers.
func (a tenantAudit) Since(ctx context.Context, seq uint64, max int) ([]audit.Entry, error) {
	mine := []audit.Entry{}
	for len(mine) < max {
		page, err := a.log.Since(ctx, seq, max)
		if err != nil {
			return nil, err
		}
		for _, e := range page {
			if seq = e.Seq; e.Tenant == a.tenant && len(mine) < max {
				mine = append(mine, e)
			}
		}
		if len(page) < max {
			break
		}
	}
	return mine, nil
}

// placed seals for places of one tenant only.
type placed struct {
	storageKey
	prefix string
}

// Seal is part of sealer.
func (p placed) Seal(place string, plaintext []byte) ([]byte, error) {
	return p.storageKey.Seal(p.prefix+place, plaintext)
}

// Open is part of sealer.
func (p placed) Open(place string, sealed []byte) ([]byte, error) {
	return p.storageKey.Open(p.prefix+place, sealed)
}

// Reseal is part of storageKey.
func (p placed) Reseal(place string, sealed []byte) ([]byte, bool, error) {
	return p.storageKey.Reseal(p.prefix+place, sealed)
}

var errClosed = errors.New("the broker is closed")
