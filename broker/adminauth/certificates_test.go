package adminauth

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/clientcert"
	"github.com/cloister/cloister/broker/clientcert/certtest"
	"github.com/cloister/cloister/broker/tlsprofile"
)

func certificates(t *testing.T) *Certificates {
	t.Helper()
	a, err := NewCertificates([]Holder{
		{Name: "uri:spiffe://example.org/ops", Role: "admin"}, {Name: "dns:Writer.example.org", Role: "writer"},
		{Name: "cn:ann", Role: "writer"}, {Name: "cn:ann", Role: "reader"},
	}, []Rule{
		{Role: "admin", Paths: "/.*"},
		{Role: "writer", Paths: "/kbs/v0/resource/team-a/.*|/kbs/v0/reference-value", Methods: []string{"POST"}},
		{Role: "reader", Paths: "/cloister/v1/status", Methods: []string{"GET"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestCertificates(t *testing.T) {
	a := certificates(t)
	for _, tc := range []struct{ what, name, method, path, says string }{
		{"by URI", "uri:spiffe://example.org/ops", "DELETE", "/x", ""},
		{"by DNS name", "dns:writer.example.org", "POST", "/kbs/v0/resource/team-a/x/y", ""},
		{"the second role", "cn:ann", "GET", "/cloister/v1/status", ""},
		{"no certificate", "", "GET", "/x", "no client certificate"},
		{"nobody", "cn:eve", "GET", "/x", "of no administrator"},
		{"another kind", "cn:spiffe://example.org/ops", "GET", "/x", "of no administrator"},
		{"another case of a URI", "uri:spiffe://example.org/OPS", "GET", "/x", "of no administrator"},
		{"more behind the name", "uri:spiffe://example.org/ops/x", "GET", "/x", "of no administrator"},
		{"another method", "dns:writer.example.org", "DELETE", "/kbs/v0/resource/team-a/x/y", "no rule lets it"},
		{"beyond an alternative", "dns:writer.example.org", "POST", "/kbs/v0/reference-value/x", "no rule lets it"},
		{"none of the roles", "cn:ann", "POST", "/cloister/v1/status", "no rule lets it"},
	} {
		who, err := a.Admit(t.Context(), Call{Certificate: tc.name, Fingerprint: "0123456789abcdef", Method: tc.method, Path: tc.path})
		if tc.says == "" {
			if err != nil || !strings.Contains(who, tc.name) || !strings.Contains(who, "0123456789abcdef") {
				t.Errorf("%s: %q, %v", tc.what, who, err)
			}
			continue
		}
		if !errors.Is(err, ErrDenied) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %q, %v, want a denial with %q", tc.what, who, err, tc.says)
		}
	}
	problem := Call{Certificate: "uri:spiffe://example.org/ops", CertificateProblem: errors.New("revoked"), Path: "/x"}
	if _, err := a.Admit(t.Context(), problem); !errors.Is(err, ErrDenied) {
		t.Errorf("a certificate with a problem: %v", err)
	}
	for _, h := range [][]Holder{nil, {{Name: "ops", Role: "a"}}, {{Name: "cn:a"}}, {{Name: "dns:*.x", Role: "a"}}} {
		if _, err := NewCertificates(h, nil); err == nil {
			t.Errorf("holders %v are taken", h)
		}
	}
}

func TestCombinations(t *testing.T) {
	token, cert := Bearer{oneToken("x")}, certificates(t)
	const ops = "uri:spiffe://example.org/ops"
	for _, tc := range []struct {
		what string
		auth Authority
		call Call
		ok   bool
	}{
		{"any: token", AnyOf{token, cert}, Call{Bearer: "x", Path: "/x"}, true},
		{"any: certificate", AnyOf{token, cert}, Call{Certificate: ops, Path: "/x"}, true},
		{"any: neither", AnyOf{token, cert}, Call{Bearer: "y", Certificate: "cn:eve", Path: "/x"}, false},
		{"any: of none", AnyOf{}, Call{Bearer: "x"}, false},
		{"all: both", AllOf{cert, token}, Call{Bearer: "x", Certificate: ops, Path: "/x"}, true},
		{"all: token only", AllOf{cert, token}, Call{Bearer: "x", Path: "/x"}, false},
		{"all: certificate only", AllOf{cert, token}, Call{Certificate: ops, Path: "/x"}, false},
		{"all: the certificate's role does not allow it", AllOf{cert, token}, Call{Bearer: "x", Certificate: "cn:ann", Path: "/x"}, false},
		{"all: of none", AllOf{}, Call{Bearer: "x"}, false},
	} {
		who, err := tc.auth.Admit(t.Context(), tc.call)
		if (err == nil) != tc.ok || err != nil && !errors.Is(err, ErrDenied) || tc.ok && who == "" {
			t.Errorf("%s: %q, %v, want admission %v", tc.what, who, err, tc.ok)
		}
	}
}

// TestOverTLS has real connections: what a certificate is worth is decided at each request.
func TestOverTLS(t *testing.T) {
	var clock atomic.Int64
	begin := time.Now()
	now := func() time.Time { return begin.Add(time.Duration(clock.Load())) }
	dir := t.TempDir()
	ca, other := certtest.New(t, "ops", begin), certtest.New(t, "ops", begin)
	caFile, crlFile := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "crl.pem")
	certtest.Write(t, caFile, ca.PEM())
	certtest.Write(t, crlFile, ca.CRL(begin, begin.Add(24*time.Hour), nil))
	clients, err := clientcert.Open(t.Context(), clientcert.Config{Authorities: []string{caFile}, CRLs: []string{crlFile}}, now)
	if err != nil {
		t.Fatal(err)
	}
	auth := certificates(t)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/kbs/v0/auth" { // the guests' path: nobody asks for the certificate
			return
		}
		who, err := auth.Admit(r.Context(), NewCall(r, clients))
		if err != nil {
			http.Error(w, err.Error(), http.StatusUnauthorized)
			return
		}
		_, _ = io.WriteString(w, who)
	}))
	serverCert := certtest.New(t, "broker", begin).Issue(x509.Certificate{DNSNames: []string{"broker"}}, begin)
	srv.TLS, err = tlsprofile.Config(tlsprofile.Intermediate, tlsprofile.HTTP1, func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &serverCert, nil }, clients.Pool)
	if err != nil {
		t.Fatal(err)
	}
	srv.StartTLS()
	defer srv.Close()
	client := func(cert *tls.Certificate) *http.Client {
		conf := &tls.Config{InsecureSkipVerify: true}
		if cert != nil {
			conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
		}
		tr := &http.Transport{TLSClientConfig: conf}
		t.Cleanup(tr.CloseIdleConnections)
		return &http.Client{Transport: tr, Timeout: 20 * time.Second}
	}
	get := func(c *http.Client, path string) (int, string) {
		t.Helper()
		res, err := c.Get(srv.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(body)
	}
	refused := func(what string, c *http.Client, says string) {
		t.Helper()
		if code, body := get(c, "/x"); code != http.StatusUnauthorized || !strings.Contains(body, says) {
			t.Errorf("%s: %d %s, want a refusal with %q", what, code, body, says)
		}
		if code, body := get(c, "/kbs/v0/auth"); code != http.StatusOK {
			t.Errorf("%s: the guests' path answers %d %s", what, code, body)
		}
	}
	named := func(by *certtest.CA, name string) *tls.Certificate {
		c := by.Issue(x509.Certificate{Subject: pkix.Name{CommonName: name}, DNSNames: []string{"writer.example.org"}}, begin)
		return &c
	}
	writer := client(named(ca, "w"))
	if code, body := get(writer, "/kbs/v0/resource/team-a/x/y"); code != http.StatusUnauthorized || !strings.Contains(body, "no rule lets it") {
		t.Errorf("GET as writer: %d %s", code, body)
	}
	refused("no certificate", client(nil), "no client certificate")
	refused("another authority of the same name", client(named(other, "w")), "unknown authority")
	guest := ca.Issue(x509.Certificate{Subject: pkix.Name{CommonName: "guest"}}, begin)
	refused("a certificate of nobody", client(&guest), "of no administrator")
	ann := ca.Issue(x509.Certificate{Subject: pkix.Name{CommonName: "ann"}}, begin)
	c := client(&ann)
	if code, body := get(c, "/cloister/v1/status"); code != http.StatusOK || !strings.Contains(body, "cn:ann") {
		t.Fatalf("%d %s", code, body)
	}
	certtest.Write(t, crlFile, ca.CRL(begin, begin.Add(24*time.Hour), nil, ann.Leaf))
	if err := clients.Item().Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	refused("revoked on an open connection", c, "was revoked")
	clock.Store(int64(2 * time.Hour))
	refused("expired on an open connection", client(named(ca, "w")), "expired")
	certtest.Write(t, caFile, other.PEM())
	if err := clients.Item().Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	clock.Store(0)
	refused("an authority that is no longer trusted, on an open connection", writer, "unknown authority")
	if call := NewCall(httptest.NewRequest("GET", "/x", nil), (*clientcert.Authority)(nil)); call.Certificate != "" || call.CertificateProblem != nil {
		t.Errorf("without authorities: %+v", call)
	}
}
