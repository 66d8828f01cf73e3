package appraise

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/cloister/cloister/broker/rego"
	"github.com/cloister/cloister/broker/store"
	"github.com/cloister/cloister/wire/measured"
)

type refs map[string]string

func (r refs) Lookup(_ context.Context, name string) (json.RawMessage, error) {
	if v, ok := r[name]; ok {
		return json.RawMessage(v), nil
	}
	return nil, nil
}

func newAppraiser(t *testing.T, r refs, insecure bool) (*Appraiser, *rego.Set) {
	t.Helper()
	db, err := store.Open(t.TempDir() + "/store.db")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	set := rego.NewSet(db, Namespace)
	a, err := New(t.Context(), set, r, map[string]any{"insecure_unknown_tpm": insecure})
	if err != nil {
		t.Fatal(err)
	}
	return a, set
}

func tpmEvidence(change map[string]any) []Evidence {
	claims := map[string]any{
		"init_data": "88", "report_data": "aa", "ak_public": "QUs=", "ak_endorsement": "ek-certificate",
		"pcr00": "00", "pcr04": "04", "pcr07": "07", "pcr09": "09",
	}
	for k, v := range change {
		claims[k] = v
	}
	return []Evidence{{TEE: "tpm", Class: "cpu", Claims: claims, Runtime: map[string]any{"nonce": "n"}}}
}

var good = refs{
	"tpm_pcr00": `["00"]`, "tpm_pcr07": `["07"]`, "tpm_pcr04": `["04"]`, "tpm_pcr09": `["99","09"]`, "tpm_init_data": `["88"]`,
}

func with(r refs, name, value string) refs {
	out := refs{}
	for k, v := range r {
		out[k] = v
	}
	if value == "" {
		delete(out, name)
	} else {
		out[name] = value
	}
	return out
}

func TestDefaultPolicy(t *testing.T) {
	for _, tc := range []struct {
		name     string
		refs     refs
		change   map[string]any
		insecure bool
		status   string
		says     []string
		silent   []string
	}{
		{name: "everything approved", refs: good, status: StatusAffirming},
		{
			name: "firmware not registered", refs: with(good, "tpm_pcr00", ""), status: StatusWarning,
			says: []string{`tpm.pcr00 = 00, but no reference value "tpm_pcr00" is registered`},
		},
		{
			name: "other command line", refs: good, change: map[string]any{"pcr09": "0bad"}, status: StatusWarning,
			says:   []string{`tpm.pcr09 = 0bad is not one of the 2 registered values of "tpm_pcr09"`},
			silent: []string{"pcr04", "insecure_unknown_tpm"},
		},
		{
			name: "kernel and initrd both changed", refs: good, change: map[string]any{"pcr09": "0bad", "pcr04": "0dad"},
			status: StatusWarning,
			says: []string{
				`tpm.pcr09 = 0bad is not one of the 2 registered values of "tpm_pcr09"`,
				`tpm.pcr04 = 0dad is not the registered value of "tpm_pcr04", 04`,
			},
		},
		{
			name: "other firmware", refs: with(good, "tpm_pcr00", `["01"]`), status: StatusWarning,
			says: []string{`tpm.pcr00 = 00 is not the registered value of "tpm_pcr00", 01`},
		},
		{
			name: "other secure boot state", refs: with(good, "tpm_pcr07", `["01"]`), status: StatusWarning,
			says: []string{`tpm.pcr07 = 07 is not the registered value of "tpm_pcr07", 01`},
		},
		{
			name: "other initdata", refs: good, change: map[string]any{"init_data": "bad0"}, status: StatusWarning,
			says: []string{`init_data = bad0 is not the registered value of "tpm_init_data", 88`},
		},
		{
			name: "nothing registered", refs: refs{}, status: StatusWarning,
			says: []string{`tpm.pcr04 = 04, but no reference value "tpm_pcr04" is registered`, `"tpm_init_data"`},
		},
		{
			name: "unknown TPM", refs: good, change: map[string]any{"ak_endorsement": "none"}, status: StatusContraindicated,
			says:   []string{`tpm.ak_endorsement = "none", want "ek-certificate"`, `no reference value "trusted_aks" is registered`},
			silent: []string{"pcr", "insecure"},
		},
		{
			name: "listed TPM", refs: with(good, "trusted_aks", `["QUs="]`), change: map[string]any{"ak_endorsement": "none"},
			status: StatusAffirming,
		},
		{
			name: "unknown TPM, switch", refs: good, change: map[string]any{"ak_endorsement": "none"}, insecure: true,
			status: StatusAffirming,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a, _ := newAppraiser(t, tc.refs, tc.insecure)
			got, err := a.Appraise(t.Context(), DefaultPolicy, tpmEvidence(tc.change))
			if err != nil {
				t.Fatal(err)
			}
			if got[0].Status != tc.status || got[0].Name != "cpu0" {
				t.Errorf("%s has status %s, want cpu0 %s", got[0].Name, got[0].Status, tc.status)
			}
			text := rego.Summary(got[0].Findings)
			for _, s := range tc.says {
				if !strings.Contains(text, s) {
					t.Errorf("explanation lacks %q: %s", s, text)
				}
			}
			for _, s := range tc.silent {
				if strings.Contains(text, s) {
					t.Errorf("explanation speaks of %q: %s", s, text)
				}
			}
			if tc.status == StatusAffirming && text != "" {
				t.Errorf("an affirming appraisal has findings: %s", text)
			}
		})
	}
}

func TestOtherPolicies(t *testing.T) {
	for _, tc := range []struct{ name, text, status, fails, says string }{
		{
			name: "helper function", status: StatusContraindicated, says: `tpm.pcr04 = 04 is not the registered value of "tpm_pcr09x"`,
			text: "package policy\nimport rego.v1\ntrust_claims := {\"hardware\": hardware}\ndefault hardware := 97\n" +
				"hardware := 2 if same(\"pcr04\", \"tpm_pcr09x\")\nsame(c, r) if input.tpm[c] in query_reference_value(r)\n",
		},
		{name: "nothing claimed", status: StatusNone, text: "package policy\n"},
		{
			name: "else branch", status: StatusWarning, says: `tpm.pcr04 = 04, want 05`,
			text: "package policy\nimport rego.v1\ntrust_claims := {\"executables\": executables}\n" +
				"executables := 3 if { input.tpm.pcr04 == \"05\" } else := 33\n",
		},
		{name: "unknown claim", fails: `"hardwear"`, text: `package policy` + "\n" + `trust_claims := {"hardwear": 2}`},
		{name: "not a number", fails: "want a number", text: `package policy` + "\n" + `trust_claims := {"hardware": "2"}`},
		{name: "out of range", fails: "-128 to 127", text: `package policy` + "\n" + `trust_claims := {"hardware": 300}`},
		{name: "no claim", fails: "at least one", text: `package policy` + "\n" + `trust_claims := {}`},
		{name: "old syntax", status: StatusAffirming, text: "package policy\ntrust_claims = {\"hardware\": h} { h := 2 }\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a, set := newAppraiser(t, refs{"tpm_pcr09x": `["x"]`}, false)
			if err := set.Put(t.Context(), "default_cpu", tc.text); err != nil {
				t.Fatal(err)
			}
			got, err := a.Appraise(t.Context(), DefaultPolicy, tpmEvidence(nil))
			if tc.fails != "" {
				if err == nil || !strings.Contains(err.Error(), tc.fails) {
					t.Fatalf("error %v, want one with %q", err, tc.fails)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got[0].Status != tc.status {
				t.Errorf("status %s, want %s", got[0].Status, tc.status)
			}
			if text := rego.Summary(got[0].Findings); !strings.Contains(text, tc.says) {
				t.Errorf("explanation lacks %q: %s", tc.says, text)
			}
		})
	}
}

func TestUnknownClassFails(t *testing.T) {
	a, _ := newAppraiser(t, good, false)
	e := tpmEvidence(nil)
	e[0].Class = "toaster"
	if _, err := a.Appraise(t.Context(), DefaultPolicy, e); err == nil || !strings.Contains(err.Error(), "default_toaster") {
		t.Fatalf("error %v, want one that names the missing policy default_toaster", err)
	}
}

func TestIdentifiers(t *testing.T) {
	a, _ := newAppraiser(t, good, false)
	e := tpmEvidence(nil)
	if err := json.Unmarshal([]byte(`{"agent_policy_claims":{"containers":[{"OCI":{"Annotations":
		{"io.kubernetes.cri.image-name":"r/x:1"},"Process":{"User":{"UID":7}}}}]}}`), &e[0].InitData); err != nil {
		t.Fatal(err)
	}
	got, err := a.Appraise(t.Context(), DefaultPolicy, e)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(got[0].Submod()["ear.trustee.identifiers"])
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"validated":{"container_images":["r/x:1"],"container_uids":[7]}}`; string(raw) != want {
		t.Errorf("identifiers are %s, want %s", raw, want)
	}
}

// TestDefaultPolicySpeaksOfMeasuredNames: author and policy use the same names of reference values.
func TestDefaultPolicySpeaksOfMeasuredNames(t *testing.T) {
	text, err := Default("cpu")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		measured.TPMPCR00, measured.TPMPCR04, measured.TPMPCR07, measured.TPMPCR09, measured.TPMInitData, measured.TrustedAKs,
	} {
		if !strings.Contains(text, `query_reference_value("`+name+`")`) {
			t.Errorf("the default policy does not ask for %q", name)
		}
	}
}
