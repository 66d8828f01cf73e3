package dcap_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/verifier/dcap"
	"github.com/cloister/cloister/tee/quote"
	"github.com/cloister/cloister/test/fakedcap"
)

var now = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func parse(t testing.TB, raw []byte) *quote.Quote {
	t.Helper()
	q, err := quote.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func options(w *fakedcap.World) dcap.Options {
	return dcap.Options{Now: now, Root: w.Root.Certificate, Collateral: w.Source()}
}

func TestGood(t *testing.T) {
	w := fakedcap.New(t, now)
	for name, c := range map[string]struct {
		spec fakedcap.Spec
		use  func()
		tee  string
	}{
		"TDX v4":        {fakedcap.Spec{Body: fakedcap.TD(nil)}, w.UseTDX, "tdx"},
		"TDX v5 TD 1.0": {fakedcap.Spec{Version: 5, Body: fakedcap.TD(nil)}, w.UseTDX, "tdx"},
		"TDX v5 TD 1.5": {fakedcap.Spec{Body: fakedcap.TD15(nil)}, w.UseTDX, "tdx"},
		"SGX v3":        {fakedcap.Spec{Body: fakedcap.Enclave(nil)}, w.UseSGX, "sgx"},
		"SGX v5":        {fakedcap.Spec{Version: 5, Body: fakedcap.Enclave(nil)}, w.UseSGX, "sgx"},
	} {
		c.use()
		source := w.Source()
		o := dcap.Options{Now: now, Root: w.Root.Certificate, Collateral: source}
		r, err := dcap.Verify(context.Background(), parse(t, w.Quote(c.spec)), o)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if source.FMSPC != fakedcap.FMSPC || source.CA != dcap.CAPlatform || source.TEE != c.tee {
			t.Errorf("%s: collateral was asked for %q, %q, %q", name, source.FMSPC, source.CA, source.TEE)
		}
		want := map[string]any{
			"tcb_status": "UpToDate", "collateral_expiration_status": "0", "collateral_status": "current", "advisory_ids": []any{},
			"earliest_issue_date": "2026-04-30T12:00:00Z", "latest_issue_date": "2026-05-01T11:00:00Z",
			"earliest_expiration_date": "2026-05-31T12:00:00Z", "tcb_date": "2025-05-14T00:00:00Z",
			"pck_crl_num": int64(7), "root_ca_crl_num": int64(7), "tcb_eval_num": int64(20),
			"platform_provider_id": "30313233343536373839616263646566", "sgx_type": "Scalable",
			"platform_instance_id": "636e6174736e692d6d726f6674616c70",
			"is_dynamic_platform":  true, "is_cached_keys": false, "is_smt_enabled": true,
			"root_key_id": r.Claims["root_key_id"],
		}
		if !reflect.DeepEqual(r.Claims, want) {
			t.Errorf("%s: claims are %v\nexpected %v", name, r.Claims, want)
		}
	}
}

// TestIntelRoot pins the embedded root by the values the specification gives.
func TestIntelRoot(t *testing.T) {
	if err := dcap.CheckPinned(dcap.Options{}); err != nil {
		t.Fatal(err)
	}
}

// TestExpired lets one thing after the other run out: each is a claim, none an error.
func TestExpired(t *testing.T) {
	past := now.Add(-time.Minute).Format(time.RFC3339)
	over := func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Minute) }
	for name, change := range map[string]func(w *fakedcap.World){
		"TCB info":          func(w *fakedcap.World) { w.TCBInfo["nextUpdate"] = past },
		"QE identity":       func(w *fakedcap.World) { w.QEIdentity["nextUpdate"] = past },
		"CRL":               func(w *fakedcap.World) { w.CRLUntil = now.Add(-time.Minute) },
		"PCK Certificate":   func(w *fakedcap.World) { w.PCK = w.Issue("Intel SGX PCK Certificate", w.CA, over) },
		"TCB Signing":       func(w *fakedcap.World) { w.Signer = w.Issue("Intel SGX TCB Signing", w.Root, over) },
		"TCB info is of":    func(w *fakedcap.World) { w.TCBInfo["issueDate"] = now.Add(time.Minute).Format(time.RFC3339) },
		"QE identity is of": func(w *fakedcap.World) { w.QEIdentity["issueDate"] = now.Add(time.Minute).Format(time.RFC3339) },
	} {
		w := fakedcap.New(t, now)
		change(w)
		r, err := dcap.Verify(context.Background(), parse(t, w.Quote(fakedcap.Spec{Body: fakedcap.TD(nil)})), options(w))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		why, _ := r.Claims["collateral_status"].(string)
		if r.Claims["collateral_expiration_status"] != "1" || !strings.HasPrefix(why, "expired: ") || !strings.Contains(why, name) {
			t.Errorf("%s: expiration status %v, %q", name, r.Claims["collateral_expiration_status"], why)
		}
		if r.Status != dcap.UpToDate {
			t.Errorf("%s: status is %s", name, r.Status)
		}
	}
}

// TestNoCollateral wants an error unless the caller says otherwise, and then no word about the TCB.
func TestNoCollateral(t *testing.T) {
	w := fakedcap.New(t, now)
	q := parse(t, w.Quote(fakedcap.Spec{Body: fakedcap.TD(nil)}))
	partial := w.Collateral()
	partial.RootCRL = nil
	for name, source := range map[string]dcap.Source{
		"no source": nil, "unknown": &fakedcap.Source{}, "lacks the root CRL": &fakedcap.Source{Answer: partial},
		"connection refused": &fakedcap.Source{Err: errors.New("connection refused")},
	} {
		o := dcap.Options{Now: now, Root: w.Root.Certificate, Collateral: source}
		if _, err := dcap.Verify(context.Background(), q, o); !errors.Is(err, dcap.ErrNoCollateral) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: got %v, expected ErrNoCollateral", name, err)
		}
		o.AllowNoCollateral = true
		r, err := dcap.Verify(context.Background(), q, o)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		status, _ := r.Claims["collateral_status"].(string)
		if !strings.HasPrefix(status, "unavailable: ") || !strings.Contains(status, name) {
			t.Errorf("%s: collateral_status is %q", name, status)
		}
		for _, c := range []string{"tcb_status", "collateral_expiration_status", "tcb_date", "advisory_ids"} {
			if v, ok := r.Claims[c]; ok {
				t.Errorf("%s: claim %s is %v without collateral", name, c, v)
			}
		}
	}
	// An expired certificate is told all the same.
	old := fakedcap.New(t, now)
	old.PCK = old.Issue("Intel SGX PCK Certificate", old.CA, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Minute) })
	r, err := dcap.Verify(context.Background(), parse(t, old.Quote(fakedcap.Spec{Body: fakedcap.TD(nil)})),
		dcap.Options{Now: now, Root: old.Root.Certificate, AllowNoCollateral: true})
	if err != nil || r.Claims["collateral_expiration_status"] != "1" {
		t.Errorf("expired certificate without collateral: got %+v, %v", r, err)
	}
	// Bad collateral is not missing collateral.
	bad := w.Collateral()
	bad.TCBInfo = []byte("{}")
	o := dcap.Options{Now: now, Root: w.Root.Certificate, Collateral: &fakedcap.Source{Answer: bad}, AllowNoCollateral: true}
	if _, err := dcap.Verify(context.Background(), q, o); err == nil {
		t.Error("bad collateral is taken for missing collateral")
	}
	if _, err := dcap.Verify(context.Background(), q, dcap.Options{Root: w.Root.Certificate, Collateral: w.Source()}); err == nil {
		t.Error("a verification without a time is accepted")
	}
	if _, err := dcap.Verify(context.Background(), q, dcap.Options{Now: now, Collateral: w.Source()}); err == nil {
		t.Error("another root than Intel's is accepted by default")
	}
}

// TestTampered flips a bit in every byte of a quote. None may change what comes out, and signed bytes may not be accepted.
func TestTampered(t *testing.T) {
	w := fakedcap.New(t, now)
	raw := w.Quote(fakedcap.Spec{Body: fakedcap.TD15([]byte("report data"))})
	o := options(w)
	want, err := dcap.Verify(context.Background(), parse(t, raw), o)
	if err != nil {
		t.Fatal(err)
	}
	chain := bytes.Index(raw, []byte("-----BEGIN"))
	for i := 0; i < len(raw); i++ {
		if i > chain+100 && i%23 != 0 {
			continue // the certificates are large and their signatures tested elsewhere
		}
		b := bytes.Clone(raw)
		b[i] ^= 1 << (i % 8)
		q, err := quote.Parse(b)
		if err != nil {
			continue
		}
		got, err := dcap.Verify(context.Background(), q, o)
		if err == nil && (i < chain || !reflect.DeepEqual(got.Claims, want.Claims)) {
			t.Errorf("byte %d changed is accepted", i)
		}
	}
	for n := range len(raw) - 1 {
		if q, err := quote.Parse(raw[:n]); err == nil {
			if _, err := dcap.Verify(context.Background(), q, o); err == nil {
				t.Fatalf("the first %d of %d bytes are accepted", n, len(raw))
			}
		}
	}
}

// TestTamperedCollateral flips bits all over the collateral. None may change what comes out.
func TestTamperedCollateral(t *testing.T) {
	w := fakedcap.New(t, now)
	q := parse(t, w.Quote(fakedcap.Spec{Body: fakedcap.TD(nil)}))
	want, err := dcap.Verify(context.Background(), q, options(w))
	if err != nil {
		t.Fatal(err)
	}
	o := options(w)
	good := *w.Collateral()
	refused := 0
	for name, part := range map[string]func(*dcap.Collateral) *[]byte{
		"TCB info":    func(c *dcap.Collateral) *[]byte { return &c.TCBInfo },
		"QE identity": func(c *dcap.Collateral) *[]byte { return &c.QEIdentity },
		"signers":     func(c *dcap.Collateral) *[]byte { return &c.TCBInfoIssuerChain },
		"PCK CRL":     func(c *dcap.Collateral) *[]byte { return &c.PCKCRL },
		"root CRL":    func(c *dcap.Collateral) *[]byte { return &c.RootCRL },
	} {
		whole := *part(&good)
		for i := 0; i < len(whole); i += 29 {
			c := good
			b := bytes.Clone(whole)
			b[i] ^= 1 << (i % 8)
			*part(&c) = b
			o.Collateral = &fakedcap.Source{Answer: &c}
			got, err := dcap.Verify(context.Background(), q, o)
			if err != nil {
				refused++
			} else if !reflect.DeepEqual(got.Claims, want.Claims) {
				t.Errorf("%s: byte %d changed gives %v", name, i, got.Claims)
			}
			*part(&c) = whole[:i]
			if _, err := dcap.Verify(context.Background(), q, o); err == nil && name != "signers" {
				t.Errorf("%s: the first %d of %d bytes are accepted", name, i, len(whole))
			}
		}
	}
	if refused < 100 {
		t.Errorf("%d changes refused, expected nearly all", refused)
	}
}
