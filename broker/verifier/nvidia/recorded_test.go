package nvidia

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"path"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/test/evidence"
)

// recordedTime lies in the validity of the manifests of hopper-550 and of the certificates of the OCSP answers.
var recordedTime = time.Date(2025, 12, 1, 0, 0, 0, 0, time.UTC)

type recordedCase struct {
	ID, Arch, Report, Chain, Expect, Evidence string
	Signature_OK                              json.RawMessage
	Nonce                                     []string
	Fields                                    struct{ Nonce, Driver string }
}

func (c recordedCase) json(t testing.TB) json.RawMessage {
	t.Helper()
	return evidenceJSON(t, c.Arch, string(evidence.Read(t, c.Report)), evidence.Read(t, c.Chain))
}

// evidenceJSON is what a guest sends. Recorded chains are base64 of PEM, or PEM itself.
func evidenceJSON(t testing.TB, arch, report string, chain []byte) json.RawMessage {
	t.Helper()
	certificate := strings.TrimSpace(string(chain))
	if strings.HasPrefix(certificate, "-----") {
		certificate = base64.StdEncoding.EncodeToString(chain)
	}
	out, err := json.Marshal(map[string]any{"device_evidence_list": []any{map[string]any{
		"arch": arch, "uuid": "1111-2222-33333-444444-555555", "evidence": strings.TrimSpace(report), "certificate": certificate,
	}}})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func unhex(t testing.TB, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRecordedCases(t *testing.T) {
	for _, c := range evidence.Cases[recordedCase](t, "nvidia") {
		t.Run(c.ID, func(t *testing.T) {
			o := Options{ExpectedReportData: unhex(t, c.Fields.Nonce), Now: recordedTime}
			out, err := Verify(context.Background(), c.json(t), o)
			if c.Expect == "invalid" {
				if err == nil || !strings.Contains(err.Error(), "signature of the report") {
					t.Fatalf("got %v, want a refused signature", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := ClassGPU
			if c.Arch == "LS10" {
				want = ClassSwitch
			}
			if len(out) != 1 || out[0].Class != want {
				t.Fatalf("got %d results, first of class %q, want one %q", len(out), out[0].Class, want)
			}
			o.ExpectedReportData[31] ^= 1
			if _, err := Verify(context.Background(), c.json(t), o); err == nil || !strings.Contains(err.Error(), "nonce of the report") {
				t.Errorf("with another nonce: %v", err)
			}
		})
	}
}

func TestRecordedJSON(t *testing.T) {
	for _, c := range evidence.Cases[recordedCase](t, "nvidia-json") {
		t.Run(c.ID, func(t *testing.T) {
			text := append([]byte(`{"device_evidence_list":`), evidence.Read(t, c.Evidence)...)
			out, err := Verify(context.Background(), append(text, '}'), Options{ExpectedReportData: unhex(t, c.Nonce[0]), Now: recordedTime})
			if err != nil || len(out) != len(c.Nonce) {
				t.Fatalf("%d results, %v", len(out), err)
			}
			if uuid := out[0].Claims["uuid"]; uuid != "unknown" {
				t.Errorf("uuid is %v, want unknown", uuid)
			}
		})
	}
}

func normal(t testing.TB, v any) any {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var out any
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func recordedByID(t testing.TB, id string) recordedCase {
	t.Helper()
	for _, c := range evidence.Cases[recordedCase](t, "nvidia") {
		if c.ID == id {
			return c
		}
	}
	t.Fatalf("no case %s", id)
	return recordedCase{}
}

// TestRecordedClaims compares with the claims that upstream gives.
func TestRecordedClaims(t *testing.T) {
	c := recordedByID(t, "nv-hopper-550")
	out, err := Verify(context.Background(), c.json(t), Options{Offline: true, Now: recordedTime})
	if err != nil {
		t.Fatal(err)
	}
	var want any
	if err := json.Unmarshal(evidence.Read(t, "nvidia/hopper-550-claims.json"), &want); err != nil {
		t.Fatal(err)
	}
	if got := normal(t, out[0].Claims); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestRecordedChains(t *testing.T) {
	c := recordedByID(t, "nv-hopper-550")
	for _, name := range []string{"case2", "case3", "case4"} {
		text := evidenceJSON(t, "HOPPER", string(evidence.Read(t, c.Report)), evidence.Read(t, "nvidia/hopper_cert_chain_"+name+".txt"))
		if _, err := Verify(context.Background(), text, Options{Offline: true, Now: recordedTime}); err == nil {
			t.Errorf("%s is accepted", name)
		} else {
			t.Log(err)
		}
	}
	// A genuine chain of another device, and of another kind.
	for _, other := range []string{"nv-hopper-coco-580", "nv-ls10"} {
		text := evidenceJSON(t, "HOPPER", string(evidence.Read(t, c.Report)), evidence.Read(t, recordedByID(t, other).Chain))
		if _, err := Verify(context.Background(), text, Options{Offline: true, Now: recordedTime}); err == nil {
			t.Errorf("chain of %s is accepted", other)
		}
	}
	text := evidenceJSON(t, "BLACKWELL", string(evidence.Read(t, c.Report)), evidence.Read(t, c.Chain))
	if _, err := Verify(context.Background(), text, Options{Offline: true, Now: recordedTime}); err == nil ||
		!strings.Contains(err.Error(), "want Blackwell") {
		t.Errorf("Hopper as Blackwell: %v", err)
	}
}

// TestRecordedRoots checks that what is embedded is what NVIDIA publishes.
func TestRecordedRoots(t *testing.T) {
	for _, c := range []struct {
		text   []byte
		digest string
		files  []string
	}{
		{deviceRootPEM, "102bf659d5419614c9d8e6aecebc80454eb26b1df6a769ac720b9a690b167b48",
			[]string{"device_root.pem", "switch_device_root.pem"}},
		{rimRootPEM, "12977b5115acb0381179279fffeb5a8c4d264971ebb32298023a465fa41df5d1", []string{"rim_root.pem"}},
	} {
		cert, err := embedded(c.text)
		if err != nil {
			t.Fatal(err)
		}
		if got := sha256.Sum256(cert.Raw); hex.EncodeToString(got[:]) != c.digest {
			t.Errorf("%q has SHA-256 %x, want %s", cert.Subject, got, c.digest)
		}
		for _, f := range c.files {
			other, err := embedded(evidence.Read(t, path.Join("nvidia/roots", f)))
			if err != nil || !other.Equal(cert) {
				t.Errorf("%s is another certificate: %v", f, err)
			}
		}
	}
}

// recordedCollateral gives recorded manifests, under the names that are asked for, and recorded OCSP answers.
type recordedCollateral struct {
	t *testing.T
	// files replaces the file of a name.
	files map[string]string
	asked []string
	ocsp  func(request []byte) ([]byte, error)
}

func (c *recordedCollateral) RIM(_ context.Context, id string) ([]byte, error) {
	c.asked = append(c.asked, id)
	name, ok := c.files[id]
	if !ok {
		name = id
	}
	if name == "" {
		return nil, errors.New("no such manifest")
	}
	return evidence.Read(c.t, "nvidia/rim/"+name+".xml"), nil
}

func (c *recordedCollateral) OCSP(_ context.Context, request []byte, url string) ([]byte, error) {
	if url != "http://ocsp.ndis.nvidia.com" {
		c.t.Errorf("responder is %q", url)
	}
	if c.ocsp == nil {
		return nil, errors.New("off-line")
	}
	return c.ocsp(request)
}

func recordedCompare(t *testing.T, id string, c *recordedCollateral, now time.Time) map[string]any {
	t.Helper()
	c.t = t
	out, err := Verify(context.Background(), recordedByID(t, id).json(t), Options{Offline: true, Now: now, Collateral: c})
	if err != nil {
		t.Fatal(err)
	}
	return out[0].Claims
}

func certClaim(t *testing.T, claims map[string]any, name, member string) any {
	t.Helper()
	m, ok := claims[name].(map[string]any)
	if !ok {
		t.Fatalf("%s is %v", name, claims[name])
	}
	return m[member]
}

func TestRecordedManifests(t *testing.T) {
	const driver, vbios = "NV_GPU_DRIVER_GH100_550.90.07", "NV_GPU_VBIOS_1010_0200_882_96009F0001"
	t.Run("match", func(t *testing.T) {
		c := &recordedCollateral{}
		claims := recordedCompare(t, "nv-hopper-550", c, recordedTime)
		if strings.Join(c.asked, " ") != driver+" "+vbios {
			t.Errorf("asked for %v", c.asked)
		}
		if claims[claimMatch] != true {
			t.Errorf("no match: %v, %v", claims["x-nvidia-mismatch-measurement-records"], claims[claimNotes])
		}
		for _, name := range []string{"driver-rim-fetched", "driver-rim-schema-validated", "driver-rim-signature-verified",
			"driver-rim-version-match", "driver-rim-measurements-available", "vbios-rim-signature-verified",
			"vbios-rim-version-match", "vbios-index-no-conflict", "attestation-report-signature-verified"} {
			if claims["x-nvidia-gpu-"+name] != true {
				t.Errorf("%s is %v", name, claims["x-nvidia-gpu-"+name])
			}
		}
		// Nobody was there to ask for revocations, so nothing is good.
		if claims["measres"] != "fail" || claims["secboot"] != false {
			t.Errorf("measres %v, secboot %v without revocation answers", claims["measres"], claims["secboot"])
		}
		for name, want := range map[string]any{"hwmodel": "GH100 A01 GSP BROM", "oemid": "5703",
			"ueid": "478176379286082186618948445787393647364802107249", "x-nvidia-gpu-vbios-version": "96.00.9F.00.01",
			"x-nvidia-gpu-driver-version": "550.90.07"} {
			if claims[name] != want {
				t.Errorf("%s is %v, want %v", name, claims[name], want)
			}
		}
	})
	t.Run("expired", func(t *testing.T) {
		claims := recordedCompare(t, "nv-hopper-550", &recordedCollateral{}, recordedTime.AddDate(1, 0, 0))
		if got := certClaim(t, claims, "x-nvidia-gpu-driver-rim-cert-chain", "x-nvidia-cert-status"); got != certExpired {
			t.Errorf("driver chain is %v", got)
		}
		if claims[claimMatch] != true || claims["measres"] != "fail" {
			t.Errorf("match %v, measres %v", claims[claimMatch], claims["measres"])
		}
	})
	t.Run("expired 570", func(t *testing.T) {
		c := &recordedCollateral{files: map[string]string{"NV_GPU_DRIVER_GH100_570.124.03": "NV_GPU_DRIVER_GH100_570.124.03_expired",
			"NV_GPU_VBIOS_1010_0205_862_96005E0004": ""}}
		claims := recordedCompare(t, "nv-hopper-570", c, recordedTime)
		if got := certClaim(t, claims, "x-nvidia-gpu-driver-rim-cert-chain", "x-nvidia-cert-status"); got != certExpired && got != certInvalid {
			t.Errorf("driver chain is %v", got)
		}
		t.Log(claims["x-nvidia-gpu-driver-rim-cert-chain"], claims[claimNotes])
		if claims["x-nvidia-gpu-vbios-rim-fetched"] != false || claims["measres"] != "fail" || claims[claimMatch] != false {
			t.Errorf("vbios fetched %v, measres %v", claims["x-nvidia-gpu-vbios-rim-fetched"], claims["measres"])
		}
	})
	t.Run("mismatch", func(t *testing.T) {
		c := &recordedCollateral{files: map[string]string{
			"NV_GPU_DRIVER_GH100_535.86.09":         "NV_GPU_DRIVER_GH100_535.86.09_measurement_mismatch",
			"NV_GPU_VBIOS_1010_0200_882_96005E0001": "NV_GPU_VBIOS_1010_0200_882_96005E0001_measurement_mismatch"}}
		claims := recordedCompare(t, "nv-hopper-535", c, recordedTime)
		t.Log(claims["x-nvidia-mismatch-measurement-records"], claims[claimNotes])
		if claims[claimMatch] != false || claims["measres"] != "fail" {
			t.Errorf("match %v, measres %v", claims[claimMatch], claims["measres"])
		}
	})
	t.Run("vbios 535", func(t *testing.T) {
		c := &recordedCollateral{files: map[string]string{"NV_GPU_DRIVER_GH100_535.86.09": ""}}
		claims := recordedCompare(t, "nv-hopper-535", c, recordedTime)
		if claims["x-nvidia-gpu-vbios-rim-signature-verified"] != true || claims["x-nvidia-mismatch-measurement-records"] != nil {
			t.Errorf("vbios signature %v, mismatches %v", claims["x-nvidia-gpu-vbios-rim-signature-verified"],
				claims["x-nvidia-mismatch-measurement-records"])
		}
	})
	t.Run("other version", func(t *testing.T) {
		c := &recordedCollateral{files: map[string]string{driver: "NV_GPU_DRIVER_GH100_550.144.03"}}
		claims := recordedCompare(t, "nv-hopper-550", c, recordedTime)
		if claims["x-nvidia-gpu-driver-rim-signature-verified"] != true || claims["x-nvidia-gpu-driver-rim-version-match"] != false {
			t.Errorf("signature %v, version %v", claims["x-nvidia-gpu-driver-rim-signature-verified"],
				claims["x-nvidia-gpu-driver-rim-version-match"])
		}
	})
	t.Run("switch", func(t *testing.T) {
		c := &recordedCollateral{}
		claims := recordedCompare(t, "nv-ls10", c, time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC))
		if claims[claimMatch] != true || claims["x-nvidia-switch-bios-rim-signature-verified"] != true {
			t.Errorf("match %v: %v %v", claims[claimMatch], claims["x-nvidia-mismatch-measurement-records"], claims[claimNotes])
		}
		if claims[claimSwitchPDI] != "203EB31AD9ED0008" || claims["x-nvidia-switch-bios-version"] != "96.10.55.00.01" {
			t.Errorf("pdi %v, version %v", claims[claimSwitchPDI], claims["x-nvidia-switch-bios-version"])
		}
	})
	t.Run("switch, broken signature", func(t *testing.T) {
		const id = "NV_SWITCH_BIOS_5612_0002_890_9610550001"
		c := &recordedCollateral{files: map[string]string{id: id + "_invalid_signature"}}
		claims := recordedCompare(t, "nv-ls10", c, recordedTime)
		if claims["x-nvidia-switch-bios-rim-signature-verified"] != false || claims[claimMatch] != false {
			t.Errorf("signature %v, match %v", claims["x-nvidia-switch-bios-rim-signature-verified"], claims[claimMatch])
		}
		t.Log(claims[claimNotes])
	})
}
