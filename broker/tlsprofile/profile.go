// Package tlsprofile is how the broker speaks TLS: which versions and ciphers, by name, and a certificate that can be replaced while
// connections are open.
//
// "modern" is TLS 1.3 alone. "intermediate", the default, adds TLS 1.2 with forward secrecy and authenticated encryption. "fips" is
// the intermediate profile cut down to approved algorithms, and works only when Go's validated module is on. Curves are Go's own
// choice, which puts hybrids with ML-KEM first.
package tlsprofile

import (
	"crypto/fips140"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
)

// The profiles.
const (
	Modern       = "modern"
	Intermediate = "intermediate"
	FIPS         = "fips"
)

// The protocols that are spoken inside TLS. Each listener has one: the guest-facing API is HTTP/1.1, gRPC is HTTP/2.
const (
	HTTP1 = "http/1.1"
	HTTP2 = "h2"
)

// Validate checks the name of a profile.
func Validate(profile string) error {
	switch profile {
	case Modern, Intermediate:
		return nil
	case FIPS:
		if !fips140.Enabled() {
			return errors.New("tls_profile is \"fips\", and Go's FIPS 140-3 module is off; hint: start the broker with GODEBUG=fips140=on in its environment")
		}
		return nil
	}
	return fmt.Errorf("tls_profile is %.32q, want %q, %q or %q", profile, Modern, Intermediate, FIPS)
}

// Config makes the server side of a profile. The certificate is asked for at each handshake. Where clientCAs is not nil, clients are
// asked for certificates under the pool that it returns at that moment.
//
// Such a certificate is asked for and not checked here: the client proves that it has the key, and package clientcert checks the rest
// at each administrative request, against the authorities, revocation lists and clock of that moment. A connection may outlive a
// certificate; and a guest that shows a certificate of something else, which a proxy beside it may add, is served as any other.
func Config(profile, protocol string, certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error), clientCAs func() *x509.CertPool) (*tls.Config, error) {
	if err := Validate(profile); err != nil {
		return nil, err
	}
	c := &tls.Config{GetCertificate: certificate, NextProtos: []string{protocol}, MinVersion: tls.VersionTLS12}
	switch profile {
	case Modern:
		c.MinVersion = tls.VersionTLS13
	case FIPS:
		c.CipherSuites = suites(false)
	default:
		c.CipherSuites = suites(true)
	}
	if clientCAs == nil {
		return c, nil
	}
	c.ClientAuth = tls.RequestClientCert
	base := c.Clone()
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		one := base.Clone()
		one.ClientCAs = clientCAs() // their names tell clients which certificate to show
		return one, nil
	}
	return c, nil
}

// suites are those of TLS 1.2 with ephemeral keys and authenticated encryption. TLS 1.3 has no others.
func suites(chacha bool) []uint16 {
	list := []uint16{
		tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
		tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
	}
	if chacha {
		list = append(list, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256)
	}
	return list
}
