package tlsprofile

import (
	"context"
	"crypto/fips140"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/clientcert/certtest"
)

// serve answers handshakes with a configuration and returns the address.
func serve(t *testing.T, c *tls.Config) string {
	t.Helper()
	ln, err := tls.Listen("tcp", "127.0.0.1:0", c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
	return ln.Addr().String()
}

func handshake(t *testing.T, address string, client *tls.Config) (tls.ConnectionState, error) {
	t.Helper()
	client.InsecureSkipVerify = true // who the server is does not matter here
	conn, err := (&tls.Dialer{NetDialer: &net.Dialer{Timeout: 10 * time.Second}, Config: client}).DialContext(t.Context(), "tcp", address)
	if err != nil {
		return tls.ConnectionState{}, err
	}
	defer conn.Close()
	return conn.(*tls.Conn).ConnectionState(), nil
}

func certificate(t *testing.T) *Certificate {
	t.Helper()
	now := time.Now()
	pair := certtest.New(t, "ca", now).Issue(x509.Certificate{DNSNames: []string{"broker"}}, now)
	certFile, keyFile := certtest.WritePair(t, t.TempDir(), pair)
	c, err := OpenCertificate(t.Context(), certFile, keyFile, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestProfiles(t *testing.T) {
	cert := certificate(t)
	for _, tc := range []struct {
		what, profile string
		client        *tls.Config
		ok            bool
	}{
		{"1.3", Modern, &tls.Config{MinVersion: tls.VersionTLS13}, true},
		{"1.2 to modern", Modern, &tls.Config{MaxVersion: tls.VersionTLS12}, false},
		{"1.3 to intermediate", Intermediate, &tls.Config{}, true},
		{"1.2 to intermediate", Intermediate, &tls.Config{MaxVersion: tls.VersionTLS12}, true},
		{"1.1", Intermediate, &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, false},
		{"CBC", Intermediate, &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}}, false},
		{"no forward secrecy", Intermediate, &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}}, false},
		{"another protocol", Intermediate, &tls.Config{NextProtos: []string{"h2"}}, false},
	} {
		c, err := Config(tc.profile, HTTP1, cert.Get, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := handshake(t, serve(t, c), tc.client); (err == nil) != tc.ok {
			t.Errorf("%s: %v, want success %v", tc.what, err, tc.ok)
		}
	}
	c, err := Config(Modern, HTTP2, cert.Get, nil)
	if err != nil {
		t.Fatal(err)
	}
	state, err := handshake(t, serve(t, c), &tls.Config{NextProtos: []string{"h2"}})
	if err != nil || state.NegotiatedProtocol != "h2" || state.CurveID != tls.X25519MLKEM768 {
		t.Errorf("protocol %q, curve %s, %v; want h2 and a hybrid", state.NegotiatedProtocol, state.CurveID, err)
	}
	for _, name := range []string{"", "old", "MODERN"} {
		if _, err := Config(name, HTTP1, cert.Get, nil); err == nil {
			t.Errorf("profile %q is taken", name)
		}
	}
}

// TestFIPS runs itself again with the validated module on: it cannot be switched on later.
func TestFIPS(t *testing.T) {
	if !fips140.Enabled() {
		if err := Validate(FIPS); err == nil || !strings.Contains(err.Error(), "GODEBUG=fips140=on") {
			t.Errorf("without the module: %v", err)
		}
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFIPS$", "-test.v")
		cmd.Env = append(os.Environ(), "GODEBUG=fips140=on")
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "module is on") {
			t.Errorf("with the module: %v\n%s", err, out)
		}
		return
	}
	t.Log("module is on")
	c, err := Config(FIPS, HTTP1, certificate(t).Get, nil)
	if err != nil {
		t.Fatal(err)
	}
	state, err := handshake(t, serve(t, c), &tls.Config{MaxVersion: tls.VersionTLS12})
	if err != nil || !strings.Contains(tls.CipherSuiteName(state.CipherSuite), "AES") {
		t.Errorf("%s, %v", tls.CipherSuiteName(state.CipherSuite), err)
	}
}

func TestClientCertificatesAreAskedFor(t *testing.T) {
	now := time.Now()
	ops, later := certtest.New(t, "ops", now), certtest.New(t, "later", now)
	current := ops
	c, err := Config(Intermediate, HTTP1, certificate(t).Get, func() *x509.CertPool {
		p := x509.NewCertPool()
		p.AddCert(current.Cert)
		return p
	})
	if err != nil {
		t.Fatal(err)
	}
	address := serve(t, c)
	asked := func() *x509.CertPool {
		seen := x509.NewCertPool()
		_, err := handshake(t, address, &tls.Config{GetClientCertificate: func(r *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			for _, ca := range []*certtest.CA{ops, later} {
				if strings.Contains(string(r.AcceptableCAs[0]), ca.Cert.Subject.CommonName) {
					seen.AddCert(ca.Cert)
				}
			}
			return &tls.Certificate{}, nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		return seen
	}
	want := func(ca *certtest.CA) *x509.CertPool { p := x509.NewCertPool(); p.AddCert(ca.Cert); return p }
	if !asked().Equal(want(ops)) {
		t.Error("the authority is not named")
	}
	current = later
	if !asked().Equal(want(later)) {
		t.Error("a changed authority is not named")
	}
	// A guest with a certificate of something else is not sent away.
	foreign := certtest.New(t, "mesh", now).Issue(x509.Certificate{DNSNames: []string{"guest"}}, now)
	if _, err := handshake(t, address, &tls.Config{GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &foreign, nil }}); err != nil {
		t.Errorf("a certificate of another authority: %v", err)
	}
}

func TestReplacement(t *testing.T) {
	now := time.Now()
	ca := certtest.New(t, "ca", now)
	issue := func(name string, template x509.Certificate) tls.Certificate {
		template.DNSNames = []string{name}
		return ca.Issue(template, now)
	}
	dir := t.TempDir()
	certFile, keyFile := certtest.WritePair(t, dir, issue("one", x509.Certificate{}))
	c, err := OpenCertificate(t.Context(), certFile, keyFile, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	conf, err := Config(Intermediate, HTTP1, c.Get, nil)
	if err != nil {
		t.Fatal(err)
	}
	address := serve(t, conf)
	served := func(want string) {
		t.Helper()
		state, err := handshake(t, address, &tls.Config{})
		if err != nil || state.PeerCertificates[0].DNSNames[0] != want {
			t.Errorf("%v is served, %v, want %s", state.PeerCertificates, err, want)
		}
	}
	load := c.Item().Load
	refuse := func(what, says string) {
		t.Helper()
		if err := load(t.Context()); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want an error with %q", what, err, says)
		}
		served("one")
	}
	certtest.WritePair(t, dir, issue("old", x509.Certificate{NotBefore: now.Add(-2 * time.Hour), NotAfter: now.Add(-time.Hour)}))
	refuse("an expired certificate", "ended at")
	certtest.WritePair(t, dir, issue("new", x509.Certificate{NotBefore: now.Add(time.Hour), NotAfter: now.Add(2 * time.Hour)}))
	refuse("a certificate of the future", "begins at")
	two := issue("two", x509.Certificate{})
	certtest.Write(t, certFile, certtest.CertPEM(two.Leaf))
	refuse("a certificate without its key yet", "does not match")
	certtest.Write(t, certFile, []byte("-----BEGIN"))
	refuse("half a file", "reading TLS certificate")
	if err := os.Remove(keyFile); err != nil {
		t.Fatal(err)
	}
	refuse("no key", "reading TLS certificate")
	certtest.WritePair(t, dir, two)
	if err := load(t.Context()); err != nil {
		t.Fatal(err)
	}
	served("two")
	if c.Current().Leaf.DNSNames[0] != "two" {
		t.Error("Current is another one")
	}
}

func TestStart(t *testing.T) {
	now := time.Now()
	dir := t.TempDir()
	if _, err := OpenCertificate(t.Context(), filepath.Join(dir, "none"), filepath.Join(dir, "none"), time.Now); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	expired := certtest.New(t, "ca", now).Issue(x509.Certificate{NotBefore: now.Add(-2 * time.Hour), NotAfter: now.Add(-time.Hour)}, now)
	certFile, keyFile := certtest.WritePair(t, dir, expired)
	if _, err := OpenCertificate(context.Background(), certFile, keyFile, time.Now); err != nil {
		t.Errorf("a broker does not start with an expired certificate: %v", err)
	}
}
