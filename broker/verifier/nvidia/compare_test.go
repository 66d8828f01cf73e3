package nvidia

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/cloister/cloister/tee/nvgpu"
	"github.com/cloister/cloister/test/evidence"
)

// TestOpenQuestions checks that whatever is left open comes out as a claim, and that measres never says yes then.
func TestOpenQuestions(t *testing.T) {
	const gpuChain, driverChain = "x-nvidia-gpu-attestation-report-cert-chain", "x-nvidia-gpu-driver-rim-cert-chain"
	status := func(chain, cert, ocsp string) func(*testing.T, map[string]any) {
		return func(t *testing.T, claims map[string]any) {
			t.Helper()
			if got := certClaim(t, claims, chain, "x-nvidia-cert-status"); got != cert {
				t.Errorf("status of %s is %v, want %s", chain, got, cert)
			}
			if got := certClaim(t, claims, chain, "x-nvidia-cert-ocsp-status"); got != ocsp {
				t.Errorf("OCSP status of %s is %v, want %s", chain, got, ocsp)
			}
		}
	}
	is := func(name string, want any) func(*testing.T, map[string]any) {
		return func(t *testing.T, claims map[string]any) {
			t.Helper()
			if claims[name] != want {
				t.Errorf("%s is %v, want %v", name, claims[name], want)
			}
		}
	}
	for _, c := range []struct {
		name, note string
		match      bool
		change     func(*world)
		check      func(*testing.T, map[string]any)
	}{
		{"device on hold", "certificateHold", true, func(w *world) { w.revoked["GH100 A01 GSP BROM"] = ocsp.CertificateHold },
			status(gpuChain, certRevoked, ocspRevoked)},
		{"signer revoked", "keyCompromise", true, func(w *world) { w.revoked["L4 Signer"] = ocsp.KeyCompromise },
			status(driverChain, certRevoked, ocspRevoked)},
		{"no answer", "off-line", true, func(w *world) { w.noOCSP = true }, status(gpuChain, certValid, ocspUnknown)},
		{"unknown certificate", "does not know", true, func(w *world) {
			w.answer = func(r *ocsp.Response) { r.Status = ocsp.Unknown }
		}, status(driverChain, certValid, ocspUnknown)},
		{"old answer", "answer held until", true, func(w *world) {
			w.answer = func(r *ocsp.Response) { r.NextUpdate = fakeNow.Add(-time.Second) }
		}, status(gpuChain, certValid, ocspUnknown)},
		{"answer to come", "which is to come", true, func(w *world) {
			w.answer = func(r *ocsp.Response) { r.ThisUpdate = fakeNow.Add(6 * time.Minute) }
		}, status(gpuChain, certValid, ocspUnknown)},
		{"endless answer", "until when", true, func(w *world) {
			w.answer = func(r *ocsp.Response) { r.NextUpdate = time.Time{} }
		}, status(gpuChain, certValid, ocspUnknown)},
		{"answer about another", "no response matching", true, func(w *world) {
			w.answer = func(r *ocsp.Response) { r.SerialNumber = w.rim[3].SerialNumber }
		}, status(gpuChain, certValid, ocspUnknown)},
		{"sibling answers", "not for signing answers", true, func(w *world) {
			w.responder = func(_, issuer *fakeCert) (*x509.Certificate, *fakeCert) {
				c := newCert(t, issuer, "!sibling", nil)
				return c.Certificate, c
			}
		}, status(gpuChain, certValid, ocspUnknown)},
		{"stranger answers", "bad OCSP signature", true, func(w *world) {
			stranger := newCert(t, nil, "stranger", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning} })
			w.responder = func(_, _ *fakeCert) (*x509.Certificate, *fakeCert) { return stranger.Certificate, stranger }
		}, status(gpuChain, certValid, ocspUnknown)},
		{"stranger answers bare", "bad OCSP signature", true, func(w *world) {
			stranger := newCert(t, nil, "stranger", nil)
			w.responder = func(_, _ *fakeCert) (*x509.Certificate, *fakeCert) { return nil, stranger }
		}, status(gpuChain, certValid, ocspUnknown)},
		{"expired responder", "responder", true, func(w *world) {
			w.responder = func(_, issuer *fakeCert) (*x509.Certificate, *fakeCert) {
				c := newCert(t, issuer, "!responder", func(c *x509.Certificate) {
					c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}
					c.NotAfter = fakeNow.Add(-time.Hour)
				})
				return c.Certificate, c
			}
		}, status(gpuChain, certValid, ocspUnknown)},
		{"signer expired", "is not valid at", true, func(w *world) {
			signer := newCert(t, w.rim[1], "!L4 Signer", func(c *x509.Certificate) { c.NotAfter = fakeNow.Add(-time.Hour) })
			w.rim = append([]*fakeCert{signer}, w.rim[1:]...)
		}, status(driverChain, certExpired, ocspGood)},
		{"no manifest", "no such manifest", false, func(w *world) { w.rimErr = errors.New("no such manifest") },
			is("x-nvidia-gpu-driver-rim-fetched", false)},
		{"no XML", "reading XML", false, func(w *world) { w.mangle = func(string) string { return "<" } },
			is("x-nvidia-gpu-driver-rim-schema-validated", false)},
		{"measurement", "", false, func(w *world) { w.measurements[2] = w.measurements[3] }, func(t *testing.T, claims map[string]any) {
			list, _ := claims["x-nvidia-mismatch-measurement-records"].([]any)
			if len(list) != 1 || list[0].(map[string]any)["index"] != 1 || list[0].(map[string]any)["measurementSource"] != "Driver" {
				t.Errorf("mismatches are %v, want index 1 of the driver", list)
			}
		}},
		{"measurement missing", "", false, func(w *world) {
			w.driverRIM += resource(90, true, 1)
		}, is("x-nvidia-gpu-vbios-index-no-conflict", true)},
		{"nothing active", "", false, func(w *world) { w.fwRIM = resource(0, false, 1) }, is("x-nvidia-mismatch-measurement-records", nil)},
		{"both speak", "speak for the same", false, func(w *world) { w.driverRIM += resource(2, true, 3); w.fwRIM += resource(2, true, 3) },
			is("x-nvidia-gpu-vbios-index-no-conflict", false)},
		{"other driver", "it is for version", false, func(w *world) { w.version1 = "600.2" },
			is("x-nvidia-gpu-driver-rim-version-match", false)},
		{"NVDEC0 on", "", false, func(w *world) { w.measurements[36] = w.measurements[1] }, is("dbgstat", "unknown")},
		{"NVDEC0 strange", "", false, func(w *world) { w.measurements[36] = w.measurements[1]; w.nvdec = 0 }, is("secboot", false)},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			c.change(w)
			claims, err := w.verify()
			if err != nil {
				t.Fatal(err)
			}
			if claims["measres"] != "fail" || claims["secboot"] != false || claims["dbgstat"] == "disabled" || claims[claimMatch] != c.match {
				t.Errorf("measres %v, secboot %v, dbgstat %v, match %v, want a failure and match %v", claims["measres"], claims["secboot"],
					claims["dbgstat"], claims[claimMatch], c.match)
			}
			if notes := fmt.Sprint(claims[claimNotes]); !strings.Contains(notes, c.note) {
				t.Errorf("notes are %s, want %q", notes, c.note)
			}
			c.check(t, claims)
		})
	}
}

func TestNVDECOff(t *testing.T) {
	w := newWorld(t)
	w.measurements[36], w.nvdec = w.measurements[1], nvgpu.StatusOff
	claims, err := w.verify()
	if err != nil {
		t.Fatal(err)
	}
	wantPolicy(t, claims)
}

// TestAppointedResponder has every answer signed by one whom the issuer appointed.
func TestAppointedResponder(t *testing.T) {
	w := newWorld(t)
	w.responder = func(_, issuer *fakeCert) (*x509.Certificate, *fakeCert) {
		c := newCert(t, issuer, "!responder", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning} })
		return c.Certificate, c
	}
	claims, err := w.verify()
	if err != nil {
		t.Fatal(err)
	}
	wantPolicy(t, claims)
}

// TestManifestNames checks that fields of a report cannot leave the folder or host that manifests are in.
func TestManifestNames(t *testing.T) {
	for _, driver := range []string{"../x", "600.1/..", "a b", "600..1", "é", strings.Repeat("1", 200)} {
		w := newWorld(t)
		w.driver = driver
		claims, err := w.verify()
		if err != nil {
			t.Fatal(err)
		}
		if len(w.rimIDs) != 1 || !strings.Contains(fmt.Sprint(claims[claimNotes]), "do not make a name") {
			t.Errorf("%q: asked for %v", driver, w.rimIDs)
		}
	}
}

// TestRecordedAnswers checks answers of NVIDIA's responders, at the time they were given and later.
func TestRecordedAnswers(t *testing.T) {
	c := recordedByID(t, "nv-hopper-550")
	devices, err := parseEvidence(c.json(t))
	if err != nil {
		t.Fatal(err)
	}
	device, err := parsePEM(devices[0].chain)
	if err != nil {
		t.Fatal(err)
	}
	manifest := func(id string) chain {
		whole, err := recordedManifest(t, id)
		if err != nil {
			t.Fatal(err)
		}
		return whole
	}
	driver, vbios := manifest("NV_GPU_DRIVER_GH100_550.90.07"), manifest("NV_GPU_VBIOS_1010_0200_882_96009F0001")
	august, october := time.Date(2025, 8, 21, 12, 0, 0, 0, time.UTC), time.Date(2025, 10, 24, 12, 0, 0, 0, time.UTC)
	for _, a := range []struct {
		file  string
		chain chain
		index int
		now   time.Time
	}{
		{"gpu_certificate_l2", device, 3, august}, {"gpu_certificate_l3", device, 2, august}, {"gpu_certificate_l4", device, 1, august},
		{"gpu_rim_l2", driver, 2, october}, {"gpu_driver_rim_l3", driver, 1, october}, {"gpu_driver_rim_l4", driver, 0, october},
		{"gpu_vbios_l4", vbios, 0, october},
	} {
		der, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(
			evidence.Read(t, "nvidia/ocsp/test_"+a.file+"_base64encoded_ocsp_response.dat"))))
		if err != nil {
			t.Fatal(err)
		}
		cert, issuer := a.chain[a.index], a.chain[a.index+1]
		good, err := checkOCSP(der, cert, issuer, a.now)
		if err != nil || good.Status != ocsp.Good {
			t.Fatalf("%s: %v", a.file, err)
		}
		signed := bytes.Clone(good.TBSResponseData)
		for name, now := range map[string]time.Time{"before": a.now.AddDate(0, 0, -1), "after": a.now.AddDate(0, 0, 2)} {
			if _, err := checkOCSP(der, cert, issuer, now); err == nil {
				t.Errorf("%s, the day %s: accepted", a.file, name)
			}
		}
		if _, err := checkOCSP(der, issuer, issuer, a.now); err == nil {
			t.Errorf("%s for another certificate: accepted", a.file)
		}
		// A few bytes of the envelope may change; what is signed may not.
		for i := 0; i < len(der); i += 5 {
			der[i] ^= 1
			if r, err := checkOCSP(der, cert, issuer, a.now); err == nil && !bytes.Equal(r.TBSResponseData, signed) {
				t.Errorf("%s with byte %d changed: accepted", a.file, i)
			}
			der[i] ^= 1
		}
	}
}

func TestOutOfTime(t *testing.T) {
	w := newWorld(t)
	o := w.options()
	ctx, cancel := context.WithCancel(context.Background())
	o.Collateral = cancelling{w, cancel}
	if _, err := Verify(ctx, w.evidence(), o); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}

// cancelling ends the caller's time at the first manifest.
type cancelling struct {
	*world
	cancel func()
}

func (c cancelling) RIM(ctx context.Context, _ string) ([]byte, error) {
	c.cancel()
	return nil, ctx.Err()
}
