package grpcdial

import (
	"crypto/tls"
	"fmt"
	"os"
	"regexp"
	"strings"

	"github.com/cloister/cloister/internal/smallfile"
)

const (
	maxToken = 64 << 10
)

// ClientTLS is the client side of TLS for a configuration; also for what is fetched from the same service over HTTPS.
func (c Config) ClientTLS() (*tls.Config, error) {
	roots, err := smallfile.Roots(c.CACerts...)
	if err != nil {
		return nil, fmt.Errorf("ca_certs: %w", err)
	}
	out := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	if c.ClientCertificate == "" {
		return out, nil
	}
	load := func() (*tls.Certificate, error) {
		cert, err := tls.LoadX509KeyPair(c.ClientCertificate, c.ClientKey)
		if err != nil {
			return nil, fmt.Errorf("reading client_certificate and client_key: %w", err)
		}
		return &cert, nil
	}
	if _, err := load(); err != nil {
		return nil, err
	}
	out.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	return out, nil
}

// tokenText is what may stand in a header.
var tokenText = regexp.MustCompile(`\A[\x21-\x7e]+\z`)

// Secret reads a file that holds one word for a header: a token or an API key. Its errors never hold what is in it.
func Secret(file string) (string, error) {
	info, err := os.Stat(file)
	if err != nil {
		return "", err
	}
	if perm := info.Mode().Perm(); info.Mode().IsRegular() && perm&0o002 != 0 {
		return "", fmt.Errorf("%s has mode %04o: others could replace what is in it", file, perm)
	}
	raw, err := smallfile.Read(file, maxToken)
	if err != nil {
		return "", err
	}
	word := strings.TrimSpace(string(raw))
	if !tokenText.MatchString(word) {
		return "", fmt.Errorf("%s holds %d bytes that are not one word", file, len(raw))
	}
	return word, nil
}
