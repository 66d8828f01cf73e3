// Package broker puts the broker together: it opens the data directory, makes what a first start lacks, and serves.
//
// The data directory holds store.db (policies, reference values, sealed secrets), store.key (what they are sealed with),
// audit.jsonl (every decision), tls.crt and tls.key, and admin-token. Losing store.key loses the secrets; it belongs in
// a backup that is kept apart from the store.
package broker

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cloister/cloister/broker/appraise"
	"github.com/cloister/cloister/broker/asapi"
	"github.com/cloister/cloister/broker/attestation"
	"github.com/cloister/cloister/broker/audit"
	"github.com/cloister/cloister/broker/collateral/catalog"
	"github.com/cloister/cloister/broker/config"
	"github.com/cloister/cloister/broker/decision"
	"github.com/cloister/cloister/broker/dryrun"
	"github.com/cloister/cloister/broker/refstore"
	"github.com/cloister/cloister/broker/rego"
	"github.com/cloister/cloister/broker/resource"
	"github.com/cloister/cloister/broker/seal"
	"github.com/cloister/cloister/broker/server"
	"github.com/cloister/cloister/broker/session"
	"github.com/cloister/cloister/broker/store"
	"github.com/cloister/cloister/broker/tlscert"
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
	cfg    config.Config
	log    *slog.Logger
	now    func() time.Time
	server *server.Server
	api    *asapi.API
	db     *store.Bolt
	audit  *audit.Log
	cert   *tls.Certificate

	collateral *catalog.Catalog
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
	b := &Broker{cfg: cfg, log: o.Log, now: o.Now}
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
	if b.db, err = store.Open(b.file(StoreFile)); err != nil {
		return err
	}
	if b.audit, err = audit.Open(b.file(AuditFile), b.now); err != nil {
		return err
	}
	if err := b.checkAuditHead(ctx); err != nil {
		return err
	}
	if err := b.checkStoreKey(ctx); err != nil {
		return err
	}
	key, err := seal.LoadOrCreate(b.file(StoreKeyFile))
	if err != nil {
		return err
	}
	signing, err := token.LoadOrCreateKey(ctx, b.db, key)
	if err != nil {
		return err
	}
	signer, err := token.NewSigner(signing, b.now, time.Duration(b.cfg.Attestation.TokenLifetime))
	if err != nil {
		return err
	}
	trusted, err := b.trustedTokens(ctx)
	if err != nil {
		return err
	}
	admins, err := b.authority(ctx)
	if err != nil {
		return err
	}
	if err := b.openTLS(); err != nil {
		return err
	}
	attestationPolicies := rego.NewSet(b.db, appraise.Namespace)
	resourcePolicies := rego.NewSet(b.db, resource.PolicyNamespace)
	trust, err := refstore.LoadTrust(b.cfg.ReferenceValues.Trust())
	if err != nil {
		return fmt.Errorf("reference_values: %w", err)
	}
	refs := refstore.New(b.db, b.now, time.Duration(b.cfg.ReferenceValues.Lifetime), refstore.WithTrust(trust))
	settings := map[string]any{
		"insecure_unknown_tpm":   b.cfg.TPM.InsecureUnknownTPM,
		"insecure_no_revocation": b.cfg.SNP.InsecureNoRevocation,
	}
	appraiser, err := appraise.New(ctx, attestationPolicies, refs, settings)
	if err != nil {
		return err
	}
	gate, err := resource.NewGate(ctx, resourcePolicies)
	if err != nil {
		return err
	}
	if b.collateral, err = b.openCollateral(); err != nil {
		return err
	}
	verifiers, err := verifier.NewSet(verifier.Builtin(b.verifierConfig()))
	if err != nil {
		return err
	}
	service := &attestation.Service{Verifiers: verifiers, Appraiser: appraiser, Tokens: signer, Now: b.now}
	decisions := decision.NewStore(b.db, b.cfg.Records.MaxDecisions)
	b.api = asapi.New(asapi.Parts{
		Log: b.log, Now: b.now, Attestation: service, Policies: attestationPolicies, References: refs, Audit: b.audit,
		Decisions: decisions, Tokens: signer, Admins: admins,
	})
	b.server = server.New(server.Parts{
		Log: b.log, Now: b.now,
		Sessions:  session.NewManager(b.now, time.Duration(b.cfg.Attestation.SessionLifetime), b.cfg.Attestation.MaxSessions),
		Verifiers: verifiers, Tokens: token.Any{Own: signer, Others: trusted}, Gate: gate,
		Attestation:         service,
		Resources:           resource.NewStore(b.db, key),
		AttestationPolicies: attestationPolicies, ResourcePolicies: resourcePolicies,
		References: refs, Audit: b.audit, Decisions: decisions, Admins: admins,
		Trials: &dryrun.Service{
			Policies: attestationPolicies, Values: refs, Records: decisions, Verifiers: verifiers, Settings: settings,
		},
		Limits:      server.Limits{PerSecond: float64(b.cfg.Limits.RequestsPerSecond), Burst: b.cfg.Limits.Burst, Attestations: b.cfg.Limits.Attestations},
		TEEKeyPaths: b.cfg.TrustedTokens.ExtraTEEKeyPaths, Secure: b.cert != nil, Insecure: b.cfg.Insecure(), Version: o.Version,
	})
	return nil
}

func (b *Broker) openTLS() error {
	if b.cfg.Server.InsecureHTTP {
		return nil
	}
	certPath, keyPath := b.cfg.Server.TLSCertificate, b.cfg.Server.TLSKey
	var cert tls.Certificate
	var err error
	if certPath != "" {
		if cert, err = tls.LoadX509KeyPair(certPath, keyPath); err != nil {
			return fmt.Errorf("reading TLS certificate: %w", err)
		}
	} else {
		cert, err = tlscert.LoadOrCreate(b.file(CertFile), b.file(KeyFile), b.cfg.Server.TLSHosts, b.now())
		if err != nil {
			return err
		}
		for _, w := range tlscert.Warnings(cert, b.cfg.Server.TLSHosts, b.now()) {
			b.log.Warn(w, "hint", "remove "+b.file(CertFile)+" to make a new one; guests then need new initdata")
		}
	}
	b.cert = &cert
	return nil
}

// Server is the broker's HTTP handler.
func (b *Broker) Server() *server.Server { return b.server }

// Ready describes a broker that is listening.
type Ready struct {
	URL            string   `json:"url"`
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
	listeners, err := b.listen(ctx)
	if err != nil {
		return err
	}
	scheme := "http://"
	r := Ready{DataDir: b.cfg.DataDir, Insecure: b.cfg.Insecure()}
	if b.cfg.Admin.Mode == config.AdminToken {
		r.AdminTokenFile = b.file(AdminTokenFile)
	}
	if b.cert != nil {
		scheme = "https://"
		r.TLSCertificate = cmp.Or(b.cfg.Server.TLSCertificate, b.file(CertFile))
	}
	r.URL = scheme + listeners.kbs.Addr().String()
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
	g.Go(func() error { return b.server.Serve(ctx, listeners.kbs, grace) })
	if listeners.rest != nil {
		g.Go(func() error { return serveHTTP(ctx, b.api.REST(), listeners.rest, grace, b.log) })
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
	if b.audit != nil && b.db != nil && b.server != nil {
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
