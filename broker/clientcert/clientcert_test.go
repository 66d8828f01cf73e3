package clientcert

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/clientcert/certtest"
)

var start = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

func shown(certs ...*x509.Certificate) *tls.ConnectionState {
	return &tls.ConnectionState{PeerCertificates: certs}
}

func uri(t *testing.T, text string) *url.URL {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func open(t *testing.T, now *time.Time, ca *certtest.CA, crls ...string) *Authority {
	t.Helper()
	file := certtest.Write(t, filepath.Join(t.TempDir(), "ca.pem"), ca.PEM())
	a, err := Open(t.Context(), Config{Authorities: []string{file}, CRLs: crls}, func() time.Time { return *now })
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func wants(t *testing.T, what string, a *Authority, says string, certs ...*x509.Certificate) {
	t.Helper()
	id, err := a.Identify(shown(certs...))
	if says == "" {
		if err != nil || id == nil {
			t.Errorf("%s: %v, %v, want an identity", what, id, err)
		}
		return
	}
	if id != nil || !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), says) {
		t.Errorf("%s: %v, %v, want a refusal with %q", what, id, err, says)
	}
}

func TestNames(t *testing.T) {
	now := start
	ca := certtest.New(t, "ops", now)
	a := open(t, &now, ca)
	cn := func(name string) pkix.Name { return pkix.Name{CommonName: name} }
	for _, tc := range []struct {
		what     string
		template x509.Certificate
		name     string // or what the refusal says
		refused  bool
	}{
		{"common name", x509.Certificate{Subject: cn("Ann")}, "cn:Ann", false},
		{"URI before all", x509.Certificate{Subject: cn("admin"), DNSNames: []string{"admin"}, URIs: []*url.URL{uri(t, "spiffe://x/guest")}}, "uri:spiffe://x/guest", false},
		{"DNS name in another case", x509.Certificate{DNSNames: []string{"OPS.Example.org"}}, "dns:ops.example.org", false},
		{"e-mail before common name", x509.Certificate{Subject: cn("admin"), EmailAddresses: []string{"eve@x.org"}}, "email:eve@x.org", false},
		{"a common name that looks like another kind", x509.Certificate{Subject: cn("dns:ops.example.org")}, "cn:dns:ops.example.org", false},
		{"two URIs", x509.Certificate{URIs: []*url.URL{uri(t, "spiffe://x/a"), uri(t, "spiffe://x/b")}}, "2 URIs", true},
		{"wildcard", x509.Certificate{DNSNames: []string{"*.example.org"}}, "wildcards", true},
		{"NUL", x509.Certificate{Subject: cn("admin\x00.evil")}, "cannot be seen", true},
		{"right-to-left mark", x509.Certificate{Subject: cn("admin\u202e")}, "cannot be seen", true},
		{"blank at the end", x509.Certificate{Subject: cn("admin ")}, "cannot be seen", true},
		{"long", x509.Certificate{Subject: cn(strings.Repeat("a", 300))}, "at most", true},
		{"no name", x509.Certificate{Subject: pkix.Name{Organization: []string{"admin"}}}, "no name", true},
		{"for servers", x509.Certificate{Subject: cn("admin"), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, "key usage", true},
	} {
		cert := ca.Issue(tc.template, now).Leaf
		if tc.refused {
			wants(t, tc.what, a, tc.name, cert)
			continue
		}
		if id, err := a.Identify(shown(cert)); err != nil || id.Name != tc.name || len(id.Fingerprint) != 64 {
			t.Errorf("%s: %+v, %v, want %s", tc.what, id, err, tc.name)
		}
	}
}

func TestChains(t *testing.T) {
	now := start
	ca, other := certtest.New(t, "ops", now), certtest.New(t, "ops", now) // the same name, another key
	middle := ca.Under("middle", now)
	a := open(t, &now, ca)
	ann := x509.Certificate{Subject: pkix.Name{CommonName: "ann"}}
	wants(t, "another authority", a, "signed by unknown authority", other.Issue(ann, now).Leaf)
	below := middle.Issue(ann, now).Leaf
	wants(t, "intermediate shown", a, "", below, middle.Cert)
	wants(t, "intermediate missing", a, "unknown authority", below)
	wants(t, "the authority itself", a, "authority's own", ca.Cert)
	wants(t, "too many", a, "at most 8", append([]*x509.Certificate{below}, make([]*x509.Certificate, 8)...)...)
	if id, err := a.Identify(shown()); id != nil || err != nil {
		t.Errorf("no certificate: %v, %v", id, err)
	}
	if id, err := a.Identify(nil); id != nil || err != nil {
		t.Errorf("no TLS: %v, %v", id, err)
	}
	cert := ca.Issue(ann, now).Leaf
	wants(t, "in time", a, "", cert)
	now = now.Add(2 * time.Hour)
	wants(t, "expired since the connection began", a, "expired", cert)
	now = start.Add(-2 * time.Hour)
	wants(t, "not yet", a, "not yet valid", cert)
}

func TestRevocation(t *testing.T) {
	now := start
	ca, other := certtest.New(t, "ops", now), certtest.New(t, "ops", now)
	ann := ca.Issue(x509.Certificate{Subject: pkix.Name{CommonName: "ann"}}, now).Leaf
	eve := ca.Issue(x509.Certificate{Subject: pkix.Name{CommonName: "eve"}}, now).Leaf
	file := filepath.Join(t.TempDir(), "crl.pem")
	day := start.Add(24 * time.Hour)
	certtest.Write(t, file, ca.CRL(start, start.Add(30*time.Minute), nil))
	a := open(t, &now, ca, file)
	wants(t, "not revoked", a, "", eve)

	certtest.Write(t, file, ca.CRL(start, start.Add(30*time.Minute), nil, eve))
	if err := a.Item().Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	wants(t, "revoked while connected", a, "was revoked", eve)
	wants(t, "another certificate", a, "", ann)
	now = now.Add(45 * time.Minute)
	wants(t, "the list has ended", a, "no current revocation list", ann)
	wants(t, "revoked in a list that has ended", a, "was revoked", eve)
	now = start

	certtest.Write(t, file, other.CRL(start, day, nil))
	if err := a.Item().Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	wants(t, "a list of another authority with the same name", a, "no current revocation list", ann)

	good := ca.CRL(start, day, nil, eve)
	certtest.Write(t, file, good)
	if err := a.Item().Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	delta := pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 27}, Critical: true, Value: []byte{2, 1, 1}}
	for what, text := range map[string][]byte{
		"a delta list": ca.CRL(start, day, func(l *x509.RevocationList) { l.ExtraExtensions = []pkix.Extension{delta} }),
		"noise":        []byte("noise"), "a certificate": ca.PEM(), "nothing": nil, "half a list": good[:len(good)/2],
	} {
		certtest.Write(t, file, text)
		if err := a.Item().Load(t.Context()); err == nil {
			t.Errorf("%s is taken", what)
		}
		wants(t, "after "+what, a, "was revoked", eve)
	}
}

// TestIntermediateRevoked wants the lists of every authority in the chain.
func TestIntermediateRevoked(t *testing.T) {
	now := start
	ca := certtest.New(t, "root", now)
	middle := ca.Under("middle", now)
	ann := middle.Issue(x509.Certificate{Subject: pkix.Name{CommonName: "ann"}}, now).Leaf
	day := start.Add(24 * time.Hour)
	dir := t.TempDir()
	sub := certtest.Write(t, filepath.Join(dir, "sub.crl"), middle.CRL(start, day, nil))
	root := certtest.Write(t, filepath.Join(dir, "root.crl"), ca.CRL(start, day, nil))
	wants(t, "both lists", open(t, &now, ca, sub, root), "", ann, middle.Cert)
	wants(t, "the root's list is missing", open(t, &now, ca, sub), "no current revocation list", ann, middle.Cert)
	certtest.Write(t, root, ca.CRL(start, day, nil, middle.Cert))
	wants(t, "the intermediate is revoked", open(t, &now, ca, sub, root), "was revoked", ann, middle.Cert)
}

func TestFiles(t *testing.T) {
	now := start
	ca := certtest.New(t, "ops", now)
	dir := t.TempDir()
	leaf := ca.Issue(x509.Certificate{Subject: pkix.Name{CommonName: "ann"}}, now).Leaf
	for what, text := range map[string][]byte{"empty": nil, "a leaf": certtest.CertPEM(leaf), "a list": ca.CRL(now, now.Add(time.Hour), nil), "large": make([]byte, maxFile+1)} {
		file := certtest.Write(t, filepath.Join(dir, "ca.pem"), text)
		if _, err := Open(t.Context(), Config{Authorities: []string{file}}, time.Now); err == nil {
			t.Errorf("%s is taken as authorities", what)
		}
	}
	if _, err := Open(t.Context(), Config{Authorities: []string{filepath.Join(dir, "none")}}, time.Now); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	if err := (Config{CRLs: []string{"x"}}).Validate(); err == nil {
		t.Error("lists without authorities are taken")
	}
	if err := DefaultConfig().Validate(); err != nil {
		t.Error(err)
	}
}

func FuzzNormalName(f *testing.F) {
	for _, s := range []string{"dns:Ops.example.", "uri:spiffe://x/y", "cn:a b", "email:a@b", "x:y", "dns:*.x", "cn:\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		name, err := NormalName(text)
		if err != nil {
			return
		}
		if again, err := NormalName(name); err != nil || again != name {
			t.Errorf("%q becomes %q and then %q, %v", text, name, again, err)
		}
	})
}

func FuzzParseCRLs(f *testing.F) {
	now := start
	f.Add(certtest.New(f, "ops", now).CRL(now, now.Add(time.Hour), nil))
	f.Add([]byte("-----BEGIN X509 CRL-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) { _, _ = parseCRLs(text) })
}
