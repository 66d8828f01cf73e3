package didx509_test

import (
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/cloister/cloister/wire/didx509"
	"github.com/cloister/cloister/wire/didx509/didtest"
)

func TestResolve(t *testing.T) {
	ca := didtest.NewAuthority(t)
	chain := ca.Issue(t, didtest.Leaf(), didtest.NewKey(t).Public())
	root, inter := "did:x509:0:sha256:"+didx509.Fingerprint(ca.Root), "did:x509:0:sha256:"+didx509.Fingerprint(ca.Intermediate)
	sum := sha512.Sum384(ca.Root.Raw)
	for _, tc := range []struct{ name, fault string }{
		{root + "::subject:CN:Signer%20%28test%29", ""},
		{inter + "::subject:O:Example%2C%20Inc.:C:DE:ST:BE", ""},
		{"did:x509:0:sha384:" + base64.RawURLEncoding.EncodeToString(sum[:]) + "::eku:1.3.6.1.4.1.99999.1", ""},
		{root + "::subject:2.5.4.6:DE::san:dns:sign.example", ""},
		{root + "::san:email:bob%40example.com", ""},
		{root + "::san:uri:https%3A%2F%2Fexample.com%2Fa", ""},
		{root + "::fulcio-issuer:accounts.example.com", ""},
		{root + "::subject:CN:Signer", "predicate subject"},
		{root + "::subject:L:X", "predicate subject"},
		{root + "::subject:CN:Signer%20%28test%29::eku:1.3.6.1.4.1.99999.2", "predicate eku"},
		{root + "::san:dns:other.example", "predicate san"},
		{root + "::fulcio-issuer:accounts.example.org", "predicate fulcio-issuer"},
		{"did:x509:0:sha256:" + didx509.Fingerprint(chain[0]) + "::eku:1.3.6.1.4.1.99999.1", "no authority"},
	} {
		n, err := didx509.Parse(tc.name)
		if err != nil {
			t.Fatal(err)
		}
		err = n.Resolve(chain, didtest.At)
		if tc.fault == "" && err != nil || tc.fault != "" && (err == nil || !strings.Contains(err.Error(), tc.fault)) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.fault)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	f := "did:x509:0:sha256:" + strings.Repeat("A", 43)
	for _, bad := range []string{
		"", "did:web:x", "did:x509:1:sha256:" + strings.Repeat("A", 43) + "::eku:1.2", f, f + "::", f + "::eku", f + "::eku:1", f + "::eku:1.02", f + "::eku:1.2:3",
		f + "::subject", f + "::subject:CN", f + "::subject:CN:a:CN:b", f + "::subject:XX:a", f + "::subject:CN:a b", f + "::subject:CN:%4", f + "::subject:CN:%zz",
		f + "::san:ip:1.2", f + "::san:dns", f + "::san:dns:a:b", f + "::fulcio-issuer", f + "::policy:x", f + "::eku:1.2?x", f + "/::eku:1.2",
		"did:x509:0:sha1:AAAA::eku:1.2", "did:x509:0:sha256:AAAA::eku:1.2", "did:x509:0:sha256:" + strings.Repeat("A", 42) + "B::eku:1.2",
		f + strings.Repeat("::eku:1.2", 17), f + "::subject:CN:" + strings.Repeat("a", 2048),
	} {
		if n, err := didx509.Parse(bad); err == nil {
			t.Errorf("%q is taken as %s", bad, n)
		}
	}
}

// TestChains has chains of which something is wrong.
func TestChains(t *testing.T) {
	ca, other := didtest.NewAuthority(t), didtest.NewAuthority(t)
	key := didtest.NewKey(t)
	good := ca.Issue(t, didtest.Leaf(), key.Public())
	leaf := func(change func(c *x509.Certificate)) []*x509.Certificate {
		c := didtest.Leaf()
		change(c)
		return ca.Issue(t, c, key.Public())
	}
	n, err := didx509.Parse("did:x509:0:sha256:" + didx509.Fingerprint(ca.Root) + "::eku:" + didtest.EKU.String())
	if err != nil {
		t.Fatal(err)
	}
	for name, chain := range map[string][]*x509.Certificate{
		"none":             nil,
		"leaf only":        good[:1],
		"no intermediate":  {good[0], ca.Root},
		"wrong order":      {good[0], ca.Root, ca.Intermediate},
		"other authority":  {good[0], other.Intermediate, other.Root},
		"one too many":     {good[0], ca.Intermediate, ca.Root, ca.Root},
		"unrelated inside": {good[0], other.Root, ca.Intermediate, ca.Root},
		"leaf is a CA": leaf(func(c *x509.Certificate) {
			c.IsCA, c.BasicConstraintsValid = true, true
			c.KeyUsage |= x509.KeyUsageCertSign
		}),
		"not for signatures": leaf(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }),
		"signed by a leaf":   append([]*x509.Certificate{didtest.Certificate(t, didtest.Leaf(), good[0], key.Public(), key)}, good...),
		"critical extension": leaf(func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}}}
		}),
	} {
		if err := n.Resolve(chain, didtest.At); err == nil || errors.Is(err, didx509.ErrExpired) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := n.Resolve(good, didtest.At); err != nil {
		t.Error(err)
	}
	for _, at := range []int{-1, 2} {
		if err := n.Resolve(good, didtest.Begin.AddDate(at, 0, 0)); !errors.Is(err, didx509.ErrExpired) {
			t.Errorf("in year %d: %v", at, err)
		}
	}
	// A chain that is old and wrong is wrong, not old.
	if err := n.Resolve(slices.Concat(good[:2], []*x509.Certificate{other.Root}), didtest.Begin.AddDate(2, 0, 0)); err == nil || errors.Is(err, didx509.ErrExpired) {
		t.Error(err)
	}
}

func TestEncode(t *testing.T) {
	const value = "a b:c%d~é+/-_."
	n, err := didx509.Parse("did:x509:0:sha256:" + strings.Repeat("A", 43) + "::subject:CN:" + didx509.Encode(value))
	if err != nil {
		t.Fatal(err)
	}
	leaf := didtest.Leaf()
	leaf.Subject.CommonName = value
	ca := didtest.NewAuthority(t)
	chain := ca.Issue(t, leaf, didtest.NewKey(t).Public())
	text := strings.Replace(n.String(), strings.Repeat("A", 43), didx509.Fingerprint(ca.Root), 1)
	if n, err = didx509.Parse(text); err != nil {
		t.Fatal(err)
	}
	if err := n.Resolve(chain, didtest.At); err != nil {
		t.Error(err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("did:x509:0:sha256:" + strings.Repeat("A", 43) + "::subject:CN:a%20b::san:dns:x::eku:1.2.3::fulcio-issuer:y")
	f.Fuzz(func(t *testing.T, text string) {
		n, err := didx509.Parse(text)
		if err == nil && n.String() != text {
			t.Errorf("%q became %q", text, n)
		}
	})
}
