package telemetry

import (
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/cloister/cloister/broker/loopback"
)

// Config says where traces go; without an endpoint there are none.
type Config struct {
	// Endpoint is the whole OTLP/HTTP address, for example "https://collector.example:4318/v1/traces".
	Endpoint string `toml:"endpoint"`
	// Certificates is a PEM file with the authorities of the collector; nothing means those of the system.
	Certificates string `toml:"certificates"`
	// HeadersFile holds lines "Name: value" that the collector wants, such as its token.
	HeadersFile string `toml:"headers_file"`
	// Ratio is the part of requests that is traced, from 0 to 1.
	Ratio float64 `toml:"ratio"`
	// Queue is how many spans wait for the collector; more are dropped.
	Queue int `toml:"queue"`
	// TimeoutSeconds bounds one delivery.
	TimeoutSeconds int `toml:"timeout_seconds"`
	// Replica names this broker among several.
	Replica string `toml:"-"`
	// InsecureHTTP sends traces in the clear to other machines.
	InsecureHTTP bool `toml:"insecure_http"`
}

// DefaultConfig traces nothing, and a tenth of all requests once there is an endpoint.
func DefaultConfig() Config { return Config{Ratio: 0.1, Queue: 2048, TimeoutSeconds: 10} }

func (c Config) timeout() time.Duration { return time.Duration(c.TimeoutSeconds) * time.Second }

// Validate reports every fault.
func (c Config) Validate() error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if c.Endpoint != "" {
		u, err := url.Parse(c.Endpoint)
		switch {
		case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.User != nil || u.RawQuery != "":
			fault("endpoint is not an address such as \"https://collector.example:4318/v1/traces\" (tokens belong into headers_file)")
		case u.Path == "" || u.Path == "/":
			fault("endpoint has no path, want for example \"https://%s/v1/traces\"", u.Host)
		case u.Scheme == "http" && !c.InsecureHTTP && !loopback.Is(u.Hostname()):
			fault("endpoint is plain http to another machine, want https, or insecure_http = true")
		}
	}
	if !(c.Ratio >= 0 && c.Ratio <= 1) {
		fault("ratio is %v, want 0 to 1", c.Ratio)
	}
	if c.Queue < 1 || c.Queue > 1<<20 {
		fault("queue is %d, want 1 to %d", c.Queue, 1<<20)
	}
	if c.TimeoutSeconds < 1 || c.TimeoutSeconds > 60 {
		fault("timeout_seconds is %d, want 1 to 60", c.TimeoutSeconds)
	}
	return errors.Join(faults...)
}

// Insecure lists the insecure switches that are on.
func (c Config) Insecure() []string {
	if !c.InsecureHTTP {
		return nil
	}
	return []string{"telemetry.insecure_http: traces travel in the clear"}
}
