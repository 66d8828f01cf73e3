package hub

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/cloister/cloister/guest/image"
	"github.com/cloister/cloister/wire/kbs"
)

// AttestationConfig is aa.toml (guest-api.md section 2.3).
type AttestationConfig struct {
	TokenConfigs struct {
		KBS *struct {
			URL          string `toml:"url"`
			Cert         string `toml:"cert"`
			KeyAlgorithm string `toml:"tee_key_algorithm"`
		} `toml:"kbs"`
		CoCoAS *struct {
			URL string `toml:"url"`
		} `toml:"coco_as"`
	} `toml:"token_configs"`
	EventLog struct {
		InitPCR *uint64 `toml:"init_pcr"`
		Enable  bool    `toml:"enable_eventlog"`
	} `toml:"eventlog_config"`
	Log logConfig `toml:"log"`
}

// DataHubConfig is cdh.toml (guest-api.md section 3.1).
type DataHubConfig struct {
	Socket string `toml:"socket"`
	AA     struct {
		Socket string `toml:"aa_socket"`
	} `toml:"aa"`
	KBC struct {
		Name string `toml:"name"`
		URL  string `toml:"url"`
		Cert string `toml:"kbs_cert"`
	} `toml:"kbc"`
	Credentials []Credential `toml:"credentials"`
	// SkipSealedVerification accepts sealed secrets without a signature. It is the upstream name of an insecure switch.
	SkipSealedVerification bool         `toml:"skip_sealed_secret_verification"`
	Image                  image.Config `toml:"image"`
	Log                    logConfig    `toml:"log"`
}

// Credential is a resource that is written to a file when the guest starts.
type Credential struct {
	Path        string `toml:"path"`
	ResourceURI string `toml:"resource_uri"`
}

type logConfig struct {
	Level string `toml:"level"`
}

// maxConfig bounds a configuration file.
const maxConfig = 1 << 20

// credentialRoot is where credentials may be written.
const credentialRoot = "/run/confidential-containers/cdh/kbs"

// Key broker clients by their upstream names.
const (
	clientKBS     = "cc_kbc"
	clientOffline = "offline_fs_kbc"
)

// ParseAttestation reads aa.toml. Empty text is an empty configuration.
func ParseAttestation(text []byte) (AttestationConfig, error) {
	var c AttestationConfig
	if err := decode(text, &c); err != nil {
		return c, fmt.Errorf("reading aa.toml: %w", err)
	}
	if k := c.TokenConfigs.KBS; k != nil && k.URL == "" {
		return c, errors.New("reading aa.toml: token_configs.kbs.url is missing")
	}
	if c.TokenConfigs.CoCoAS != nil {
		return c, errors.New("reading aa.toml: token_configs.coco_as is not supported, only kbs is")
	}
	return c, nil
}

// ParseDataHub reads cdh.toml. Empty text is a hub without a broker.
func ParseDataHub(text []byte) (DataHubConfig, error) {
	var c DataHubConfig
	if err := decode(text, &c); err != nil {
		return c, fmt.Errorf("reading cdh.toml: %w", err)
	}
	var errs []error
	switch c.KBC.Name {
	case "", clientOffline:
	case clientKBS:
		if c.KBC.URL == "" {
			errs = append(errs, errors.New("kbc.url is missing"))
		}
	default:
		errs = append(errs, fmt.Errorf("kbc.name is %q, want %s or %s", c.KBC.Name, clientKBS, clientOffline))
	}
	for i, cred := range c.Credentials {
		if clean := path.Clean(cred.Path); clean != cred.Path || !strings.HasPrefix(cred.Path, credentialRoot+"/") {
			errs = append(errs, fmt.Errorf("credentials[%d].path is %q, want a plain path below %s", i, cred.Path, credentialRoot))
		}
		if _, err := kbs.ParseResourceURI(cred.ResourceURI); err != nil {
			errs = append(errs, fmt.Errorf("credentials[%d]: %w", i, err))
		}
	}
	if len(errs) > 0 {
		return c, fmt.Errorf("reading cdh.toml: %w", errors.Join(errs...))
	}
	return c, nil
}

// decode is strict: a key nobody knows is a mistake of the author, and could be one that was meant to protect.
func decode(text []byte, into any) error {
	if len(text) > maxConfig {
		return fmt.Errorf("%d bytes, at most %d are read", len(text), maxConfig)
	}
	dec := toml.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	err := dec.Decode(into)
	var strict *toml.StrictMissingError
	if errors.As(err, &strict) {
		return fmt.Errorf("unknown keys:\n%s", strict.String())
	}
	return err
}
