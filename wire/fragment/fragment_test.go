package fragment

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"strings"
	"testing"

	"github.com/veraison/go-cose"

	"github.com/cloister/cloister/wire/didx509"
	"github.com/cloister/cloister/wire/didx509/didtest"
)

const module = "package agent_policy.fragments[\"shop/web\"]\n\nsvn := 3\n"

type signer struct {
	header Header
	key    crypto.Signer
	ca     *didtest.Authority
}

func newSigner(t testing.TB, key crypto.Signer) signer {
	t.Helper()
	ca := didtest.NewAuthority(t)
	return signer{
		header: Header{
			Issuer: "did:x509:0:sha256:" + didx509.Fingerprint(ca.Root) + "::eku:" + didtest.EKU.String(),
			Feed:   "shop/web", SVN: 3, Chain: ca.Issue(t, didtest.Leaf(), key.Public()),
		},
		key: key, ca: ca,
	}
}

func keys(t testing.TB) map[string]crypto.Signer {
	t.Helper()
	out := map[string]crypto.Signer{}
	for name, c := range map[string]elliptic.Curve{"ES256": elliptic.P256(), "ES384": elliptic.P384(), "ES512": elliptic.P521()} {
		key, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		out[name] = key
	}
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, e, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	out["PS256"], out["EdDSA"] = r, e
	return out
}

// TestSign writes with each kind of key, and reads with this package and with go-cose.
func TestSign(t *testing.T) {
	for name, key := range keys(t) {
		t.Run(name, func(t *testing.T) {
			s := newSigner(t, key)
			raw, err := Sign(s.header, []byte(module), key)
			if err != nil {
				t.Fatal(err)
			}
			m, err := Parse(raw)
			if err != nil {
				t.Fatal(err)
			}
			if err := m.Verify(didtest.At); err != nil {
				t.Error(err)
			}
			if m.Algorithm.String() != name || m.Issuer != s.header.Issuer || m.Feed != "shop/web" || m.SVN != 3 || !m.HasSVN || string(m.Payload) != module {
				t.Errorf("read %+v", m)
			}
			if err := m.Verify(didtest.Begin.AddDate(3, 0, 0)); !errors.Is(err, didx509.ErrExpired) {
				t.Errorf("three years later: %v", err)
			}
			var theirs cose.Sign1Message
			if err := theirs.UnmarshalCBOR(raw); err != nil {
				t.Fatal(err)
			}
			alg, err := theirs.Headers.Protected.Algorithm()
			if err != nil {
				t.Fatal(err)
			}
			v, err := cose.NewVerifier(alg, key.Public())
			if err != nil {
				t.Fatal(err)
			}
			if err := theirs.Verify(nil, v); err != nil {
				t.Errorf("go-cose: %v", err)
			}
		})
	}
}

// theirs signs with go-cose.
func (s signer) theirs(t testing.TB, change func(h cose.ProtectedHeader)) []byte {
	t.Helper()
	var chain []any
	for _, c := range s.header.Chain {
		chain = append(chain, c.Raw)
	}
	h := cose.ProtectedHeader{
		cose.HeaderLabelAlgorithm: cose.AlgorithmES256, cose.HeaderLabelContentType: "application/unknown+rego", cose.HeaderLabelX5Chain: chain,
		"iss": s.header.Issuer, "feed": s.header.Feed,
	}
	change(h)
	cs, err := cose.NewSigner(cose.AlgorithmES256, s.key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := cose.Sign1(rand.Reader, cs, cose.Headers{Protected: h}, []byte(module), nil)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// check parses and verifies.
func check(raw []byte) (*Message, error) {
	m, err := Parse(raw)
	if err != nil {
		return nil, err
	}
	return m, m.Verify(didtest.At)
}

func TestForeign(t *testing.T) {
	s := newSigner(t, didtest.NewKey(t))
	m, err := check(s.theirs(t, func(cose.ProtectedHeader) {}))
	if err != nil || m.HasSVN {
		t.Fatalf("%+v, %v", m, err)
	}
	claims := func(m map[any]any) func(h cose.ProtectedHeader) {
		return func(h cose.ProtectedHeader) { h[cose.HeaderLabelCWTClaims] = m }
	}
	m, err = check(s.theirs(t, func(h cose.ProtectedHeader) {
		delete(h, "iss")
		delete(h, "feed")
		claims(map[any]any{1: s.header.Issuer, 2: s.header.Feed, 6: 1700000000, "svn": 9})(h)
	}))
	if err != nil || !m.HasSVN || m.SVN != 9 || m.Feed != s.header.Feed {
		t.Fatalf("%+v, %v", m, err)
	}
	big := newSigner(t, keys(t)["ES384"])
	for name, tc := range map[string]struct {
		change func(h cose.ProtectedHeader)
		fault  string
	}{
		"no issuer":         {func(h cose.ProtectedHeader) { delete(h, "iss") }, "no issuer"},
		"no feed":           {func(h cose.ProtectedHeader) { delete(h, "feed") }, "no feed"},
		"no chain":          {func(h cose.ProtectedHeader) { delete(h, cose.HeaderLabelX5Chain) }, "no certificate chain"},
		"one certificate":   {func(h cose.ProtectedHeader) { h[cose.HeaderLabelX5Chain] = s.header.Chain[0].Raw }, "want 2 to"},
		"two issuers":       {claims(map[any]any{1: "did:x509:other", "svn": 1}), "two issuers"},
		"two feeds":         {claims(map[any]any{2: "other"}), "two feeds"},
		"negative version":  {claims(map[any]any{"svn": -1}), "the version"},
		"version as a text": {claims(map[any]any{"svn": "1"}), "the version"},
		"huge version":      {claims(map[any]any{"svn": uint64(1) << 60}), "too large"},
		"wrong issuer":      {func(h cose.ProtectedHeader) { h["iss"] = big.header.Issuer }, "no authority of the chain"},
		"wrong usage":       {func(h cose.ProtectedHeader) { h["iss"] = s.header.Issuer + "9" }, "predicate eku"},
		"no identity":       {func(h cose.ProtectedHeader) { h["iss"] = "Contoso" }, "did:x509"},
		"another chain": {func(h cose.ProtectedHeader) {
			h[cose.HeaderLabelX5Chain] = []any{big.header.Chain[0].Raw, big.header.Chain[1].Raw, big.header.Chain[2].Raw}
		}, "signature is wrong"},
		"other content": {func(h cose.ProtectedHeader) { h[cose.HeaderLabelContentType] = "application/json" }, "content type"},
		"long feed":     {func(h cose.ProtectedHeader) { h["feed"] = strings.Repeat("x", 513) }, "the feed has"},
		"critical header": {func(h cose.ProtectedHeader) {
			h[cose.HeaderLabelCritical] = []any{"feed"}
		}, "must be understood"},
		"payload hash": {func(h cose.ProtectedHeader) { h[int64(258)] = -16 }, "hash of something else"},
	} {
		if _, err := check(s.theirs(t, tc.change)); err == nil || !strings.Contains(err.Error(), tc.fault) {
			t.Errorf("%s: %v, want %q", name, err, tc.fault)
		}
	}
}

// message writes a message around a protected header, signed or not.
func message(protected, payload, signature []byte) []byte {
	b := appendHead(appendHead(nil, majorTag, 18), majorArray, 4)
	b = appendHead(appendBytes(b, protected), majorMap, 0)
	return appendBytes(appendBytes(b, payload), signature)
}

// header writes a protected header by hand.
func header(s signer, alg func(b []byte) []byte) []byte {
	b := alg(nil)
	b = appendText(appendInt(b, labelContentType), ContentType)
	b = appendHead(appendInt(b, labelX5Chain), majorArray, uint64(len(s.header.Chain)))
	for _, c := range s.header.Chain {
		b = appendBytes(b, c.Raw)
	}
	b = appendText(appendText(b, "iss"), s.header.Issuer)
	return appendText(appendText(b, "feed"), s.header.Feed)
}

func TestAlgorithms(t *testing.T) {
	s := newSigner(t, didtest.NewKey(t))
	with := func(n uint64, alg func(b []byte) []byte) []byte {
		return message(append(appendHead(nil, majorMap, n), header(s, alg)...), []byte(module), make([]byte, 64))
	}
	one := func(a int64) []byte {
		return with(5, func(b []byte) []byte { return appendInt(appendInt(b, labelAlgorithm), a) })
	}
	for name, raw := range map[string][]byte{
		"none at all":     with(4, func(b []byte) []byte { return b }),
		"null":            with(5, func(b []byte) []byte { return append(appendInt(b, labelAlgorithm), 0xf6) }),
		"none as text":    with(5, func(b []byte) []byte { return appendText(appendInt(b, labelAlgorithm), "none") }),
		"zero":            one(0),
		"RS256":           one(-257),
		"HMAC":            one(5),
		"of another kind": one(int64(PS256)),
		"another curve":   one(int64(ES384)),
		"Ed25519":         one(int64(EdDSA)),
		"zero signature":  one(int64(ES256)),
		"twice": with(6, func(b []byte) []byte {
			return appendInt(appendInt(appendInt(appendInt(b, labelAlgorithm), -7), labelAlgorithm), -7)
		}),
	} {
		if _, err := check(raw); err == nil {
			t.Errorf("algorithm %s is accepted", name)
		}
	}
}

// TestTampered flips every bit of the message in turn, but for those that cannot matter.
func TestTampered(t *testing.T) {
	s := newSigner(t, didtest.NewKey(t))
	raw, err := Sign(s.header, []byte(module), s.key)
	if err != nil {
		t.Fatal(err)
	}
	for i := range raw {
		bad := bytes.Clone(raw)
		bad[i] ^= 1 << (i % 8)
		if _, err := check(bad); err == nil {
			t.Errorf("a change of byte %d is not noticed", i)
		}
		if _, err := check(raw[:i]); err == nil {
			t.Errorf("%d bytes are enough", i)
		}
	}
	if _, err := check(append(bytes.Clone(raw), 0)); err == nil {
		t.Error("a byte too many is not noticed")
	}
	big := append(bytes.Clone(raw), make([]byte, MaxBytes)...)
	if _, err := check(big); err == nil || !strings.Contains(err.Error(), "the limit is") {
		t.Errorf("too large: %v", err)
	}
}

func TestSignRefuses(t *testing.T) {
	s := newSigner(t, didtest.NewKey(t))
	if _, err := Sign(s.header, []byte(module), didtest.NewKey(t)); err == nil {
		t.Error("a key signs that is not the certificate's")
	}
	h := s.header
	h.Feed = ""
	if _, err := Sign(h, []byte(module), s.key); err == nil {
		t.Error("signed without a feed")
	}
	h = s.header
	h.Chain = []*x509.Certificate{}
	if _, err := Sign(h, []byte(module), s.key); err == nil {
		t.Error("signed without a chain")
	}
	if _, err := Sign(s.header, make([]byte, MaxBytes), s.key); err == nil {
		t.Error("signed what is too large")
	}
}

// TestManyItems: a map whose number of values does not fit into a number is not an empty one.
func TestManyItems(t *testing.T) {
	for _, raw := range []string{"\xbb\x80\x00\x00\x00\x00\x00\x00\x00", "\xbb\xff\xff\xff\xff\xff\xff\xff\xff", "\x9b\x80\x00\x00\x00\x00\x00\x00\x00", "\xb9\x01\x01"} {
		if err := (&reader{data: []byte(raw)}).skip(0); err == nil || !strings.Contains(err.Error(), "too many") {
			t.Errorf("%x: %v", raw, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	s := newSigner(f, didtest.NewKey(f))
	raw, err := Sign(s.header, []byte(module), s.key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add(message([]byte{0xa0}, nil, nil))
	f.Add([]byte("\xd2\x84\x41\xa0\xbf\xff\x40\x40"))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := Parse(data)
		if err != nil {
			return
		}
		if m.Issuer == "" || m.Feed == "" || len(m.Chain) == 0 {
			t.Errorf("read %+v", m)
		}
		if m.Verify(didtest.At) == nil && (m.Feed != s.header.Feed || string(m.Payload) != module) {
			t.Error("something is verified that nobody has signed")
		}
	})
}
