package tpm_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/cloister/cloister/internal/needs"
	"github.com/cloister/cloister/tee/tpm"
)

// shared finds the evidence collection that lives beside the repository.
func shared(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("CLOISTER_SHARED")
	if dir == "" {
		wd, err := os.Getwd()
		if err != nil {
			t.Fatal(err)
		}
		for root := wd; ; root = filepath.Dir(root) {
			if _, err := os.Stat(filepath.Join(root, "go.mod")); err == nil {
				dir = filepath.Join(root, "..", "shared")
				break
			}
			if root == filepath.Dir(root) {
				t.Fatal("no go.mod above the working directory")
			}
		}
	}
	dir = filepath.Join(dir, "testdata", "evidence")
	if _, err := os.Stat(filepath.Join(dir, "cases.json")); err != nil {
		needs.Optional(t, "recorded evidence, which is not part of the repository, is absent (set CLOISTER_SHARED): %v", err)
	}
	return dir
}

type testCase struct {
	ID, Platform, Msg, Sig, AK, PCRs, Nonce, Expect, Evidence string
	AKTPMT                                                    string `json:"ak_tpmt"`
	PCRDigest                                                 string `json:"pcr_digest"`
	Selection                                                 [][2]json.RawMessage
}

// check is what a verifier does with a quote.
func check(ak crypto.PublicKey, msg []byte, sig *tpm.Signature, nonce []byte) (*tpm.Attest, error) {
	if err := tpm.VerifySignature(ak, msg, sig); err != nil {
		return nil, err
	}
	a, err := tpm.ParseAttest(msg)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(a.ExtraData, nonce) {
		return nil, errors.New("qualifying data differs")
	}
	return a, nil
}

func TestRealQuotes(t *testing.T) {
	dir := shared(t)
	read := func(t *testing.T, name string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	var cases []testCase
	text := read(t, "cases.json")
	var raw []json.RawMessage
	if err := json.Unmarshal(text, &raw); err != nil {
		t.Fatal(err)
	}
	for _, r := range raw {
		var p struct{ Platform string }
		if err := json.Unmarshal(r, &p); err != nil {
			t.Fatal(err)
		}
		if p.Platform != "tpm" && p.Platform != "tpm-google" && p.Platform != "tpm-coco" {
			continue
		}
		var c testCase
		if err := json.Unmarshal(r, &c); err != nil {
			t.Fatal(err)
		}
		cases = append(cases, c)
	}
	if len(cases) < 12 {
		t.Fatalf("cases.json lists %d TPM quotes, expected at least 12", len(cases))
	}
	for _, c := range cases {
		t.Run(c.ID, func(t *testing.T) {
			nonce, err := hex.DecodeString(c.Nonce)
			if err != nil {
				t.Fatal(err)
			}
			if c.Platform == "tpm-coco" {
				checkCoCo(t, read(t, c.Evidence), nonce)
				return
			}
			sig, err := tpm.ParseSignature(read(t, c.Sig))
			if err != nil {
				t.Fatal(err)
			}
			var ak crypto.PublicKey
			if c.AKTPMT != "" {
				p, err := tpm.ParsePublic(read(t, c.AKTPMT))
				if err != nil {
					t.Fatal(err)
				}
				if err := p.CheckAttestationKey(); err != nil {
					t.Error(err)
				}
				ak = p.Key
			} else {
				ak = publicPEM(t, read(t, c.AK))
			}
			a, err := check(ak, read(t, c.Msg), sig, nonce)
			if (err == nil) != (c.Expect == "valid") {
				t.Fatalf("check says %v, expected %s", err, c.Expect)
			}
			if err != nil {
				return
			}
			if c.PCRDigest != "" && hex.EncodeToString(a.PCRDigest) != c.PCRDigest {
				t.Errorf("PCR digest %x, expected %s", a.PCRDigest, c.PCRDigest)
			}
			checkSelection(t, c, a)
			checkPCRs(t, c, a, sig, read)
		})
	}
}

func publicPEM(t *testing.T, text []byte) crypto.PublicKey {
	t.Helper()
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatal("no PEM block")
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func checkSelection(t *testing.T, c testCase, a *tpm.Attest) {
	if c.Selection == nil {
		return
	}
	if len(a.Selections) != len(c.Selection) {
		t.Fatalf("%d selections, expected %d", len(a.Selections), len(c.Selection))
	}
	for i, s := range c.Selection {
		got, err := json.Marshal([]any{a.Selections[i].Bank.String(), a.Selections[i].PCRs})
		if err != nil {
			t.Fatal(err)
		}
		var want bytes.Buffer
		if err := json.Compact(&want, []byte("["+string(s[0])+","+string(s[1])+"]")); err != nil {
			t.Fatal(err)
		}
		if string(got) != want.String() {
			t.Errorf("selection %s, expected %s", got, want.String())
		}
	}
}

// checkPCRs recomputes the PCR digest from the values beside the quote.
func checkPCRs(t *testing.T, c testCase, a *tpm.Attest, sig *tpm.Signature, read func(*testing.T, string) []byte) {
	if c.PCRs == "" {
		return
	}
	values := tpm.PCRValues{}
	if c.AKTPMT != "" {
		var hexValues map[int]string
		if err := json.Unmarshal(read(t, c.PCRs), &hexValues); err != nil {
			t.Fatal(err)
		}
		bank := map[int][]byte{}
		for i, h := range hexValues {
			v, err := hex.DecodeString(h)
			if err != nil {
				t.Fatal(err)
			}
			bank[i] = v
		}
		values[a.Selections[0].Bank] = bank
	} else {
		values = toolsPCRs(t, read(t, c.PCRs), a.Selections)
	}
	h, _ := sig.Hash.Hash()
	got, err := tpm.PCRDigest(a.Selections, values, h)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, a.PCRDigest) {
		t.Errorf("PCR digest of the values is %x, the quote has %x", got, a.PCRDigest)
	}
	bank := a.Selections[0].Bank
	first := a.Selections[0].PCRs[0]
	values[bank][first] = bytes.Repeat([]byte{0xaa}, len(values[bank][first]))
	if got, err = tpm.PCRDigest(a.Selections, values, h); err != nil || bytes.Equal(got, a.PCRDigest) {
		t.Errorf("digest of changed values still matches (%v)", err)
	}
	delete(values[bank], first)
	if _, err := tpm.PCRDigest(a.Selections, values, h); err == nil {
		t.Error("digest computed without a selected value")
	}
}

// toolsPCRs reads the values in the binary form of tpm2_quote: a little-endian
// TPML_PCR_SELECTION (16 fixed slots), then TPML_DIGEST lists of eight slots.
func toolsPCRs(t *testing.T, b []byte, sel []tpm.PCRSelection) tpm.PCRValues {
	t.Helper()
	le := binary.LittleEndian
	off := 4 + 16*8
	lists := int(le.Uint32(b[off:]))
	off += 4
	var digests [][]byte
	for range lists {
		n := int(le.Uint32(b[off:]))
		for i := range n {
			d := b[off+4+i*66:]
			digests = append(digests, append([]byte(nil), d[2:2+le.Uint16(d)]...))
		}
		off += 4 + 8*66
	}
	out := tpm.PCRValues{}
	for _, s := range sel {
		out[s.Bank] = map[int][]byte{}
		for _, i := range s.PCRs {
			if len(digests) == 0 {
				t.Fatal("fewer values than selected registers")
			}
			out[s.Bank][i], digests = digests[0], digests[1:]
		}
	}
	return out
}

func checkCoCo(t *testing.T, text, nonce []byte) {
	var ev struct {
		Quote struct {
			Signature, Message []byte
			PCRs               []string
		} `json:"tpm_quote"`
		AK []byte `json:"ak_public"`
	}
	if err := json.Unmarshal(text, &ev); err != nil {
		t.Fatal(err)
	}
	sig, err := tpm.ParseSignature(ev.Quote.Signature)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.ParsePKIXPublicKey(ev.AK)
	if err != nil {
		t.Fatal(err)
	}
	a, err := check(key, ev.Quote.Message, sig, nonce)
	if err != nil {
		t.Fatal(err)
	}
	values := tpm.PCRValues{tpm.AlgSHA256: {}}
	for i, h := range ev.Quote.PCRs {
		if values[tpm.AlgSHA256][i], err = hex.DecodeString(h); err != nil {
			t.Fatal(err)
		}
	}
	got, err := tpm.PCRDigest(a.Selections, values, crypto.SHA256)
	if err != nil || !bytes.Equal(got, a.PCRDigest) {
		t.Errorf("PCR digest %x (%v), the quote has %x", got, err, a.PCRDigest)
	}
	ev.Quote.Message[len(ev.Quote.Message)-1] ^= 1
	if err := tpm.VerifySignature(key, ev.Quote.Message, sig); !errors.Is(err, tpm.ErrBadSignature) {
		t.Errorf("changed message: %v, expected %v", err, tpm.ErrBadSignature)
	}
}

func TestPublicAreas(t *testing.T) {
	dir := shared(t)
	for _, name := range []string{"ecdsa-p256-sha256", "ecdsa-p384-sha384", "rsapss-sha256", "rsassa-sha256", "rsassa-twobank"} {
		base := filepath.Join(dir, "tpm", "swtpm-ubuntu2404", name)
		b, err := os.ReadFile(base + ".ak.tpm2b_public")
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(base + ".ak.pem")
		if err != nil {
			t.Fatal(err)
		}
		p, err := tpm.ParsePublic2B(b)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		want := publicPEM(t, text).(interface{ Equal(crypto.PublicKey) bool })
		if !want.Equal(p.Key) {
			t.Errorf("%s: key differs from the PEM file", name)
		}
		sum := sha256.Sum256(b[2:])
		if want := append([]byte{0, 0x0b}, sum[:]...); !bytes.Equal(p.Name(), want) {
			t.Errorf("%s: name %x, expected %x", name, p.Name(), want)
		}
		if err := p.CheckAttestationKey(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := tpm.ParsePublic2B(append(b, 0)); err == nil {
			t.Errorf("%s: parsed with a byte left over", name)
		}
		for n := range b {
			if _, err := tpm.ParsePublic2B(b[:n]); err == nil {
				t.Errorf("%s: parsed when cut to %d bytes", name, n)
			}
		}
		c := append([]byte(nil), b[2:]...)
		binary.BigEndian.PutUint32(c[4:], binary.BigEndian.Uint32(c[4:])&^uint32(tpm.AttrRestricted))
		if p, err = tpm.ParsePublic(c); err != nil {
			t.Fatal(err)
		}
		if p.CheckAttestationKey() == nil {
			t.Errorf("%s: an unrestricted key passed as attestation key", name)
		}
	}
}

// attest builds a small quote by hand.
func attest() []byte {
	be := binary.BigEndian
	b := be.AppendUint32(nil, 0xff544347)
	b = be.AppendUint16(b, 0x8018)
	b = append(b, 0, 2, 0xaa, 0xbb)          // signer
	b = append(b, 0, 4, 'n', 'o', 'n', 'c')  // extra data
	b = append(b, make([]byte, 8+4+4)...)    // clock
	b = append(b, 1)                         // safe
	b = append(b, make([]byte, 8)...)        // firmware
	b = be.AppendUint32(b, 1)                // selections
	b = append(b, 0, 0x0b, 3, 0x01, 0x80, 0) // sha256: 0, 15
	return append(b, append([]byte{0, 32}, make([]byte, 32)...)...)
}

func TestAttestRefused(t *testing.T) {
	good := attest()
	a, err := tpm.ParseAttest(good)
	if err != nil {
		t.Fatal(err)
	}
	if string(a.ExtraData) != "nonc" || len(a.Selections) != 1 || len(a.Selections[0].PCRs) != 2 || a.Selections[0].PCRs[1] != 15 {
		t.Errorf("parsed %+v", a)
	}
	for n := range good {
		if _, err := tpm.ParseAttest(good[:n]); err == nil {
			t.Errorf("parsed when cut to %d bytes", n)
		}
	}
	change := func(f func([]byte)) []byte { b := attest(); f(b); return b }
	for name, b := range map[string][]byte{
		"magic":      change(func(b []byte) { b[0] = 0 }),
		"certify":    change(func(b []byte) { b[5] = 0x17 }),
		"safe":       change(func(b []byte) { b[32] = 7 }),
		"selections": change(func(b []byte) { b[41] = 0xff }),
		"bitmap":     change(func(b []byte) { b[47] = 200 }),
		"left over":  append(attest(), 0),
		"oversized":  append(attest(), make([]byte, 1<<20)...),
	} {
		if _, err := tpm.ParseAttest(b); err == nil {
			t.Errorf("%s: parsed without an error", name)
		}
	}
}

func TestVerifySignatureRefuses(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]*tpm.Signature{
		"sha1":         {Scheme: tpm.AlgECDSA, Hash: tpm.AlgSHA1},
		"no hash":      {Scheme: tpm.AlgECDSA, Hash: tpm.AlgNull},
		"other scheme": {Scheme: tpm.AlgRSASSA, Hash: tpm.AlgSHA256},
		"zero":         {Scheme: tpm.AlgECDSA, Hash: tpm.AlgSHA256},
	} {
		if tpm.VerifySignature(&key.PublicKey, []byte("m"), s) == nil {
			t.Errorf("%s: verified", name)
		}
	}
	if tpm.VerifySignature("key", nil, &tpm.Signature{Hash: tpm.AlgSHA256}) == nil {
		t.Error("a string passed as a key")
	}
}

func TestMakeCredentialRefuses(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	small, err := rsa.GenerateKey(rand.Reader, 3072)
	if err != nil {
		t.Fatal(err)
	}
	name := make([]byte, 34)
	for what, f := range map[string]func() ([]byte, []byte, error){
		"RSA-3072":    func() ([]byte, []byte, error) { return tpm.MakeCredential(&small.PublicKey, name, []byte("s")) },
		"no key":      func() ([]byte, []byte, error) { return tpm.MakeCredential(nil, name, []byte("s")) },
		"long secret": func() ([]byte, []byte, error) { return tpm.MakeCredential(&ec.PublicKey, name, make([]byte, 33)) },
		"no secret":   func() ([]byte, []byte, error) { return tpm.MakeCredential(&ec.PublicKey, name, nil) },
		"no name":     func() ([]byte, []byte, error) { return tpm.MakeCredential(&ec.PublicKey, nil, []byte("s")) },
	} {
		if _, _, err := f(); err == nil {
			t.Errorf("%s: made a credential", what)
		}
	}
}

func FuzzParseAttest(f *testing.F) {
	f.Add(attest())
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, err := tpm.ParseAttest(b); err == nil {
			_, _ = tpm.PCRDigest(a.Selections, tpm.PCRValues{}, crypto.SHA256)
		}
	})
}

func FuzzParseSignature(f *testing.F) {
	f.Add([]byte{0, 0x14, 0, 0x0b, 0, 1, 0xff})
	f.Add([]byte{0, 0x18, 0, 0x0b, 0, 1, 0xff, 0, 1, 1})
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := tpm.ParseSignature(b)
		if err == nil && tpm.VerifySignature(&key.PublicKey, []byte("m"), s) == nil {
			t.Error("random bytes verified")
		}
	})
}

func FuzzParsePublic(f *testing.F) {
	b, err := base64.StdEncoding.DecodeString("ACMACwAFAHIAAAAQABgACwADABAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := tpm.ParsePublic(b); err == nil {
			_ = p.Name()
			_ = p.CheckAttestationKey()
		}
	})
}
