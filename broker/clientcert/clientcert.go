// Package clientcert checks the TLS certificates of administrators.
//
// The handshake proves that a client has the key of the certificate it shows. Everything else is checked here, at each administrative
// request and against the clock, authorities and revocation lists of that moment: a connection may live longer than the certificate
// it began with. Authorities and lists are replaced as one when their files change.
//
// A certificate stands for one name, with its kind before it: "uri:spiffe://example.org/ops", "dns:ops.example.org",
// "email:ops@example.org" or, when it has no such alternative names, "cn:ops". The kinds cannot be taken for each other. Names are
// compared as a whole, so wildcards mean nothing, and names that two readers could read differently are refused.
package clientcert

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/cloister/cloister/broker/reload"
	"github.com/cloister/cloister/internal/smallfile"
)

// ErrRefused is wrapped by every refusal of a certificate.
var ErrRefused = errors.New("the client certificate is refused")

const (
	maxFile  = 4 << 20
	maxChain = 8
)

// Identity is a verified client.
type Identity struct {
	// Name is the kind and the name.
	Name string
	// Fingerprint is the SHA-256 of the certificate, in hex.
	Fingerprint string
}

// Authority checks certificates.
type Authority struct {
	config Config
	now    func() time.Time
	value  *reload.Value[*trust]
}

// trust is what the files say.
type trust struct {
	pool *x509.CertPool
	crls []*x509.RevocationList
}

// Open reads the files of a configuration.
func Open(ctx context.Context, c Config, now func() time.Time) (*Authority, error) {
	a := &Authority{config: c, now: now}
	var err error
	a.value, err = reload.NewValue(ctx, func(context.Context) (*trust, error) { return read(c) })
	return a, err
}

// Item is what reads the files again.
func (a *Authority) Item() reload.Item {
	files := append(append([]string{}, a.config.Authorities...), a.config.CRLs...)
	return reload.Item{What: "client-authorities", Files: files, Load: a.value.Reload}
}

// Pool is what tls.Config.ClientCAs should be now.
func (a *Authority) Pool() *x509.CertPool { return a.value.Get().pool }

func read(c Config) (*trust, error) {
	t := &trust{pool: x509.NewCertPool()}
	for _, file := range c.Authorities {
		text, err := smallfile.Read(file, maxFile)
		if err != nil {
			return nil, fmt.Errorf("reading authorities of clients: %w", err)
		}
		n := 0
		for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
			if block.Type != "CERTIFICATE" {
				return nil, fmt.Errorf("reading authorities of clients: %s: PEM block %d is %.32q, want CERTIFICATE", file, n+1, block.Type)
			}
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("reading authorities of clients: %s: certificate %d: %w", file, n+1, err)
			}
			if !cert.IsCA {
				return nil, fmt.Errorf("reading authorities of clients: %s: certificate %d, %.128q, is not an authority's", file, n+1, cert.Subject)
			}
			t.pool.AddCert(cert)
			n++
		}
		if n == 0 {
			return nil, fmt.Errorf("reading authorities of clients: %s holds no PEM certificate", file)
		}
	}
	for _, file := range c.CRLs {
		text, err := smallfile.Read(file, maxFile)
		if err != nil {
			return nil, fmt.Errorf("reading revocation lists of clients: %w", err)
		}
		lists, err := parseCRLs(text)
		if err != nil {
			return nil, fmt.Errorf("reading revocation lists of clients: %s: %w", file, err)
		}
		t.crls = append(t.crls, lists...)
	}
	return t, nil
}

// Identify returns who is at the other end of a connection. A connection without TLS or without a certificate gives nil and no error;
// a certificate that does not count gives an error that wraps ErrRefused. A nil Authority knows nobody.
func (a *Authority) Identify(state *tls.ConnectionState) (*Identity, error) {
	if a == nil || state == nil || len(state.PeerCertificates) == 0 {
		return nil, nil
	}
	id, err := a.identify(state.PeerCertificates)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return id, nil
}

func (a *Authority) identify(shown []*x509.Certificate) (*Identity, error) {
	if len(shown) > maxChain {
		return nil, fmt.Errorf("it comes with %d certificates, at most %d are read", len(shown), maxChain)
	}
	leaf, between := shown[0], x509.NewCertPool()
	for _, c := range shown[1:] {
		between.AddCert(c)
	}
	t, now := a.value.Get(), a.now()
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots: t.pool, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return nil, err
	}
	if leaf.IsCA {
		return nil, errors.New("it is an authority's own")
	}
	if err := t.anyGood(chains, now); err != nil {
		return nil, err
	}
	name, err := nameOf(leaf)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(leaf.Raw)
	return &Identity{Name: name, Fingerprint: hex.EncodeToString(sum[:])}, nil
}
