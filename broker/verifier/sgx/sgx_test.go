package sgx_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/verifier/dcap"
	"github.com/cloister/cloister/broker/verifier/sgx"
	"github.com/cloister/cloister/test/evidence"
	"github.com/cloister/cloister/test/fakedcap"
)

var now = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func asEvidence(t testing.TB, quote []byte) json.RawMessage {
	t.Helper()
	b, err := json.Marshal(map[string]any{"quote": quote})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func recordedCollateral(t testing.TB, dir string) dcap.Source {
	read := func(name string) []byte { return evidence.Read(t, path.Join(dir, name)) }
	return &fakedcap.Source{Answer: &dcap.Collateral{
		TCBInfo: read("tcb_info.json"), TCBInfoIssuerChain: read("tcb_info_issuer_chain.pem"),
		QEIdentity: read("qe_identity.json"), QEIdentityIssuerChain: read("qe_identity_issuer_chain.pem"),
		PCKCRL: read("pck_crl.der"), PCKCRLIssuerChain: read("pck_crl_issuer_chain.pem"), RootCRL: read("root_ca_crl.der"),
	}}
}

// TestRecorded judges every recorded quote as SGX evidence. Those of TDX must be refused, whatever they are worth.
func TestRecorded(t *testing.T) {
	type dcapCase struct {
		ID, Quote, Expect string
		Collateral, Now   *string
		TCBStatus         *string `json:"tcb_status"`
		TrustRoot         string  `json:"trust_root"`
		Fields            map[string]any
	}
	accepted := 0
	for _, c := range evidence.Cases[dcapCase](t, "dcap") {
		t.Run(c.ID, func(t *testing.T) {
			o := sgx.Options{Offline: true, Now: time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC), AllowNoCollateral: c.Collateral == nil}
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
			claims, err := sgx.Verify(context.Background(), asEvidence(t, evidence.Read(t, c.Quote)), o)
			enclave := strings.Contains(c.Quote, "sgx")
			if !enclave || strings.HasPrefix(c.Expect, "invalid") || c.Expect == "unsupported-cert-type" {
				if err == nil {
					t.Fatalf("accepted, expected %s", c.Expect)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			accepted++
			if c.TCBStatus != nil && claims["tcb_status"] != *c.TCBStatus {
				t.Errorf("tcb_status is %v, expected %s", claims["tcb_status"], *c.TCBStatus)
			}
			body := claims["body"].(map[string]any)
			debug := strings.IndexByte("2367abef", body["attributes.flags"].(string)[1]) >= 0
			if c.Expect == "policy-reject" && !debug || c.Expect == "valid" && debug {
				t.Errorf("attributes.flags is %v in a case that expects %s", body["attributes.flags"], c.Expect)
			}
			for theirs, ours := range map[string]string{"mr_enclave": "mr_enclave", "mr_signer": "mr_signer", "report_data": "report_data"} {
				if want, ok := c.Fields[theirs]; ok && body[ours] != want {
					t.Errorf("%s is %v, expected %v", ours, body[ours], want)
				}
			}
		})
	}
	if accepted < 20 {
		t.Errorf("%d enclave quotes accepted, expected at least 20", accepted)
	}
}

func TestBindings(t *testing.T) {
	w := fakedcap.New(t, now)
	w.UseSGX()
	body := fakedcap.Enclave([]byte("report data"))
	copy(body[192:256], "config id")
	raw := asEvidence(t, w.Quote(fakedcap.Spec{Body: body}))
	for name, c := range map[string]struct {
		edit  func(*sgx.Options)
		fault string
	}{
		"good":              {},
		"no init data sent": {edit: func(o *sgx.Options) { o.InitDataDigest = nil }},
		"offline":           {edit: func(o *sgx.Options) { o.ExpectedReportData, o.Offline = nil, true }},
		"no report data":    {edit: func(o *sgx.Options) { o.ExpectedReportData = nil }, fault: "no report data"},
		"other report data": {edit: func(o *sgx.Options) { o.ExpectedReportData = []byte("report dat") }, fault: "report_data"},
		"65 bytes":          {edit: func(o *sgx.Options) { o.ExpectedReportData = make([]byte, 65) }, fault: "65 bytes"},
		"other init data":   {edit: func(o *sgx.Options) { o.InitDataDigest = []byte("config") }, fault: "config_id"},
		"no collateral":     {edit: func(o *sgx.Options) { o.Collateral = nil }, fault: "no collateral"},
		"no time":           {edit: func(o *sgx.Options) { o.Now = time.Time{} }, fault: "no time"},
		"another root":      {edit: func(o *sgx.Options) { o.Root = nil }, fault: "another key"},
	} {
		o := sgx.Options{ExpectedReportData: []byte("report data"), InitDataDigest: []byte("config id"),
			Now: now, Root: w.Root.Certificate, Collateral: w.Source()}
		if c.edit != nil {
			c.edit(&o)
		}
		claims, err := sgx.Verify(context.Background(), raw, o)
		if (err == nil) != (c.fault == "") || err != nil && !strings.Contains(err.Error(), c.fault) {
			t.Errorf("%s: got %v, expected %q", name, err, c.fault)
		}
		if err != nil {
			continue
		}
		text, err := json.Marshal(claims)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{`"attributes.flags":"0500000000000000"`, `"att_key_data_0":"00000000"`, `"version":"0300"`,
			`"qe_svn":"0000"`, `"mr_enclave":"` + strings.Repeat("ee", 32) + `"`, `"tcb_status":"UpToDate"`,
			`"init_data":"636f6e66696720696400`, `"platform_instance_id":"636e`} {
			if !bytes.Contains(text, []byte(want)) {
				t.Errorf("%s: claims lack %s: %s", name, want, text)
			}
		}
	}
}

func TestRefused(t *testing.T) {
	w := fakedcap.New(t, now)
	o := sgx.Options{Now: now, Root: w.Root.Certificate, Collateral: w.Source(), Offline: true}
	for name, raw := range map[string]string{
		"not JSON": "x", "no quote": "{}", "null": "null", "not base64": `{"quote":"*"}`, "short": `{"quote":"AAAA"}`,
		"long": `{"quote":"` + strings.Repeat("A", 100_000) + `"}`, "TD": string(asEvidence(t, w.Quote(fakedcap.Spec{Body: fakedcap.TD(nil)}))),
	} {
		if _, err := sgx.Verify(context.Background(), json.RawMessage(raw), o); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}
