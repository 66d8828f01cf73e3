package clientcert

import (
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

const maxName = 256

// The kinds of names, in the order in which they are looked for.
const (
	kindURI   = "uri:"
	kindDNS   = "dns:"
	kindEmail = "email:"
	kindCN    = "cn:"
)

// nameOf is the name of a certificate: the first of the best kind it has. Of URIs, which name a workload (SPIFFE), there may be one.
func nameOf(cert *x509.Certificate) (string, error) {
	switch {
	case len(cert.URIs) > 1:
		return "", fmt.Errorf("it has %d URIs, want one", len(cert.URIs))
	case len(cert.URIs) == 1:
		return NormalName(kindURI + cert.URIs[0].String())
	case len(cert.DNSNames) > 0:
		return NormalName(kindDNS + cert.DNSNames[0])
	case len(cert.EmailAddresses) > 0:
		return NormalName(kindEmail + cert.EmailAddresses[0])
	case cert.Subject.CommonName != "":
		return NormalName(kindCN + cert.Subject.CommonName)
	}
	return "", errors.New("it has no name: no URI, DNS name, e-mail address or common name")
}

// NormalName checks a name with its kind, and brings DNS names into lower case. Both certificates and configurations go through it.
func NormalName(name string) (string, error) {
	kind, rest, ok := strings.Cut(name, ":")
	kind += ":"
	if !ok || rest == "" {
		return "", fmt.Errorf("name %.64q: want uri:, dns:, email: or cn: and a name", name)
	}
	if len(name) > maxName {
		return "", fmt.Errorf("name %.64q... has %d bytes, at most %d are taken", name, len(name), maxName)
	}
	if !utf8.ValidString(rest) || strings.ContainsFunc(rest, func(r rune) bool { return !unicode.IsPrint(r) }) || strings.TrimSpace(rest) != rest {
		return "", fmt.Errorf("name %.64q has characters that cannot be seen", name)
	}
	ascii := !strings.ContainsFunc(rest, func(r rune) bool { return r > unicode.MaxASCII || r == ' ' })
	switch kind {
	case kindCN:
		return name, nil
	case kindURI, kindEmail:
		if !ascii {
			return "", fmt.Errorf("name %.64q: want plain ASCII", name)
		}
		return name, nil
	case kindDNS:
		if !ascii || strings.Contains(rest, "*") || strings.HasPrefix(rest, ".") || strings.HasSuffix(rest, ".") {
			return "", fmt.Errorf("name %.64q: want the name of one host in plain ASCII, without wildcards or dots at its ends", name)
		}
		return kind + strings.ToLower(rest), nil
	}
	return "", fmt.Errorf("name %.64q is of kind %.16q, want one of uri:, dns:, email:, cn: before it", name, kind)
}
