package adminauth

import (
	"errors"
	"fmt"

	"github.com/cloister/cloister/broker/clientcert"
)

// CertificateConfig is the section [admin.certificates]; without authorities certificates do not count.
type CertificateConfig struct {
	Authorities []string `toml:"authorities"`
	CRLs        []string `toml:"crls"`
	// Holders say who has which role; what roles may do is in the rules.
	Holders []Holder `toml:"holders"`
	// Required wants a certificate besides the token, and not instead of it.
	Required bool `toml:"require_certificate"`
}

// DefaultCertificateConfig knows no authority.
func DefaultCertificateConfig() CertificateConfig {
	c := clientcert.DefaultConfig()
	return CertificateConfig{Authorities: c.Authorities, CRLs: c.CRLs, Holders: []Holder{}}
}

// Clients is what package clientcert needs of it.
func (c CertificateConfig) Clients() clientcert.Config {
	return clientcert.Config{Authorities: c.Authorities, CRLs: c.CRLs}
}

// On reports whether certificates count.
func (c CertificateConfig) On() bool { return len(c.Authorities) > 0 }

// Validate reports every fault. The rules are those of the section [admin].
func (c CertificateConfig) Validate(rules []Rule) error {
	faults := []error{c.Clients().Validate()}
	switch {
	case c.On():
		_, err := NewCertificates(c.Holders, rules)
		faults = append(faults, err)
		if len(rules) == 0 {
			faults = append(faults, errors.New("holders have roles, and there are no rules that let a role do anything"))
		}
	case len(c.Holders) > 0 || c.Required:
		faults = append(faults, fmt.Errorf("%d holders and require_certificate = %v need authorities", len(c.Holders), c.Required))
	}
	return errors.Join(faults...)
}

// Combine makes the authority of a broker out of that for tokens and that for certificates.
func (c CertificateConfig) Combine(tokens Authority, rules []Rule) (Authority, error) {
	if !c.On() {
		return tokens, nil
	}
	certificates, err := NewCertificates(c.Holders, rules)
	if err != nil {
		return nil, err
	}
	if c.Required {
		return AllOf{certificates, tokens}, nil
	}
	return AnyOf{tokens, certificates}, nil
}
