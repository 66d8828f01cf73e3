package judge_test

import (
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/judge"
	"github.com/cloister/cloister/broker/verifier/snp/snptest"
	"github.com/cloister/cloister/tee/cca/ccatest"
	"github.com/cloister/cloister/tee/snp"
	"github.com/cloister/cloister/test/fakedcap"
)

var moment = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)

func TestValues(t *testing.T) {
	for spelled, want := range map[string]string{
		"SNP": "snp", "SEV_SNP": "snp", "amd-sev-snp": "snp", "AzSnpVtpm": "az-snp-vtpm", "az_tdx_vtpm": "az-tdx-vtpm", "NVIDIA": "nvidia",
		"nvidia-gpu": "nvidia", "dpu": "nvidia-dpu", "Moon": "Moon", "TPM-CoCo": "tpm-coco",
	} {
		if got := judge.Name(spelled); got != want {
			t.Errorf("%q is %q, want %q", spelled, got, want)
		}
	}
	for text, want := range map[string]string{
		"00ff": "00ff", "0x00FF": "00ff", "AP8=": "00ff", "AP8": "00ff", "-_8": "fbff", "+/8=": "fbff", "": "", "g": "-", "0xzz": "d31cf3",
	} {
		b, err := judge.ParseBytes(text)
		if got := hex.EncodeToString(b); (err != nil) != (want == "-") || err == nil && got != want {
			t.Errorf("%q is %s, %v, want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"2026-03-01T00:00:00Z", "2026-03-01T00:00:00", "2026-03-01 00:00:00", "2026-03-01",
		"2026-03-01T02:00:00+02:00"} {
		if got, err := judge.ParseTime(text); err != nil || !got.Equal(moment) {
			t.Errorf("%q is %v, %v", text, got, err)
		}
	}
	if _, err := judge.ParseTime("soon"); err == nil {
		t.Error("soon is a time")
	}
}

// TestCertificateText gives certificates with the text that tools write before them, and lists that are not the newest.
func TestCertificateText(t *testing.T) {
	p, err := snptest.New(snp.Milan, moment)
	if err != nil {
		t.Fatal(err)
	}
	report, err := p.Sign(p.Report(3, make([]byte, 64)))
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := p.VCEK(snptest.LeafOptions{})
	if err != nil {
		t.Fatal(err)
	}
	block := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf}))
	crl := func(days int, revoked ...*x509.Certificate) []byte {
		list, err := p.CRL(moment.AddDate(0, 0, -days), moment.AddDate(0, 1, 0), revoked...)
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	for name, tc := range map[string]struct {
		leaf string
		crls [][]byte
		want judge.Outcome
	}{
		"DER":                 {string(leaf), nil, judge.Genuine},
		"text":                {"Certificate:\n    Data:\n" + block, nil, judge.Genuine},
		"CRLF":                {"Bag Attributes\r\n" + strings.ReplaceAll(block, "\n", "\r\n"), nil, judge.Genuine},
		"a damaged block":     {strings.Replace(block, "BEGIN", "BEGIM", 1) + block, nil, judge.Refused},
		"binary before":       {"\x00\n" + block, nil, judge.Refused},
		"the newest revokes":  {string(leaf), [][]byte{crl(9), crl(1, p.ASK.Cert)}, judge.Refused},
		"the newest does not": {string(leaf), [][]byte{crl(1), crl(9, p.ASVK.Cert)}, judge.Genuine},
	} {
		v := judge.Judge(t.Context(), judge.Input{TEE: "snp", Evidence: report, Certificates: [][]byte{[]byte(tc.leaf), p.RootsPEM()},
			CRLs: tc.crls, Time: moment, MaxVMPL: judge.DefaultMaxVMPL})
		if v.Outcome != tc.want {
			t.Errorf("%s: %s, want %s: %q", name, v.Outcome, tc.want, v.Reasons)
		}
	}
}

// TestCollateralFolder has lists as hex digits, a certificate of tomorrow, and a folder that is not whole.
func TestCollateralFolder(t *testing.T) {
	for name, tc := range map[string]struct {
		world func(w *fakedcap.World)
		edit  func(files map[string][]byte)
		want  judge.Word
		meets string
	}{
		"whole": {nil, nil, judge.Valid, "valid"},
		"hex": {nil, func(f map[string][]byte) {
			f["root_ca_crl.der"] = []byte(strings.ToUpper(hex.EncodeToString(f["root_ca_crl.der"])) + "\n")
		}, judge.Valid, "valid"},
		"tomorrow": {func(w *fakedcap.World) {
			w.PCK = w.Issue("Intel SGX PCK Certificate", w.CA, func(c *x509.Certificate) { c.NotBefore = moment.AddDate(0, 0, 1) })
		}, nil, judge.NotYet, "expired-collateral"},
		"no list": {nil, func(f map[string][]byte) { delete(f, "pck_crl.der") }, judge.Incomplete, "valid-signature"},
	} {
		w := fakedcap.New(t, moment)
		if tc.world != nil {
			tc.world(w)
		}
		c, dir := w.Collateral(), t.TempDir()
		files := map[string][]byte{"tcb_info.json": c.TCBInfo, "tcb_info_issuer_chain.pem": c.TCBInfoIssuerChain,
			"qe_identity.json":             c.QEIdentity,
			"qe_identity_issuer_chain.pem": c.QEIdentityIssuerChain, "pck_crl.der": c.PCKCRL, "root_ca_crl.der": c.RootCRL}
		if tc.edit != nil {
			tc.edit(files)
		}
		for file, data := range files {
			if err := os.WriteFile(filepath.Join(dir, file), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		source, err := judge.OpenCollateral(dir)
		if err != nil {
			t.Fatal(err)
		}
		v := judge.Judge(t.Context(), judge.Input{TEE: "tdx", Evidence: w.Quote(fakedcap.Spec{Body: fakedcap.TD(make([]byte, 64))}),
			Root: w.Root.PEM(), Collateral: source, Time: moment})
		if v.Word != tc.want || !v.Word.Meets(tc.meets) {
			t.Errorf("%s: %s, want %s that meets %s: %q", name, v.Word, tc.want, tc.meets, v.Reasons)
		}
	}
}

// TestMissingLifecycle tells a platform that does not say its life cycle from one whose is unknown.
func TestMissingLifecycle(t *testing.T) {
	for name, want := range map[string]judge.Word{"zero": judge.PolicyReject, "missing": judge.Invalid} {
		m, err := ccatest.New()
		if err != nil {
			t.Fatal(err)
		}
		m.Platform[2395] = 0
		if name == "missing" {
			delete(m.Platform, 2395)
		}
		token, err := m.Token()
		if err != nil {
			t.Fatal(err)
		}
		key, err := x509.MarshalPKIXPublicKey(&m.CPAK.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		if v := judge.Judge(t.Context(), judge.Input{TEE: "cca", Evidence: token, Key: key, Time: moment}); v.Word != want {
			t.Errorf("%s: %s, want %s: %q", name, v.Word, want, v.Reasons)
		}
	}
}
