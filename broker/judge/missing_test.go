package judge_test

import (
	"encoding/binary"
	"encoding/json"
	"slices"
	"testing"

	"github.com/cloister/cloister/broker/judge"
	"github.com/cloister/cloister/broker/verifier/snp/snptest"
	"github.com/cloister/cloister/internal/needs"
	"github.com/cloister/cloister/tee/eventlog"
	"github.com/cloister/cloister/tee/snp"
	"github.com/cloister/cloister/test/evidence"
)

// TestMessages judges evidence inside of what a guest sends.
func TestMessages(t *testing.T) {
	p, err := snptest.New(snp.Genoa, moment)
	if err != nil {
		t.Fatal(err)
	}
	report, err := p.Sign(p.Report(5, make([]byte, 64)))
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := p.VCEK(snptest.LeafOptions{})
	if err != nil {
		t.Fatal(err)
	}
	body, err := snptest.Evidence(report, snptest.Cert{Type: "VCEK", Data: leaf})
	if err != nil {
		t.Fatal(err)
	}
	composite := map[string]any{"primary_evidence": body, "additional_evidence": "{\"nvidia\":{}}"}
	inner, err := json.Marshal(composite)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		message any
		want    judge.Outcome
	}{
		"object":    {map[string]any{"runtime-data": map[string]any{}, "tee-evidence": composite}, judge.Genuine},
		"text":      {map[string]any{"tee-evidence": string(inner)}, judge.Genuine},
		"old":       {map[string]any{"tee-pubkey": map[string]any{}, "tee-evidence": string(body)}, judge.Genuine},
		"composite": {composite, judge.Genuine},
		"empty":     {map[string]any{"tee-evidence": ""}, judge.Refused},
		"null":      {map[string]any{"tee-evidence": nil}, judge.Refused},
		"number":    {map[string]any{"tee-evidence": 7}, judge.Refused},
	} {
		text, err := json.Marshal(tc.message)
		if err != nil {
			t.Fatal(err)
		}
		in := judge.Input{TEE: "snp", Evidence: text, Certificates: [][]byte{p.RootsPEM()}, Time: moment, MaxVMPL: judge.DefaultMaxVMPL}
		if v := judge.Judge(t.Context(), in); v.Outcome != tc.want {
			t.Errorf("%s: %s, want %s: %q", name, v.Outcome, tc.want, v.Reasons)
		}
	}
}

// TestMissingParts gives evidence whose certificates are not there: nothing speaks against it, and nothing for it.
func TestMissingParts(t *testing.T) {
	cases := byID(t)
	for id, without := range map[string]func(in *judge.Input){
		"nv-hopper-550":      func(in *judge.Input) { in.Chain = nil },
		"syn-snp-valid-v3":   func(in *judge.Input) { in.Issuers = nil },
		"az-snp-raw":         func(in *judge.Input) { in.Chain = nil },
		"az-snp-evidence-v1": func(in *judge.Input) { in.Evidence = withoutVCEK(t, in.Evidence) },
	} {
		in, ok := cases[id]
		if !ok {
			t.Logf("the folder has no case %s", id)
			continue
		}
		without(&in)
		if v := judge.Judge(t.Context(), in); v.Outcome != judge.Unjudged {
			t.Errorf("%s: %s, want %s: %q", id, v.Outcome, judge.Unjudged, v.Reasons)
		}
	}
}

func withoutVCEK(t *testing.T, evidence []byte) []byte {
	t.Helper()
	var m map[string]json.RawMessage
	if err := json.Unmarshal(evidence, &m); err != nil {
		t.Fatal(err)
	}
	delete(m, "vcek")
	text, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestSilentLog leaves all events of a register of firmware out of a log, and those of one that programs extend.
func TestSilentLog(t *testing.T) {
	in, ok := byID(t)["tpm-swtpm-ubuntu2404-rsassa-sha256"]
	if !ok {
		needs.Optional(t, "the folder of recorded evidence has no such case")
	}
	log, err := eventlog.Parse(in.Log)
	if err != nil {
		t.Fatal(err)
	}
	for register, want := range map[uint32]judge.Word{2: judge.Partial, 7: judge.Partial, 9: judge.Valid, 100: judge.Valid} {
		header := 32 + len(log.Events[0].Data)
		text, le := slices.Clone(in.Log[:header]), binary.LittleEndian
		for _, e := range log.Events[1:] {
			if e.Index == register {
				continue
			}
			text = le.AppendUint32(le.AppendUint32(le.AppendUint32(text, e.Index), uint32(e.Type)), uint32(len(e.Digests)))
			for _, d := range e.Digests {
				text = append(le.AppendUint16(text, uint16(d.Alg)), d.Sum...)
			}
			text = append(le.AppendUint32(text, uint32(len(e.Data))), e.Data...)
		}
		in.Log = text
		if v := judge.Judge(t.Context(), in); v.Word != want {
			t.Errorf("without events of register %d: %s, want %s: %q", register, v.Word, want, v.Reasons)
		}
	}
}

// TestAzureChain pins a root and leaves the ASK to the chain.
func TestAzureChain(t *testing.T) {
	in, ok := byID(t)["az-snp-raw"]
	if !ok {
		needs.Optional(t, "the folder of recorded evidence has no such case")
	}
	in.Root = evidence.Read(t, "amd-sev-snp/ca/milan/ark.pem")
	if v := judge.Judge(t.Context(), in); v.Outcome != judge.Genuine {
		t.Errorf("%s: %q", v.Word, v.Reasons)
	}
}
