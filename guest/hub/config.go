package hub

import (
	"errors"
	"fmt"
	"log/slog"
	"path"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/cloister/cloister/guest/attest"
	"github.com/cloister/cloister/guest/image"
	"github.com/cloister/cloister/wire/kbs"
)

const (
	maxConfig = 1 << 20
	// credentialDir is the only place credentials are written to.
	credentialDir  = "/run/confidential-containers/cdh/kbs"
	maxCredentials = 64
)

// AAConfig is aa.toml, the Attestation Agent's part of the initdata.
type AAConfig struct {
	Tokens struct {
		KBS *struct {
			URL    string `toml:"url"`
			Cert   string `toml:"cert"`
			KeyAlg string `toml:"tee_key_algorithm"`
		} `toml:"kbs"`
		CoCoAS *struct {
			URL string `toml:"url"`
		} `toml:"coco_as"`
	} `toml:"token_configs"`
	EventLog struct {
		// InitPCR is nil when the platform's default register is to be used.
		InitPCR *uint64 `toml:"init_pcr"`
		Enable  bool    `toml:"enable_eventlog"`
	} `toml:"eventlog_config"`
	Log LogConfig `toml:"log"`
}

// LogConfig is accepted in both files; the guest has one log level, set at boot.
type LogConfig struct {
	Level string `toml:"level"`
}

// CDHConfig is cdh.toml, the Confidential Data Hub's part of the initdata.
type CDHConfig struct {
	Socket string `toml:"socket"`
	AA     struct {
		Socket string `toml:"aa_socket"`
	} `toml:"aa"`
	KBC *struct {
		Name string `toml:"name"`
		URL  string `toml:"url"`
		Cert string `toml:"kbs_cert"`
	} `toml:"kbc"`
	Credentials []Credential `toml:"credentials"`
	// SkipVerification accepts sealed secrets that nobody signed.
	SkipVerification bool         `toml:"skip_sealed_secret_verification"`
	Log              LogConfig    `toml:"log"`
	Image            image.Config `toml:"image"`
}

// Credential is a resource written to a file when the guest starts.
type Credential struct {
	Path string `toml:"path"`
	URI  string `toml:"resource_uri"`
}

// Config is what the initdata says about attestation and secrets.
type Config struct {
	AA  AAConfig
	CDH CDHConfig
}

// ParseConfig reads aa.toml and cdh.toml. Either may be empty. Unknown keys are
// errors: a misspelt key must not quietly mean its default.
func ParseConfig(aaTOML, cdhTOML string) (*Config, error) {
	c := new(Config)
	err := errors.Join(decode("aa.toml", aaTOML, &c.AA), decode("cdh.toml", cdhTOML, &c.CDH))
	if err = errors.Join(err, c.validate()); err != nil {
		return nil, err
	}
	return c, nil
}

func decode(name, text string, into any) error {
	if len(text) > maxConfig {
		return fmt.Errorf("reading %s: %d bytes, expected at most %d", name, len(text), maxConfig)
	}
	err := toml.NewDecoder(strings.NewReader(text)).DisallowUnknownFields().Decode(into)
	var unknown *toml.StrictMissingError
	if errors.As(err, &unknown) && len(unknown.Errors) > 0 {
		var keys []string
		for i := range unknown.Errors {
			line, _ := unknown.Errors[i].Position()
			keys = append(keys, fmt.Sprintf("%s (line %d)", strings.Join(unknown.Errors[i].Key(), "."), line))
		}
		return fmt.Errorf("reading %s: unknown key: %s", name, strings.Join(keys, ", "))
	}
	var bad *toml.DecodeError
	if errors.As(err, &bad) {
		line, column := bad.Position()
		return fmt.Errorf("reading %s: line %d, column %d: %w", name, line, column, err)
	}
	if err != nil {
		return fmt.Errorf("reading %s: %w", name, err)
	}
	return nil
}

func (c *Config) validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if k := c.AA.Tokens.KBS; k != nil && k.URL == "" {
		bad("aa.toml: token_configs.kbs.url is missing")
	}
	if a := c.AA.Tokens.CoCoAS; a != nil && a.URL == "" {
		bad("aa.toml: token_configs.coco_as.url is missing")
	}
	if k := c.CDH.KBC; k != nil {
		if k.Name != "cc_kbc" {
			bad("cdh.toml: kbc.name is %q, expected cc_kbc, the only one in this guest", k.Name)
		}
		if k.URL == "" {
			bad("cdh.toml: kbc.url is missing")
		}
		if a := c.AA.Tokens.KBS; a != nil && trimURL(a.URL) != trimURL(k.URL) {
			bad("cdh.toml: kbc.url is %q and token_configs.kbs.url in aa.toml is %q, expected the same broker", k.URL, a.URL)
		}
	}
	for name, socket := range map[string]string{"socket": c.CDH.Socket, "aa.aa_socket": c.CDH.AA.Socket} {
		if _, err := socketPath(socket, "/"); err != nil {
			bad("cdh.toml: %s: %w", name, err)
		}
	}
	if len(c.CDH.Credentials) > maxCredentials {
		bad("cdh.toml: %d credentials, expected at most %d", len(c.CDH.Credentials), maxCredentials)
	}
	for _, cred := range c.CDH.Credentials {
		if path.Clean(cred.Path) != cred.Path || !strings.HasPrefix(cred.Path, credentialDir+"/") {
			bad("cdh.toml: credentials path is %q, expected a clean path below %s", cred.Path, credentialDir)
		}
		if _, err := kbs.ParseResourceURI(cred.URI); err != nil {
			bad("cdh.toml: credentials: %w", err)
		}
	}
	return errors.Join(errs...)
}

func trimURL(s string) string { return strings.TrimRight(s, "/") }

// Broker returns the configuration of the broker connection; ok is false when
// the initdata names no broker.
func (c *Config) Broker(initData string, log *slog.Logger) (cfg attest.KBSConfig, ok bool) {
	cfg = attest.KBSConfig{InitData: initData, Log: log}
	if k := c.CDH.KBC; k != nil {
		cfg.URL, cfg.RootPEM, ok = k.URL, k.Cert, true
	}
	if k := c.AA.Tokens.KBS; k != nil {
		cfg.URL, cfg.KeyAlg, ok = k.URL, k.KeyAlg, true
		if k.Cert != "" {
			cfg.RootPEM = strings.TrimSpace(cfg.RootPEM + "\n" + k.Cert)
		}
	}
	return cfg, ok
}

// socketPath reads a unix:// address; empty means the default.
func socketPath(addr, byDefault string) (string, error) {
	if addr == "" {
		return byDefault, nil
	}
	p, ok := strings.CutPrefix(addr, "unix://")
	if !ok || !path.IsAbs(p) || path.Clean(p) != p {
		return "", fmt.Errorf("address is %q, expected unix:// and an absolute path", addr)
	}
	return p, nil
}
