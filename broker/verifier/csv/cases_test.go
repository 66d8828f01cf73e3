package csv_test

import (
	"context"
	"encoding/hex"
	"errors"
	"testing"

	verifier "github.com/cloister/cloister/broker/verifier/csv"
	"github.com/cloister/cloister/tee/csv"
	"github.com/cloister/cloister/test/evidence"
)

type rawCase struct {
	ID, Report, Magic, Expect, HRK string
	HSKCEK                         string `json:"hsk_cek"`
	Flags                          uint32
	Fields                         map[string]any
	RTMRs                          []string
}

func (c rawCase) evidence(t *testing.T) *csv.Evidence {
	t.Helper()
	e, err := csv.ParseRawEvidence(c.Magic, c.Flags, evidence.Read(t, c.Report), evidence.Read(t, c.HSKCEK))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestCases(t *testing.T) {
	for _, c := range evidence.Cases[rawCase](t, "csv") {
		t.Run(c.ID, func(t *testing.T) {
			root := evidence.Read(t, c.HRK)
			claims, err := verifier.VerifyParsed(context.Background(), c.evidence(t), verifier.Options{Root: root, Offline: true})
			if c.Expect == "invalid" {
				if err == nil {
					t.Fatal("accepted")
				}
				t.Log(err)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			debug := claims["policy"].(map[string]any)["nodbg"] == int64(0)
			if want := c.Expect == "policy-reject"; debug != want {
				t.Errorf("debug = %t, expected %t", debug, want)
			}
			checkFields(t, claims, c.Fields)
			for i, want := range c.RTMRs {
				if got := claims["rtmr"+string(rune('0'+i))]; got != want {
					t.Errorf("rtmr%d = %v, expected %s", i, got, want)
				}
			}
			reportData, _ := hex.DecodeString(c.Fields["report_data"].(string))
			o := verifier.Options{Root: root, ExpectedReportData: reportData}
			if _, err := verifier.VerifyParsed(context.Background(), c.evidence(t), o); err != nil {
				t.Errorf("with its report data: %v", err)
			}
			o.ExpectedReportData = append([]byte{reportData[0] ^ 1}, reportData[1:]...)
			if _, err := verifier.VerifyParsed(context.Background(), c.evidence(t), o); err == nil {
				t.Error("accepted with other report data")
			}
			if c.ID == "csv-report-v1" {
				if _, err := verifier.VerifyParsed(context.Background(), c.evidence(t), verifier.Options{Offline: true}); err != nil {
					t.Errorf("under the embedded root: %v", err)
				}
			} else if _, err := verifier.VerifyParsed(context.Background(), c.evidence(t), verifier.Options{Offline: true}); err == nil {
				t.Error("a synthetic chain leads to Hygon's root")
			}
		})
	}
}

func checkFields(t *testing.T, claims, fields map[string]any) {
	t.Helper()
	for _, name := range []string{"vm_id", "report_data", "mnonce", "measure"} {
		if want, ok := fields[name]; ok && claims[name] != want {
			t.Errorf("%s = %v, expected %v", name, claims[name], want)
		}
	}
	if want, ok := fields["serial"]; ok && claims["serial_number"] != want {
		t.Errorf("serial_number = %v, expected %v", claims["serial_number"], want)
	}
}

func TestCoCoCase(t *testing.T) {
	type cocoCase struct {
		ID, Evidence, Expect string
		Fields               map[string]any
	}
	for _, c := range evidence.Cases[cocoCase](t, "csv-coco") {
		raw := evidence.Read(t, c.Evidence)
		e, err := csv.ParseEvidence(raw)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := hex.EncodeToString(e.Report.Measure[:]), c.Fields["measure"]; got != want {
			t.Errorf("measure = %s, expected %v", got, want)
		}
		if got, want := float64(e.Report.Policy), c.Fields["policy"]; got != want {
			t.Errorf("policy = %v, expected %v", got, want)
		}
		// Good up to the certificates that nobody has here.
		if _, err := verifier.Verify(context.Background(), raw, verifier.Options{Offline: true}); !errors.Is(err,
			verifier.ErrNoEndorsement) {
			t.Errorf("%s: %v, expected ErrNoEndorsement", c.ID, err)
		}
		e.Report.Signed[70] ^= 1
		if _, err := verifier.VerifyParsed(context.Background(), e, verifier.Options{Offline: true}); err == nil || errors.Is(err,
			verifier.ErrNoEndorsement) {
			t.Errorf("%s, tampered: %v, expected a wrong signature", c.ID, err)
		}
		// The certificates of another chip.
		e, _ = csv.ParseEvidence(raw)
		e.Chain = evidence.Read(t, "hygon-csv/hsk_cek.cert")
		if _, err := verifier.VerifyParsed(context.Background(), e, verifier.Options{Offline: true}); err == nil {
			t.Errorf("%s: accepted under the CEK of another chip", c.ID)
		}
	}
}
