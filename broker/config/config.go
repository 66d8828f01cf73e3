// Package config is the broker's configuration file: TOML, strict, with a default for everything.
//
// An unknown key or a bad value is an error that names the line. Everything insecure has "insecure" in its name, is off
// by default, and is listed by Insecure so that it can be printed at start and in every status.
package config

import (
	"bytes"
	_ "embed"
	"encoding"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/cloister/cloister/broker/adminauth"
	"github.com/cloister/cloister/broker/attestation/cocoas"
	"github.com/cloister/cloister/broker/attestation/trustauthority"
	"github.com/cloister/cloister/broker/audit"
	"github.com/cloister/cloister/broker/collateral"
	"github.com/cloister/cloister/broker/plugin/builtin"
	"github.com/cloister/cloister/broker/plugin/resources"
	"github.com/cloister/cloister/broker/policydir"
	"github.com/cloister/cloister/broker/ratelimit"
	"github.com/cloister/cloister/broker/refstore"
	"github.com/cloister/cloister/broker/refstore/extract"
	"github.com/cloister/cloister/broker/refstore/remote"
	"github.com/cloister/cloister/broker/telemetry"
	"github.com/cloister/cloister/broker/tlsprofile"
	"github.com/cloister/cloister/broker/verifier/nvidia"
	"github.com/cloister/cloister/broker/verifier/nvidiadpu"
)

//go:embed example.toml
var example string

// Example is an annotated configuration with every key at its default.
func Example() string { return example }

// Config is the whole file.
type Config struct {
	DataDir         string           `toml:"data_dir"`
	Server          Server           `toml:"server"`
	Database        Database         `toml:"database"`
	Limits          Limits           `toml:"limits"`
	Attestation     Attestation      `toml:"attestation"`
	AttestationAPI  AttestationAPI   `toml:"attestation_api"`
	TrustedTokens   TrustedTokens    `toml:"trusted_tokens"`
	Admin           Admin            `toml:"admin"`
	TPM             TPM              `toml:"tpm"`
	SNP             SNP              `toml:"snp"`
	CCA             CCA              `toml:"cca"`
	SE              SE               `toml:"se"`
	Hygon           Hygon            `toml:"hygon"`
	NVIDIA          NVIDIA           `toml:"nvidia"`
	Sample          Sample           `toml:"sample"`
	Collateral      Collateral       `toml:"collateral"`
	ReferenceValues ReferenceValues  `toml:"reference_values"`
	Records         Records          `toml:"records"`
	Audit           audit.Config     `toml:"audit"`
	Telemetry       telemetry.Config `toml:"telemetry"`
	Policies        policydir.Config `toml:"policies"`
	StorageKey      StorageKey       `toml:"storage_key"`
	Resources       Resources        `toml:"resources"`
	Plugins         Plugins          `toml:"plugins"`
}

// Server is how the broker is reached.
type Server struct {
	Listen          string   `toml:"listen"`
	TLSHosts        []string `toml:"tls_hosts"`
	TLSCertificate  string   `toml:"tls_certificate"`
	TLSKey          string   `toml:"tls_key"`
	TLSProfile      string   `toml:"tls_profile"`
	TrustedProxies  []string `toml:"trusted_proxies"`
	InsecureHTTP    bool     `toml:"insecure_http"`
	InsecureRSA15   bool     `toml:"insecure_rsa1_5"`
	ShutdownTimeout Duration `toml:"shutdown_timeout"`
}

// Limits bound what one address may ask for, and what the broker does at once; zero means no limit.
type Limits struct {
	RequestsPerSecond int `toml:"requests_per_second"`
	Burst             int `toml:"burst"`
	Attestations      int `toml:"attestations"`
}

// The back ends of Attestation.
const (
	BackendBuiltin        = "builtin"
	BackendCoCoAS         = "coco-as-grpc"
	BackendTrustAuthority = "intel-trust-authority"
)

// Attestation says who judges guests, and bounds sessions and tokens.
type Attestation struct {
	Backend         string   `toml:"backend"`
	SessionLifetime Duration `toml:"session_lifetime"`
	MaxSessions     int      `toml:"max_sessions"`
	TokenLifetime   Duration `toml:"token_lifetime"`
	// SigningKey and SigningCertificates are files; without the first, the broker makes its own keys.
	SigningKey          string `toml:"signing_key"`
	SigningCertificates string `toml:"signing_certificates"`
	// CoCoAS and TrustAuthority are about the back ends of their names.
	CoCoAS         *cocoas.Config         `toml:"coco_as"`
	TrustAuthority *trustauthority.Config `toml:"intel_trust_authority"`
}

// AttestationAPI offers the attestation service and the reference values to brokers elsewhere; empty addresses are not served.
type AttestationAPI struct {
	GRPCListen string `toml:"grpc_listen"`
	RESTListen string `toml:"rest_listen"`
}

// TrustedTokens says whose attestation tokens count besides the broker's own.
type TrustedTokens struct {
	Certificates      []string `toml:"certificates"`
	JWKSets           []string `toml:"jwk_sets"`
	ExtraTEEKeyPaths  []string `toml:"extra_teekey_paths"`
	InsecureHeaderJWK bool     `toml:"insecure_header_jwk"`
}

// The modes of Admin.
const (
	AdminToken            = "token"
	AdminJWT              = "jwt"
	AdminDenyAll          = "deny-all"
	AdminInsecureAllowAll = "insecure-allow-all"
)

// Admin says who may administrate the broker.
type Admin struct {
	Mode              string             `toml:"mode"`
	IdentityProviders []IdentityProvider `toml:"identity_providers"`
	Rules             []AdminRule        `toml:"rules"`
	// Certificates are of administrators, besides or instead of tokens.
	Certificates adminauth.CertificateConfig `toml:"certificates"`
}

// IdentityProvider issues admin tokens. It has a JWK set or a PEM file.
type IdentityProvider struct {
	Issuer    string `toml:"issuer"`
	Audience  string `toml:"audience"`
	JWKSet    string `toml:"jwk_set"`
	PublicKey string `toml:"public_key"`
}

// AdminRule lets a role do something.
type AdminRule struct {
	Role    string   `toml:"role"`
	Paths   string   `toml:"paths"`
	Methods []string `toml:"methods"`
}

// AuthRules are the rules as package adminauth takes them.
func (a Admin) AuthRules() []adminauth.Rule {
	var rules []adminauth.Rule
	for _, r := range a.Rules {
		rules = append(rules, adminauth.Rule{Role: r.Role, Paths: r.Paths, Methods: r.Methods})
	}
	return rules
}

// TPM says which TPMs are known.
type TPM struct {
	EKRoots            []string `toml:"ek_roots"`
	InsecureUnknownTPM bool     `toml:"insecure_unknown_tpm"`
}

// SNP is about AMD SEV-SNP.
type SNP struct {
	InsecureNoRevocation bool `toml:"insecure_no_revocation"`
}

// CCA says which Arm CCA platforms are known.
type CCA struct {
	TrustAnchors    string `toml:"trust_anchors"`
	ReferenceValues string `toml:"reference_values"`
}

// SE is about IBM Secure Execution.
type SE struct {
	MeasurementKey     string `toml:"measurement_key"`
	HostKeyDocuments   string `toml:"host_key_documents"`
	Certificates       string `toml:"certificates"`
	RootCA             string `toml:"root_ca"`
	CRLs               string `toml:"crls"`
	AllowMissingCACRLs bool   `toml:"allow_missing_ca_crls"`
	ImageHeader        string `toml:"image_header"`
}

// Hygon is about Hygon CSV and DCU.
type Hygon struct {
	Certificates string `toml:"certificates"`
}

// NVIDIA is about GPUs, switches and DPUs.
type NVIDIA struct {
	UseNRAS   bool     `toml:"use_nras"`
	NRASURL   string   `toml:"nras_url"`
	JWKSURL   string   `toml:"jwks_url"`
	DPURoot   string   `toml:"dpu_root"`
	DPUMaxAge Duration `toml:"dpu_max_age"`
}

// Sample is about evidence that proves nothing.
type Sample struct {
	InsecureSample bool `toml:"insecure_sample"`
}

// Resources is where secrets are kept.
type Resources = resources.Config

// Plugins are what answers requests besides the resources; those without a table are off.
type Plugins = builtin.Config

// Collateral is where certificates, revocation lists and TCB levels come from.
type Collateral = collateral.Config

// ReferenceValues says how long approvals last.
type ReferenceValues struct {
	Lifetime Duration `toml:"lifetime"`
	// Trust anchors for manifests of others.
	SWID   extract.SWID   `toml:"swid"`
	CoRIM  extract.CoRIM  `toml:"corim"`
	InToto extract.InToto `toml:"in_toto"`
	// Remote is a service elsewhere that keeps the values; nil when this broker does.
	Remote *remote.Config `toml:"remote"`
}

// Trust is where the trust anchors of the extractors are.
func (r ReferenceValues) Trust() refstore.Config {
	return refstore.Config{SWID: r.SWID, CoRIM: r.CoRIM, InToto: r.InToto}
}

// Records bounds the history that explanations come from.
type Records struct {
	MaxDecisions int `toml:"max_decisions"`
}

// Duration is a time.Duration written like "5m".
type Duration time.Duration

var _ encoding.TextUnmarshaler = (*Duration)(nil)

// UnmarshalText reads "5m" or "365d".
func (d *Duration) UnmarshalText(text []byte) error {
	s := string(text)
	if days, ok := strings.CutSuffix(s, "d"); ok {
		h, err := time.ParseDuration(days + "h")
		if err != nil {
			return fmt.Errorf("duration %q: want for example \"5m\" or \"365d\"", s)
		}
		*d = Duration(24 * h)
		return nil
	}
	v, err := time.ParseDuration(s)
	if err != nil {
		return fmt.Errorf("duration %q: want for example \"5m\" or \"365d\"", s)
	}
	*d = Duration(v)
	return nil
}

// Default is the configuration without a file.
func Default() Config {
	return Config{
		DataDir: "/var/lib/cloister/broker",
		Server: Server{
			Listen:     "127.0.0.1:8080",
			TLSHosts:   []string{"localhost", "127.0.0.1", "10.0.2.2"},
			TLSProfile: tlsprofile.Intermediate, TrustedProxies: []string{},
			ShutdownTimeout: Duration(10 * time.Second),
		},
		Limits: Limits{RequestsPerSecond: 20, Burst: 400, Attestations: 64},
		Attestation: Attestation{
			Backend: BackendBuiltin, SessionLifetime: Duration(5 * time.Minute), MaxSessions: 10_000, TokenLifetime: Duration(5 * time.Minute),
		},
		TrustedTokens: TrustedTokens{Certificates: []string{}, JWKSets: []string{}, ExtraTEEKeyPaths: []string{}},
		Admin:         Admin{Mode: AdminToken, IdentityProviders: []IdentityProvider{}, Rules: []AdminRule{}, Certificates: adminauth.DefaultCertificateConfig()},
		TPM:           TPM{EKRoots: []string{}},
		NVIDIA:        NVIDIA{NRASURL: nvidia.DefaultNRASURL, JWKSURL: nvidia.DefaultJWKSURL, DPUMaxAge: Duration(nvidiadpu.DefaultMaxAge)},
		Collateral:    collateral.DefaultConfig(),
		ReferenceValues: ReferenceValues{
			Lifetime: Duration(365 * 24 * time.Hour), SWID: extract.SWID{Roots: []string{}}, CoRIM: extract.CoRIM{Anchors: []string{}},
			InToto: extract.InToto{Keys: []string{}, Names: map[string]string{}, Predicates: []string{}},
		},
		Records:  Records{MaxDecisions: 4096},
		Database: defaultDatabase(),
		Audit:    audit.DefaultConfig(), Telemetry: telemetry.DefaultConfig(), StorageKey: defaultStorageKey(),
		Resources: defaultResources(),
	}
}

func defaultResources() Resources {
	r := resources.DefaultConfig()
	r.Vault.CACerts = []string{}
	return r
}

// maxFile bounds the configuration file.
const maxFile = 1 << 20

// Load reads a file over the defaults and validates the result. Relative paths in it are relative to the file.
func Load(path string) (Config, error) {
	info, err := os.Stat(path)
	if err != nil {
		return Config{}, fmt.Errorf("reading configuration: %w", err)
	}
	if info.Size() > maxFile {
		return Config{}, fmt.Errorf("reading configuration %s: it has %d bytes, at most %d are read", path, info.Size(), maxFile)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("reading configuration: %w", err)
	}
	c, err := Parse(raw)
	if err != nil {
		return Config{}, fmt.Errorf("configuration %s: %w", path, err)
	}
	base := filepath.Dir(path)
	for _, p := range []*string{
		&c.DataDir, &c.Server.TLSCertificate, &c.Server.TLSKey, &c.CCA.TrustAnchors, &c.CCA.ReferenceValues, &c.SE.MeasurementKey,
		&c.SE.HostKeyDocuments, &c.SE.Certificates, &c.SE.RootCA, &c.SE.CRLs, &c.SE.ImageHeader, &c.Hygon.Certificates, &c.NVIDIA.DPURoot,
		&c.Policies.Directory, &c.Telemetry.Certificates, &c.Telemetry.HeadersFile, &c.Collateral.CacheDir, &c.Collateral.PCCSCertificates, &c.Database.PasswordFile, &c.Database.CAFile, &c.Database.CertificateFile, &c.Database.KeyFile,
		&c.Attestation.SigningKey, &c.Attestation.SigningCertificates, &c.Resources.Vault.TokenFile, &c.Resources.Directory.Dir,
	} {
		*p = under(base, *p)
	}
	for _, p := range c.serviceFiles() {
		*p = under(base, *p)
	}
	for _, list := range [][]string{c.TPM.EKRoots, c.TrustedTokens.Certificates, c.TrustedTokens.JWKSets, c.Collateral.Bundles, c.Admin.Certificates.Authorities, c.Admin.Certificates.CRLs, c.StorageKey.OldFiles, c.ReferenceValues.SWID.Roots,
		c.ReferenceValues.CoRIM.Anchors, c.ReferenceValues.InToto.Keys, c.Resources.Vault.CACerts} {
		for i := range list {
			list[i] = under(base, list[i])
		}
	}
	if e := c.Plugins.External; e != nil {
		for i := range e.Backends {
			e.Backends[i].CACertPath = under(base, e.Backends[i].CACertPath)
		}
	}
	for i := range c.Admin.IdentityProviders {
		p := &c.Admin.IdentityProviders[i]
		p.JWKSet, p.PublicKey = under(base, p.JWKSet), under(base, p.PublicKey)
	}
	return c, nil
}

func under(base, path string) string {
	if path == "" || filepath.IsAbs(path) || strings.Contains(path, "://") {
		return path
	}
	return filepath.Join(base, path)
}

// Parse reads the text of a configuration over the defaults and validates the result.
func Parse(raw []byte) (Config, error) {
	c := Default()
	dec := toml.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&c); err != nil {
		return Config{}, position(err)
	}
	if err := c.Validate(); err != nil {
		return Config{}, err
	}
	return c, nil
}

// position names the lines of a decoding error.
func position(err error) error {
	var strict *toml.StrictMissingError
	if errors.As(err, &strict) {
		var all []error
		for _, e := range strict.Errors {
			line, col := e.Position()
			all = append(all, fmt.Errorf("line %d, column %d: unknown key %q", line, col, strings.Join(e.Key(), ".")))
		}
		return errors.Join(all...)
	}
	var one *toml.DecodeError
	if errors.As(err, &one) {
		line, col := one.Position()
		return fmt.Errorf("line %d, column %d: %w", line, col, err)
	}
	return err
}

// Validate reports every fault at once.
func (c Config) Validate() error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if c.DataDir == "" {
		fault("data_dir is empty")
	}
	if _, _, err := net.SplitHostPort(c.Server.Listen); err != nil {
		fault("server.listen is %q, want host:port", c.Server.Listen)
	}
	if (c.Server.TLSCertificate == "") != (c.Server.TLSKey == "") {
		fault("server.tls_certificate and server.tls_key: want both or neither")
	}
	if !c.Server.InsecureHTTP && c.Server.TLSCertificate == "" && len(c.Server.TLSHosts) == 0 {
		fault("server.tls_hosts is empty: a self-made certificate needs at least one name")
	}
	for _, d := range []struct {
		key      string
		v        Duration
		min, max time.Duration
	}{
		{"server.shutdown_timeout", c.Server.ShutdownTimeout, 0, time.Hour},
		{"attestation.session_lifetime", c.Attestation.SessionLifetime, time.Second, time.Hour},
		{"attestation.token_lifetime", c.Attestation.TokenLifetime, time.Second, 24 * time.Hour},
		{"nvidia.dpu_max_age", c.NVIDIA.DPUMaxAge, time.Second, 365 * 24 * time.Hour},
		{"reference_values.lifetime", c.ReferenceValues.Lifetime, time.Minute, 100 * 365 * 24 * time.Hour},
	} {
		if v := time.Duration(d.v); v < d.min || v > d.max {
			fault("%s is %s, want %s to %s", d.key, v, d.min, d.max)
		}
	}
	for _, l := range []struct{ key, v string }{
		{"attestation_api.grpc_listen", c.AttestationAPI.GRPCListen}, {"attestation_api.rest_listen", c.AttestationAPI.RESTListen},
	} {
		if _, _, err := net.SplitHostPort(l.v); l.v != "" && err != nil {
			fault("%s is %q, want host:port or nothing", l.key, l.v)
		}
	}
	for _, p := range c.TrustedTokens.ExtraTEEKeyPaths {
		if !strings.HasPrefix(p, "/") {
			fault("trusted_tokens.extra_teekey_paths has %q, want a JSON pointer such as \"/tee-pubkey\"", p)
		}
	}
	c.Admin.validate(fault)
	if err := tlsprofile.Validate(c.Server.TLSProfile); err != nil {
		fault("server.%w", err)
	}
	if _, err := ratelimit.ParseProxies(c.Server.TrustedProxies); err != nil {
		fault("server.trusted_proxies: %w", err)
	}
	if err := c.Audit.Validate(); err != nil {
		fault("audit: %w", err)
	}
	if err := c.Telemetry.Validate(); err != nil {
		fault("telemetry: %w", err)
	}
	c.validateStorageKey(fault)
	c.Database.validate(fault)
	c.validateServices(fault)
	if c.Attestation.SigningKey == "" && c.Attestation.SigningCertificates != "" {
		fault("attestation.signing_certificates without attestation.signing_key: the keys that the broker makes have no certificates")
	}
	if err := c.Resources.Validate(); err != nil {
		fault("resources: %w", err)
	}
	if err := c.Plugins.Validate(); err != nil {
		fault("plugins: %w", err)
	}
	if err := c.Collateral.Validate(); err != nil {
		fault("collateral: %w", err)
	}
	if l := c.Limits; l.RequestsPerSecond < 0 || l.Burst < 0 || l.Attestations < 0 || (l.RequestsPerSecond > 0 && l.Burst == 0) {
		fault("limits are %d requests a second with a burst of %d and %d attestations, want none below 0 and a burst of at least 1",
			l.RequestsPerSecond, l.Burst, l.Attestations)
	}
	if n := c.Attestation.MaxSessions; n < 1 || n > 1_000_000 {
		fault("attestation.max_sessions is %d, want 1 to 1000000", n)
	}
	if n := c.Records.MaxDecisions; n < 1 || n > 1_000_000 {
		fault("records.max_decisions is %d, want 1 to 1000000", n)
	}
	return errors.Join(faults...)
}

func (a Admin) validate(fault func(format string, args ...any)) {
	switch a.Mode {
	case AdminToken, AdminDenyAll, AdminInsecureAllowAll:
		if len(a.IdentityProviders) > 0 || len(a.Rules) > 0 && !a.Certificates.On() {
			fault("admin.identity_providers and admin.rules have no effect with admin.mode = %q, want %q or admin.certificates", a.Mode, AdminJWT)
		}
		if a.Mode != AdminToken && a.Certificates.On() {
			fault("admin.certificates have no effect with admin.mode = %q", a.Mode)
		}
	case AdminJWT:
		if len(a.IdentityProviders) == 0 || len(a.Rules) == 0 {
			fault("admin.mode is %q, which needs admin.identity_providers and admin.rules", a.Mode)
		}
	default:
		fault("admin.mode is %q, want %q, %q, %q or %q", a.Mode, AdminToken, AdminJWT, AdminDenyAll, AdminInsecureAllowAll)
	}
	if err := a.Certificates.Validate(a.AuthRules()); err != nil {
		fault("admin.certificates: %w", err)
	}
	for i, p := range a.IdentityProviders {
		if (p.JWKSet == "") == (p.PublicKey == "") {
			fault("admin.identity_providers[%d]: want either jwk_set or public_key", i)
		}
		if p.Audience == "" {
			fault("admin.identity_providers[%d]: audience is empty, so tokens for other services would count here", i)
		}
	}
}

// Insecure lists the insecure switches that are on.
func (c Config) Insecure() []string {
	on := []string{}
	if c.Server.InsecureHTTP {
		on = append(on, "server.insecure_http: secrets are still encrypted for the guest, admin tokens travel in the clear")
	}
	if c.Server.InsecureRSA15 {
		on = append(on, "server.insecure_rsa1_5: secrets are encrypted with RSA1_5 for guests that ask for it; its padding has been broken many times")
	}
	if c.TrustedTokens.InsecureHeaderJWK {
		on = append(on, "trusted_tokens.insecure_header_jwk: attestation tokens that anybody signed count")
	}
	if c.Admin.Mode == AdminInsecureAllowAll {
		on = append(on, "admin.mode = \"insecure-allow-all\": everybody who reaches the broker administrates it")
	}
	if c.TPM.InsecureUnknownTPM {
		on = append(on, "tpm.insecure_unknown_tpm: quotes of any TPM count as genuine, a software TPM of an attacker too")
	}
	if c.SNP.InsecureNoRevocation {
		on = append(on, "snp.insecure_no_revocation: SEV-SNP guests count as genuine although nobody could say whether AMD revoked their authority")
	}
	if c.Sample.InsecureSample {
		on = append(on, "sample.insecure_sample: evidence that anybody can make is verified")
	}
	if c.Database.InsecurePlaintext {
		on = append(on, "database.insecure_plaintext: whoever is between broker and database reads and changes what is not sealed")
	}
	for _, switches := range [][]string{c.Resources.Insecure(), c.Plugins.Insecure(), c.insecureServices(), c.Telemetry.Insecure(), c.StorageKey.insecure()} {
		on = append(on, switches...)
	}
	return on
}
