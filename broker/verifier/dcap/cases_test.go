package dcap_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"path"
	"slices"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/verifier/dcap"
	"github.com/cloister/cloister/tee/quote"
	"github.com/cloister/cloister/test/evidence"
)

// evidenceCase is a case of platform dcap.
type evidenceCase struct {
	ID, Quote, Expect, Reason string
	Collateral, Now           *string
	TCBStatus                 *string `json:"tcb_status"`
	Advisories                []string
	TrustRoot                 string `json:"trust_root"`
}

// recorded is a Source that has one answer.
type recorded struct{ c *dcap.Collateral }

func (r recorded) Collateral(context.Context, string, string, string) (*dcap.Collateral, error) {
	return r.c, nil
}

func recordedCollateral(t testing.TB, dir string) *dcap.Collateral {
	read := func(name string) []byte { return evidence.Read(t, path.Join(dir, name)) }
	return &dcap.Collateral{
		TCBInfo: read("tcb_info.json"), TCBInfoIssuerChain: read("tcb_info_issuer_chain.pem"),
		QEIdentity: read("qe_identity.json"), QEIdentityIssuerChain: read("qe_identity_issuer_chain.pem"),
		PCKCRL: read("pck_crl.der"), PCKCRLIssuerChain: read("pck_crl_issuer_chain.pem"), RootCRL: read("root_ca_crl.der"),
	}
}

func (c *evidenceCase) options(t testing.TB) dcap.Options {
	o := dcap.Options{Now: time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC), AllowNoCollateral: c.Collateral == nil}
	if c.Now != nil {
		now, err := time.Parse(time.RFC3339, *c.Now)
		if err != nil {
			t.Fatal(err)
		}
		o.Now = now
	}
	if c.Collateral != nil {
		o.Collateral = recorded{recordedCollateral(t, *c.Collateral)}
	}
	if c.TrustRoot != "" {
		block, _ := pem.Decode(evidence.Read(t, c.TrustRoot))
		root, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		o.Root = root
	}
	return o
}

// TestRecorded judges every recorded quote, with the collateral of its time and without.
func TestRecorded(t *testing.T) {
	for _, c := range evidence.Cases[evidenceCase](t, "dcap") {
		t.Run(c.ID, func(t *testing.T) {
			o := c.options(t)
			var r *dcap.Result
			q, err := quote.Parse(evidence.Read(t, c.Quote))
			if err == nil {
				r, err = dcap.Verify(context.Background(), q, o)
			}
			switch c.Expect {
			case "invalid", "invalid-or-reordered":
				if err == nil {
					t.Fatalf("accepted, expected a refusal for: %s", c.Reason)
				}
				t.Log(err)
			case "unsupported-cert-type":
				if !errors.Is(err, dcap.ErrNoChain) {
					t.Fatalf("got %v, expected ErrNoChain", err)
				}
			case "valid", "valid-or-unsupported", "policy-reject", "policy-decides", "expired-collateral", "valid-signature":
				if err != nil {
					t.Fatal(err)
				}
				checkResult(t, c, r)
			default:
				t.Fatalf("unknown expectation %q", c.Expect)
			}
		})
	}
}

func checkResult(t *testing.T, c evidenceCase, r *dcap.Result) {
	if c.Collateral == nil {
		if s, ok := r.Claims["tcb_status"]; ok || r.Claims["collateral_status"] == "current" {
			t.Errorf("tcb_status is %v without collateral", s)
		}
		return
	}
	// Without a status in the case only the signatures count.
	if c.TCBStatus != nil && (r.Claims["tcb_status"] != *c.TCBStatus || string(r.Status) != *c.TCBStatus) {
		t.Errorf("tcb_status is %v, expected %s", r.Claims["tcb_status"], *c.TCBStatus)
	}
	if c.Advisories != nil {
		var got []string
		for _, a := range r.Claims["advisory_ids"].([]any) {
			got = append(got, a.(string))
		}
		if !slices.Equal(got, c.Advisories) {
			t.Errorf("advisory_ids are %v, expected %v", got, c.Advisories)
		}
	}
	want := "0"
	if c.Expect == "expired-collateral" {
		want = "1"
	}
	if got := r.Claims["collateral_expiration_status"]; got != want {
		t.Errorf("collateral_expiration_status is %v, expected %s (%v)", got, want, r.Claims["collateral_status"])
	}
}
