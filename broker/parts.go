package broker

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/cloister/cloister/broker/adminauth"
	"github.com/cloister/cloister/broker/admintoken"
	"github.com/cloister/cloister/broker/atomicfile"
	"github.com/cloister/cloister/broker/audit"
	"github.com/cloister/cloister/broker/collateral/catalog"
	"github.com/cloister/cloister/broker/config"
	"github.com/cloister/cloister/broker/keyset"
	"github.com/cloister/cloister/broker/store"
	"github.com/cloister/cloister/broker/store/postgres"
	"github.com/cloister/cloister/broker/token"
	"github.com/cloister/cloister/broker/verifier"
	"github.com/cloister/cloister/broker/verifier/nvidia"
	"github.com/cloister/cloister/broker/verifier/sample"
	"github.com/cloister/cloister/broker/verifier/se"
	"github.com/cloister/cloister/broker/verifier/tpm"
)

// trustedTokens is what makes tokens of other services count; nil when none does.
func (b *Broker) trustedTokens(ctx context.Context) (*token.Trust, error) {
	c := b.cfg.TrustedTokens
	if len(c.Certificates)+len(c.JWKSets) == 0 && !c.InsecureHeaderJWK {
		return nil, nil
	}
	t := &token.Trust{InsecureHeaderJWK: c.InsecureHeaderJWK, Now: b.now}
	if err := b.loadTokenRoots(ctx); err != nil {
		return nil, err
	}
	t.CurrentRoots = b.tokenRoots.Load
	if len(c.JWKSets) == 0 {
		return t, nil
	}
	var sources []keyset.Source
	for _, s := range c.JWKSets {
		sources = append(sources, keyset.Source{JWKSet: s})
	}
	var err error
	if t.Keys, err = keyset.Open(ctx, nil, sources...); err != nil {
		return nil, fmt.Errorf("trusted_tokens.jwk_sets: %w", err)
	}
	return t, nil
}

// loadTokenRoots reads the certificates that tokens of other services must lead to; it runs again when their files change.
func (b *Broker) loadTokenRoots(context.Context) error {
	var roots *x509.CertPool
	for _, file := range b.cfg.TrustedTokens.Certificates {
		text, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("reading trusted_tokens.certificates: %w", err)
		}
		if roots == nil {
			roots = x509.NewCertPool()
		}
		if !roots.AppendCertsFromPEM(text) {
			return fmt.Errorf("trusted_tokens.certificates: %s holds no PEM certificate", file)
		}
	}
	b.tokenRoots.Store(roots)
	return nil
}

// authority is who decides about administrative requests.
func (b *Broker) authority(ctx context.Context) (adminauth.Authority, error) {
	c := b.cfg.Admin
	var err error
	if b.tokens, err = b.tokenAuthority(ctx); err != nil {
		return nil, err
	}
	return c.Certificates.Combine(b.tokens, c.AuthRules())
}

// tokenAuthority is who decides about administrators who show a token.
func (b *Broker) tokenAuthority(ctx context.Context) (adminauth.Authority, error) {
	c := b.cfg.Admin
	switch c.Mode {
	case config.AdminDenyAll:
		return adminauth.DenyAll{}, nil
	case config.AdminInsecureAllowAll:
		return adminauth.InsecureAllowAll{}, nil
	case config.AdminToken:
		tokens, err := admintoken.LoadOrCreate(ctx, b.db, b.file(AdminTokenFile))
		if err != nil {
			return nil, err
		}
		return adminauth.Bearer{Tokens: tokens}, nil
	}
	var providers []adminauth.Provider
	var errs []error
	for i, p := range c.IdentityProviders {
		keys, err := keyset.Open(ctx, nil, keyset.Source{JWKSet: p.JWKSet, PEM: p.PublicKey})
		if err != nil {
			errs = append(errs, fmt.Errorf("admin.identity_providers[%d]: %w", i, err))
			continue
		}
		b.adminKeys = append(b.adminKeys, keys)
		providers = append(providers, adminauth.Provider{Issuer: p.Issuer, Audience: p.Audience, Keys: keys})
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return adminauth.NewJWT(providers, c.AuthRules(), b.now)
}

// openCollateral opens the cache of certificates, revocation lists and TCB levels.
func (b *Broker) openCollateral() (*catalog.Catalog, error) {
	c := b.cfg.Collateral
	c.CacheDir = cmp.Or(c.CacheDir, b.file("collateral"))
	return catalog.Open(c, b.log)
}

func (b *Broker) verifierConfig() verifier.Config {
	c := b.cfg
	v := verifier.Config{
		Now: b.now,
		TPM: tpm.Config{EKRootFiles: c.TPM.EKRoots, Now: b.now},
		AMD: b.collateral.AMD, Intel: b.collateral.Intel, NVIDIA: b.collateral.NVIDIA,
		CCATrustAnchors: c.CCA.TrustAnchors, CCAReferenceValues: c.CCA.ReferenceValues,
		SE: se.Config{
			MeasurementKeyFile: c.SE.MeasurementKey, HostKeyDocuments: c.SE.HostKeyDocuments, Certificates: c.SE.Certificates,
			RootCA: c.SE.RootCA, CRLs: c.SE.CRLs, AllowMissingCACRLs: c.SE.AllowMissingCACRLs, ImageHeader: c.SE.ImageHeader,
		},
		HygonCertificates: c.Hygon.Certificates,
		DPURoot:           c.NVIDIA.DPURoot, DPUMaxAge: time.Duration(c.NVIDIA.DPUMaxAge),
		Sample: sample.Config{Insecure: c.Sample.InsecureSample},
	}
	if c.NVIDIA.UseNRAS {
		v.NRAS = &nvidia.RemoteConfig{URL: c.NVIDIA.NRASURL, JWKSURL: c.NVIDIA.JWKSURL}
	}
	return v
}

// auditHead is the last audit entry that is known to have been written.
type auditHead struct {
	Seq  uint64 `json:"seq"`
	Hash string `json:"hash"`
}

const auditHeadKey = "audit-head"

// ReplicaFile of the data directory names this broker among those that share its database; its audit log is its own.
const ReplicaFile = "replica-id"

// replica is the name of this broker among those that share its database, "" when it is alone.
func (b *Broker) replica() (string, error) {
	if !b.shared() {
		return "", nil
	}
	path := b.file(ReplicaFile)
	id, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		id = []byte(rand.Text())
		if err := atomicfile.WriteNew(path, id, 0o600); err != nil {
			return "", fmt.Errorf("naming this broker: %w", err)
		}
	} else if err != nil {
		return "", fmt.Errorf("reading the name of this broker: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
}

// openAudit opens the audit log, which is this broker's own.
func (b *Broker) openAudit() (*audit.Log, error) {
	replica, err := b.replica()
	if err != nil {
		return nil, err
	}
	name, err := audit.FileName(replica)
	if err != nil {
		return nil, fmt.Errorf("%w; hint: %s names it", err, b.file(ReplicaFile))
	}
	return audit.Open(b.file(name), b.cfg.Audit.Options(replica, b.now))
}

// headKey is where the store remembers the end of this broker's audit log.
func (b *Broker) headKey() (string, error) {
	replica, err := b.replica()
	if err != nil || replica == "" {
		return auditHeadKey, err
	}
	return auditHeadKey + ":" + replica, nil
}

// checkAuditHead compares the audit log with what the store remembers of it: a chain shows changed lines, not missing ones at its
// end, nor a log that was deleted as a whole.
func (b *Broker) checkAuditHead(ctx context.Context) error {
	key, err := b.headKey()
	if err != nil {
		return err
	}
	raw, err := b.db.Get(ctx, store.Keys, key)
	if err == nil {
		var head auditHead
		if err := json.Unmarshal(raw, &head); err != nil {
			return fmt.Errorf("reading what the store knows of the audit log: %w", err)
		}
		if err := b.audit.Holds(ctx, head.Seq, head.Hash); err != nil {
			return fmt.Errorf("%w; hint: put the log back from a backup", err)
		}
	} else if !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("reading what the store knows of the audit log: %w", err)
	}
	return b.saveAuditHead(ctx)
}

func (b *Broker) saveAuditHead(ctx context.Context) error {
	var head auditHead
	head.Seq, head.Hash = b.audit.Head()
	raw, err := json.Marshal(head)
	if err != nil {
		return err
	}
	key, err := b.headKey()
	if err != nil {
		return err
	}
	if err := b.db.Put(ctx, store.Keys, map[string][]byte{key: raw}); err != nil {
		return fmt.Errorf("noting the end of the audit log: %w", err)
	}
	return nil
}

// openStore opens the database that the configuration names.
func (b *Broker) openStore(ctx context.Context) (store.Store, error) {
	if b.shared() {
		db, err := postgres.Open(ctx, b.cfg.Database.PostgreSQL())
		if err != nil {
			return nil, err // and no interface that holds a nil
		}
		return db, nil
	}
	db, err := store.Open(b.file(StoreFile))
	if err != nil {
		return nil, err
	}
	return db, nil
}
