package nvidia

import (
	"bytes"
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/tee/nvgpu"
)

// wantPolicy are the claims that the default GPU policy looks at (attestation-service.md section 7), with what it wants.
func wantPolicy(t *testing.T, claims map[string]any) {
	t.Helper()
	for _, chain := range []string{"attestation-report-cert-chain", "vbios-rim-cert-chain", "driver-rim-cert-chain"} {
		for member, want := range map[string]string{"x-nvidia-cert-ocsp-status": "good", "x-nvidia-cert-status": "valid"} {
			if got := certClaim(t, claims, "x-nvidia-gpu-"+chain, member); got != want {
				t.Errorf("%s of %s is %v, want %s (%v)", member, chain, got, want, claims[claimNotes])
			}
		}
	}
	for _, name := range []string{"attestation-report-cert-chain-fwid-match", "attestation-report-parsed",
		"attestation-report-signature-verified", "attestation-report-nonce-match", "arch-check", "driver-rim-fetched",
		"driver-rim-measurements-available", "driver-rim-schema-validated", "driver-rim-signature-verified",
		"driver-rim-version-match", "vbios-rim-fetched", "vbios-rim-measurements-available", "vbios-rim-schema-validated",
		"vbios-rim-signature-verified", "vbios-rim-version-match", "vbios-index-no-conflict"} {
		if claims["x-nvidia-gpu-"+name] != true {
			t.Errorf("%s is %v, want true (%v)", name, claims["x-nvidia-gpu-"+name], claims[claimNotes])
		}
	}
	for name, want := range map[string]any{"measres": "success", "secboot": true, "dbgstat": "disabled", claimMatch: true,
		"x-nvidia-gpu-vbios-version": "96.00.9F.00.01", "x-nvidia-gpu-driver-version": "600.1", "hwmodel": "GH100 A01 GSP BROM",
		"arch": "Hopper", "oemid": "5703"} {
		if claims[name] != want {
			t.Errorf("%s is %v, want %v", name, claims[name], want)
		}
	}
}

func TestLocal(t *testing.T) {
	w := newWorld(t)
	claims, err := w.verify()
	if err != nil {
		t.Fatal(err)
	}
	wantPolicy(t, claims)
	if got := strings.Join(w.rimIDs, " "); got != worldDriver+" NV_GPU_VBIOS_1010_0200_882_96009F0001" {
		t.Errorf("asked for %s", got)
	}
	// Three authorities of the device, three certificates of each of two manifests; never the device's leaf or a root.
	if w.ocspAsked != 9 {
		t.Errorf("asked for %d revocations, want 9", w.ocspAsked)
	}
	if claims[claimNotes] != nil {
		t.Errorf("notes: %v", claims[claimNotes])
	}
	if _, err := json.Marshal(claims); err != nil {
		t.Error(err)
	}
	o := w.options()
	o.Collateral = nil
	out, err := Verify(context.Background(), w.evidence(), o)
	if err != nil || out[0].Claims["measres"] != nil || len(out[0].Claims) != 4 {
		t.Errorf("without collateral: %v, %v", out, err)
	}
}

func TestNoFWID(t *testing.T) {
	w := newWorld(t)
	w.fwid = nil
	if _, err := w.verify(); err != nil {
		t.Errorf("a report without fwid, as old drivers make: %v", err)
	}
}

func TestOptions(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		name, want string
		change     func(*Options)
	}{
		{"report data", "no report data", func(o *Options) { o.ExpectedReportData = nil }},
		{"init data", "init data was given", func(o *Options) { o.InitDataDigest = []byte{1} }},
		{"time", "no time", func(o *Options) { o.Now = time.Time{} }},
		{"remote off-line", "NRAS", func(o *Options) { o.Offline, o.Remote = true, &Remote{} }},
		{"other nonce", "nonce of the report", func(o *Options) { o.ExpectedReportData = []byte{1} }},
		{"embedded root", "want the root", func(o *Options) { o.DeviceRoot = nil }},
		{"later", "is not valid at", func(o *Options) { o.Now = fakeNow.AddDate(2, 0, 0) }},
		{"earlier", "is not valid at", func(o *Options) { o.Now = fakeNow.AddDate(-2, 0, 0) }},
	} {
		o := w.options()
		c.change(&o)
		if _, err := Verify(context.Background(), w.evidence(), o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
	o := w.options()
	o.ExpectedReportData, o.Offline = nil, true
	out, err := Verify(context.Background(), w.evidence(), o)
	if err != nil || out[0].Claims["x-nvidia-gpu-attestation-report-nonce-match"] != false {
		t.Errorf("off-line: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Verify(ctx, w.evidence(), w.options()); err == nil {
		t.Error("out of time it is accepted")
	}
}

func TestRefusedDevices(t *testing.T) {
	for _, c := range []struct {
		name, want string
		change     func(*world)
	}{
		{"fwid", "fwid of the report", func(w *world) { w.fwid = bytes.Repeat([]byte{4}, 48) }},
		{"no fwid in the certificate", "has no firmware id", func(w *world) {
			w.newLeaf(func(c *x509.Certificate) { c.ExtraExtensions = nil })
		}},
		{"short fwid in the certificate", "want SHA-384", func(w *world) {
			w.newLeaf(func(c *x509.Certificate) { c.ExtraExtensions = []pkix.Extension{fwidExtension(w.t, []byte{1})} })
		}},
		{"no driver", "driver_version is missing", func(w *world) { w.driver = "" }},
		{"leaf is an authority", "want one that signs reports", func(w *world) {
			w.newLeaf(func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign })
		}},
		{"leaf is for something else", "want digital signatures", func(w *world) {
			w.newLeaf(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment })
		}},
		{"a certificate too many", "not its path", func(w *world) {
			w.device = append(w.device[:2:2], append([]*fakeCert{w.rim[1]}, w.device[2:]...)...)
		}},
		{"order", "not its path", func(w *world) { w.device[2], w.device[3] = w.device[3], w.device[2] }},
		{"issuer missing", "unknown authority", func(w *world) { w.device = append(w.device[:1:1], w.device[2:]...) }},
		{"no root", "want the root", func(w *world) { w.device = w.device[:len(w.device)-1] }},
		{"leaf alone", "want 2 to 8", func(w *world) { w.device = w.device[:1] }},
		{"chip", "want Hopper", func(w *world) {
			w.device = w.device[2:]
			w.device = append([]*fakeCert{newCert(w.t, w.device[0], "LS_10 A01 FSP BROM", nil)}, w.device...)
			w.newLeaf(nil)
		}},
		{"unknown critical extension", "unhandled critical", func(w *world) {
			w.newLeaf(func(c *x509.Certificate) {
				c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: []int{1, 2, 3}, Critical: true, Value: []byte{5, 0}})
			})
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			o := w.options()
			c.change(w)
			if _, err := Verify(context.Background(), w.evidence(), o); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// TestTampered changes every byte of a report and many of its chain, one by one, and cuts both at many lengths.
func TestTampered(t *testing.T) {
	w := newWorld(t)
	o := w.options()
	o.Collateral = nil
	report, chain := w.report(fakeReportData), pemOf(w.device)
	check := func(what string, report, chain []byte) {
		t.Helper()
		text := evidenceJSON(t, "HOPPER", base64.StdEncoding.EncodeToString(report), chain)
		if _, err := Verify(context.Background(), text, o); err == nil {
			t.Errorf("%s is accepted", what)
		}
	}
	c, err := parsePEM(chain)
	if err != nil {
		t.Fatal(err)
	}
	for i := range report {
		b := bytes.Clone(report)
		b[i] ^= 1
		if i%29 == 0 {
			check("a changed report", b, chain)
			check("a short report", report[:i], chain)
		}
		// The same without the chain, which takes most of the time.
		if r, err := nvgpu.Parse(b); err == nil && (&subject{report: r, chain: c}).checkSignature() == nil {
			t.Errorf("report with byte %d changed is accepted", i)
		}
	}
	var ders [][]byte
	for _, c := range w.device {
		ders = append(ders, c.Raw)
	}
	for n, der := range ders {
		step := 61
		if n == 0 || n == len(ders)-1 {
			step = 7
		}
		for i := 0; i < len(der); i += step {
			changed := bytes.Clone(der)
			changed[i] ^= 1
			var text []byte
			for k, d := range ders {
				if k == n {
					d = changed
				}
				text = append(text, pemBlock(d)...)
			}
			check("a changed chain", report, text)
		}
	}
	for i := 0; i < len(chain); i += 101 {
		check("a short chain", report, chain[:i])
	}
}

func pemBlock(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func TestParseEvidence(t *testing.T) {
	long := strings.Repeat("A", 300<<10)
	for _, c := range []struct{ name, text, want string }{
		{"empty", ``, "reading evidence"},
		{"null", `null`, "0 devices"},
		{"no device", `{"device_evidence_list":[]}`, "0 devices"},
		{"many", `{"device_evidence_list":[` + strings.Repeat(`{},`, 64) + `{}]}`, "65 devices"},
		{"arch", `{"device_evidence_list":[{"arch":"VOLTA"}]}`, "arch is"},
		{"no evidence", `{"device_evidence_list":[{"arch":"HOPPER"}]}`, "missing"},
		{"text", `{"device_evidence_list":[{"arch":"HOPPER","evidence":"!"}]}`, "neither hex nor base64"},
		{"long", `{"device_evidence_list":[{"arch":"HOPPER","evidence":"` + long + `"}]}`, "at most"},
		{"long chain", `{"device_evidence_list":[{"arch":"HOPPER","evidence":"00","certificate":"` + long + `"}]}`, "at most"},
		{"chain", `{"device_evidence_list":[{"arch":"HOPPER","evidence":"00","certificate":"!"}]}`, "not base64"},
		{"uuid", `{"device_evidence_list":[{"arch":"HOPPER","uuid":"` + strings.Repeat("u", 129) + `","evidence":"00"}]}`, "uuid"},
	} {
		if _, err := parseEvidence(json.RawMessage(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
	for _, arch := range []string{"HOPPER", "Hopper", "BLACKWELL", "Blackwell", "LS10"} {
		d, err := parseEvidence(json.RawMessage(`{"device_evidence_list":[{"arch":"` + arch + `","evidence":"0a0B","certificate":""}]}`))
		if err != nil || !bytes.Equal(d[0].data, []byte{10, 11}) || d[0].uuid != "unknown" {
			t.Errorf("%s: %v, %v", arch, d, err)
		}
	}
}

func FuzzVerify(f *testing.F) {
	w := newWorld(f)
	f.Add(w.report(fakeReportData), pemOf(w.device))
	o := w.options()
	o.Collateral = nil
	f.Fuzz(func(t *testing.T, report, chain []byte) {
		text := evidenceJSON(t, "LS10", base64.StdEncoding.EncodeToString(report), chain)
		if _, err := Verify(context.Background(), text, o); err == nil {
			t.Fatal("a GPU is a switch")
		}
	})
}
