package azurevtpm_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/verifier/azurevtpm"
	tee "github.com/cloister/cloister/tee/snp"
)

func TestVerify(t *testing.T) {
	for _, tdx := range []bool{false, true} {
		for version := range 3 {
			v := newVM(t, tdx)
			v.version = version
			if version == 2 {
				v.wire = func(m map[string]any) { // also with padding
					raw := must[[]byte](t)(base64.RawURLEncoding.DecodeString(m["hcl_report"].(string)))
					m["hcl_report"] = base64.URLEncoding.EncodeToString(raw)
				}
			}
			claims, err := v.verify(t, v.options(t))
			if err != nil {
				t.Fatalf("tdx %t version %d: %v", tdx, version, err)
			}
			want := map[string]any{
				"report_data": hex.EncodeToString(nonce), "init_data": strings.Repeat("08", 32), "hcl_user_data": "ignored",
			}
			if version == 2 {
				want["hcl_user_data"] = "bound"
			}
			if tdx {
				want["tcb_status"] = "UpToDate"
			} else {
				for name, value := range map[string]string{
					"policy_abi_major": "0", "policy_abi_minor": "31", "policy_smt_allowed": "true", "policy_migrate_ma": "false",
					"policy_debug_allowed": "false", "policy_single_socket": "false", "reported_tcb_bootloader": "4", "reported_tcb_tee": "1",
					"reported_tcb_snp": "24", "reported_tcb_microcode": "219", "platform_tsme_enabled": "false", "platform_smt_enabled": "true",
					"measurement":   base64.StdEncoding.EncodeToString(v.platform.Report(3, nil)[0x90:0xc0]),
					"cert_validity": "valid", "cert_revocation": "unavailable: no source of CRLs is configured", "report_version": "3",
				} {
					want[name] = value
				}
				if _, there := claims["chip_id"]; there {
					t.Error("chip_id is a claim")
				}
			}
			for name, value := range want {
				if claims[name] != value {
					t.Errorf("tdx %t version %d: claim %s is %v, expected %v", tdx, version, name, claims[name], value)
				}
			}
			registers, _ := claims["tpm"].(map[string]any)
			if len(registers) != 24 || registers["pcr11"] != strings.Repeat("0b", 32) || registers["pcr23"] != strings.Repeat("17", 32) {
				t.Errorf("registers are %v", registers)
			}
		}
	}
}

func TestRefused(t *testing.T) {
	both, snpOnly, tdxOnly := []bool{false, true}, []bool{false}, []bool{true}
	for name, c := range map[string]struct {
		on     []bool
		change func(v *vm)
		why    string
	}{
		"quote by another key":          {both, func(v *vm) { v.signWith = v.ak2 }, "HCLAkPub"},
		"another nonce":                 {both, func(v *vm) { v.nonce = append([]byte{}, nonce[1:]...) }, "report_data"},
		"a longer nonce":                {both, func(v *vm) { v.nonce = append(append([]byte{}, nonce...), 0) }, "report_data"},
		"no nonce":                      {both, func(v *vm) { v.nonce = nil }, "report_data"},
		"fewer registers":               {both, func(v *vm) { v.bitmap = []byte{255, 254, 255} }, "selects registers"},
		"a wrong register digest":       {both, func(v *vm) { v.digest = func(d []byte) { d[0] ^= 1 } }, "register digest"},
		"another register value":        {both, wire(func(m map[string]any) { pcrs(m)[3] = strings.Repeat("ff", 32) }), "register digest"},
		"a short register":              {both, wire(func(m map[string]any) { pcrs(m)[3] = "03" }), "pcr03"},
		"23 registers":                  {both, wire(func(m map[string]any) { quoteOf(m)["pcrs"] = pcrs(m)[:23] }), "23 registers"},
		"other user-data":               {both, func(v *vm) { v.userData[0] ^= 1 }, "user-data"},
		"user-data with a tail":         {both, func(v *vm) { v.userData[63] = 1 }, "user-data"},
		"short user-data":               {both, func(v *vm) { v.userData = v.userData[:48] }, "user-data"},
		"no user-data":                  {both, func(v *vm) { v.userData = nil }, "user-data"},
		"hash of other runtime data":    {both, func(v *vm) { v.hash = func([]byte) []byte { return make([]byte, 64) } }, "report data"},
		"a tail behind the hash":        {both, func(v *vm) { v.hash = tail(v.hash) }, "report data"},
		"runtime data changed later":    {both, func(v *vm) { v.hcl = func(b []byte) { b[1236+len(v.runtime())-3] ^= 1 } }, ""},
		"hash type 2":                   {both, func(v *vm) { v.hcl = func(b []byte) { b[1228] = 2 } }, "hash type"},
		"the other kind of hardware":    {both, func(v *vm) { v.hcl = func(b []byte) { b[1224] ^= 6 } }, "hardware"},
		"version 3":                     {both, func(v *vm) { v.version = 3 }, "version"},
		"a null quote":                  {both, wire(func(m map[string]any) { m["tpm_quote"] = nil }), "missing"},
		"no HCL report":                 {both, wire(func(m map[string]any) { delete(m, "hcl_report") }), "missing"},
		"base64 with a stray pad":       {both, wire(func(m map[string]any) { m["hcl_report"] = m["hcl_report"].(string) + "===" }), "base64"},
		"text in version 0":             {both, wire(func(m map[string]any) { delete(m, "version") }), ""},
		"VMPL 1":                        {snpOnly, func(v *vm) { v.report = func(b []byte) { b[0x30] = 1 } }, "vmpl"},
		"a report changed after":        {snpOnly, func(v *vm) { v.hcl = func(b []byte) { b[32+0x90] ^= 1 } }, "does not verify"},
		"another chip":                  {snpOnly, func(v *vm) { v.report = func(b []byte) { b[0x1a0] ^= 1 } }, "chip id"},
		"a hidden chip":                 {snpOnly, func(v *vm) { v.report = func(b []byte) { clear(b[0x1a0:0x1e0]) } }, "hidden"},
		"a certificate of garbage":      {snpOnly, func(v *vm) { v.vcek = []byte("garbage") }, "certificate"},
		"no certificate":                {snpOnly, wire(func(m map[string]any) { delete(m, "vcek") }), "no source"},
		"another TD quote":              {tdxOnly, wire(func(m map[string]any) { m["td_quote"] = "AAAA" }), "verifying the TD quote"},
		"no TD quote":                   {tdxOnly, wire(func(m map[string]any) { delete(m, "td_quote") }), "missing"},
		"a TDREPORT with another hash":  {tdxOnly, func(v *vm) { v.td = func(b []byte) { b[128] ^= 1 } }, "TDREPORT"},
		"something that is no TDREPORT": {tdxOnly, func(v *vm) { v.td = func(b []byte) { b[0] = 0 } }, "TDREPORT"},
	} {
		for _, tdx := range c.on {
			v := newVM(t, tdx)
			c.change(v)
			claims, err := v.verify(t, v.options(t))
			if err == nil {
				t.Errorf("tdx %t: %s is accepted with %v", tdx, name, claims)
			} else if !strings.Contains(err.Error(), c.why) {
				t.Errorf("tdx %t: %s: error is %q, expected it to speak of %q", tdx, name, err, c.why)
			}
		}
	}
}

func wire(change func(m map[string]any)) func(v *vm) {
	return func(v *vm) { v.wire = change }
}

// tail puts something behind the hash.
func tail(hash func([]byte) []byte) func([]byte) []byte {
	return func(runtime []byte) []byte { return append(hash(runtime)[:63], 1) }
}

func quoteOf(m map[string]any) map[string]any { return m["tpm_quote"].(map[string]any) }
func pcrs(m map[string]any) []any             { return quoteOf(m)["pcrs"].([]any) }

func TestTDQuoteOfAnotherReport(t *testing.T) {
	v := newVM(t, true)
	for _, data := range [][]byte{nil, make([]byte, 64), v.hash(v.runtime())[:32], append(v.hash(v.runtime()), 0)} {
		td := &fakeTD{want: v.tdQuote, reportData: data}
		if _, err := azurevtpm.VerifyTDX(context.Background(), v.evidence(t), v.options(t), td); err == nil {
			t.Errorf("a TD quote with report data %x is accepted", data)
		}
	}
	if _, err := azurevtpm.VerifyTDX(context.Background(), v.evidence(t), v.options(t), nil); err == nil {
		t.Error("without a verifier of TD quotes, evidence is accepted")
	}
}

func TestOptions(t *testing.T) {
	for _, tdx := range []bool{false, true} {
		v := newVM(t, tdx)
		digest := sha256.Sum256([]byte("init-data"))
		start := sha256.Sum256(append(make([]byte, 32), digest[:]...))
		v.pcrs[8] = start[:]
		o := v.options(t)
		o.InitDataDigest = digest[:]
		claims, err := v.verify(t, o)
		if err != nil || claims["init_data"] != hex.EncodeToString(start[:]) {
			t.Errorf("init-data: %v, %v", claims["init_data"], err)
		}
		for _, d := range [][]byte{{}, digest[:31], append(digest[:], 0), make([]byte, 32), make([]byte, 48)} {
			o.InitDataDigest = d
			if _, err := v.verify(t, o); err == nil {
				t.Errorf("init-data with digest %x is accepted", d)
			}
		}
		twice := sha256.Sum256(append(start[:], digest[:]...))
		o.InitDataDigest, v.pcrs[8] = digest[:], twice[:]
		if _, err := v.verify(t, o); err == nil || !strings.Contains(err.Error(), "pcr08") {
			t.Errorf("init-data that was extended twice: %v", err)
		}
		v.pcrs[8] = make([]byte, 32)
		if _, err := v.verify(t, o); err == nil || !strings.Contains(err.Error(), "measured no init-data") {
			t.Errorf("init-data that was never measured: %v", err)
		}

		o = v.options(t)
		o.ExpectedReportData = nil
		if _, err := v.verify(t, o); err == nil {
			t.Error("without report data, evidence is accepted")
		}
		o.Offline = true
		if _, err := v.verify(t, o); err != nil {
			t.Errorf("offline: %v", err)
		}
		o.ExpectedReportData = nonce[1:]
		if _, err := v.verify(t, o); err == nil {
			t.Error("offline, report data that is given is not checked")
		}
		o.ExpectedReportData = nil
		v.userData[1] ^= 1
		if _, err := v.verify(t, o); err == nil {
			t.Error("offline, user-data may differ from the nonce")
		}
	}
	v := newVM(t, false)
	o := v.options(t)
	o.Offline = true
	v.report = func(b []byte) { b[0x30] = 2 }
	if _, err := v.verify(t, o); err == nil {
		t.Error("offline, a report of VMPL 2 is accepted")
	}
	v = newVM(t, false)
	o.Now = time.Time{}
	if _, err := v.verify(t, o); err == nil {
		t.Error("without a time, evidence is accepted")
	}
}

type source struct{ vcek []byte }

func (s source) VCEK(context.Context, tee.Line, []byte, tee.TCB) ([]byte, error) { return s.vcek, nil }

func (s source) CRL(context.Context, tee.Line, bool) ([]byte, error) {
	return nil, fmt.Errorf("there is none")
}

func TestFetchedVCEK(t *testing.T) {
	v := newVM(t, false)
	v.wire = func(m map[string]any) { m["vcek"] = nil }
	o := v.options(t)
	o.Certificates = source{vcek: v.vcek}
	claims, err := v.verify(t, o)
	if err != nil || claims["cert_revocation"] != "unavailable: there is none" {
		t.Errorf("%v, %v", claims["cert_revocation"], err)
	}
}

// TestTampered flips a bit of every byte of the TPM quote, its signature, and the parts of the HCL report that count.
func TestTampered(t *testing.T) {
	v := newVM(t, false)
	message, signature := v.quote(t)
	report := v.hclReport(t)
	evidence := func() json.RawMessage {
		v.wire = func(m map[string]any) {
			quoteOf(m)["message"], quoteOf(m)["signature"] = hex.EncodeToString(message), hex.EncodeToString(signature)
			m["hcl_report"] = base64.RawURLEncoding.EncodeToString(report)
		}
		return v.evidence(t)
	}
	o := v.options(t)
	if _, err := azurevtpm.VerifySNP(context.Background(), evidence(), o); err != nil {
		t.Fatal(err)
	}
	var e struct {
		Version   int            `json:"version"`
		TPMQuote  map[string]any `json:"tpm_quote"`
		HCLReport string         `json:"hcl_report"`
		VCEK      string         `json:"vcek"`
	}
	if err := json.Unmarshal(evidence(), &e); err != nil {
		t.Fatal(err)
	}
	flip := func(name string, b []byte, from, to int) {
		for i := from; i < to; i++ {
			b[i] ^= 1 << (i % 8)
			e.TPMQuote["message"], e.TPMQuote["signature"] = hex.EncodeToString(message), hex.EncodeToString(signature)
			e.HCLReport = base64.RawURLEncoding.EncodeToString(report)
			if _, err := azurevtpm.VerifySNP(context.Background(), must[[]byte](t)(json.Marshal(e)), o); err == nil {
				t.Errorf("byte %d of the %s changed: accepted", i, name)
			}
			b[i] ^= 1 << (i % 8)
		}
	}
	flip("message", message, 0, len(message))
	flip("signature", signature, 0, len(signature))
	flip("hardware report", report, 32, 32+1184)
	flip("runtime data", report, 1236, 1236+len(v.runtime()))
	good := evidence()
	for n := 0; n < len(good); n += 41 {
		if _, err := azurevtpm.VerifySNP(context.Background(), good[:n], o); err == nil {
			t.Errorf("evidence cut to %d bytes is accepted", n)
		}
	}
}
