package grpcdial

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
)

const (
	maxCA    = 1 << 20
	maxToken = 64 << 10
)

// ClientTLS is the client side of TLS for a configuration; also for what is fetched from the same service over HTTPS.
func (c Config) ClientTLS() (*tls.Config, error) {
	roots, err := Roots(c.CACerts)
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

// Roots reads PEM files of authorities; none gives nil, which means those of the system.
func Roots(files []string) (*x509.CertPool, error) {
	if len(files) == 0 {
		return nil, nil
	}
	roots := x509.NewCertPool()
	for _, file := range files {
		pem, err := readSmall(file, maxCA)
		if err != nil {
			return nil, err
		}
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no PEM certificate", file)
		}
	}
	return roots, nil
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
	raw, err := readSmall(file, maxToken)
	if err != nil {
		return "", err
	}
	word := strings.TrimSpace(string(raw))
	if !tokenText.MatchString(word) {
		return "", fmt.Errorf("%s holds %d bytes that are not one word", file, len(raw))
	}
	return word, nil
}

func readSmall(file string, most int64) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(io.LimitReader(f, most+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("reading %s: %w", file, err)
	}
	if int64(len(raw)) > most {
		return nil, fmt.Errorf("%s has more than %d bytes", file, most)
	}
	return raw, nil
}
