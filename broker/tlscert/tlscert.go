// Package tlscert makes the broker's TLS certificate at the first start.
//
// Guests do not ask an authority who the broker is: the certificate itself is their anchor, handed to them in the
// initdata. It is therefore kept as long as it can be; making a new one means new initdata.
package tlscert

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"time"

	"github.com/cloister/cloister/broker/atomicfile"
)

const (
	lifetime = 5 * 365 * 24 * time.Hour
	backdate = 24 * time.Hour // guests' clocks may be behind
	soon     = 30 * 24 * time.Hour
)

// LoadOrCreate reads certificate and key, or makes them for hosts when neither exists.
func LoadOrCreate(certPath, keyPath string, hosts []string, now time.Time) (tls.Certificate, error) {
	_, certErr := os.Stat(certPath)
	_, keyErr := os.Stat(keyPath)
	if errors.Is(certErr, fs.ErrNotExist) {
		// The certificate is written last: a key alone is what an interrupted first start leaves.
		if err := create(certPath, keyPath, hosts, now, keyErr == nil); err != nil {
			return tls.Certificate{}, err
		}
	}
	cert, err := tls.LoadX509KeyPair(certPath, keyPath)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("reading TLS certificate %s and key %s: %w", certPath, keyPath, err)
	}
	return cert, nil
}

func create(certPath, keyPath string, hosts []string, now time.Time, haveKey bool) error {
	if haveKey {
		if err := os.Remove(keyPath); err != nil {
			return fmt.Errorf("removing the TLS key of an interrupted first start: %w", err)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("making TLS key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return fmt.Errorf("making TLS certificate: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "cloister-broker"},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(lifetime),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return fmt.Errorf("making TLS certificate: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encoding TLS key: %w", err)
	}
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	if err := atomicfile.WriteNew(keyPath, keyPEM, 0o600); err != nil {
		return fmt.Errorf("writing TLS key: %w", err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := atomicfile.WriteNew(certPath, certPEM, 0o644); err != nil {
		return fmt.Errorf("writing TLS certificate: %w", err)
	}
	return nil
}

// Warnings tells what about a certificate will trouble clients: names it lacks, an end that is near.
func Warnings(cert tls.Certificate, hosts []string, now time.Time) []string {
	leaf := cert.Leaf
	if leaf == nil {
		return nil
	}
	var out []string
	for _, h := range hosts {
		if err := leaf.VerifyHostname(h); err != nil {
			out = append(out, fmt.Sprintf("TLS certificate is not for %q", h))
		}
	}
	if now.Add(soon).After(leaf.NotAfter) {
		out = append(out, fmt.Sprintf("TLS certificate ends at %s", leaf.NotAfter.UTC().Format(time.RFC3339)))
	}
	return out
}
