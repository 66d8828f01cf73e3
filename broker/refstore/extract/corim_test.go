package extract

import (
	"bytes"
	"crypto"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/veraison/go-cose"
)

type m = map[any]any

type list = []any

func encodeCBOR(t testing.TB, v any) []byte {
	t.Helper()
	b, err := cbor.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var sum = bytes.Repeat([]byte{7}, 32)

// manifest makes a CoRIM of measurements of one class, and of what is given for it to have besides.
func manifest(t testing.TB, more m, measurements ...any) []byte {
	t.Helper()
	return manifestOf(t, more, list{m{0: m{1: "ACME", 2: "Road Runner"}}, measurements})
}

func manifestOf(t testing.TB, more m, triples ...any) []byte {
	t.Helper()
	c := m{0: "id", 1: list{cbor.Tag{Number: 506, Content: encodeCBOR(t, m{4: m{0: triples}})}}}
	for k, v := range more {
		c[k] = v
	}
	return encodeCBOR(t, cbor.Tag{Number: 501, Content: c})
}

func plain(t testing.TB) []byte {
	return manifest(t, nil, m{0: "fw", 1: m{2: list{list{1, sum}}, 4: cbor.Tag{Number: 560, Content: []byte{0xab}}, 11: "n", 8: "s"}})
}

// cosign signs a CoRIM; change may change the message before, chain are its certificates.
func cosign(t testing.TB, key crypto.Signer, alg cose.Algorithm, payload []byte, change func(*cose.Sign1Message),
	chain ...*x509.Certificate) []byte {
	t.Helper()
	signer, err := cose.NewSigner(alg, key)
	if err != nil {
		t.Fatal(err)
	}
	msg := cose.NewSign1Message()
	msg.Headers.Protected.SetAlgorithm(alg)
	msg.Headers.Protected[cose.HeaderLabelContentType] = "application/rim+cbor"
	if len(chain) > 0 {
		var ders []any
		for _, c := range chain {
			ders = append(ders, c.Raw)
		}
		msg.Headers.Unprotected[cose.HeaderLabelX5Chain] = ders
	}
	msg.Payload = payload
	if change != nil {
		change(msg)
	}
	if err := msg.Sign(rand.Reader, nil, signer); err != nil {
		t.Fatal(err)
	}
	raw, err := msg.MarshalCBOR()
	if err != nil {
		t.Fatal(err)
	}
	return encodeCBOR(t, cbor.Tag{Number: 502, Content: cbor.RawMessage(raw)})
}

func TestCoRIMUnsigned(t *testing.T) {
	v, err := (*Trust)(nil).Extract("corim", plain(t), now)
	if err != nil {
		t.Fatal(err)
	}
	digests, raw := string(v.Named["ACME/Road Runner/fw/n/s/digests"]), string(v.Named["ACME/Road Runner/fw/n/s/raw_bytes"])
	if len(v.Named) != 2 || digests != `["`+strings.Repeat("07", 32)+`"]` || raw != `"ab"` || v.Signer != Unsigned {
		t.Errorf("got %+v", v)
	}
	key := ecKey(t, elliptic.P256())
	anchored := CoRIM{Anchors: []string{file(t, publicPEM(t, key))}}
	if v, err := load(t, Config{CoRIM: anchored}).Extract("corim", plain(t), now); err != nil || v.Signer != Unsigned {
		t.Errorf("with anchors: %+v, %v", v, err)
	}
	anchored.RequireSigned = true
	refused(t, load(t, Config{CoRIM: anchored}), "corim", plain(t), "not signed")
	// Nobody can tell whether this signature is good: it counts for nothing.
	doc := cosign(t, key, cose.AlgorithmES256, plain(t), nil)
	if v, err := load(t, Config{}).Extract("corim", doc, now); err != nil || v.Signer != Unsigned {
		t.Errorf("signed, without anchors: %+v, %v", v, err)
	}
}

func TestCoRIMNames(t *testing.T) {
	digest := func(b byte) any { return m{2: list{list{"x", []byte{b}}}} }
	v, err := (*Trust)(nil).Extract("corim", manifest(t, nil, m{0: 1, 1: digest(1)}, m{0: 1, 1: digest(2)}, m{0: 1, 1: digest(1)}), now)
	if err != nil || string(v.Named["ACME/Road Runner/claim1/digests"]) != `["01","02"]` {
		t.Errorf("alternatives of one element: %+v, %v", v, err)
	}
	oid := func(b byte) any { return cbor.Tag{Number: 111, Content: []byte{b}} }
	refused(t, nil, "corim", manifest(t, nil, m{0: oid(1), 1: digest(1)}, m{0: oid(2), 1: digest(2)}), "two elements")
	class := func(id byte) any { return m{0: m{0: cbor.Tag{Number: 560, Content: []byte{id}}, 1: "ACME"}} }
	refused(t, nil, "corim", manifestOf(t, nil, list{class(1), list{m{1: digest(1)}}}, list{class(2), list{m{1: digest(2)}}}), "two elements")
	raw := func(b byte) any { return m{1: m{4: cbor.Tag{Number: 560, Content: []byte{b}}}} }
	refused(t, nil, "corim", manifest(t, nil, raw(1), raw(2)), "two values")
	refused(t, nil, "corim", manifest(t, nil, m{0: 1, 1: m{1: 7}}), "names no value")
}

func TestCoRIMTimes(t *testing.T) {
	at := func(d time.Duration) any { return cbor.Tag{Number: 1, Content: now.Add(d).Unix()} }
	fw := m{0: "fw", 1: m{2: list{list{1, sum}}}}
	v, err := (*Trust)(nil).Extract("corim", manifest(t, m{4: m{0: at(-time.Hour), 1: at(time.Hour)}}, fw), now)
	if err != nil || !v.NotAfter.Equal(now.Add(time.Hour)) {
		t.Errorf("got %+v, %v", v, err)
	}
	refused(t, nil, "corim", manifest(t, m{4: m{1: at(0)}}, fw), "was valid until")
	refused(t, nil, "corim", manifest(t, m{4: m{0: at(time.Hour), 1: at(2 * time.Hour)}}, fw), "valid from")
	key := ecKey(t, elliptic.P256())
	trust := load(t, Config{CoRIM: CoRIM{Anchors: []string{file(t, publicPEM(t, key))}}})
	meta := encodeCBOR(t, m{0: m{0: "x"}, 1: m{1: at(-time.Hour)}})
	refused(t, trust, "corim", cosign(t, key, cose.AlgorithmES256, plain(t), func(msg *cose.Sign1Message) {
		msg.Headers.Protected[int64(8)] = meta
	}), "was valid until")
}

func TestCoRIMSigned(t *testing.T) {
	for name, c := range map[string]struct {
		key crypto.Signer
		alg cose.Algorithm
	}{
		"P-256": {ecKey(t, elliptic.P256()), cose.AlgorithmES256}, "P-384": {ecKey(t, elliptic.P384()), cose.AlgorithmES384},
		"P-521": {ecKey(t, elliptic.P521()), cose.AlgorithmES512}, "Ed25519": {edKey(t), cose.AlgorithmEdDSA},
		"RSA": {rsaKey(t, 2048), cose.AlgorithmPS256},
	} {
		trust := load(t, Config{CoRIM: CoRIM{RequireSigned: true, Anchors: []string{
			file(t, publicPEM(t, ecKey(t, elliptic.P256())), publicPEM(t, c.key))}}})
		doc := cosign(t, c.key, c.alg, plain(t), nil)
		v, err := trust.Extract("corim", doc, now)
		if err != nil || !strings.HasPrefix(v.Signer, "sha256:") || len(v.Named) != 2 {
			t.Errorf("%s: got %+v, %v", name, v, err)
		}
		for _, outer := range [][]byte{doc[3:], doc[4:], append([]byte{0xd9, 0x01, 0xf4}, doc...)} {
			if _, err := trust.Extract("corim", outer, now); (err == nil) != (outer[0] != 0x84) {
				t.Errorf("%s: with other tags (%x…): %v", name, outer[:3], err)
			}
		}
		step := 1
		if name != "Ed25519" {
			step = 13 // the others take long
		}
		for i := 0; i < len(doc); i += step {
			bad := slices.Clone(doc)
			bad[i] ^= 1
			if v, err := trust.Extract("corim", bad, now); err == nil && i > 4 {
				t.Errorf("%s: byte %d of %d changed: accepted with %+v", name, i, len(doc), v)
			}
			if _, err := trust.Extract("corim", doc[:i], now); err == nil {
				t.Errorf("%s: cut to %d bytes it is accepted", name, i)
			}
		}
	}
}

func TestCoRIMForged(t *testing.T) {
	key, other := ecKey(t, elliptic.P256()), ecKey(t, elliptic.P256())
	trust := load(t, Config{CoRIM: CoRIM{Anchors: []string{file(t, publicPEM(t, key))}}})
	es256 := cose.AlgorithmES256
	refused(t, trust, "corim", cosign(t, other, es256, plain(t), nil), "signed by none of corim.anchors")
	refused(t, trust, "corim", cosign(t, ecKey(t, elliptic.P384()), cose.AlgorithmES384, plain(t), nil), "not one of a *ecdsa.PublicKey")
	refused(t, trust, "corim", cosign(t, key, es256, plain(t), func(msg *cose.Sign1Message) {
		msg.Headers.Protected[cose.HeaderLabelContentType] = "text/plain"
	}), "content type")
	refused(t, trust, "corim", cosign(t, key, es256, plain(t), func(msg *cose.Sign1Message) {
		msg.Headers.Protected[cose.HeaderLabelCritical] = []any{int64(99)}
		msg.Headers.Protected[int64(99)] = 1
	}), "critical")
	refused(t, trust, "corim", cosign(t, key, es256, []byte{0xf6}, nil), "no map")
	own := newAuthority(t, "own")
	refused(t, trust, "corim", cosign(t, other, es256, plain(t), nil, own.issue(t, "self", other.Public(), nil), own.cert),
		"no authority is configured")
}

func TestCoRIMChain(t *testing.T) {
	ca, key := newAuthority(t, "root"), ecKey(t, elliptic.P256())
	trust := load(t, Config{CoRIM: CoRIM{Anchors: []string{file(t, certPEM(ca.cert))}}})
	between := &authority{key: ecKey(t, elliptic.P256())}
	between.cert = ca.issue(t, "between", between.key.Public(), func(c *x509.Certificate) {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
	})
	leaf := between.issue(t, "signer", key.Public(), nil)
	doc := cosign(t, key, cose.AlgorithmES256, plain(t), nil, leaf, between.cert)
	if v, err := trust.Extract("corim", doc, now); err != nil || v.Signer != "CN=signer" {
		t.Errorf("got %+v, %v", v, err)
	}
	if _, err := trust.Extract("corim", doc, now.Add(48*time.Hour)); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("after its time: %v", err)
	}
	pinned := load(t, Config{CoRIM: CoRIM{Anchors: []string{file(t, certPEM(leaf))}}})
	if v, err := pinned.Extract("corim", cosign(t, key, cose.AlgorithmES256, plain(t), nil), now); err != nil || v.Signer != "CN=signer" {
		t.Errorf("pinned: %+v, %v", v, err)
	}
	if _, err := pinned.Extract("corim", doc, now.Add(48*time.Hour)); err == nil {
		t.Error("a pinned certificate is accepted after its time")
	}
	foreign := newAuthority(t, "root")
	for name, chain := range map[string][]*x509.Certificate{
		"other root": {foreign.issue(t, "signer", key.Public(), nil), foreign.cert}, "no intermediate": {leaf},
		"authority signs": {ca.issue(t, "ca", key.Public(), func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true })},
		"other use":       {ca.issue(t, "tls", key.Public(), func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment })},
		"other key":       {ca.issue(t, "signer", ecKey(t, elliptic.P256()).Public(), nil)},
	} {
		if v, err := trust.Extract("corim", cosign(t, key, cose.AlgorithmES256, plain(t), nil, chain...), now); err == nil {
			t.Errorf("%s: accepted with %+v", name, v)
		}
	}
}

func FuzzCoRIM(f *testing.F) {
	key := ecKey(f, elliptic.P256())
	trust := load(f, Config{CoRIM: CoRIM{RequireSigned: true, Anchors: []string{file(f, publicPEM(f, key))}}})
	doc := cosign(f, key, cose.AlgorithmES256, plain(f), nil)
	good, err := trust.Extract("corim", doc, now)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(doc)
	f.Add(plain(f))
	f.Fuzz(func(t *testing.T, data []byte) {
		if v, err := trust.Extract("corim", data, now); err == nil && (len(v.Named) != len(good.Named) || v.Signer != good.Signer) {
			t.Fatalf("forged: %+v", v)
		}
		if v, err := (*Trust)(nil).Extract("corim", data, now); err == nil && v.Signer != Unsigned {
			t.Fatalf("without anchors it is signed: %+v", v)
		}
	})
}
