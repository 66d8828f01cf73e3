package adminauth

import (
	"context"
	"errors"
	"fmt"

	"github.com/cloister/cloister/broker/clientcert"
)

// Holder gives the holder of a certificate a role. Several holders may share a role, and one name may have several.
type Holder struct {
	// Name is that of the certificate with its kind, such as "uri:spiffe://example.org/ops" or "dns:ops.example.org".
	Name string `toml:"name"`
	Role string `toml:"role"`
}

// Certificates admits holders of TLS certificates with a role.
type Certificates struct {
	roles map[string][]string
	rules rules
}

// NewCertificates checks holders and rules and makes an authority.
func NewCertificates(holders []Holder, rules []Rule) (*Certificates, error) {
	if len(holders) == 0 {
		return nil, errors.New("admin authentication by certificate needs at least one holder")
	}
	compiled, err := compile(rules)
	if err != nil {
		return nil, err
	}
	a := &Certificates{roles: map[string][]string{}, rules: compiled}
	for i, h := range holders {
		name, err := clientcert.NormalName(h.Name)
		if err != nil {
			return nil, fmt.Errorf("certificate holder %d: %w", i+1, err)
		}
		if h.Role == "" {
			return nil, fmt.Errorf("certificate holder %d, %s, has no role", i+1, name)
		}
		a.roles[name] = append(a.roles[name], h.Role)
	}
	return a, nil
}

// Admit is part of Authority.
func (a *Certificates) Admit(_ context.Context, c Call) (string, error) {
	switch {
	case c.CertificateProblem != nil:
		return "", fmt.Errorf("%w: %w", ErrDenied, c.CertificateProblem)
	case c.Certificate == "":
		return "", fmt.Errorf("%w: the connection has no client certificate that leads to admin.certificates.authorities", ErrDenied)
	}
	roles := a.roles[c.Certificate]
	if len(roles) == 0 {
		return "", fmt.Errorf("%w: certificate %.128q is of no administrator", ErrDenied, c.Certificate)
	}
	var why []error
	for _, role := range roles {
		err := a.rules.admit(role, c)
		if err == nil {
			return fmt.Sprintf("%.128s (certificate %.16s, role %.64s)", c.Certificate, c.Fingerprint, role), nil
		}
		why = append(why, err)
	}
	return "", errors.Join(why...)
}
