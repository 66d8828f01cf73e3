package judge_test

import (
	"encoding/hex"
	"encoding/json"
	"slices"
	"testing"

	"github.com/cloister/cloister/broker/judge"
	"github.com/cloister/cloister/internal/needs"
	"github.com/cloister/cloister/test/evidence"
)

// TestLibraryGaps is the list of what widely used libraries get wrong (evidence-layouts.md and the manifest of the evidence), with
// recordings that show it and what a verifier has to say of each.
func TestLibraryGaps(t *testing.T) {
	inputs := byID(t)
	for gap, cases := range map[string]map[string]judge.Word{
		"Turin: extension .3.9, hwID of 8 bytes, FMC in the TCB": {
			"turin-v5":         judge.Valid,
			"syn-snp-turin-v5": judge.Valid,
			"turin-wrong-vcek": judge.Invalid,
		},
		"CPUID model A0h is of the Genoa chain": {
			"siena-v5": judge.Valid,
		},
		"reports of version 3 and 5": {
			"milan-v3-oak":     judge.Valid,
			"syn-snp-valid-v5": judge.Valid,
		},
		"VLEK: other authority, no hwID": {
			"syn-snp-vlek-v3":                judge.Valid,
			"syn-snp-keyinfo-vlek-with-vcek": judge.Invalid,
		},
		"TDX quotes of version 5, TD 1.0 and 1.5": {
			"syn-dcap-tdx-v5-td15":  judge.Valid,
			"syn-dcap-tdx-v5-td10":  judge.Valid,
			"v5-td15-90c06f-google": judge.ValidSignature,
		},
		"SGX in quotes of version 4 and 5": {
			"syn-dcap-sgx-v4": judge.Valid,
			"syn-dcap-sgx-v5": judge.Valid,
		},
		"SVN components 0 and 1 count for module version 0 only": {
			"syn-dcap-tdx-module0-low":             judge.Valid,
			"v4-cos113@tdx-00806f050000-2025-06":   judge.Valid,
			"v4-00a06d08@tdx-00a06d080000-2025-10": judge.Valid,
		},
		"TDX module: its own levels and signer": {
			"syn-dcap-tdx-svn-old-module": judge.Valid,
			"syn-dcap-tdx-seam-signer":    judge.Invalid,
		},
		"TCB info of version 2": {
			"v3-00606a-teepot-1@sgx-00606a000000-2023-05": judge.Valid,
		},
		"signature and age of revocation lists": {
			"syn-dcap-crl-expired":   judge.Expired,
			"syn-dcap-pck-revoked":   judge.Invalid,
			"syn-dcap-inter-revoked": judge.Invalid,
		},
		"attributes are policy, and are looked at": {
			"syn-dcap-tdx-service-td": judge.PolicyReject,
			"syn-dcap-tdx-debug":      judge.PolicyReject,
		},
		"quotes without a chain, and with a wrong one": {
			"v3-eppid":                  judge.NoChain,
			"syn-dcap-certtype-1":       judge.Invalid,
			"syn-dcap-chain-other-root": judge.Invalid,
		},
		"TPM quotes with RSAPSS, ECDSA, two banks": {
			"tpm-swtpm-ubuntu2404-rsapss-sha256":     judge.Valid,
			"tpm-swtpm-ubuntu2404-ecdsa-p384-sha384": judge.Valid,
			"tpm-swtpm-ubuntu2404-rsassa-twobank":    judge.Valid,
		},
		"CCA: the platform vouches for the realm's key": {
			"cca-token-binding-broken": judge.Invalid,
		},
		"a byte behind an NVIDIA report, a switch, Blackwell": {
			"nv-hopper-coco-580": judge.Valid,
			"nv-ls10":            judge.Valid,
			"nv-blackwell-575":   judge.Valid,
		},
		"Armonk and Poughkeepsie are one": {
			"se-hkd-armonk": judge.Valid,
		},
	} {
		t.Run(gap, func(t *testing.T) {
			for id, want := range cases {
				c, ok := inputs[id]
				if !ok {
					needs.Optional(t, "the folder of recorded evidence has no case %s", id)
				}
				if v := judge.Judge(t.Context(), c); v.Word != want {
					t.Errorf("%s: %s, expected %s: %q", id, v.Word, want, v.Reasons)
				}
			}
		})
	}
}

// byID is the inputs of all cases.
func byID(t testing.TB) map[string]judge.Input {
	t.Helper()
	var raw []json.RawMessage
	if err := json.Unmarshal(evidence.Read(t, "cases.json"), &raw); err != nil {
		t.Fatal(err)
	}
	out := map[string]judge.Input{}
	for _, text := range raw {
		var id struct{ ID string }
		var c judge.Case
		if err := json.Unmarshal(text, &id); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, &c); err != nil {
			t.Fatal(err)
		}
		in, err := c.Input(evidence.Dir(t))
		if err != nil {
			t.Fatal(err)
		}
		out[id.ID] = in
	}
	return out
}

// TestBindings gives each kind of evidence the value it is for, and another.
func TestBindings(t *testing.T) {
	cases := byID(t)
	for _, tc := range []struct {
		id           string
		nonce, other func(in *judge.Input) *[]byte
		right        func(v judge.Verdict) string
	}{
		{"genoa-v3", nonce, reportData, claim("report_data")},
		{"v4-cos113@tdx-00806f050000-2025-06", nonce, reportData, claim("report_data")},
		{"syn-dcap-sgx-v3", reportData, nonce, claim("report_data")},
		{"cca-token-trustee", nonce, reportData, claim("report_data")},
		{"csv-report-v1", nonce, reportData, claim("report_data")},
		{"syn-se-valid", nonce, reportData, claim("user_data")},
		{"az-snp-evidence-v2", nonce, reportData, claim("report_data")},
		{"az-snp-raw", nonce, reportData, claim("report_data")},
		{"tpm-keylime", reportData, nonce, claim("report_data")},
	} {
		in, ok := cases[tc.id]
		if !ok {
			t.Logf("the folder has no case %s", tc.id)
			continue
		}
		before := judge.Judge(t.Context(), in)
		value := unhex(t, tc.right(before))
		for _, field := range []func(*judge.Input) *[]byte{tc.nonce, tc.other} {
			right := in
			*field(&right) = value
			if v := judge.Judge(t.Context(), right); v.Word != before.Word {
				t.Errorf("%s with its own value: %s %q", tc.id, v.Word, v.Reasons)
			}
			for _, wrong := range [][]byte{append(slices.Clone(value[1:]), 1), value[:len(value)/2], append(slices.Clone(value), 1), {}} {
				other := in
				*field(&other) = wrong
				if v := judge.Judge(t.Context(), other); v.Outcome != judge.Refused && !zeros(value[len(value)/2:]) {
					t.Errorf("%s with %x: %s %q", tc.id, wrong, v.Word, v.Reasons)
				}
			}
		}
		init := in
		init.InitData = slices.Repeat([]byte{7}, 32)
		if v := judge.Judge(t.Context(), init); v.Outcome == judge.Genuine {
			t.Errorf("%s with init data it was not started with: %s", tc.id, v.Word)
		}
	}
}

func nonce(in *judge.Input) *[]byte      { return &in.Nonce }
func reportData(in *judge.Input) *[]byte { return &in.ReportData }

func claim(name string) func(judge.Verdict) string {
	return func(v judge.Verdict) string { s, _ := v.Claims[name].(string); return s }
}

func zeros(b []byte) bool { return !slices.ContainsFunc(b, func(v byte) bool { return v != 0 }) }

func unhex(t testing.TB, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(text)
	if err != nil || len(b) == 0 {
		t.Fatalf("%q is no hex", text)
	}
	return b
}
