package broker

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/cloister/cloister/broker/adminauth"
	"github.com/cloister/cloister/broker/clientcert/certtest"
	"github.com/cloister/cloister/broker/config"
	"github.com/cloister/cloister/wire/as"
)

var loopbackAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}

// staff are administrators with certificates.
type staff struct {
	*served
	people                 *certtest.CA
	crl                    string
	ops, viewer, stranger  tls.Certificate
	revokedLater, imposter tls.Certificate
}

func newStaff(t *testing.T, change func(dir string, c *config.Config)) *staff {
	t.Helper()
	now := time.Now()
	w := &staff{people: certtest.New(t, "people", now)}
	person := func(ca *certtest.CA, name string) tls.Certificate {
		return ca.Issue(x509.Certificate{Subject: pkix.Name{CommonName: name}}, now)
	}
	w.ops, w.viewer, w.revokedLater = person(w.people, "ops"), person(w.people, "viewer"), person(w.people, "ops")
	w.stranger = person(w.people, "stranger")
	w.imposter = person(certtest.New(t, "people", now), "ops")
	w.served = newServed(t, func(dir string, c *config.Config) {
		authority := certtest.Write(t, filepath.Join(dir, "people.pem"), w.people.PEM())
		w.crl = certtest.Write(t, filepath.Join(dir, "people.crl"), w.people.CRL(now, now.Add(time.Hour), nil))
		c.Admin.Certificates = adminauth.CertificateConfig{
			Authorities: []string{authority}, CRLs: []string{w.crl},
			Holders: []adminauth.Holder{{Name: "cn:ops", Role: "ops"}, {Name: "cn:viewer", Role: "viewer"}},
		}
		c.Admin.Rules = []config.AdminRule{
			{Role: "ops", Paths: "/.*"}, {Role: "viewer", Paths: "/cloister/v1/status|/policy", Methods: []string{"GET"}},
		}
		if change != nil {
			change(dir, c)
		}
	})
	return w
}

const sillyPolicy = "package policy\nimport rego.v1\ndefault hardware := 97\ntrust_claims := {\"hardware\": hardware}\n"

// setByGRPC sets an attestation policy at the attestation service.
func (s *served) setByGRPC(bearer string, shown ...tls.Certificate) error {
	s.t.Helper()
	conf := &tls.Config{RootCAs: s.roots, Certificates: shown}
	conn, err := grpc.NewClient(strings.TrimPrefix(s.ready.AttestationGRPC, "https://"), grpc.WithTransportCredentials(credentials.NewTLS(conf)))
	s.must(err)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(s.t.Context(), 30*time.Second)
	defer cancel()
	if bearer != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+bearer)
	}
	_, err = as.NewAttestationServiceClient(conn).SetAttestationPolicy(ctx, &as.SetPolicyRequest{
		PolicyId: "silly_cpu", Policy: base64.RawURLEncoding.EncodeToString([]byte(sillyPolicy)),
	})
	return err
}

// setByREST does the same over HTTP.
func (s *served) setByREST(bearer string, shown ...tls.Certificate) int {
	s.t.Helper()
	body := `{"policy_id":"silly_cpu","policy":"` + base64.RawURLEncoding.EncodeToString([]byte(sillyPolicy)) + `"}`
	var headers []string
	if bearer != "" {
		headers = append(headers, "Authorization: Bearer "+bearer)
	}
	code, _ := s.do(s.http(shown...), "POST", s.ready.AttestationREST+"/policy", body, headers...)
	return code
}

// TestStaffByCertificate: a certificate opens what its role may do, on every listener, and nothing else.
func TestStaffByCertificate(t *testing.T) {
	w := newStaff(t, nil)
	w.approve()
	for _, tc := range []struct {
		who          string
		cert         []tls.Certificate
		method, path string
		want         int
	}{
		{"ops", []tls.Certificate{w.ops}, "GET", "/cloister/v1/status", 200},
		{"ops", []tls.Certificate{w.ops}, "POST", "/kbs/v0/resource/default/key/2", 200},
		{"viewer", []tls.Certificate{w.viewer}, "GET", "/cloister/v1/status", 200},
		{"viewer", []tls.Certificate{w.viewer}, "POST", "/kbs/v0/resource/default/key/2", 401},
		{"viewer", []tls.Certificate{w.viewer}, "GET", "/cloister/v1/audit", 401},
		{"a holder of nothing", []tls.Certificate{w.stranger}, "GET", "/cloister/v1/status", 401},
		{"another authority of the same name", []tls.Certificate{w.imposter}, "GET", "/cloister/v1/status", 401},
		{"nobody", nil, "GET", "/cloister/v1/status", 401},
	} {
		if code, body := w.do(w.http(tc.cert...), tc.method, tc.path, "secret two"); code != tc.want {
			t.Errorf("%s: %s %s: %d %.200s, want %d", tc.who, tc.method, tc.path, code, body, tc.want)
		}
	}
	// The token counts as well, also beside a certificate that may do less.
	if code, body := w.do(w.http(w.viewer), "GET", "/cloister/v1/audit", "", "Authorization: Bearer "+w.token()); code != 200 {
		t.Errorf("a token beside a viewer's certificate: %d %.200s", code, body)
	}
	for who, tc := range map[string]struct {
		cert []tls.Certificate
		ok   bool
	}{
		"ops": {[]tls.Certificate{w.ops}, true}, "viewer": {[]tls.Certificate{w.viewer}, false}, "nobody": {nil, false},
		"imposter": {[]tls.Certificate{w.imposter}, false},
	} {
		if code := w.setByREST("", tc.cert...); (code == 200) != tc.ok || !tc.ok && code != 401 {
			t.Errorf("policy by REST as %s: %d, want success %v", who, code, tc.ok)
		}
		if err := w.setByGRPC("", tc.cert...); (err == nil) != tc.ok {
			t.Errorf("policy by gRPC as %s: %v, want success %v", who, err, tc.ok)
		}
	}
	// The console lets a certificate in without a form, and asks others to sign in.
	if code, body := w.do(w.http(w.ops), "GET", "/console", ""); code != 200 || !strings.Contains(body, "ops") || strings.Contains(body, `name="token"`) {
		t.Errorf("console of ops: %d\n%.300s", code, body)
	}
	if code, _ := w.do(w.http(), "GET", "/console", ""); code != 303 {
		t.Errorf("console of nobody: %d, want the way to the form", code)
	}
	if code, _ := w.do(w.http(w.viewer), "GET", "/console/resources", ""); code != 403 && code != 401 {
		t.Errorf("resources in the console of a viewer: %d", code)
	}
	entries, err := w.admin.Audit(t.Context(), 0)
	w.must(err)
	found := 0
	for _, e := range entries {
		if strings.Contains(e.Reason, "cn:ops (certificate ") && (e.Event == "resource-write" || e.Event == "attestation-policy") {
			found++
		}
	}
	if found < 3 {
		t.Errorf("the audit log names the certificate %d times", found)
	}
	// Guests show whatever certificate and are served: it is not theirs that counts.
	for _, cert := range []tls.Certificate{w.imposter, w.stranger} {
		code, body := w.do(w.http(cert), "POST", "/kbs/v0/auth", `{"version":"0.4.0","tee":"tpm","extra-params":""}`)
		if code != 200 || !strings.Contains(body, "nonce") {
			t.Errorf("a guest with a foreign certificate: %d %s", code, body)
		}
	}
	w.wantSecret("with certificates configured")
}

// TestRequiredCertificate: with require_certificate neither the token nor a certificate is enough.
func TestRequiredCertificate(t *testing.T) {
	w := newStaff(t, func(_ string, c *config.Config) { c.Admin.Certificates.Required = true })
	bearer := "Authorization: Bearer " + w.token()
	for what, tc := range map[string]struct {
		cert    []tls.Certificate
		headers []string
		want    int
	}{
		"both":                 {[]tls.Certificate{w.ops}, []string{bearer}, 200},
		"token only":           {nil, []string{bearer}, 401},
		"certificate only":     {[]tls.Certificate{w.ops}, nil, 401},
		"stranger with token":  {[]tls.Certificate{w.stranger}, []string{bearer}, 401},
		"viewer may not write": {[]tls.Certificate{w.viewer}, []string{bearer}, 401},
	} {
		if code, body := w.do(w.http(tc.cert...), "POST", "/kbs/v0/resource/default/key/2", "x", tc.headers...); code != tc.want {
			t.Errorf("%s: %d %.200s, want %d", what, code, body, tc.want)
		}
	}
	if w.setByREST(w.token()) != 401 || w.setByREST(w.token(), w.ops) != 200 {
		t.Error("REST of the attestation service is content with the token alone, or not with both")
	}
	if code := status.Code(w.setByGRPC(w.token())); code == codes.OK {
		t.Error("gRPC of the attestation service is content with the token alone")
	}
	if err := w.setByGRPC(w.token(), w.ops); err != nil {
		t.Errorf("gRPC with both: %v", err)
	}
	// The console wants both as well: the token in its form, on connections with the certificate.
	b := w.browser()
	b.signIn(w.token(), http.StatusUnauthorized)
	b.http.Transport = w.http(w.ops).Transport
	b.signIn(w.token(), http.StatusSeeOther)
	b.page("/console/resources", http.StatusOK)
	b.http.Transport = w.http().Transport
	b.page("/console/resources", http.StatusSeeOther)
	b.http.Transport = w.http(w.viewer).Transport
	b.page("/console/resources", http.StatusSeeOther)
	// The administrators of tenants are bound as well.
	code, body := w.do(w.http(w.ops), "POST", "/cloister/v1/tenants", `{"name":"team-a"}`, bearer)
	if code != 200 {
		t.Fatalf("making a tenant: %d %s", code, body)
	}
	own := "Authorization: Bearer " + between(t, body, `admin_token":"`, `"`)
	if code, _ := w.do(w.http(), "GET", "/ns/team-a/cloister/v1/status", "", own); code != 401 {
		t.Errorf("a tenant's token without a certificate: %d, want 401", code)
	}
	if code, body := w.do(w.http(w.ops), "GET", "/ns/team-a/cloister/v1/status", "", own); code != 200 {
		t.Errorf("a tenant's token with a certificate: %d %s", code, body)
	}
	if code, _ := w.do(w.http(w.ops), "GET", "/ns/team-a/cloister/v1/status", "", bearer); code != 401 {
		t.Errorf("the root's token at a tenant: %d, want 401", code)
	}
}

// between is the part of a text between two marks.
func between(t *testing.T, text, from, to string) string {
	t.Helper()
	_, rest, ok := strings.Cut(text, from)
	part, _, ok2 := strings.Cut(rest, to)
	if !ok || !ok2 {
		t.Fatalf("no %q in %.300q", from, text)
	}
	return part
}

// TestCertificatesOfTenantStaff: roles that the configuration lets call a tenant's paths work with a certificate too.
func TestCertificatesOfTenantStaff(t *testing.T) {
	w := newStaff(t, func(_ string, c *config.Config) {
		c.Admin.Rules = []config.AdminRule{{Role: "ops", Paths: "/ns/team-a/.*"}, {Role: "viewer", Paths: "/ns/team-b/.*"}}
	})
	bearer := "Authorization: Bearer " + w.token()
	for _, name := range []string{"team-a", "team-b"} {
		if code, body := w.do(w.http(), "POST", "/cloister/v1/tenants", `{"name":"`+name+`"}`, bearer); code != 200 {
			t.Fatalf("making a tenant: %d %s", code, body)
		}
	}
	if code, body := w.do(w.http(w.ops), "GET", "/ns/team-a/cloister/v1/status", ""); code != 200 {
		t.Errorf("the team's own: %d %s", code, body)
	}
	for path, cert := range map[string]tls.Certificate{"/ns/team-b/cloister/v1/status": w.ops, "/ns/team-a/cloister/v1/status": w.viewer} {
		if code, _ := w.do(w.http(cert), "GET", path, ""); code != 401 {
			t.Errorf("%s by the other team: %d", path, code)
		}
	}
	if code, _ := w.do(w.http(w.ops), "GET", "/ns/team-b/cloister/v1/status", "", bearer); code != 401 {
		t.Errorf("the root's token at a tenant: %d, want 401", code)
	}
}

// TestCRLIsReplaced revokes a certificate while the broker runs: connections that are open lose their rights as well.
func TestCRLIsReplaced(t *testing.T) {
	w := newStaff(t, nil)
	kept := w.http(w.revokedLater)
	kept.Transport.(*http.Transport).DisableKeepAlives = false
	defer kept.CloseIdleConnections()
	if code, _ := w.do(kept, "GET", "/cloister/v1/status", ""); code != 200 {
		t.Fatalf("before: %d", code)
	}
	good, err := os.ReadFile(w.crl)
	w.must(err)
	now := time.Now()
	certtest.Write(t, w.crl, w.people.CRL(now, now.Add(time.Hour), nil, w.revokedLater.Leaf))
	w.must(w.b.reloads.Check(t.Context()))
	if code, body := w.do(kept, "GET", "/cloister/v1/status", ""); code != 401 || !strings.Contains(body, "revoked") {
		t.Errorf("after its revocation: %d %s", code, body)
	}
	if w.setByREST("", w.revokedLater) != 401 || w.setByGRPC("", w.revokedLater) == nil {
		t.Error("the attestation service takes a revoked certificate")
	}
	if code, _ := w.do(w.http(w.ops), "GET", "/cloister/v1/status", ""); code != 200 {
		t.Errorf("another certificate: %d", code)
	}
	// A broken list does not bring the revoked one back.
	certtest.Write(t, w.crl, good[:len(good)/2])
	if w.b.reloads.Check(t.Context()) == nil {
		t.Error("half a revocation list is taken")
	}
	if code, _ := w.do(kept, "GET", "/cloister/v1/status", ""); code != 401 {
		t.Errorf("revoked, with a broken list: %d", code)
	}
	if code, body := w.do(w.http(), "GET", "/metrics", ""); code != 200 || !strings.Contains(body, `cloister_reload_failures_total{what="client-authorities"} 1`) {
		t.Errorf("metrics do not tell of the broken list: %d", code)
	}
}

// TestServerCertificateIsReplaced: new handshakes get the new one, and a pair that is none leaves the old.
func TestServerCertificateIsReplaced(t *testing.T) {
	s := newServed(t, nil)
	serial := func(address string) string {
		t.Helper()
		conn, err := tls.Dial("tcp", strings.TrimPrefix(address, "https://"), &tls.Config{RootCAs: s.roots, NextProtos: []string{"h2", "http/1.1"}})
		s.must(err)
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	all := func(want string) {
		t.Helper()
		for _, address := range []string{s.ready.URL, s.ready.AttestationREST, s.ready.AttestationGRPC} {
			if got := serial(address); got != want {
				t.Errorf("%s has certificate %s, want %s", address, got, want)
			}
		}
	}
	first := serial(s.ready.URL)
	all(first)
	second := serverCertificate(s.ca)
	certtest.WritePair(t, filepath.Dir(s.cert), second)
	s.must(s.b.reloads.Check(t.Context()))
	all(second.Leaf.SerialNumber.String())
	if second.Leaf.SerialNumber.String() == first {
		t.Fatal("the test replaces a certificate by itself")
	}
	third := serverCertificate(s.ca)
	certtest.Write(t, s.cert, certtest.CertPEM(third.Leaf)) // and not its key
	if s.b.reloads.Check(t.Context()) == nil {
		t.Error("a certificate with another's key is taken")
	}
	all(second.Leaf.SerialNumber.String())
	if !strings.Contains(s.log.String(), "tls-certificate") {
		t.Error("the log does not tell of the broken pair")
	}
	if _, body := s.do(s.http(), "GET", "/metrics", ""); !strings.Contains(body, `cloister_reload_failures_total{what="tls-certificate"} 1`) ||
		!strings.Contains(body, "cloister_tls_certificate_expiry_seconds") {
		t.Error("metrics do not tell of the broken pair")
	}
}

// TestModernProfile refuses TLS 1.2 on every listener.
func TestModernProfile(t *testing.T) {
	s := newServed(t, func(_ string, c *config.Config) { c.Server.TLSProfile = "modern" })
	for _, address := range []string{s.ready.URL, s.ready.AttestationREST, s.ready.AttestationGRPC} {
		for version, ok := range map[uint16]bool{tls.VersionTLS12: false, tls.VersionTLS13: true} {
			conn, err := tls.Dial("tcp", strings.TrimPrefix(address, "https://"), &tls.Config{
				RootCAs: s.roots, MaxVersion: version, NextProtos: []string{"h2", "http/1.1"},
			})
			if (err == nil) != ok {
				t.Errorf("%s by %s: %v, want success %v", address, tls.VersionName(version), err, ok)
			}
			if err == nil {
				conn.Close()
			}
		}
	}
	if bytes.Contains([]byte(s.log.String()), []byte("panic")) {
		t.Error(s.log.String())
	}
}
