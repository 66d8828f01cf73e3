// Package vault keeps resources in the key-value engine (version 1 or 2) of HashiCorp Vault or OpenBao.
//
// The layout is upstream's (kbs-protocol.md section 6.1): the secret of resource r/t/g is the member "data" of the entry
// r/t/g of the mount, a string or an array of byte numbers, so what either broker wrote the other reads. Upstream knows
// engine version 1 only; version 2 uses the same entry.
//
// The server is not trusted to behave: answers are bounded in time and size, redirects are not followed because the
// token would go along, and nothing of an answer gets into an error, as it may hold a secret.
package vault

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"time"

	"github.com/cloister/cloister/broker/loopback"
)

// Config says where the server is.
type Config struct {
	// URL is https://HOST[:PORT], without a path. http:// is taken for this machine, or with InsecureHTTP.
	URL string `toml:"vault_url"`
	// TokenFile holds the token and is read for every request, so a renewed token counts at once.
	TokenFile string `toml:"token_file"`
	// MountPath is where the engine is mounted; default "secret".
	MountPath string `toml:"mount_path"`
	// KVVersion is the version of the engine, 1 (the default, as upstream) or 2.
	KVVersion int `toml:"kv_version"`
	// CACerts are PEM files with the authorities of the server's certificate; none means those of the system.
	CACerts []string `toml:"ca_certs"`
	// Namespace is sent as X-Vault-Namespace.
	Namespace string `toml:"namespace"`
	// TimeoutMS bounds one request, in milliseconds; default 10000.
	TimeoutMS int `toml:"timeout_ms"`
	// InsecureHTTP lets the token and the secrets travel in the clear to another machine.
	InsecureHTTP bool `toml:"insecure_http"`
}

const (
	defaultMount   = "secret"
	defaultTimeout = 10 * time.Second
	maxTimeout     = 40 * time.Second // the server gives a request of a guest 50 s
)

var mountPath = regexp.MustCompile(`\A[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*\z`)

var namespacePath = regexp.MustCompile(`\A[A-Za-z0-9_./-]{0,256}\z`)

// withDefaults fills in what is not given.
func (c Config) withDefaults() Config {
	if c.MountPath == "" {
		c.MountPath = defaultMount
	}
	if c.KVVersion == 0 {
		c.KVVersion = 1
	}
	if c.TimeoutMS == 0 {
		c.TimeoutMS = int(defaultTimeout / time.Millisecond)
	}
	return c
}

// Validate reports every fault.
func (c Config) Validate() error {
	c = c.withDefaults()
	var errs []error
	u, err := url.Parse(c.URL)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		errs = append(errs, errors.New("vault_url: want https://HOST[:PORT]"))
	case u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Path != "" && u.Path != "/":
		errs = append(errs, errors.New("vault_url: want https://HOST[:PORT] and nothing else: no user, path or query"))
	case u.Scheme == "http" && !c.InsecureHTTP && !loopback.Is(u.Hostname()):
		errs = append(errs, fmt.Errorf("vault_url: http:// to %s shows token and secrets to the network; use https:// (or insecure_http)",
			u.Hostname()))
	}
	if c.TokenFile == "" {
		errs = append(errs, errors.New("token_file: want a file that holds the token"))
	}
	if len(c.MountPath) > 256 || !mountPath.MatchString(c.MountPath) {
		errs = append(errs, fmt.Errorf("mount_path is %.64q, want names with '/' between them", c.MountPath))
	}
	if c.KVVersion != 1 && c.KVVersion != 2 {
		errs = append(errs, fmt.Errorf("kv_version is %d, want 1 or 2", c.KVVersion))
	}
	if !namespacePath.MatchString(c.Namespace) {
		errs = append(errs, fmt.Errorf("namespace is %.64q, want letters, digits and '_./-'", c.Namespace))
	}
	if c.TimeoutMS < 1 || time.Duration(c.TimeoutMS)*time.Millisecond > maxTimeout {
		errs = append(errs, fmt.Errorf("timeout_ms is %d, want 1 to %d", c.TimeoutMS, maxTimeout/time.Millisecond))
	}
	return errors.Join(errs...)
}

// Insecure lists the insecure switches that are on.
func (c Config) Insecure() []string {
	if c.InsecureHTTP {
		return []string{"insecure_http"}
	}
	return nil
}
