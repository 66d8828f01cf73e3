package se_test

import (
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	verifier "github.com/cloister/cloister/broker/verifier/se"
	"github.com/cloister/cloister/test/evidence"
)

func TestCases(t *testing.T) {
	type seCase struct {
		ID, Evidence, Expect string
		PrivateKey           string `json:"private_key"`
		Fields               map[string]string
	}
	for _, c := range evidence.Cases[seCase](t, "se") {
		t.Run(c.ID, func(t *testing.T) {
			key, err := verifier.ParseMeasurementKey(evidence.Read(t, c.PrivateKey))
			if err != nil {
				t.Fatal(err)
			}
			raw := evidence.Read(t, c.Evidence)
			userData, err := hex.DecodeString(c.Fields["user_data"])
			if err != nil {
				t.Fatal(err)
			}
			o := verifier.Options{MeasurementKey: key, ExpectedReportData: userData[:48], ForeignChallenge: true}
			claims, err := verifier.Verify(ctx, raw, o)
			if c.Expect == "invalid" {
				if err == nil {
					t.Fatal("accepted")
				}
				if _, err := verifier.Verify(ctx, raw, verifier.Options{MeasurementKey: key, Offline: true}); err == nil {
					t.Error("accepted offline")
				}
				t.Log(err)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"cuid", "image_phkh", "attestation_phkh", "tag"} {
				if claims[name] != c.Fields[name] {
					t.Errorf("%s = %v, expected %s", name, claims[name], c.Fields[name])
				}
			}
			if claims["version"] != int64(256) || claims["report_data"] != hex.EncodeToString(userData[:48]) {
				t.Errorf("claims = %v", claims)
			}
			o.ForeignChallenge = false
			if _, err := verifier.Verify(ctx, raw, o); err == nil || !strings.Contains(err.Error(), "no proof") {
				t.Errorf("a foreign challenge, without leave: %v", err)
			}
		})
	}
}

var recorded = time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)

func certificate(t *testing.T, name string) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(evidence.Read(t, name))
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func list(t *testing.T, name string) *x509.RevocationList {
	t.Helper()
	block, _ := pem.Decode(evidence.Read(t, name))
	l, err := x509.ParseRevocationList(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestHostKeyCases(t *testing.T) {
	type hkdCase struct {
		ID, HKD, Signer, CRL, Expect string
		CA                           []string
		CACRL                        []string `json:"ca_crl"`
	}
	for _, c := range evidence.Cases[hkdCase](t, "se-hkd") {
		t.Run(c.ID, func(t *testing.T) {
			trust := verifier.HostKeyTrust{Now: recorded, AllowMissingCACRLs: len(c.CACRL) == 0}
			trust.Certificates = append(trust.Certificates, certificate(t, c.Signer), certificate(t, c.CA[0]))
			trust.Roots = append(trust.Roots, certificate(t, c.CA[1]))
			for _, name := range append(c.CACRL, c.CRL) {
				trust.CRLs = append(trust.CRLs, list(t, name))
			}
			_, err := trust.Verify(certificate(t, c.HKD))
			if c.Expect == "valid" && err != nil {
				t.Error(err)
			}
			if c.Expect == "invalid" {
				if err == nil {
					t.Error("accepted")
				}
				t.Log(err)
			}
		})
	}
}

// TestRecordedHostKeyFaults changes one file of the good case at a time.
func TestRecordedHostKeyFaults(t *testing.T) {
	const dir = "ibm-se/certs/"
	for name, c := range map[string]struct{ signer, crl, why string }{
		"good":                      {"ibm.crt", "ibm.crl", ""},
		"signing key expired":       {"ibm_expired.crt", "ibm.crl", "IBM signing key"},
		"signing key revoked":       {"ibm_rev.crt", "ibm.crl", "was revoked"},
		"signing key not IBM's":     {"ibm_wrong_subject.crt", "ibm.crl", "0 certificates of an IBM signing key"},
		"list too old":              {"ibm.crt", "ibm_outdated_late.crl", "valid from"},
		"list from the future":      {"ibm.crt", "ibm_outdated_early.crl", "valid from"},
		"list of another issuer":    {"ibm.crt", "ibm_wrong_issuer.crl", "no revocation list"},
		"list with a bad signature": {"ibm.crt", "ibm_invalid_hash.crl", "revocation list of"},
	} {
		trust := verifier.HostKeyTrust{
			Now: recorded, Roots: []*x509.Certificate{certificate(t, dir+"root_ca.crt")},
			Certificates: []*x509.Certificate{certificate(t, dir+"inter_ca.crt"), certificate(t, dir+c.signer)},
			CRLs:         []*x509.RevocationList{list(t, dir+"root_ca.crl"), list(t, dir+"inter_ca.crl"), list(t, dir+c.crl)},
		}
		_, err := trust.Verify(certificate(t, dir+"host.crt"))
		if (err == nil) != (c.why == "") || err != nil && !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: %v, expected %q", name, err, c.why)
		}
	}
	// Every issuer's list is needed.
	trust := verifier.HostKeyTrust{
		Now: recorded, Roots: []*x509.Certificate{certificate(t, dir+"root_ca.crt")},
		Certificates: []*x509.Certificate{certificate(t, dir+"inter_ca.crt"), certificate(t, dir+"ibm.crt")},
		CRLs:         []*x509.RevocationList{list(t, dir+"ibm.crl")},
	}
	if _, err := trust.Verify(certificate(t, dir+"host.crt")); err == nil || !strings.Contains(err.Error(), "no revocation list") {
		t.Errorf("without the authorities' lists: %v", err)
	}
}

// TestConfig makes a challenge from files, and refuses to from wrong ones.
func TestConfig(t *testing.T) {
	dir := evidence.Dir(t)
	certs := filepath.Join(dir, "ibm-se", "certs")
	folder := func(names ...string) string {
		to := t.TempDir()
		for _, name := range names {
			if err := os.WriteFile(filepath.Join(to, name), evidence.Read(t, "ibm-se/certs/"+name), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return to
	}
	good := verifier.Config{
		MeasurementKeyFile: filepath.Join(dir, "synthetic", "se", "TEST-measurement-key.pem"),
		HostKeyDocuments:   filepath.Join(certs, "host.crt"),
		Certificates:       folder("ibm.crt", "inter_ca.crt"),
		RootCA:             filepath.Join(certs, "root_ca.crt"),
		CRLs:               folder("ibm.crl", "inter_ca.crl", "root_ca.crl"),
		ImageHeader:        filepath.Join(dir, "ibm-se", "secure_guest.hdr"),
	}
	v, err := verifier.New(good)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Challenge(ctx, nil, recorded); err != nil {
		t.Error(err)
	}
	if _, err := v.Challenge(ctx, nil, recorded.AddDate(1000, 0, 0)); err == nil {
		t.Error("a challenge with expired certificates")
	}
	for name, change := range map[string]func(c *verifier.Config){
		"no key":      func(c *verifier.Config) { c.MeasurementKeyFile = "" },
		"key not PEM": func(c *verifier.Config) { c.MeasurementKeyFile = good.ImageHeader },
		"public key": func(c *verifier.Config) {
			c.MeasurementKeyFile = strings.TrimSuffix(good.MeasurementKeyFile, "pem") + "pub"
		},
		"no documents":    func(c *verifier.Config) { c.HostKeyDocuments = t.TempDir() },
		"no certificates": func(c *verifier.Config) { c.Certificates = filepath.Join(dir, "absent") },
		"list as root":    func(c *verifier.Config) { c.RootCA = filepath.Join(certs, "ibm.crl") },
		"header as lists": func(c *verifier.Config) { c.CRLs = good.ImageHeader },
		"no header":       func(c *verifier.Config) { c.ImageHeader = "" },
		"root as header":  func(c *verifier.Config) { c.ImageHeader = good.RootCA },
	} {
		c := good
		change(&c)
		if _, err := verifier.New(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	revoked := good
	revoked.HostKeyDocuments = folder("host.crt", "host_rev.crt")
	if v, err = verifier.New(revoked); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Challenge(ctx, nil, recorded); err == nil || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("with a revoked host key: %v", err)
	}
}
