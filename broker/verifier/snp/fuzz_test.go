package snp_test

import (
	"context"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"

	verifier "github.com/cloister/cloister/broker/verifier/snp"
	"github.com/cloister/cloister/tee/snp"
)

var update = flag.Bool("update", false, "make the evidence in testdata anew")

const (
	storedRoots    = "testdata/roots.pem"
	storedEvidence = "testdata/evidence.json"
)

func read(t testing.TB, name string) []byte {
	t.Helper()
	return must[[]byte](t)(os.ReadFile(name))
}

func storedOptions(t testing.TB) verifier.Options {
	t.Helper()
	return verifier.Options{
		ExpectedReportData: nonce, Now: now, Roots: must[*verifier.Roots](t)(verifier.ParseRoots(read(t, storedRoots))),
	}
}

// TestStored verifies evidence made by package snptest once. It is stored because the processes of a fuzz run share no
// keys, and making some takes them longer than many inputs.
func TestStored(t *testing.T) {
	if *update {
		p := machine(t, snp.Milan)
		if err := os.MkdirAll(filepath.Dir(storedRoots), 0o755); err != nil {
			t.Fatal(err)
		}
		for name, data := range map[string][]byte{storedRoots: p.RootsPEM(), storedEvidence: made(t, p, 5, nil, vcek(t, p))} {
			if err := os.WriteFile(name, data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := verifier.Verify(context.Background(), read(t, storedEvidence), storedOptions(t)); err != nil {
		t.Error(err)
	}
}

// FuzzVerify looks for evidence that verifies although its report is another one.
func FuzzVerify(f *testing.F) {
	stored := read(f, storedEvidence)
	var e struct {
		Report json.RawMessage `json:"attestation_report"`
	}
	if err := json.Unmarshal(stored, &e); err != nil {
		f.Fatal(err)
	}
	signed := must[[]byte](f)(snp.FromJSON(e.Report))[:snp.SignedSize]
	o := storedOptions(f)
	f.Add(stored)
	f.Add([]byte(`{"attestation_report":{"version":3},"cert_chain":[{"cert_type":{"OTHER":"x"},"data":[]}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if _, err := verifier.Verify(context.Background(), text, o); err != nil {
			return
		}
		e.Report = nil
		if err := json.Unmarshal(text, &e); err != nil {
			t.Fatal(err)
		}
		got, err := snp.FromJSON(e.Report)
		if err != nil || string(got[:snp.SignedSize]) != string(signed) {
			t.Fatalf("evidence was forged: %s", text)
		}
	})
}

// FuzzLeaf looks for other certificates that the stored report verifies with.
func FuzzLeaf(f *testing.F) {
	var e struct {
		Report json.RawMessage        `json:"attestation_report"`
		Chain  []struct{ Data []int } `json:"cert_chain"`
	}
	if err := json.Unmarshal(read(f, storedEvidence), &e); err != nil {
		f.Fatal(err)
	}
	r := must[*snp.Report](f)(snp.Parse(must[[]byte](f)(snp.FromJSON(e.Report))))
	good := make([]byte, len(e.Chain[0].Data))
	for i, v := range e.Chain[0].Data {
		good[i] = byte(v)
	}
	o := storedOptions(f)
	f.Add(good)
	f.Fuzz(func(t *testing.T, der []byte) {
		_, err := verifier.VerifyReport(context.Background(), r, verifier.Chain{Leaf: der}, o)
		if err == nil && string(must[[]byte](t)(snp.DER(der))) != string(good) {
			t.Fatalf("another certificate is accepted: %x", der)
		}
	})
}
