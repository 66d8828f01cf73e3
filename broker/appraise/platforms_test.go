package appraise

import (
	"maps"
	"strings"
	"testing"

	"github.com/cloister/cloister/broker/rego"
)

// platform is evidence of one TEE with the values that approve it.
type platform struct {
	tee    string
	claims map[string]any
	refs   refs
}

func snpPlatform() platform {
	return platform{tee: "snp", claims: map[string]any{
		"measurement": "aa", "reported_tcb_bootloader": 3, "reported_tcb_microcode": 115, "reported_tcb_snp": 8, "reported_tcb_tee": 0,
		"policy_debug_allowed": false, "policy_migrate_ma": false, "policy_abi_major": 1, "policy_abi_minor": 0,
		"policy_single_socket": false, "policy_smt_allowed": true, "platform_smt_enabled": true, "platform_tsme_enabled": false,
		"init_data": "88", "report_data": "00", "cert_validity": "valid", "cert_revocation": "checked",
	}, refs: refs{
		"snp_launch_measurement": `["aa"]`, "snp_bootloader": `[3]`, "snp_microcode": `[115]`, "snp_snp_svn": `[8]`, "snp_tee_svn": `[0]`,
		"snp_smt_enabled": `true`, "snp_tsme_enabled": `false`, "snp_guest_abi_major": `1`, "snp_guest_abi_minor": `0`,
		"snp_single_socket": `false`, "snp_smt_allowed": `true`, "init_data": `["88"]`,
	}}
}

func tdxPlatform() platform {
	return platform{tee: "tdx", claims: map[string]any{
		"quote": map[string]any{
			"header": map[string]any{"tee_type": "81000000", "vendor_id": "939a7233f79c4ca9940a0db3957f0607"},
			"body":   map[string]any{"mr_td": "aa", "rtmr_1": "01", "rtmr_2": "02", "xfam": "e7"},
		},
		"td_attributes": map[string]any{"debug": false},
		"tcb_status":    "UpToDate", "collateral_expiration_status": "0", "init_data": "88", "report_data": "00",
	}, refs: refs{"mr_td": `["aa"]`, "rtmr_1": `["01"]`, "rtmr_2": `["02"]`, "xfam": `["e7"]`, "init_data": `["88"]`}}
}

func TestPlatforms(t *testing.T) {
	for _, tc := range []struct {
		name   string
		p      platform
		change func(p platform)
		status string
		says   string
	}{
		{name: "snp approved", p: snpPlatform(), status: StatusAffirming},
		{name: "snp without approved settings is still fine", p: snpPlatform(), status: StatusAffirming,
			change: func(p platform) { delete(p.refs, "snp_smt_allowed") }},
		{name: "snp measurement", p: snpPlatform(), status: StatusWarning, says: `snp.measurement = bb is not the registered value of "snp_launch_measurement", aa`,
			change: func(p platform) { p.claims["measurement"] = "bb" }},
		{name: "snp nothing registered", p: snpPlatform(), status: StatusContraindicated, says: `no reference value "snp_launch_measurement" is registered`,
			change: func(p platform) { clear(p.refs) }},
		{name: "snp debug", p: snpPlatform(), status: StatusWarning, says: `snp.policy_debug_allowed = true, want false`,
			change: func(p platform) { p.claims["policy_debug_allowed"] = true }},
		{name: "snp old firmware", p: snpPlatform(), status: StatusContraindicated, says: `snp.reported_tcb_microcode = 114 is not the registered value`,
			change: func(p platform) { p.claims["reported_tcb_microcode"] = 114 }},
		{name: "snp revocation unknown", p: snpPlatform(), status: StatusContraindicated, says: `snp.cert_revocation = "unavailable: no source"`,
			change: func(p platform) { p.claims["cert_revocation"] = "unavailable: no source" }},
		{name: "snp certificate expired", p: snpPlatform(), status: StatusContraindicated, says: `snp.cert_validity = "expired", want "valid"`,
			change: func(p platform) { p.claims["cert_validity"] = "expired" }},
		{name: "snp foreign initdata", p: snpPlatform(), status: StatusWarning, says: `init_data = 99 is not the registered value of "init_data", 88`,
			change: func(p platform) { p.claims["init_data"] = "99" }},
		{name: "snp initdata never approved", p: snpPlatform(), status: StatusWarning, says: `no reference value "init_data" is registered`,
			change: func(p platform) { delete(p.refs, "init_data") }},
		{name: "snp without initdata", p: snpPlatform(), status: StatusWarning, says: `is not the registered value of "init_data", 88`,
			change: func(p platform) { p.claims["init_data"] = strings.Repeat("00", 32) }},
		{name: "snp without initdata, approved", p: snpPlatform(), status: StatusAffirming,
			change: func(p platform) { p.claims["init_data"] = "00"; p.refs["init_data"] = `["00"]` }},
		{name: "snp without the claim", p: snpPlatform(), status: StatusWarning, says: "init_data is absent",
			change: func(p platform) { delete(p.claims, "init_data") }},
		{name: "tdx approved", p: tdxPlatform(), status: StatusAffirming},
		{name: "tdx debug", p: tdxPlatform(), status: StatusWarning, says: `tdx.td_attributes.debug = true, want false`,
			change: func(p platform) { p.claims["td_attributes"] = map[string]any{"debug": true} }},
		{name: "tdx out of date", p: tdxPlatform(), status: StatusContraindicated, says: `tdx.tcb_status = "OutOfDate", want "UpToDate"`,
			change: func(p platform) { p.claims["tcb_status"] = "OutOfDate" }},
		{name: "tdx kernel", p: tdxPlatform(), status: StatusWarning, says: `tdx.quote.body.rtmr_1 = 01 is not the registered value of "rtmr_1", ff`,
			change: func(p platform) { p.refs["rtmr_1"] = `["ff"]` }},
		{name: "sample without values", p: platform{tee: "sample", claims: map[string]any{"svn": "1", "launch_digest": "abcde", "debug": false}, refs: refs{}},
			status: StatusContraindicated, says: `no reference value "launch_digest" is registered`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.change != nil {
				tc.change(tc.p)
			}
			a, _ := newAppraiser(t, tc.p.refs, false)
			got, err := a.Appraise(t.Context(), DefaultPolicy, []Evidence{{TEE: tc.p.tee, Class: "cpu", Claims: maps.Clone(tc.p.claims)}})
			if err != nil {
				t.Fatal(err)
			}
			if got[0].Status != tc.status {
				t.Errorf("status is %s, want %s: %v %v", got[0].Status, tc.status, got[0].Vector, got[0].Findings)
			}
			text := rego.Summary(got[0].Findings)
			if !strings.Contains(text, tc.says) {
				t.Errorf("the findings do not say %q: %s", tc.says, text)
			}
			for _, other := range []string{"tpm.", "sgx.", "az-", "se."} {
				if strings.Contains(text, other) {
					t.Errorf("the findings speak of another platform (%s): %s", other, text)
				}
			}
		})
	}
}
