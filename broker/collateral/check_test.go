package collateral

import (
	"bytes"
	"encoding/base64"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/test/evidence"
)

func turinKey(chip, tcb string) Key { return Key{Kind: VCEK, Name: "Turin/" + chip + "/" + tcb} }

func TestRecordedDocuments(t *testing.T) {
	in := func(name string) []byte { return evidence.Read(t, name) }
	intel := "intel-collateral/tdx-50806f000000-2026-03/"
	text := in("nvidia/ocsp/test_gpu_certificate_l2_base64encoded_ocsp_response.dat")
	ocsp, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	turin := in("amd-sev-snp/turin-v5/vcek.der")
	for _, tc := range []struct {
		key         Key
		data, chain []byte
		until       string // or
		says        string
	}{
		{tcbKey, in(intel + "tcb_info.json"), in(intel + "tcb_info_issuer_chain.pem"), "2026-04-15T22:21:30Z", ""},
		{tcbKey, in(intel + "tcb_info.json"), nil, "", "issuer chain beside it"},
		{Key{TCBInfo, "tdx/90C06F000000/early"}, in(intel + "tcb_info.json"), nil, "", `fmspc is "50806f000000", expected 90C06F000000`},
		{Key{TCBInfo, "sgx/50806F000000/early"}, in(intel + "tcb_info.json"), nil, "", `id is "TDX", expected SGX`},
		{Key{QEIdentity, "sgx/early"}, in(intel + "qe_identity.json"), nil, "", `id is "TD_QE", expected QE`},
		{Key{PCKCRL, "platform"}, in(intel + "pck_crl.der"), in(intel + "pck_crl_issuer_chain.pem"), "2026-04-15T22:34:05Z", ""},
		{Key{RootCRL, "root"}, in(intel + "root_ca_crl.der"), nil, "2027-02-26T13:04:00Z", ""},
		{Key{AMDChain, "Milan/vcek"}, append(in("amd-sev-snp/ca/milan/ask.pem"), in("amd-sev-snp/ca/milan/ark.pem")...), nil,
			"2045-10-22T17:23:05Z", ""},
		{turinKey("3b42092f69c656d3", "bl01_tee00_snp02_ucode71_fmc00"), turin, nil, "*", ""},
		{turinKey("3b42092f69c656d3", "bl01_tee00_snp03_ucode71_fmc00"), turin, nil, "", "it is for TCB"},
		{turinKey("0000000000000000", "bl01_tee00_snp02_ucode71_fmc00"), turin, nil, "", "it is for chip 3b42092f69c656d3"},
		{Key{RIM, "x"}, in("nvidia/rim/NV_GPU_DRIVER_GH100_550.90.07.xml"), nil, "", ""},
		{Key{OCSP, "00"}, ocsp, nil, "*", ""},
	} {
		_, until, err := Check(tc.key, tc.data, tc.chain)
		switch {
		case tc.says != "":
			if err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%s: error %v, want one with %q", tc.key, err, tc.says)
			}
		case err != nil:
			t.Errorf("%s: %v", tc.key, err)
		case tc.until == "*" && until.IsZero():
			t.Errorf("%s has no end", tc.key)
		case tc.until != "" && tc.until != "*" && until.UTC().Format(time.RFC3339) != tc.until:
			t.Errorf("%s ends %s, want %s", tc.key, until.UTC().Format(time.RFC3339), tc.until)
		}
	}
}

// TestEveryRecordedSnapshot: the check refuses none of Intel's real documents.
func TestEveryRecordedSnapshot(t *testing.T) {
	dirs, err := filepath.Glob(filepath.Join(evidence.Dir(t), "intel-collateral", "[st]*x-*"))
	if err != nil || len(dirs) < 10 {
		t.Fatalf("%d snapshots, %v", len(dirs), err)
	}
	for _, dir := range dirs {
		base := filepath.Base(dir)
		in := func(name string) []byte { return evidence.Read(t, "intel-collateral/"+base+"/"+name) }
		tee, fmspc, _ := strings.Cut(base, "-")
		fmspc = strings.ToUpper(fmspc[:12])
		for _, doc := range []struct {
			key         Key
			data, chain string
		}{
			{Key{TCBInfo, tee + "/" + fmspc + "/early"}, "tcb_info.json", "tcb_info_issuer_chain.pem"},
			{Key{QEIdentity, tee + "/early"}, "qe_identity.json", "qe_identity_issuer_chain.pem"},
			{Key{PCKCRL, "platform"}, "pck_crl.der", "pck_crl_issuer_chain.pem"},
		} {
			if _, _, err := Check(doc.key, in(doc.data), in(doc.chain)); err != nil {
				t.Errorf("%s: %v", base, err)
			}
		}
	}
}

func TestCheckRefuses(t *testing.T) {
	for _, k := range Kinds() {
		key := Key{Kind: k, Name: "a/b/c"}
		for _, data := range [][]byte{nil, []byte("<html>"), []byte("{}"), []byte("null"), {0x30, 0x80}, make([]byte, MaxDocument+1)} {
			if _, _, err := Check(key, data, data); err == nil {
				t.Errorf("%s: %.10q is accepted", k, data)
			}
		}
	}
}

func TestConfig(t *testing.T) {
	if err := DefaultConfig().Validate(); err != nil {
		t.Fatal(err)
	}
	c := DefaultConfig()
	c.KDSURL, c.PCSURL, c.PCCSURL, c.TCBUpdate = "http://kds.example", "https://u:p@h/", "ftp://x", "late"
	c.PCCSCertificates, c.TimeoutSeconds, c.Bundles = "x", 0, []string{""}
	err := c.Validate()
	for _, key := range []string{"kds_url", "pcs_url", "pccs_url", "tcb_update", "timeout_seconds", "bundles[0]"} {
		if err == nil || !strings.Contains(err.Error(), "collateral."+key) {
			t.Errorf("no fault about %s in %v", key, err)
		}
	}
	if strings.Contains(err.Error(), "u:p@") {
		t.Error("the error shows a password")
	}
	c = DefaultConfig()
	c.OfflineOnly, c.KDSURL, c.PCSURL = true, "", ""
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	c.KDSURL = "http://127.0.0.1:1"
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
}

func FuzzCheck(f *testing.F) {
	f.Add(uint8(3), []byte(`{"tcbInfo":{"fmspc":"a","issueDate":"","nextUpdate":""}}`))
	f.Add(uint8(1), bytes.Repeat([]byte("-----BEGIN CERTIFICATE-----\n"), 3))
	f.Fuzz(func(t *testing.T, kind uint8, data []byte) {
		_, _, _ = Check(Key{Kind: Kinds()[int(kind)%len(Kinds())], Name: "a/b/c"}, data, data)
	})
}
