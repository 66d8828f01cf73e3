package adminauth

import (
	"crypto/tls"
	"net/http"
	"strings"

	"github.com/cloister/cloister/broker/clientcert"
)

// Identifier tells whose certificate a connection has; clientcert.Authority is one.
type Identifier interface {
	Identify(state *tls.ConnectionState) (*clientcert.Identity, error)
}

// NewCall describes a request. Its certificate is checked now; without an identifier certificates do not count.
func NewCall(r *http.Request, certificates Identifier) Call {
	c := Call{Bearer: bearer(r), Method: r.Method, Path: r.URL.Path}
	return c.With(r.TLS, certificates)
}

// With adds the certificate of a connection, for calls that are not HTTP requests.
func (c Call) With(state *tls.ConnectionState, certificates Identifier) Call {
	c.Certificate, c.Fingerprint, c.CertificateProblem = "", "", nil
	if certificates == nil {
		return c
	}
	id, err := certificates.Identify(state)
	switch {
	case err != nil:
		c.CertificateProblem = err
	case id != nil:
		c.Certificate, c.Fingerprint = id.Name, id.Fingerprint
	}
	return c
}

// bearer returns the token of an Authorization header, or "".
func bearer(r *http.Request) string {
	scheme, rest, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(rest)
}
