package tdx_test

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"path"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/verifier/dcap"
	"github.com/cloister/cloister/broker/verifier/tdx"
	"github.com/cloister/cloister/test/evidence"
)

type recorded struct{ c *dcap.Collateral }

func (r recorded) Collateral(context.Context, string, string, string) (*dcap.Collateral, error) {
	return r.c, nil
}

func recordedCollateral(t testing.TB, dir string) dcap.Source {
	read := func(name string) []byte { return evidence.Read(t, path.Join(dir, name)) }
	return recorded{&dcap.Collateral{
		TCBInfo: read("tcb_info.json"), TCBInfoIssuerChain: read("tcb_info_issuer_chain.pem"),
		QEIdentity: read("qe_identity.json"), QEIdentityIssuerChain: read("qe_identity_issuer_chain.pem"),
		PCKCRL: read("pck_crl.der"), PCKCRLIssuerChain: read("pck_crl_issuer_chain.pem"), RootCRL: read("root_ca_crl.der"),
	}}
}

func asEvidence(t testing.TB, quote, log []byte) json.RawMessage {
	t.Helper()
	e := map[string]any{"quote": quote, "cc_eventlog": nil}
	if log != nil {
		e["cc_eventlog"] = log
	}
	b, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

type dcapCase struct {
	ID, Quote, Expect string
	Collateral, Now   *string
	TCBStatus         *string `json:"tcb_status"`
	TrustRoot         string  `json:"trust_root"`
	Fields            map[string]any
}

// signatures judges saved evidence without collateral, at a time when every recorded PCK certificate is valid.
var signatures = tdx.Options{Offline: true, AllowNoCollateral: true, Now: time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)}

// TestRecorded judges every recorded quote as TDX evidence. Those of SGX must be refused, whatever they are worth.
func TestRecorded(t *testing.T) {
	for _, c := range evidence.Cases[dcapCase](t, "dcap") {
		t.Run(c.ID, func(t *testing.T) {
			o := signatures
			o.AllowNoCollateral = c.Collateral == nil
			if c.Now != nil {
				o.Now, _ = time.Parse(time.RFC3339, *c.Now)
			}
			if c.Collateral != nil {
				o.Collateral = recordedCollateral(t, *c.Collateral)
			}
			if c.TrustRoot != "" {
				block, _ := pem.Decode(evidence.Read(t, c.TrustRoot))
				o.Root, _ = x509.ParseCertificate(block.Bytes)
			}
			claims, err := tdx.Verify(context.Background(), asEvidence(t, evidence.Read(t, c.Quote), nil), o)
			sgx := strings.Contains(c.Quote, "sgx") || strings.HasPrefix(path.Base(c.Quote), "v3-")
			if sgx || strings.HasPrefix(c.Expect, "invalid") || c.Expect == "unsupported-cert-type" {
				if err == nil {
					t.Fatalf("accepted, expected %s", c.Expect)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if c.TCBStatus != nil && claims["tcb_status"] != *c.TCBStatus {
				t.Errorf("tcb_status is %v, expected %s", claims["tcb_status"], *c.TCBStatus)
			}
			debug := claims["td_attributes"].(map[string]any)["debug"]
			if c.Expect == "policy-reject" && debug != true || c.Expect == "valid" && debug != false {
				t.Errorf("debug is %v in a case that expects %s", debug, c.Expect)
			}
			if c.Expect == "policy-decides" {
				td := claims["quote"].(map[string]any)["body"].(map[string]any)["mr_servicetd"].(string)
				if strings.Trim(td, "0") == "" {
					t.Errorf("mr_servicetd is %s", td)
				}
			}
			compareFields(t, claims, c.Fields)
		})
	}
}

// compareFields holds the body's claims against the fields of the case.
func compareFields(t *testing.T, claims, fields map[string]any) {
	body := claims["quote"].(map[string]any)["body"].(map[string]any)
	for theirs, ours := range map[string]string{
		"tee_tcb_svn": "tcb_svn", "mr_seam": "mr_seam", "mr_signer_seam": "mrsigner_seam", "seam_attr": "seam_attributes",
		"td_attributes": "td_attributes", "xfam": "xfam", "mr_td": "mr_td", "mr_config_id": "mr_config_id", "mr_owner": "mr_owner",
		"mr_owner_config": "mr_owner_config", "rtmr0": "rtmr_0", "rtmr1": "rtmr_1", "rtmr2": "rtmr_2", "rtmr3": "rtmr_3",
		"report_data": "report_data", "tee_tcb_svn2": "tee_tcb_svn2", "mr_servicetd": "mr_servicetd",
	} {
		if want, ok := fields[theirs]; ok && body[ours] != want {
			t.Errorf("%s is %v, expected %v", ours, body[ours], want)
		}
	}
}

// TestClaimsLikeUpstream compares with what upstream made of the same quote. The log in the recording is of another machine,
// so it does not replay to this quote; package eventlog compares its claims.
func TestClaimsLikeUpstream(t *testing.T) {
	var want map[string]any
	if err := json.Unmarshal(evidence.Read(t, "intel-tdx/trustee-parsed-claims.json"), &want); err != nil {
		t.Fatal(err)
	}
	raw := asEvidence(t, evidence.Read(t, "intel-tdx/v4-debug-50806f.bin"), nil)
	delete(want, "uefi_event_logs")
	claims, err := tdx.Verify(context.Background(), raw, signatures)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	for name, w := range want {
		if !reflect.DeepEqual(got[name], w) {
			t.Errorf("claim %s is %v, expected %v", name, got[name], w)
		}
	}
}

// TestRecordedLogs holds event logs against the quotes of their machines.
func TestRecordedLogs(t *testing.T) {
	type logCase struct {
		ID, Log, Expect string
		Quote           *string
	}
	ran := 0
	for _, c := range evidence.Cases[logCase](t, "eventlog") {
		if c.Quote == nil {
			continue
		}
		ran++
		raw := asEvidence(t, evidence.Read(t, *c.Quote), evidence.Read(t, c.Log))
		claims, err := tdx.Verify(context.Background(), raw, signatures)
		// A log that explains only a part of the registers explains nothing.
		if (err == nil) != (c.Expect == "valid") {
			t.Errorf("%s: got %v, expected %s", c.ID, err, c.Expect)
		}
		if err != nil && !strings.Contains(err.Error(), "cc_eventlog: event log gives rtmr_") {
			t.Errorf("%s: %v", c.ID, err)
		}
		if err == nil && len(claims["uefi_event_logs"].([]any)) != 43 {
			t.Errorf("%s: %d events", c.ID, len(claims["uefi_event_logs"].([]any)))
		}
	}
	if ran != 3 {
		t.Errorf("%d logs with a quote, expected 3", ran)
	}
}

// BenchmarkVerify verifies a real TD 1.5 quote with its collateral.
func BenchmarkVerify(b *testing.B) {
	raw := asEvidence(b, evidence.Read(b, "intel-tdx/v5-td15-90c06f-google.bin"), nil)
	o := tdx.Options{Now: time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC), Offline: true,
		Collateral: recordedCollateral(b, "intel-collateral/tdx-90c06f000000-2026-02")}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := tdx.Verify(context.Background(), raw, o); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "verifications/s")
}
