package verifier

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/verifier/sample"
	"github.com/cloister/cloister/broker/verifier/se"
	"github.com/cloister/cloister/test/evidence"
)

func at(t *testing.T, when string) func() time.Time {
	t.Helper()
	v, err := time.Parse(time.RFC3339, when)
	if err != nil {
		t.Fatal(err)
	}
	return func() time.Time { return v }
}

// TestRecorded sends recorded evidence JSON, as guests send it, through the list.
func TestRecorded(t *testing.T) {
	for _, tc := range []struct{ tee, file, claim string }{
		{"snp", "amd-sev-snp/coco-evidence-v3.json", "measurement"},
		{"az-snp-vtpm", "azure-snp-vtpm/evidence-v0.json", "measurement"},
		{"tpm", "tpm/coco-tpm-evidence.json", "pcr11"},
		{"sample", "", "launch_digest"},
		{"sampledevice", "", "svn"},
	} {
		t.Run(tc.tee, func(t *testing.T) {
			text := []byte(`{"svn":"1","report_data":""}`)
			if tc.file != "" {
				text = evidence.Read(t, tc.file)
			}
			set, err := NewSet(Builtin(Config{Now: at(t, "2026-06-01T00:00:00Z"), Unbound: true, Sample: sample.Config{Insecure: true}}))
			if err != nil {
				t.Fatal(err)
			}
			v, err := set.Get(tc.tee)
			if err != nil {
				t.Fatal(err)
			}
			results, err := v.Verify(t.Context(), Request{Evidence: text})
			if err != nil {
				t.Fatal(err)
			}
			if len(results) != 1 || results[0].Claims[tc.claim] == nil {
				t.Errorf("results are %+v, want one with %s", results, tc.claim)
			}
			// The same evidence for a session it was not made for.
			if _, err := v.Verify(t.Context(), Request{Evidence: text, ReportData: []byte(strings.Repeat("x", 48))}); err == nil {
				t.Error("evidence for another session is accepted")
			}
		})
	}
}

// TestNothingUnbound: in a handshake no verifier takes evidence that is bound to nothing.
func TestNothingUnbound(t *testing.T) {
	set, err := NewSet(Builtin(Config{Sample: sample.Config{Insecure: true}}))
	if err != nil {
		t.Fatal(err)
	}
	for _, st := range set.Status() {
		if !st.Ready {
			continue
		}
		v, err := set.Get(st.TEE)
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{`{}`, `null`, `[]`, `""`, `{"svn":"1"}`, strings.Repeat("[", 100_000)} {
			if _, err := v.Verify(t.Context(), Request{Evidence: json.RawMessage(text)}); err == nil {
				t.Errorf("%s takes %.20s without report data", st.TEE, text)
			}
		}
	}
}

func TestOff(t *testing.T) {
	set, err := NewSet(Builtin(Config{}))
	if err != nil {
		t.Fatal(err)
	}
	for tee, says := range map[string]string{
		"sample": "insecure_sample", "se": "se.measurement_key", "cca": "cca.trust_anchors", "nvidia-dpu": "nvidia.dpu_root", "moon": "known: ",
	} {
		if _, err := set.Get(tee); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: error %v, want one that says %q", tee, err, says)
		}
	}
	for alias, tee := range map[string]string{"dpu": "nvidia-dpu", "nvidiadpu": "nvidia-dpu", "azsnpvtpm": "az-snp-vtpm", "aztdxvtpm": "az-tdx-vtpm", "tdx": "tdx"} {
		if got := Canonical(alias); got != tee {
			t.Errorf("%s is called %s, want %s", alias, got, tee)
		}
	}
}

// TestAskedForAndBroken: what the operator named and what cannot be used stops the broker.
func TestAskedForAndBroken(t *testing.T) {
	junk := filepath.Join(t.TempDir(), "junk")
	if err := os.WriteFile(junk, []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]Config{
		"no CCA file": {CCATrustAnchors: "/does/not/exist"}, "no CCA store": {CCATrustAnchors: junk},
		"no SE key": {SE: se.Config{MeasurementKeyFile: junk}}, "no DPU root": {DPURoot: junk},
	} {
		if _, err := NewSet(Builtin(c)); err == nil || errors.Is(err, ErrOff) {
			t.Errorf("%s: error %v, want one that stops the start", name, err)
		}
	}
}
