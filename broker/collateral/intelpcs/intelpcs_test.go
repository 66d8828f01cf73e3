package intelpcs

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/collateral"
	"github.com/cloister/cloister/broker/collateral/web"
	"github.com/cloister/cloister/broker/verifier/dcap"
	"github.com/cloister/cloister/tee/quote"
	"github.com/cloister/cloister/test/evidence"
)

const snapshot = "intel-collateral/tdx-50806f000000-2026-03/"

var then = time.Date(2026, 3, 20, 0, 0, 0, 0, time.UTC)

// service answers as Intel's does, or as a PCCS: with hexadecimal revocation lists.
func service(t *testing.T, pccs bool) *httptest.Server {
	t.Helper()
	in := func(name string) []byte { return evidence.Read(t, snapshot+name) }
	crl := func(b []byte) []byte {
		if pccs {
			return []byte(hex.EncodeToString(b))
		}
		return b
	}
	docs := map[string]struct {
		body          []byte
		header, chain string
	}{
		"/tdx/certification/v4/tcb?fmspc=50806F000000&update=early": {in("tcb_info.json"), "TCB-Info-Issuer-Chain", "tcb_info_issuer_chain.pem"},
		"/tdx/certification/v4/qe/identity?update=early": {in("qe_identity.json"), "SGX-Enclave-Identity-Issuer-Chain",
			"qe_identity_issuer_chain.pem"},
		"/sgx/certification/v4/pckcrl?ca=platform&encoding=der": {crl(in("pck_crl.der")), "SGX-PCK-CRL-Issuer-Chain", "pck_crl_issuer_chain.pem"},
		"/sgx/certification/v4/rootcacrl":                       {crl(in("root_ca_crl.der")), "", ""},
		"/IntelSGXRootCA.der":                                   {in("root_ca_crl.der"), "", ""},
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d, ok := docs[r.URL.String()]
		if !ok || pccs && r.URL.Path == "/IntelSGXRootCA.der" || !pccs && strings.HasSuffix(r.URL.Path, "/rootcacrl") {
			http.NotFound(w, r)
			return
		}
		if d.header != "" {
			w.Header().Set(d.header, url.PathEscape(string(in(d.chain))))
		}
		w.Write(d.body)
	}))
	t.Cleanup(s.Close)
	return s
}

func view(t *testing.T, now time.Time, sources ...collateral.Source) Collateral {
	t.Helper()
	cache, err := collateral.New(collateral.Options{Now: func() time.Time { return now }, MaxStale: time.Hour}, sources...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cache.Close)
	return Collateral{Cache: cache, Update: Early}
}

func TestRecorded(t *testing.T) {
	for name, open := range map[string]func(base string) (*Source, error){
		"PCS": func(b string) (*Source, error) { return New(b, b+"/IntelSGXRootCA.der", web.New(web.Options{})) },
		"PCS with path": func(b string) (*Source, error) {
			return New(b+"/sgx/certification/v4/", b+"/IntelSGXRootCA.der", web.New(web.Options{}))
		},
		"PCCS": func(b string) (*Source, error) { return NewPCCS(b+"/sgx/certification/v4", web.New(web.Options{})) },
	} {
		s := service(t, name == "PCCS")
		src, err := open(s.URL)
		if err != nil {
			t.Fatal(err)
		}
		c, err := view(t, then, src).Collateral(context.Background(), "50806f000000", "platform", "tdx")
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for file, got := range map[string][]byte{
			"tcb_info.json": c.TCBInfo, "tcb_info_issuer_chain.pem": c.TCBInfoIssuerChain, "qe_identity.json": c.QEIdentity,
			"qe_identity_issuer_chain.pem": c.QEIdentityIssuerChain, "pck_crl.der": c.PCKCRL, "pck_crl_issuer_chain.pem": c.PCKCRLIssuerChain,
			"root_ca_crl.der": c.RootCRL,
		} {
			if want := evidence.Read(t, snapshot+file); !bytes.Equal(got, want) {
				t.Errorf("%s: %s has %d bytes, the recording %d: they must be the same byte for byte", name, file, len(got), len(want))
			}
		}
	}
}

// TestVerifierTakesIt: a recorded quote verifies with what came through service and cache.
func TestVerifierTakesIt(t *testing.T) {
	base := service(t, false).URL
	src, err := New(base, base+"/IntelSGXRootCA.der", web.New(web.Options{}))
	if err != nil {
		t.Fatal(err)
	}
	q, err := quote.Parse(evidence.Read(t, "intel-tdx/v4-debug-50806f.bin"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dcap.Verify(context.Background(), q, dcap.Options{Now: then, Collateral: view(t, then, src)}); err != nil {
		t.Error(err)
	}
}

func TestMissingNamesAll(t *testing.T) {
	src, err := New(service(t, false).URL, "", web.New(web.Options{}))
	if err != nil {
		t.Fatal(err)
	}
	src.rootCRL = src.base + "/nowhere"
	_, err = view(t, then, src).Collateral(context.Background(), "90C06F000000", "processor", "tdx")
	for _, want := range []string{
		"intel-tcb-info tdx/90C06F000000/early", "intel-pck-crl processor", "intel-root-crl root", "Intel PCS: GET http://",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not name %q", err, want)
		}
	}
	if !errors.Is(err, collateral.ErrNotFound) {
		t.Errorf("error is %v, want not found", err)
	}
	// Lists of March are over in May.
	src.rootCRL = src.base + "/IntelSGXRootCA.der"
	_, err = view(t, then.AddDate(0, 2, 0), src).Collateral(context.Background(), "50806f000000", "platform", "tdx")
	want := "intel-pck-crl platform: no source delivered it: Intel PCS: the one it has ended 2026-04-15T22:34:05Z"
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("an expired list: %v", err)
	}
}

func TestBadRequests(t *testing.T) {
	for _, tc := range [][4]string{
		{"50806f", "platform", "tdx", "early"}, {"50806f00000g", "platform", "tdx", "early"}, {"50806f000000", "root", "tdx", "early"},
		{"50806f000000", "platform", "../x", "early"}, {"50806f000000", "platform", "sgx", "late"},
	} {
		if _, err := KeysOf(tc[0], tc[1], tc[2], tc[3]); err == nil {
			t.Errorf("%v is accepted", tc)
		}
	}
}

func TestChainHeaderMissing(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("{}")) }))
	defer s.Close()
	src, err := New(s.URL, "", web.New(web.Options{}))
	if err != nil {
		t.Fatal(err)
	}
	_, err = src.Fetch(context.Background(), collateral.Query{Key: collateral.Key{Kind: collateral.TCBInfo, Name: "tdx/50806F000000/early"}})
	if err == nil || !strings.Contains(err.Error(), "header TCB-Info-Issuer-Chain is missing") {
		t.Errorf("got %v", err)
	}
}

func TestCRLEncodings(t *testing.T) {
	der := append([]byte{0x30, 0x82, 1, 0}, bytes.Repeat([]byte{7}, 256)...)
	for name, text := range map[string][]byte{
		"DER": der, "hex": []byte(hex.EncodeToString(der) + "\n"), "quoted hex": []byte(`"` + strings.ToUpper(hex.EncodeToString(der)) + `"`),
		"base64": []byte(base64.StdEncoding.EncodeToString(der)), "PEM": pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}),
	} {
		if got, err := CRL(text); err != nil || !bytes.Equal(got, der) {
			t.Errorf("%s: got %x, %v", name, got, err)
		}
	}
	for _, text := range []string{"", " ", "<html>", "0", "-----BEGIN X509 CRL-----"} {
		if _, err := CRL([]byte(text)); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
}

func TestUnescape(t *testing.T) {
	if got, err := Unescape("a%2Bb+c%20d%0A"); err != nil || string(got) != "a+b+c d\n" {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := Unescape("%zz"); err == nil {
		t.Error("a broken escape is accepted")
	}
}
