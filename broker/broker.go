// Package broker puts the broker together: it opens the data directory, makes what a first start lacks, and serves.
//
// The data directory holds store.db (policies, reference values, sealed secrets), store.key (what they are sealed with),
// audit.jsonl (every decision), tls.crt and tls.key, and admin-token. Losing store.key loses the secrets; it belongs in
// a backup that is kept apart from the store.
package broker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/cloister/cloister/broker/admintoken"
	"github.com/cloister/cloister/broker/appraise"
	"github.com/cloister/cloister/broker/attestation"
	"github.com/cloister/cloister/broker/audit"
	"github.com/cloister/cloister/broker/config"
	"github.com/cloister/cloister/broker/decision"
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
	"github.com/cloister/cloister/broker/verifier/tpm"
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
	db     *store.Bolt
	audit  *audit.Log
	cert   *tls.Certificate
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
	b := &Broker{cfg: cfg, log: o.Log, now: o.Now}
	if err := b.open(ctx, o); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
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
	admin, err := admintoken.LoadOrCreate(ctx, b.db, b.file(AdminTokenFile))
	if err != nil {
		return err
	}
	if err := b.openTLS(); err != nil {
		return err
	}
	attestationPolicies := rego.NewSet(b.db, appraise.Namespace)
	resourcePolicies := rego.NewSet(b.db, resource.PolicyNamespace)
	refs := refstore.New(b.db, b.now, time.Duration(b.cfg.ReferenceValues.Lifetime))
	appraiser, err := appraise.New(ctx, attestationPolicies, refs, map[string]any{
		"insecure_unknown_tpm": b.cfg.TPM.InsecureUnknownTPM,
	})
	if err != nil {
		return err
	}
	gate, err := resource.NewGate(ctx, resourcePolicies)
	if err != nil {
		return err
	}
	verifiers := verifier.NewSet(verifier.Builtin(verifier.Config{
		TPM: tpm.Config{EKRootFiles: b.cfg.TPM.EKRoots, Now: b.now},
	}))
	for _, st := range verifiers.Status() {
		if !st.Ready {
			b.log.WarnContext(ctx, "verifier is disabled", "tee", st.TEE, "why", st.Disabled)
		}
	}
	b.server = server.New(server.Parts{
		Log: b.log, Now: b.now,
		Sessions:  session.NewManager(b.now, time.Duration(b.cfg.Attestation.SessionLifetime), b.cfg.Attestation.MaxSessions),
		Verifiers: verifiers, Tokens: signer, Gate: gate,
		Attestation:         &attestation.Service{Verifiers: verifiers, Appraiser: appraiser, Tokens: signer, Now: b.now},
		Resources:           resource.NewStore(b.db, key),
		AttestationPolicies: attestationPolicies, ResourcePolicies: resourcePolicies,
		References: refs, Audit: b.audit, Decisions: decision.NewStore(b.db, b.cfg.Records.MaxDecisions), Admins: admin,
		Secure: b.cert != nil, Insecure: b.cfg.Insecure(), Version: o.Version,
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
	AdminTokenFile string   `json:"admin_token_file"`
	DataDir        string   `json:"data_dir"`
	Insecure       []string `json:"insecure"`
}

// Serve listens and answers requests until ctx ends. It calls ready once, when requests are accepted.
func (b *Broker) Serve(ctx context.Context, ready func(Ready) error) error {
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", b.cfg.Server.Listen)
	if err != nil {
		return fmt.Errorf("listening on %s: %w", b.cfg.Server.Listen, err)
	}
	r := Ready{
		URL: "http://" + ln.Addr().String(), DataDir: b.cfg.DataDir, AdminTokenFile: b.file(AdminTokenFile),
		Insecure: b.cfg.Insecure(),
	}
	if b.cert != nil {
		r.URL = "https://" + ln.Addr().String()
		r.TLSCertificate = b.cfg.Server.TLSCertificate
		if r.TLSCertificate == "" {
			r.TLSCertificate = b.file(CertFile)
		}
		ln = tls.NewListener(ln, &tls.Config{
			Certificates: []tls.Certificate{*b.cert}, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"},
		})
	}
	if err := ready(r); err != nil {
		return errors.Join(fmt.Errorf("telling that the broker is ready: %w", err), ln.Close())
	}
	if err := b.server.Serve(ctx, ln, time.Duration(b.cfg.Server.ShutdownTimeout)); err != nil {
		return fmt.Errorf("serving: %w", err)
	}
	return nil
}

// Close closes the store and the audit log.
func (b *Broker) Close() error {
	var errs []error
	if b.audit != nil {
		errs = append(errs, b.audit.Close())
	}
	if b.db != nil {
		errs = append(errs, b.db.Close())
	}
	return errors.Join(errs...)
}
