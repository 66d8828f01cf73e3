// Package remote takes reference values from a reference value provider service elsewhere, over the protocol of upstream's RVPS
// (attestation-service.md section 9.1).
//
// The protocol can query one name and register a message; it cannot list or delete, and it does not say when a value ends. So
// an answer is believed for a short time only, and when the service cannot be asked there is no answer: a measurement that
// nobody can vouch for now is not approved.
package remote

import (
	"errors"
	"fmt"
	"time"

	"github.com/cloister/cloister/broker/grpcdial"
)

const (
	defaultCache = 5 * time.Second
	maxCache     = time.Minute
)

// Config says where the service is: `address = "https://rvps.example:50003"` and the rest of grpcdial.Config, and
type Config struct {
	grpcdial.Config
	// CacheMS is how long an answer is believed, in milliseconds; default 5000, at most 60000. A value that is removed or ends
	// at the service is accepted that much longer. A negative number asks every time.
	CacheMS int `toml:"cache_ms"`
}

// Validate reports every fault.
func (c Config) Validate() error {
	errs := []error{c.Config.Validate()}
	if time.Duration(c.CacheMS)*time.Millisecond > maxCache {
		errs = append(errs, fmt.Errorf("cache_ms is %d, want at most %d", c.CacheMS, maxCache/time.Millisecond))
	}
	return errors.Join(errs...)
}

func (c Config) cache() time.Duration {
	switch {
	case c.CacheMS < 0:
		return 0
	case c.CacheMS == 0:
		return defaultCache
	}
	return time.Duration(c.CacheMS) * time.Millisecond
}
