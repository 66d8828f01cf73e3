package clientcert

import (
	"errors"
	"fmt"
)

// Config says under which authorities administrators have certificates; without authorities there are none.
type Config struct {
	// Authorities are PEM files with the certificates that clients' must lead to.
	Authorities []string `toml:"authorities"`
	// CRLs are PEM or DER files with revocation lists. Where there are any, each authority in a chain needs one that is current.
	CRLs []string `toml:"crls"`
}

// DefaultConfig knows no authority.
func DefaultConfig() Config { return Config{Authorities: []string{}, CRLs: []string{}} }

// Validate reports every fault.
func (c Config) Validate() error {
	var faults []error
	if len(c.CRLs) > 0 && len(c.Authorities) == 0 {
		faults = append(faults, errors.New("crls without authorities have no effect"))
	}
	for key, list := range map[string][]string{"authorities": c.Authorities, "crls": c.CRLs} {
		for _, f := range list {
			if f == "" {
				faults = append(faults, fmt.Errorf("%s names an empty path", key))
			}
		}
	}
	return errors.Join(faults...)
}
