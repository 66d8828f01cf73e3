package snp_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	verifier "github.com/cloister/cloister/broker/verifier/snp"
	"github.com/cloister/cloister/broker/verifier/snp/snptest"
	"github.com/cloister/cloister/tee/snp"
	"github.com/cloister/cloister/test/evidence"
)

// recorded is a case of cases.json.
type recorded struct {
	ID, Report, Leaf, ARK, ASK, CRL, Expect string
	Now                                     time.Time
	Fields                                  map[string]any
}

// policySeen are the claims by which a policy can tell the cases it has to decide on, in evidence that verifies.
var policySeen = map[string]struct {
	claim string
	start any // the claim, or how its text starts
}{
	"milan-v2-debug":      {"policy_debug_allowed", true},
	"vlek-expired":        {"cert_validity", "SEV-VLEK expired 2025-12-10"},
	"syn-snp-debug":       {"policy_debug_allowed", true},
	"syn-snp-migrate-ma":  {"policy_migrate_ma", true},
	"syn-snp-vmpl3":       {"vmpl", int64(3)},
	"syn-snp-crl-expired": {"cert_revocation", "unavailable: CRL is out of date since"},
	// Signed by a chip that hides its number: only taken with AllowMaskedChipID.
	"syn-snp-masked-chip-id": {"chip_id_masked", true},
	"syn-snp-leaf-expired":   {"cert_validity", "SEV-VCEK expired 2021"},
}

func (c recorded) evidence(t *testing.T) json.RawMessage {
	t.Helper()
	kind := "VCEK"
	if strings.Contains(c.Leaf, "vlek") {
		kind = "VLEK"
	}
	return must[json.RawMessage](t)(snptest.Evidence(evidence.Read(t, c.Report), snptest.Cert{Type: kind, Data: evidence.Read(t, c.Leaf)}))
}

func (c recorded) options(t *testing.T) verifier.Options {
	t.Helper()
	o := verifier.Options{Now: c.Now, Offline: true}
	o.Roots = must[*verifier.Roots](t)(verifier.ParseRoots(evidence.Read(t, c.ARK), evidence.Read(t, c.ASK)))
	if c.CRL != "" {
		o.Certificates = &source{crl: evidence.Read(t, c.CRL)}
	}
	return o
}

func TestCases(t *testing.T) {
	for _, c := range evidence.Cases[recorded](t, "snp") {
		t.Run(c.ID, func(t *testing.T) {
			o := c.options(t)
			claims, err := verifier.Verify(context.Background(), c.evidence(t), o)
			switch c.Expect {
			case "valid":
				if err != nil {
					t.Fatal(err)
				}
				if c.CRL != "" && claims["cert_revocation"] != "checked" || claims["cert_validity"] != "valid" {
					t.Errorf("revocation is %v, validity %v", claims["cert_revocation"], claims["cert_validity"])
				}
			case "policy-reject", "policy-decides":
				c.checkPolicy(t, o, claims, err)
			case "invalid", "invalid-or-policy-reject":
				if err == nil {
					t.Fatalf("accepted with claims %v", claims)
				}
			default:
				t.Fatalf("verdict %q is not known", c.Expect)
			}
			if c.ID == "syn-snp-host-data-zero" {
				o.InitDataDigest = slices.Repeat([]byte{7}, 32)
				refused(t, "init-data that was not measured", c.evidence(t), o, "init_data")
			}
			if err == nil && c.Fields != nil {
				c.checkFields(t, claims)
			}
		})
	}
}

func (c recorded) checkPolicy(t *testing.T, o verifier.Options, claims map[string]any, err error) {
	t.Helper()
	want, known := policySeen[c.ID]
	if !known {
		t.Fatal("the test does not know what a policy sees in this case")
	}
	if want.claim == "chip_id_masked" {
		if err == nil {
			t.Error("accepted although the chip id is hidden")
		}
		o.AllowMaskedChipID = true
		claims, err = verifier.Verify(context.Background(), c.evidence(t), o)
	}
	if err != nil {
		t.Fatal(err)
	}
	got := claims[want.claim]
	text, isText := got.(string)
	start, _ := want.start.(string)
	if got != want.start && !(isText && start != "" && strings.HasPrefix(text, start)) {
		t.Errorf("claim %s is %v, expected %v", want.claim, got, want.start)
	}
}

func (c recorded) checkFields(t *testing.T, claims map[string]any) {
	t.Helper()
	for claim, field := range map[string]string{
		"measurement": "measurement", "report_data": "report_data", "init_data": "host_data", "chip_id": "chip_id",
		"signing_key": "signing_key",
	} {
		if claims[claim] != c.Fields[field] {
			t.Errorf("claim %s is %v, expected %v", claim, claims[claim], c.Fields[field])
		}
	}
	line, err := snp.ParseLine(claims["product"].(string))
	if err != nil {
		t.Fatal(err)
	}
	text, _ := c.Fields["reported_tcb"].(string)
	raw := must[[]byte](t)(hex.DecodeString(text))
	tcb := snp.DecodeTCB(line, [8]byte(raw))
	if claims["reported_tcb_microcode"] != int64(tcb.Microcode) || claims["reported_tcb_snp"] != int64(tcb.SNP) ||
		claims["reported_tcb_bootloader"] != int64(tcb.BootLoader) || claims["reported_tcb_tee"] != int64(tcb.TEE) {
		t.Errorf("claims of the TCB are not %s", tcb)
	}
}

// TestRealUnderPinnedRoots verifies the recordings of real machines under the embedded authorities, and what was made for
// tests under none of them.
func TestRealUnderPinnedRoots(t *testing.T) {
	for _, c := range evidence.Cases[recorded](t, "snp") {
		o := verifier.Options{Now: c.Now, Offline: true}
		_, err := verifier.Verify(context.Background(), c.evidence(t), o)
		genuine := !strings.HasPrefix(c.ID, "syn-") && c.Expect != "invalid" || c.ID == "milan-v2-debug-wrong-ask"
		if (err == nil) != genuine {
			t.Errorf("%s: %v", c.ID, err)
		}
	}
}

func TestCoCoEvidence(t *testing.T) {
	e := evidence.Read(t, "amd-sev-snp/coco-evidence-v3.json")
	claims, err := verifier.Verify(context.Background(), e, verifier.Options{Now: now, Offline: true})
	if err != nil {
		t.Fatal(err)
	}
	data := must[[]byte](t)(hex.DecodeString(claims["report_data"].(string)))
	if _, err := verifier.Verify(context.Background(), e, verifier.Options{Now: now, ExpectedReportData: data}); err != nil {
		t.Error(err)
	}
	if claims["product"] != "Genoa" || claims["reported_tcb_snp"] != int64(23) {
		t.Errorf("claims are %v", claims)
	}
}

// TestRoots checks the embedded certificates against AMD's, by the SHA-256 digests of attestation-service.md section 4.3.
func TestRoots(t *testing.T) {
	if _, err := verifier.AMDRoots(); err != nil {
		t.Fatal(err)
	}
	digests := map[string]string{
		"ark-milan": "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd",
		"ark-genoa": "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1",
		"ark-turin": "1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a",

		"ask-milan": "67d303bd3905fd38db8b20e0793699870e7fa612eaad5dec358293fd8c0bac1b",
		"ask-genoa": "5464738c1546aed5f2cecf1dc98c5c960a92e8913238a61711bc90ec6e828521",
		"ask-turin": "5b77ef5fe7a7a004fd9032668fba9d0fda22f88c4442069a479636a6ae3b3185",

		"asvk-milan": "c5e081f59b7efab1fe2f8b505e159704e72f29cab7ef7cf628a05a42439082f5",
		"asvk-genoa": "197e610743a917d6b9bb982a5a9226ccc0a15b611be0619e626aca9151457372",
		"asvk-turin": "104e10a8bd060a3c20a434261a57d0588fd65a88915b4f65b08bdecaf8df1a3c",
	}
	files := must[[]os.DirEntry](t)(os.ReadDir("roots"))
	if len(files) != len(digests) {
		t.Errorf("%d files, expected %d", len(files), len(digests))
	}
	for name, want := range digests {
		block, rest := pem.Decode(must[[]byte](t)(os.ReadFile("roots/" + name + ".pem")))
		if block == nil || len(rest) != 0 {
			t.Fatalf("%s is not one PEM block", name)
		}
		if got := sha256.Sum256(block.Bytes); hex.EncodeToString(got[:]) != want {
			t.Errorf("%s has the digest %x, expected %s", name, got, want)
		}
	}
}

func TestParseRootsRefuses(t *testing.T) {
	p, other := machine(t, snp.Milan), must[*snptest.Platform](t)(snptest.New(snp.Milan, now))
	cert := func(der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}) }
	for name, files := range map[string][][]byte{
		"nothing": nil, "no PEM": {[]byte("x")}, "garbage": {cert([]byte{1, 2})}, "an ASK alone": {cert(p.ASK.Cert.Raw)},
		"an ARK twice": {p.RootsPEM(), cert(p.ARK.Cert.Raw)}, "an ASK twice": {p.RootsPEM(), cert(p.ASK.Cert.Raw)},
		"the ASK of another ARK": {cert(p.ARK.Cert.Raw), cert(other.ASK.Cert.Raw)},
		"a leaf":                 {p.RootsPEM(), cert(vcek(t, p).Data)},
	} {
		if _, err := verifier.ParseRoots(files...); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

// BenchmarkVerify is one evidence with its certificate, without and with a CRL to look at. Beside verifications per second
// by the clock it gives those per second of processor time, which other work on the machine does not lower.
func BenchmarkVerify(b *testing.B) {
	const folder = "synthetic/snp/"
	report := evidence.Read(b, folder+"genoa-v5.bin")
	e := must[json.RawMessage](b)(snptest.Evidence(report, snptest.Cert{Type: "VCEK", Data: evidence.Read(b, folder+"vcek-genoa.der")}))
	roots := must[*verifier.Roots](b)(verifier.ParseRoots(
		evidence.Read(b, folder+"ca-genoa/ark.pem"), evidence.Read(b, folder+"ca-genoa/ask.pem")))
	o := verifier.Options{Now: now, ExpectedReportData: report[0x50:0x90], Roots: roots}
	run := func(b *testing.B, o verifier.Options, revocation string) {
		start := processorTime(b)
		for b.Loop() {
			claims, err := verifier.Verify(context.Background(), e, o)
			if err != nil || !strings.HasPrefix(claims["cert_revocation"].(string), revocation) {
				b.Fatal(claims, err)
			}
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "verifications/s")
		b.ReportMetric(float64(b.N)/(processorTime(b)-start).Seconds(), "verifications/cpu-s")
	}
	b.Run("chain", func(b *testing.B) { run(b, o, "unavailable") })
	o.Certificates = &source{crl: evidence.Read(b, folder+"ca-genoa/crl.der")}
	b.Run("chain+crl", func(b *testing.B) { run(b, o, "checked") })
}

func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
