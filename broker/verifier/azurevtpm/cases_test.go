package azurevtpm_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/verifier/azurevtpm"
	"github.com/cloister/cloister/tee/hcl"
	"github.com/cloister/cloister/test/evidence"
)

// recorded is a case of cases.json: whole evidence, or parts of it.
type recorded struct {
	ID, Evidence, HCL, Quote, Sig, Chain, Expect string
	TDQuote                                      string `json:"td_quote"`
	Now                                          time.Time
	Fields                                       struct{ Nonce string }
	SNPFields                                    *struct {
		Measurement string
	} `json:"snp_fields"`
}

// at is when the case is looked at; cases of parts do not say.
func (c recorded) at() time.Time {
	if c.Now.IsZero() {
		return now
	}
	return c.Now
}

// evidenceOf is the evidence of a case, put together of version 1 where the case has parts.
func (c recorded) evidenceOf(t *testing.T, folder string) json.RawMessage {
	t.Helper()
	if c.Evidence != "" {
		return evidence.Read(t, c.Evidence)
	}
	b64 := func(name string) string { return base64.RawURLEncoding.EncodeToString(evidence.Read(t, name)) }
	var registers []string
	for _, p := range storedPCRs(t, evidence.Read(t, folder+"/quote.bin")) {
		registers = append(registers, hex.EncodeToString(p))
	}
	m := map[string]any{"version": 1, "hcl_report": b64(c.HCL), "tpm_quote": map[string]any{
		"signature": hex.EncodeToString(evidence.Read(t, c.Sig)), "message": hex.EncodeToString(evidence.Read(t, c.Quote)), "pcrs": registers,
	}}
	if c.TDQuote != "" {
		m["td_quote"] = b64(c.TDQuote)
	} else {
		m["vcek"] = b64(c.Chain)
	}
	return must[[]byte](t)(json.Marshal(m))
}

// storedPCRs are the registers at the end of a recording: three lists with sizes of 8 bytes before them, of which the
// registers are the last.
func storedPCRs(t *testing.T, b []byte) [][]byte {
	t.Helper()
	for range 2 {
		n := binary.LittleEndian.Uint64(b)
		b = b[8+n:]
	}
	n := int(binary.LittleEndian.Uint64(b))
	if n != 24 || len(b) != 8+32*n {
		t.Fatalf("%d registers in %d bytes", n, len(b))
	}
	var out [][]byte
	for i := range n {
		out = append(out, b[8+32*i:][:32])
	}
	return out
}

func TestSNPCases(t *testing.T) {
	cases := append(evidence.Cases[recorded](t, "az-snp-vtpm"), evidence.Cases[recorded](t, "az-snp-raw")...)
	for _, c := range cases {
		t.Run(c.ID, func(t *testing.T) {
			e := c.evidenceOf(t, "azure-snp-vtpm")
			o := azurevtpm.Options{Now: c.at(), Offline: true}
			claims, err := azurevtpm.VerifySNP(context.Background(), e, o)
			if c.Expect == "invalid" {
				if err == nil {
					t.Error("accepted")
				}
				return
			}
			if err != nil || c.Expect != "valid" {
				t.Fatalf("expected %s, got %v", c.Expect, err)
			}
			o.Offline = false
			o.ExpectedReportData = must[[]byte](t)(hex.DecodeString(c.Fields.Nonce))
			if _, err := azurevtpm.VerifySNP(context.Background(), e, o); err != nil {
				t.Errorf("with its nonce: %v", err)
			}
			o.ExpectedReportData[0] ^= 1
			if _, err := azurevtpm.VerifySNP(context.Background(), e, o); err == nil {
				t.Error("accepted with another nonce")
			}
			if claims["report_data"] != c.Fields.Nonce || claims["cert_validity"] != "valid" || claims["vmpl"] != "0" {
				t.Errorf("claims are %v", claims)
			}
			if bound := claims["hcl_user_data"] == "bound"; bound != strings.HasSuffix(c.ID, "v2") {
				t.Errorf("hcl_user_data is %v", claims["hcl_user_data"])
			}
			if f := c.SNPFields; f != nil {
				want := base64.StdEncoding.EncodeToString(must[[]byte](t)(hex.DecodeString(f.Measurement)))
				if claims["measurement"] != want {
					t.Errorf("measurement is %v, expected %s", claims["measurement"], want)
				}
			}
			if _, err := azurevtpm.VerifyTDX(context.Background(), e, azurevtpm.Options{Now: now, Offline: true}, &fakeTD{}); err == nil {
				t.Error("accepted as TDX evidence")
			}
		})
	}
}

// td believes every quote and takes its report data from where version 4 has it; the recordings' TDX signatures are the
// business of broker/verifier/tdx.
type td struct{ seen []byte }

func (f *td) VerifyTDQuote(_ context.Context, quote []byte, _ time.Time) (map[string]any, []byte, error) {
	f.seen = quote
	return map[string]any{}, quote[48+520:][:64], nil
}

func TestTDXCases(t *testing.T) {
	cases := append(evidence.Cases[recorded](t, "az-tdx-vtpm"), evidence.Cases[recorded](t, "az-tdx-raw")...)
	for _, c := range cases {
		t.Run(c.ID, func(t *testing.T) {
			if c.Quote == "" && c.Evidence == "" {
				c.checkParts(t)
				return
			}
			e := c.evidenceOf(t, "azure-tdx-vtpm")
			o := azurevtpm.Options{Now: c.at(), ExpectedReportData: must[[]byte](t)(hex.DecodeString(c.Fields.Nonce))}
			f := &td{}
			claims, err := azurevtpm.VerifyTDX(context.Background(), e, o, f)
			if err != nil || c.Expect != "valid" {
				t.Fatalf("expected %s, got %v", c.Expect, err)
			}
			if !bytes.Equal(f.seen, evidence.Read(t, "azure-tdx-vtpm/td-quote.bin")) && c.TDQuote != "" {
				t.Error("another quote was verified")
			}
			if claims["report_data"] != c.Fields.Nonce {
				t.Errorf("claims are %v", claims)
			}
			o.ExpectedReportData[0] ^= 1
			if _, err := azurevtpm.VerifyTDX(context.Background(), e, o, f); err == nil {
				t.Error("accepted with another nonce")
			}
		})
	}
}

// checkParts is for a recording without a TPM quote: only that TDREPORT and TD quote speak of the runtime data.
func (c recorded) checkParts(t *testing.T) {
	t.Helper()
	r := must[*hcl.Report](t)(hcl.Parse(evidence.Read(t, c.HCL)))
	inReport := must[[64]byte](t)(r.TDReportData())
	_, inQuote, _ := new(td).VerifyTDQuote(context.Background(), evidence.Read(t, c.TDQuote), now)
	if !bytes.Equal(inReport[:], inQuote) {
		t.Errorf("report data is %x in the TDREPORT, %x in the quote", inReport, inQuote)
	}
}

func BenchmarkVerify(b *testing.B) {
	var e json.RawMessage = evidence.Read(b, "azure-snp-vtpm/evidence-v2.json")
	o := azurevtpm.Options{Now: now, Offline: true}
	for b.Loop() {
		if _, err := azurevtpm.VerifySNP(context.Background(), e, o); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "verifications/s")
}
