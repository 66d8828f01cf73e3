package broker

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/client"
	"github.com/cloister/cloister/broker/clientcert/certtest"
	"github.com/cloister/cloister/broker/config"
	"github.com/cloister/cloister/test/faketpm"
	"github.com/cloister/cloister/wire/initdata"
	"github.com/cloister/cloister/wire/kbs"
)

// served is a broker as production has it: opened by a configuration, with listeners of its own and TLS.
type served struct {
	t     *testing.T
	dir   string
	ca    *certtest.CA // of the server's certificate
	cert  string       // file of the server's certificate
	roots *x509.CertPool
	tpm   *faketpm.TPM
	log   *logText
	b     *Broker
	ready Ready
	admin *client.Client // holder of the admin token; nil in other modes
	stop  func()
	now   func() time.Time // the broker's clock; nil is the machine's
}

// logText is a log that is written and read at the same time.
type logText struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// serverCertificate is one for this machine.
func serverCertificate(ca *certtest.CA) tls.Certificate {
	return ca.Issue(x509.Certificate{
		DNSNames: []string{"localhost"}, IPAddresses: loopbackAddresses, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, time.Now())
}

// newServed starts a broker. Nothing is approved and no secret is there yet.
func newServed(t *testing.T, change func(dir string, c *config.Config)) *served {
	t.Helper()
	return newServedAt(t, nil, change)
}

// newServedAt is newServed with a clock; nil is the machine's.
func newServedAt(t *testing.T, now func() time.Time, change func(dir string, c *config.Config)) *served {
	t.Helper()
	s := &served{now: now, t: t, dir: t.TempDir(), ca: certtest.New(t, "server authority", time.Now()), roots: x509.NewCertPool(), log: &logText{}}
	s.roots.AddCert(s.ca.Cert)
	s.tpm = bootedTPM(t, initToml)
	root := filepath.Join(s.dir, "maker.pem")
	certtest.Write(t, root, s.tpm.Root())
	certtest.Write(t, filepath.Join(s.dir, "ca.pem"), s.ca.PEM())
	cfg := config.Default()
	cfg.DataDir = filepath.Join(s.dir, "data")
	cfg.Server.Listen = "127.0.0.1:0"
	cfg.Server.TLSCertificate, cfg.Server.TLSKey = certtest.WritePair(t, s.dir, serverCertificate(s.ca))
	s.cert = cfg.Server.TLSCertificate
	cfg.AttestationAPI.GRPCListen, cfg.AttestationAPI.RESTListen = "127.0.0.1:0", "127.0.0.1:0"
	cfg.TPM.EKRoots = []string{root}
	if change != nil {
		change(s.dir, &cfg)
	}
	s.start(cfg)
	return s
}

func (s *served) start(cfg config.Config) {
	s.t.Helper()
	var err error
	s.b, err = Open(s.t.Context(), cfg, Options{Log: slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug})), Version: "test", Now: s.now})
	s.must(err)
	ctx, cancel := context.WithCancel(context.WithoutCancel(s.t.Context()))
	listening, done := make(chan Ready, 1), make(chan error, 1)
	b := s.b
	go func() { done <- b.Serve(ctx, func(r Ready) error { listening <- r; return nil }) }()
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Error(err)
		}
		if err := b.Close(); err != nil {
			s.t.Error(err)
		}
	})
	select {
	case s.ready = <-listening:
	case err := <-done:
		cancel()
		s.t.Fatalf("the broker does not serve: %v", err)
	}
	s.t.Cleanup(s.stop)
	if cfg.Admin.Mode == config.AdminToken {
		s.admin = s.client(s.ready.URL, filepath.Join(cfg.DataDir, AdminTokenFile))
	}
}

func (s *served) client(url, tokenFile string) *client.Client {
	s.t.Helper()
	c := client.Config{URL: url, AdminTokenFile: tokenFile}
	if strings.HasPrefix(url, "https") {
		c.CertificateFile = filepath.Join(s.dir, "ca.pem")
	}
	out, err := client.New(c)
	s.must(err)
	return out
}

func (s *served) token() string {
	s.t.Helper()
	text, err := os.ReadFile(filepath.Join(s.b.cfg.DataDir, AdminTokenFile))
	s.must(err)
	return strings.TrimSpace(string(text))
}

func (s *served) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// http is a client that shows certificates, or none; every request has a connection of its own.
func (s *served) http(shown ...tls.Certificate) *http.Client {
	return &http.Client{
		Timeout: 30 * time.Second,
		Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{
			RootCAs: s.roots,
			// Shown although its authority is not among those that the server names: what a hostile client does.
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				if len(shown) == 0 {
					return &tls.Certificate{}, nil
				}
				return &shown[0], nil
			},
		}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// do sends a request; headers are "Name: value".
func (s *served) do(c *http.Client, method, address, body string, headers ...string) (int, string) {
	s.t.Helper()
	res, text := s.send(c, method, address, body, headers...)
	return res.StatusCode, text
}

func (s *served) send(c *http.Client, method, address, body string, headers ...string) (*http.Response, string) {
	s.t.Helper()
	if !strings.Contains(address, "://") {
		address = s.ready.URL + address
	}
	req, err := http.NewRequestWithContext(s.t.Context(), method, address, strings.NewReader(body))
	s.must(err)
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Add(name, value)
	}
	res, err := c.Do(req)
	s.must(err)
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	s.must(err)
	return res, string(text)
}

// post sends a form.
func (s *served) post(c *http.Client, path string, form url.Values) (*http.Response, string) {
	s.t.Helper()
	return s.send(c, "POST", path, form.Encode(), "Content-Type: application/x-www-form-urlencoded")
}

// bootedTPM looks as after the boot of a guest with init data.
func bootedTPM(t *testing.T, document string) *faketpm.TPM {
	t.Helper()
	tpm, err := faketpm.New(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, pcr := range []int{0, 4, 7, 9} {
		tpm.Measure(pcr, []byte{byte(pcr)})
	}
	_, sum, err := initdata.Digest([]byte(document))
	if err != nil {
		t.Fatal(err)
	}
	tpm.Extend(8, sum)
	return tpm
}

// approved are the reference values of a TPM's guest.
func approved(tpm *faketpm.TPM) map[string]any {
	values := map[string]any{"tpm_init_data": []string{tpm.PCR(8)}}
	for _, i := range []int{0, 4, 7, 9} {
		values[fmt.Sprintf("tpm_pcr%02d", i)] = []string{tpm.PCR(i)}
	}
	return values
}

// approve lets the guest of the TPM have the secret.
func (s *served) approve() {
	s.t.Helper()
	s.must(s.admin.PutResource(s.t.Context(), "default/key/1", []byte(secretText)))
	s.must(s.admin.RegisterReferenceValues(s.t.Context(), approved(s.tpm)))
}

// guest is one run of the protocol against this broker.
func (s *served) guest() *guest {
	s.t.Helper()
	w := &world{t: s.t, url: s.ready.URL, clock: &clock{t: time.Now()}, tpm: s.tpm, b: s.b, transport: s.http().Transport}
	return w.guest()
}

// fetch is what a guest gets for a path below /kbs/v0/, after a handshake.
func (s *served) fetch(path string) (string, error) {
	s.t.Helper()
	g := s.guest()
	if status, answer := g.auth(); status != http.StatusOK {
		return "", fmt.Errorf("auth: %d %s", status, answer)
	}
	if status, answer := g.attest(); status != http.StatusOK {
		return "", fmt.Errorf("attest: %d %s", status, answer)
	}
	return g.open("GET", path, nil)
}

// open sends an attested guest's request and decrypts the answer.
func (g *guest) open(method, path string, body []byte) (string, error) {
	g.w.t.Helper()
	status, answer := g.do(method, "/kbs/v0/"+path, body, nil)
	if status != http.StatusOK {
		return "", fmt.Errorf("%s: %d %s", path, status, answer)
	}
	plain, err := kbs.Decrypt(answer, g.key)
	if err != nil {
		return "", fmt.Errorf("%s: %w: %.200s", path, err, answer)
	}
	return string(plain), nil
}

// wantSecret fails the test unless the approved guest gets its secret.
func (s *served) wantSecret(when string) {
	s.t.Helper()
	if got, err := s.fetch("resource/default/key/1"); err != nil || got != secretText {
		s.t.Errorf("%s the guest gets %q, %v", when, got, err)
	}
}
