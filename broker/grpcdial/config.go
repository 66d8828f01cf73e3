// Package grpcdial connects the parts of a broker that run as several processes: a key broker to its attestation service, and
// that one to its reference values (attestation-service.md sections 2 and 9).
//
// The other side is not trusted to behave: every call has a deadline, messages are bounded both ways, and what it says in an
// error is cut and cleaned before it gets into logs and answers. Whether it is who it should be is a matter of TLS.
package grpcdial

import (
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/cloister/cloister/broker/loopback"
)

const (
	defaultTimeout = 30 * time.Second
	maxTimeout     = 45 * time.Second // the server gives a request of a guest 50 s
	defaultPool    = 2
	maxPool        = 100
)

// Config says where a service is.
type Config struct {
	// Address is https://HOST:PORT, or http://HOST:PORT on this machine. A name with several addresses is used in turn.
	Address string `toml:"address"`
	// CACerts are PEM files with the authorities of the service's certificate; none means those of the system.
	CACerts []string `toml:"ca_certs"`
	// ClientCertificate and ClientKey are PEM files by which this side shows who it is; both or neither. They are read for
	// every connection, so a renewed certificate counts from the next one.
	ClientCertificate string `toml:"client_certificate"`
	ClientKey         string `toml:"client_key"`
	// AdminTokenFile holds the bearer token that goes along with changes of policies and reference values, which this project's
	// services want. It is read for every change.
	AdminTokenFile string `toml:"admin_token_file"`
	// PoolSize is the number of connections; default 2. Each carries many calls at once.
	PoolSize int `toml:"pool_size"`
	// TimeoutMS bounds one call with its repetitions, in milliseconds; default 30000.
	TimeoutMS int `toml:"timeout_ms"`
	// InsecureHTTP lets evidence and answers travel unprotected to another machine.
	InsecureHTTP bool `toml:"insecure_http"`
}

// Validate reports every fault.
func (c Config) Validate() error {
	var errs []error
	u, err := url.Parse(c.Address)
	switch {
	case err != nil || u.Hostname() == "" || u.Port() == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil ||
		u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "":
		errs = append(errs, errors.New("address: want https://HOST:PORT (or http:// on this machine)"))
	case u.Scheme == "http" && len(c.CACerts)+len(c.ClientCertificate) > 0:
		errs = append(errs, errors.New("address: http:// with certificates, want https://"))
	case u.Scheme == "http" && !c.InsecureHTTP && !loopback.Is(u.Hostname()):
		errs = append(errs, fmt.Errorf(
			"address: http:// to %s lets the network change what is asked and answered; use https:// (or insecure_http)", u.Hostname()))
	}
	if (c.ClientCertificate == "") != (c.ClientKey == "") {
		errs = append(errs, errors.New("client_certificate and client_key: want both or neither"))
	}
	if c.PoolSize < 0 || c.PoolSize > maxPool {
		errs = append(errs, fmt.Errorf("pool_size is %d, want 1 to %d", c.PoolSize, maxPool))
	}
	if c.TimeoutMS < 0 || time.Duration(c.TimeoutMS)*time.Millisecond > maxTimeout {
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

func (c Config) timeout() time.Duration {
	if c.TimeoutMS == 0 {
		return defaultTimeout
	}
	return time.Duration(c.TimeoutMS) * time.Millisecond
}

func (c Config) pool() int {
	if c.PoolSize == 0 {
		return defaultPool
	}
	return c.PoolSize
}
