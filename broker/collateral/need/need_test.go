package need

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/collateral"
	"github.com/cloister/cloister/broker/collateral/intelpcs"
	"github.com/cloister/cloister/tee/snp"
	"github.com/cloister/cloister/test/evidence"
)

var opts = Options{Update: intelpcs.Early}

func names(n *Needs) string {
	var out []string
	for _, k := range n.Keys {
		out = append(out, k.String())
	}
	return strings.Join(out, ", ")
}

func TestRecorded(t *testing.T) {
	intel := func(tee, fmspc, ca string) string {
		return "intel-tcb-info " + tee + "/" + fmspc + "/early, intel-qe-identity " + tee + "/early, intel-pck-crl " + ca +
			", intel-root-crl root"
	}
	genoaTail := ", amd-vcek Genoa/7b1584c94c7a426164b2db1198903db0"
	for _, tc := range []struct{ file, want string }{
		{"intel-tdx/v4-90c06f-dstack.bin", intel("tdx", "90C06F000000", "platform")},
		{"intel-tdx/v5-td15-90c06f-trustee.bin", intel("tdx", "90C06F000000", "platform")},
		{"intel-sgx/v3-00606a-oasis.bin", intel("sgx", "00606A000000", "platform")},
		{"intel-sgx/v3-00906ed5-debug.bin", intel("sgx", "00906ED50000", "processor")},
		{"amd-sev-snp/genoa-v3/report.bin", "amd-crl Genoa/vcek, amd-chain Genoa/vcek" + genoaTail},
		{"amd-sev-snp/genoa-v3/tsm-report.json", "amd-crl Genoa/vcek, amd-chain Genoa/vcek"},
		{"amd-sev-snp/turin-v5/report.bin", "amd-crl Turin/vcek, amd-chain Turin/vcek, " +
			"amd-vcek Turin/3b42092f69c656d3/bl01_tee00_snp02_ucode71_fmc00"},
		{"amd-sev-snp/coco-evidence-v3.json", "amd-crl Genoa/vcek, amd-chain Genoa/vcek"},
		{"azure-snp-vtpm/evidence-v0.json", "amd-crl Milan/vcek, amd-chain Milan/vcek"},
		{"azure-snp-vtpm/evidence-v2.json", "amd-crl Milan/vcek, amd-chain Milan/vcek"},
		{"azure-snp-vtpm/evidence-genoa.json", "amd-crl Genoa/vcek, amd-chain Genoa/vcek"},
		{"azure-tdx-vtpm/evidence-v0.json", intel("tdx", "00806F050000", "platform")},
		{"azure-tdx-vtpm/evidence-v1.json", intel("tdx", "00806F050000", "platform")},
	} {
		n, err := FromEvidence(evidence.Read(t, tc.file), opts)
		if err != nil {
			t.Errorf("%s: %v", tc.file, err)
			continue
		}
		if got := names(n); got != tc.want && !strings.HasPrefix(got, tc.want) {
			t.Errorf("%s takes\n%s, want\n%s", tc.file, got, tc.want)
		}
		for _, k := range n.Keys {
			if err := k.Validate(); err != nil {
				t.Errorf("%s: %v", tc.file, err)
			}
		}
	}
}

func TestReportVersion2(t *testing.T) {
	raw := evidence.Read(t, "amd-sev-snp/milan-v2-vcek/report.bin")
	if _, err := FromEvidence(raw, opts); err == nil || !strings.Contains(err.Error(), "does not name the product line") {
		t.Errorf("without a line: %v", err)
	}
	n, err := FromEvidence(raw, Options{Update: intelpcs.Early, Line: snp.Milan})
	if err != nil || !strings.Contains(names(n), "amd-vcek Milan/c38427a30d4c7af9d96f7a15b9726982") {
		t.Errorf("with a line: %v, %v", n, err)
	}
	raw = evidence.Read(t, "amd-sev-snp/milan-v3-vlek-vmpl1/report.bin")
	if _, err := FromEvidence(raw, opts); err == nil || !strings.Contains(err.Error(), "only the cloud provider has it") {
		t.Errorf("a VLEK: %v", err)
	}
}

// TestWrapped: evidence inside an attestation request, with devices beside it.
func TestWrapped(t *testing.T) {
	quote := base64.StdEncoding.EncodeToString(evidence.Read(t, "intel-tdx/v4-90c06f-dstack.bin"))
	devices := `{"device_evidence_list":[{"arch":"HOPPER"}]}`
	inner, err := json.Marshal(map[string]string{"nvidia": "X"})
	if err != nil {
		t.Fatal(err)
	}
	inner = bytes.Replace(inner, []byte(`"X"`), []byte(devices), 1)
	body, err := json.Marshal(map[string]any{"tee-evidence": map[string]any{
		"primary_evidence": map[string]string{"quote": quote, "cc_eventlog": ""}, "additional_evidence": string(inner),
	}})
	if err != nil {
		t.Fatal(err)
	}
	n, err := FromEvidence(body, opts)
	if err != nil || len(n.Keys) != 4 || len(n.Devices) != 1 || string(n.Devices[0]) != devices {
		t.Errorf("got %+v, %v", n, err)
	}
}

func TestOthers(t *testing.T) {
	for _, tc := range []struct{ text, says string }{
		{"", "neither JSON"}, {"{}", "of no kind that takes collateral"}, {"[]", "without devices"}, {`{"quote":"AAAA"}`, "quote"},
		{`{"hcl_report":"AAAA"}`, "hcl_report has 3 bytes"}, {`{"tpm_quote":{},"ak_public":""}`, "of no kind"}, {`{"td_quote":5}`, "td_quote"},
		{strings.Repeat(`{"tee-evidence":`, 10) + "{}" + strings.Repeat("}", 10), "nested"},
		{`{"attestation_report":{}}`, "signature is missing"},
		{`{"attestation_report":{"magic":[]},"cert_chain":{"pek":{}}}`, "of no kind"}, {`{"hcl_report":[300]}`, "expected a byte"},
	} {
		if n, err := FromEvidence([]byte(tc.text), opts); err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%.40s: %+v, error %v, want one with %q", tc.text, n, err, tc.says)
		}
	}
}

// cacheOf answers from a map.
type cacheOf struct {
	mu    sync.Mutex
	asked []collateral.Key
	items map[collateral.Kind][]byte
}

func (c *cacheOf) Get(_ context.Context, q collateral.Query) (collateral.Item, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = append(c.asked, q.Key)
	data, ok := c.items[q.Key.Kind]
	if !ok {
		return collateral.Item{}, &collateral.FetchError{Key: q.Key, Attempts: []collateral.Attempt{{Source: "x", Err: collateral.ErrNotFound}}}
	}
	return collateral.Item{Key: q.Key, Data: data}, nil
}

func TestFetch(t *testing.T) {
	keys := []collateral.Key{{Kind: collateral.RIM, Name: "b"}, {Kind: collateral.RIM, Name: "a"},
		{Kind: collateral.AMDCRL, Name: "Milan/vcek"}}
	cache := &cacheOf{items: map[collateral.Kind][]byte{collateral.RIM: []byte("x")}}
	items, err := Fetch(context.Background(), cache, &Needs{Keys: keys}, time.Now())
	if len(items) != 2 || items[0].Key.Name != "a" || !errors.Is(err, collateral.ErrNotFound) ||
		!strings.Contains(err.Error(), "amd-crl Milan/vcek") {
		t.Errorf("got %v, %v", items, err)
	}
}

// TestFetchDevices: the verifier asks for the manifests that the report names, and for revocations.
func TestFetchDevices(t *testing.T) {
	manifest := evidence.Read(t, "nvidia/rim/NV_GPU_DRIVER_GH100_550.90.07.xml")
	cache := &cacheOf{items: map[collateral.Kind][]byte{collateral.RIM: manifest}}
	n, err := FromEvidence(evidence.Read(t, "nvidia/hopper_evidence.json"), opts)
	if err != nil || len(n.Devices) != 1 {
		t.Fatalf("got %+v, %v", n, err)
	}
	items, err := Fetch(context.Background(), cache, n, time.Date(2025, 6, 1, 0, 0, 0, 0, time.UTC))
	if len(items) == 0 {
		t.Fatalf("nothing was asked for: %v", err)
	}
	if !strings.HasPrefix(items[0].Key.Name, "NV_GPU_") {
		t.Errorf("got %v", items[0].Key)
	}
	if err == nil || !strings.Contains(err.Error(), "nvidia-ocsp") {
		t.Errorf("revocations that could not be asked for are no error: %v", err)
	}
}

func FuzzFromEvidence(f *testing.F) {
	f.Add([]byte(`{"tee-evidence":{"primary_evidence":{"quote":"BAAC"},"additional_evidence":"{}"}}`))
	f.Add([]byte(`{"hcl_report":[1,2],"vcek":"AA"}`))
	f.Add([]byte(`{"outblob":"AA","auxblob":"AA"}`))
	f.Add(bytes.Repeat([]byte{3, 0}, 592))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _ = FromEvidence(data, opts)
	})
}
