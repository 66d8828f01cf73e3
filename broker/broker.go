// Package broker puts the broker together: it opens the data directory, makes what a first start lacks, and serves.
//
// A realm is everything one tenant has, the root being one; Broker holds what realms share and leads requests to them.
//
// The data directory holds store.db (policies, reference values, sealed secrets; or they are in a database), store.key or store.keys (what
// they are sealed with), audit.jsonl (every decision), collateral, tls.crt and tls.key, and admin-token. Losing store.key loses the
// secrets; it belongs in a backup that is kept apart from the store.
package broker

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cloister/cloister/broker/adminauth"
	"github.com/cloister/cloister/broker/asapi"
	"github.com/cloister/cloister/broker/audit"
	"github.com/cloister/cloister/broker/clientcert"
	"github.com/cloister/cloister/broker/collateral/catalog"
	"github.com/cloister/cloister/broker/config"
	"github.com/cloister/cloister/broker/keyset"
	"github.com/cloister/cloister/broker/policydir"
	"github.com/cloister/cloister/broker/ratelimit"
	"github.com/cloister/cloister/broker/refstore"
	"github.com/cloister/cloister/broker/reload"
	"github.com/cloister/cloister/broker/server"
	"github.com/cloister/cloister/broker/store"
	"github.com/cloister/cloister/broker/telemetry"
	"github.com/cloister/cloister/broker/tlsprofile"
	"github.com/cloister/cloister/broker/token"
	"github.com/cloister/cloister/broker/verifier"
)

// The files of the data directory.
const (
	StoreFile      = "store.db"
	StoreKeyFile   = "store.key"
	AuditFile      = "audit.jsonl"
	CertFile       = "tls.crt"
	KeyFile        = "tls.key"
	AdminTokenFile = "admin-token"
)

// Options is what a broker needs besides its configuration.
type Options struct {
	Log     *slog.Logger
	Version string
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Broker is an open broker.
type Broker struct {
	cfg     config.Config
	log     *slog.Logger
	now     func() time.Time
	version string
	db      store.Store
	key     storageKey
	audit   *audit.Log
	cert    *tlsprofile.Certificate
	started time.Time
	metrics *server.Metrics
	limiter *server.Limiter
	api     *asapi.API

	// What all tenants share.
	admins     adminauth.Authority
	tokens     adminauth.Authority // admins without certificates
	trusted    *token.Trust
	tokenRoots atomic.Pointer[x509.CertPool]
	trust      atomic.Pointer[refstore.Trust]
	adminKeys  []*keyset.Set
	collateral *catalog.Catalog
	verifiers  *verifier.Set
	service    *service              // nil when guests are judged here
	clients    *clientcert.Authority // nil when certificates of administrators do not count
	proxies    *ratelimit.Proxies
	policyDir  *policydir.Directory // nil when policies are in the store
	telemetry  *telemetry.Telemetry
	reloads    *reload.Watcher

	closers []func() error
	root    *realm
	tenants *tenants
}

// Open opens the data directory of a configuration, making what a first start lacks.
func Open(ctx context.Context, cfg config.Config, o Options) (*Broker, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("making data directory: %w", err)
	}
	if err := checkOwned(cfg.DataDir); err != nil {
		return nil, err
	}
	b := &Broker{cfg: cfg, log: o.Log, now: o.Now, version: o.Version, started: o.Now()}
	if err := b.open(ctx, o); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

// checkOwned refuses a data directory that others may write to: they could put an admin token of their choice there before
// the first start, or another store.
func checkOwned(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("opening data directory: %w", err)
	}
	if perm := info.Mode().Perm(); perm&0o022 != 0 {
		return fmt.Errorf("data directory %s has mode %04o, want 0700: others could replace what is in it", dir, perm)
	}
	return nil
}

func (b *Broker) file(name string) string { return filepath.Join(b.cfg.DataDir, name) }

func (b *Broker) open(ctx context.Context, o Options) error {
	var err error
	if b.db, err = b.openStore(ctx); err != nil {
		return err
	}
	b.tenants = newTenants(b)
	if b.audit, err = b.openAudit(); err != nil {
		return err
	}
	if err := b.checkAuditHead(ctx); err != nil {
		return err
	}
	if b.key, err = b.openStorageKey(ctx); err != nil {
		return err
	}
	if b.trusted, err = b.trustedTokens(ctx); err != nil {
		return err
	}
	if b.admins, err = b.authority(ctx); err != nil {
		return err
	}
	if err := b.openProduction(ctx); err != nil {
		return err
	}
	if err := b.openTLS(ctx); err != nil {
		return err
	}
	trust, err := refstore.LoadTrust(b.cfg.ReferenceValues.Trust())
	if err != nil {
		return fmt.Errorf("reference_values: %w", err)
	}
	b.trust.Store(trust)
	if b.collateral, err = b.openCollateral(); err != nil {
		return err
	}
	if b.service, err = b.openService(ctx); err != nil {
		return fmt.Errorf("attestation.%s: %w", b.cfg.Attestation.Backend, err)
	}
	entries := verifier.Builtin(b.verifierConfig())
	if b.service != nil {
		entries = nil // evidence is not looked at here
	}
	if b.verifiers, err = verifier.NewSet(entries); err != nil {
		return err
	}
	b.reloads = reload.New(b.log, b.now, b.reloadItems()...)
	b.metrics = server.NewMetrics(o.Version, func() float64 { return float64(b.root.sessions.Len()) })
	limits := b.cfg.Limits
	b.limiter = server.NewLimiter(server.Limits{
		PerSecond: float64(limits.RequestsPerSecond), Burst: limits.Burst, Attestations: limits.Attestations,
	}, b.now)
	if b.root, err = b.openRealm(ctx, rootRealm(b)); err != nil {
		return err
	}
	b.metrics.Register(b.collectors()...)
	b.api = asapi.New(asapi.Parts{
		Log: b.log, Now: b.now, Attestation: b.root.judge.attestation, Policies: b.root.judge.policies, References: b.root.judge.references, Audit: b.audit,
		Decisions: b.root.decisions, Tokens: b.root.signer, Admins: b.admins, Clients: b.identifier(), Services: b.cfg.AttestationAPI.Services,
		Concurrent: b.cfg.Limits.Attestations, Proxies: b.proxies,
	})
	return nil
}

// Handler answers the requests of guests and administrators, those of tenants too.
func (b *Broker) Handler() http.Handler { return b.telemetry.Handler(b.tenants) }

// Ready describes a broker that is listening.
type Ready struct {
	// URL is where guests and administrators reach the broker; "" when it is none but a service of the attestation API.
	URL            string   `json:"url,omitempty"`
	TLSCertificate string   `json:"tls_certificate,omitempty"`
	AdminTokenFile string   `json:"admin_token_file,omitempty"`
	DataDir        string   `json:"data_dir"`
	Insecure       []string `json:"insecure"`
	// The addresses of the attestation API, where it is served.
	AttestationREST string `json:"attestation_rest,omitempty"`
	AttestationGRPC string `json:"attestation_grpc,omitempty"`
}

// Serve listens and answers requests until ctx ends. It calls ready once, when requests are accepted.
func (b *Broker) Serve(ctx context.Context, ready func(Ready) error) error {
	hangups := reload.Hangups(ctx) // before anybody knows that there is somebody to send one: by default it would end the process
	listeners, err := b.listen(ctx)
	if err != nil {
		return err
	}
	scheme := "http://"
	r := Ready{DataDir: b.cfg.DataDir, Insecure: b.cfg.Insecure()}
	if b.cfg.Admin.Mode == config.AdminToken {
		// A second broker of a database has no file of its own: the token is that of the first.
		if _, err := os.Stat(b.file(AdminTokenFile)); err == nil {
			r.AdminTokenFile = b.file(AdminTokenFile)
		}
	}
	if b.cert != nil {
		scheme = "https://"
		r.TLSCertificate = cmp.Or(b.cfg.Server.TLSCertificate, b.file(CertFile))
	}
	if listeners.kbs != nil {
		r.URL = scheme + here(listeners.kbs.Addr(), b.cfg.Server.TLSHosts)
	}
	if listeners.rest != nil {
		r.AttestationREST = scheme + listeners.rest.Addr().String()
	}
	if listeners.grpc != nil {
		r.AttestationGRPC = scheme + listeners.grpc.Addr().String()
	}
	if err := ready(r); err != nil {
		return errors.Join(fmt.Errorf("telling that the broker is ready: %w", err), listeners.close())
	}
	grace := time.Duration(b.cfg.Server.ShutdownTimeout)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		ticker := time.NewTicker(reload.DefaultInterval)
		defer ticker.Stop()
		b.reloads.Run(ctx, ticker.C, hangups)
		return nil
	})
	if listeners.kbs != nil {
		g.Go(func() error { return serveHTTP(ctx, b.Handler(), listeners.kbs, grace, b.log) })
	}
	if listeners.rest != nil {
		g.Go(func() error { return serveHTTP(ctx, b.telemetry.Handler(b.api.REST()), listeners.rest, grace, b.log) })
	}
	if listeners.grpc != nil {
		g.Go(func() error { return b.serveGRPC(ctx, listeners.grpc, grace) })
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("serving: %w", err)
	}
	return nil
}

// Close closes the store and the audit log.
func (b *Broker) Close() error {
	var errs []error
	if b.collateral != nil {
		b.collateral.Close()
	}
	if b.tenants != nil {
		errs = append(errs, b.tenants.close())
	}
	opened := b.root != nil
	if opened {
		errs = append(errs, b.root.close())
	}
	for _, c := range b.closers {
		errs = append(errs, c())
	}
	if b.telemetry != nil {
		ctx, cancel := context.WithTimeout(context.Background(), telemetryTimeout)
		errs = append(errs, b.telemetry.Close(ctx))
		cancel()
	}
	if b.service != nil {
		errs = append(errs, b.service.close())
	}
	if b.audit != nil && b.db != nil && opened {
		errs = append(errs, b.saveAuditHead(context.Background()))
	}
	if b.audit != nil {
		errs = append(errs, b.audit.Close())
	}
	if b.db != nil {
		errs = append(errs, b.db.Close())
	}
	return errors.Join(errs...)
}
