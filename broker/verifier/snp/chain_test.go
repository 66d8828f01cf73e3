package snp_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"

	verifier "github.com/cloister/cloister/broker/verifier/snp"
	"github.com/cloister/cloister/broker/verifier/snp/snptest"
	"github.com/cloister/cloister/tee/snp"
)

func TestLeafRefused(t *testing.T) {
	p := machine(t, snp.Milan)
	other, err := snptest.New(snp.Milan, now)
	if err != nil {
		t.Fatal(err)
	}
	p384 := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	p256 := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	for name, c := range map[string]struct {
		o   snptest.LeafOptions
		why string
	}{
		"another key":               {snptest.LeafOptions{Key: &p384.PublicKey}, "does not verify"},
		"a P-256 key":               {snptest.LeafOptions{Key: &p256.PublicKey}, "P-384"},
		"an RSA key":                {snptest.LeafOptions{Key: p.ARK.Cert.PublicKey}, "P-384"},
		"another ASK, same name":    {snptest.LeafOptions{Issuer: &other.ASK}, "not signed by SEV-Milan"},
		"signed by the ARK":         {snptest.LeafOptions{Issuer: &p.ARK}, "issuer"},
		"signed by the ASVK":        {snptest.LeafOptions{Issuer: &p.ASVK}, "issued by"},
		"a signature of PKCS #1":    {snptest.LeafOptions{Algorithm: x509.SHA384WithRSA}, "signature algorithm"},
		"a signature with SHA-256":  {snptest.LeafOptions{Algorithm: x509.SHA256WithRSAPSS}, "signature algorithm"},
		"the name of another line":  {snptest.LeafOptions{Product: "Genoa-B0"}, "product name"},
		"a product not known":       {snptest.LeafOptions{Product: "Milano"}, "product name"},
		"the name of a VLEK":        {snptest.LeafOptions{CN: "SEV-VLEK"}, "subject"},
		"no hwID":                   {snptest.LeafOptions{Drop: "4"}, "neither"},
		"a hwID of 8 bytes":         {snptest.LeafOptions{Drop: "4", Replace: make([]byte, 8)}, "hwID"},
		"a hwID of 9 bytes":         {snptest.LeafOptions{Drop: "4", Replace: make([]byte, 9)}, "hwID"},
		"no microcode level":        {snptest.LeafOptions{Drop: "3.8"}, "3.8"},
		"another boot loader level": {snptest.LeafOptions{Drop: "3.1", Replace: []byte{2, 1, 5}}, "reported TCB"},
	} {
		der := must[[]byte](t)(p.VCEK(c.o))
		refused(t, name, made(t, p, 3, nil, snptest.Cert{Type: "VCEK", Data: der}), options(t, p), c.why)
	}
	good := vcek(t, p)
	for i := 0; i < len(good.Data); i += 11 {
		bad := snptest.Cert{Type: "VCEK", Data: append([]byte(nil), good.Data...)}
		bad.Data[i] ^= 4
		refused(t, "a changed certificate", made(t, p, 3, nil, bad), options(t, p), "")
		bad.Data = bad.Data[:i+1]
		refused(t, "a cut certificate", made(t, p, 3, nil, bad), options(t, p), "")
	}
	refused(t, "evidence under AMD's own authorities", made(t, p, 3, nil, good),
		verifier.Options{ExpectedReportData: nonce, Now: now}, "not signed by SEV-Milan")
	refused(t, "a line that is not pinned", made(t, p, 3, nil, good), options(t, machine(t, snp.Genoa)), "no authority of product line Milan")
}

func TestChainInEvidence(t *testing.T) {
	p, other := machine(t, snp.Milan), must[*snptest.Platform](t)(snptest.New(snp.Milan, now))
	leaf := vcek(t, p)
	asPEM := snptest.Cert{Type: "VCEK", Data: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Data})}
	ask, ark := snptest.Cert{Type: "ASK", Data: p.ASK.Cert.Raw}, snptest.Cert{Type: "ARK", Data: p.ARK.Cert.Raw}
	foreignASK := snptest.Cert{Type: "ASK", Data: other.ASK.Cert.Raw}
	foreignARK := snptest.Cert{Type: "ARK", Data: other.ARK.Cert.Raw}
	foreignLeaf := snptest.Cert{Type: "VCEK", Data: must[[]byte](t)(p.VCEK(snptest.LeafOptions{Issuer: &other.ASK}))}
	for name, certs := range map[string][]snptest.Cert{
		"PEM": {asPEM}, "whole chain": {ark, ask, leaf},
		"empty and unknown": {{Type: "Empty", Data: []byte{1}}, leaf, {Type: "X", Data: []byte{1}}},
		"first of two":      {leaf, foreignLeaf},
	} {
		if _, err := verifier.Verify(context.Background(), made(t, p, 3, nil, certs...), options(t, p)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, certs := range map[string][]snptest.Cert{
		"a chain of another root":    {foreignARK, foreignASK, foreignLeaf},
		"an ASK of another root":     {foreignASK, foreignLeaf},
		"an ARK of another root":     {foreignARK, leaf},
		"an ASK that is no ASK":      {{Type: "ASK", Data: leaf.Data}, leaf},
		"an ASK of bytes":            {{Type: "ASK", Data: []byte{1, 2}}, leaf},
		"first of two, the other":    {foreignLeaf, leaf},
		"no leaf":                    {ask, ark},
		"17 certificates":            append(make([]snptest.Cert, 16), leaf),
		"an empty leaf":              {{Type: "VCEK"}},
		"the leaf under a wrong tag": {{Type: "ARK", Data: leaf.Data}, leaf},
	} {
		refused(t, name, made(t, p, 3, nil, certs...), options(t, p), "")
	}

	// An authority that is not pinned is believed when the pinned ARK has signed it.
	roots := must[*verifier.Roots](t)(verifier.ParseRoots(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.ARK.Cert.Raw})))
	o := options(t, p)
	o.Roots = roots
	if _, err := verifier.Verify(context.Background(), made(t, p, 3, nil, ask, leaf), o); err != nil {
		t.Errorf("an ASK in the evidence: %v", err)
	}
	refused(t, "an ASK nowhere", made(t, p, 3, nil, leaf), o, "no authority for VCEK")
	refused(t, "an ASVK for an ASK", made(t, p, 3, nil, snptest.Cert{Type: "ASK", Data: p.ASVK.Cert.Raw}, leaf), o, "issuer")
}

func TestFetchedVCEK(t *testing.T) {
	for _, line := range snp.Lines() {
		p := machine(t, line)
		s := &source{vcek: vcek(t, p).Data}
		e := made(t, p, 3, nil)
		if _, err := verifier.Verify(context.Background(), e, withSource(options(t, p), s)); err != nil {
			t.Fatal(err)
		}
		if want := line.String() + " " + hex.EncodeToString(p.HWID) + " " + p.TCB.String(); len(s.asked) != 1 || s.asked[0] != want {
			t.Errorf("asked for %q, expected %q", s.asked, want)
		}
		refused(t, "no certificate and no source", e, options(t, p), "no source")
	}
	p := machine(t, snp.Milan)
	s := &source{err: context.DeadlineExceeded}
	refused(t, "an outage", made(t, p, 3, nil), withSource(options(t, p), s), "deadline")
	s = &source{vcek: vcek(t, p).Data}
	refused(t, "version 2", made(t, p, 2, nil), withSource(options(t, p), s), "version 2")
	refused(t, "a hidden chip", made(t, p, 3, func(b []byte) { clear(b[0x1a0:0x1e0]) }), withSource(options(t, p), s), "hides")
	if s.asked != nil {
		t.Errorf("asked for %q", s.asked)
	}
}

func TestRevocation(t *testing.T) {
	p := machine(t, snp.Milan)
	other := must[*snptest.Platform](t)(snptest.New(snp.Milan, now))
	leaf := vcek(t, p)
	crl := must[[]byte](t)
	current := crl(p.CRL(now.AddDate(0, -1, 0), now.AddDate(0, 1, 0), p.ASVK.Cert))
	stale := crl(p.CRL(now.AddDate(0, -2, 0), now.AddDate(0, -1, 0)))
	future := crl(p.CRL(now.AddDate(0, 1, 0), now.AddDate(0, 2, 0)))
	foreign := crl(other.CRL(now.AddDate(0, -1, 0), now.AddDate(0, 1, 0)))
	revoked := crl(p.CRL(now.AddDate(0, -1, 0), now.AddDate(0, 1, 0), p.ASK.Cert))
	revokedARK := crl(p.CRL(now.AddDate(0, -1, 0), now.AddDate(0, 1, 0), p.ARK.Cert))
	revokedStale := crl(p.CRL(now.AddDate(0, -2, 0), now.AddDate(0, -1, 0), p.ASK.Cert))
	narrow := pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 28}, Critical: true, Value: []byte{0x30, 0}}
	extended := &x509.RevocationList{
		ThisUpdate: now.AddDate(0, -1, 0), NextUpdate: now.AddDate(0, 1, 0), ExtraExtensions: []pkix.Extension{narrow},
	}
	narrowed := crl(p.SignCRL(extended))
	extended.ExtraExtensions = nil
	extended.RevokedCertificateEntries = []x509.RevocationListEntry{{
		SerialNumber: big.NewInt(99), RevocationTime: now, ExtraExtensions: []pkix.Extension{narrow},
	}}
	narrowedEntry := crl(p.SignCRL(extended))
	for _, c := range []struct {
		name             string
		fetched, stapled []byte
		want             string // start of the claim, or "" when refused
	}{
		{"current", current, nil, "checked"},
		{"current both", current, current, "checked"},
		{"outage", nil, nil, "unavailable: the key server does not answer"},
		{"outage, stapled", nil, current, "stapled"},
		{"stale", stale, nil, "unavailable: CRL is out of date since 2026-05-01"},
		{"stale both", stale, stale, "unavailable: CRL is out of date since 2026-05-01"},
		{"future", future, nil, "unavailable: CRL is not valid before 2026-07-01"},
		{"of another ARK", foreign, nil, "unavailable: CRL is not signed by ARK-Milan"},
		{"narrowed", narrowed, nil, "unavailable: CRL has a critical extension"},
		{"narrowed entry", narrowedEntry, nil, "unavailable: an entry of the CRL has a critical extension"},
		{"garbage", []byte("garbage"), nil, "unavailable: reading the CRL"},
		{"foreign stapled", nil, foreign, "unavailable: the key server does not answer; CRL in the evidence: CRL is not signed"},
		{"revoked", revoked, nil, ""},
		{"revoked ARK", revokedARK, nil, ""},
		{"revoked, stale", revokedStale, nil, ""},
		{"revoked, stapled", nil, revoked, ""},
		{"revoked, stale stapled", stale, revokedStale, ""},
		{"revoked, good stapled", revoked, current, ""},
	} {
		certs := []snptest.Cert{leaf}
		if c.stapled != nil {
			certs = append(certs, snptest.Cert{Type: "CRL", Data: c.stapled})
		}
		e := made(t, p, 3, nil, certs...)
		o := withSource(options(t, p), &source{crl: c.fetched})
		if c.want == "" {
			refused(t, c.name, e, o, "revoked")
			continue
		}
		claims, err := verifier.Verify(context.Background(), e, o)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got, _ := claims["cert_revocation"].(string); !strings.HasPrefix(got, c.want) {
			t.Errorf("%s: claim is %q, expected %q", c.name, got, c.want)
		}
	}
}

func TestValidity(t *testing.T) {
	p := machine(t, snp.Milan)
	for name, c := range map[string]struct {
		o    snptest.LeafOptions
		days int
		want string
	}{
		"in time":     {snptest.LeafOptions{}, 0, "valid"},
		"expired":     {snptest.LeafOptions{NotAfter: now.AddDate(0, 0, -1)}, 0, "SEV-VCEK expired 2026-05-31T00:00:00Z"},
		"last day":    {snptest.LeafOptions{NotAfter: now}, 0, "valid"},
		"too early":   {snptest.LeafOptions{}, -400, "SEV-VCEK is not valid before 2025-06-01T00:00:00Z"},
		"ASK expired": {snptest.LeafOptions{NotAfter: now.AddDate(90, 0, 0)}, 21 * 366, "SEV-Milan expired 2046-06-01T00:00:00Z"},
	} {
		o := options(t, p)
		o.Now = now.AddDate(0, 0, c.days)
		e := made(t, p, 3, nil, snptest.Cert{Type: "VCEK", Data: must[[]byte](t)(p.VCEK(c.o))})
		claims, err := verifier.Verify(context.Background(), e, o)
		if err != nil || claims["cert_validity"] != c.want {
			t.Errorf("%s: %v, %v, expected %q", name, claims["cert_validity"], err, c.want)
		}
	}
}

func TestEvidenceRefused(t *testing.T) {
	p := machine(t, snp.Milan)
	o := options(t, p)
	good := string(made(t, p, 3, nil, vcek(t, p)))
	for name, text := range map[string]string{
		"nothing": "", "null": "null", "an array": "[]", "no report": `{"cert_chain":null}`, "a null report": `{"attestation_report":null}`,
		"base64 data": strings.Replace(good, `"data":[`, `"data":"AAAA","x":[`, 1),
		"too long":    strings.Repeat(" ", 1<<20) + good,
	} {
		refused(t, name, json.RawMessage(text), o, "evidence")
	}
	for n := 0; n < len(good); n += 97 {
		refused(t, "cut evidence", json.RawMessage(good[:n]), o, "")
	}
	null := strings.Replace(good, `"cert_chain":[`, `"cert_chain":null,"other":[`, 1)
	if _, err := verifier.Verify(context.Background(), json.RawMessage(null), withSource(o, &source{vcek: vcek(t, p).Data})); err != nil {
		t.Errorf("no chain: %v", err)
	}
	const unknown = `{"cert_type":{"OTHER":"00000000-0000-0000-0000-000000000001"},"data":[1]},`
	other := strings.Replace(good, `"cert_chain":[`, `"cert_chain":[`+unknown, 1)
	if _, err := verifier.Verify(context.Background(), json.RawMessage(other), o); err != nil {
		t.Errorf("a certificate of another type: %v", err)
	}
}
