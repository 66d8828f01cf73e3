// Package external is the plugin that passes requests on to programs elsewhere, over the gRPC protocol kbs.plugin.v1
// (kbs-protocol.md section 6.3). The first part of the path selects the program, its back end.
//
// A back end is trusted with what guests may see, but not to behave: every call has a deadline, messages are bounded, and
// what it says in an error is not passed on to clients. Calls are not repeated: a back end may have acted on the first.
package external

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"time"

	"github.com/cloister/cloister/broker/loopback"
)

const (
	defaultTimeout = 10 * time.Second
	maxTimeout     = 40 * time.Second // the server gives a request of a guest 50 s
	maxBackends    = 64
)

// Config of the plugin.
type Config struct {
	Backends []Backend `toml:"backends"`
}

// Backend is one program.
type Backend struct {
	// Name is the part of the path that selects it.
	Name string `toml:"name"`
	// Endpoint is https://HOST:PORT, or http://HOST:PORT on this machine.
	Endpoint string `toml:"endpoint"`
	// CACertPath is a PEM file with the authorities of the certificate; https:// needs it.
	CACertPath string `toml:"ca_cert_path"`
	// TimeoutMS bounds one call, in milliseconds; default 10000. A request takes up to three calls.
	TimeoutMS int `toml:"timeout_ms"`
	// InsecureHTTP lets requests and secrets travel in the clear to another machine.
	InsecureHTTP bool `toml:"insecure_http"`
}

var backendName = regexp.MustCompile(`\A[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}\z`)

// Validate reports every fault.
func (c Config) Validate() error {
	var errs []error
	if len(c.Backends) == 0 || len(c.Backends) > maxBackends {
		errs = append(errs, fmt.Errorf("backends are %d, want 1 to %d", len(c.Backends), maxBackends))
	}
	seen := map[string]bool{}
	for i, b := range c.Backends {
		if err := b.validate(); err != nil {
			errs = append(errs, fmt.Errorf("backends[%d]: %w", i, err))
		}
		if seen[b.Name] {
			errs = append(errs, fmt.Errorf("backends[%d]: there are two with the name %.64q", i, b.Name))
		}
		seen[b.Name] = true
	}
	return errors.Join(errs...)
}

func (b Backend) validate() error {
	var errs []error
	if !backendName.MatchString(b.Name) {
		errs = append(errs, fmt.Errorf("name is %.64q, want letters, digits, '_', '-' and inner '.'", b.Name))
	}
	u, err := url.Parse(b.Endpoint)
	switch {
	case err != nil || u.Hostname() == "" || u.Port() == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil ||
		u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "":
		errs = append(errs, errors.New("endpoint: want https://HOST:PORT (or http:// on this machine)"))
	case u.Scheme == "https" && b.CACertPath == "":
		errs = append(errs, errors.New("endpoint: https:// needs ca_cert_path"))
	case u.Scheme == "http" && b.CACertPath != "":
		errs = append(errs, errors.New("endpoint: http:// with a ca_cert_path, want https://"))
	case u.Scheme == "http" && !b.InsecureHTTP && !loopback.Is(u.Hostname()):
		errs = append(errs, fmt.Errorf("endpoint: http:// to %s shows secrets to the network; use https:// (or insecure_http)", u.Hostname()))
	}
	if b.TimeoutMS < 0 || time.Duration(b.TimeoutMS)*time.Millisecond > maxTimeout {
		errs = append(errs, fmt.Errorf("timeout_ms is %d, want 1 to %d", b.TimeoutMS, maxTimeout/time.Millisecond))
	}
	return errors.Join(errs...)
}

func (b Backend) timeout() time.Duration {
	if b.TimeoutMS == 0 {
		return defaultTimeout
	}
	return time.Duration(b.TimeoutMS) * time.Millisecond
}

// Insecure lists the insecure switches that are on.
func (c Config) Insecure() []string {
	var out []string
	for _, b := range c.Backends {
		if b.InsecureHTTP {
			out = append(out, b.Name+".insecure_http")
		}
	}
	return out
}
