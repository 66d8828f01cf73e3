package csv_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math/big"
	"strings"
	"testing"

	"github.com/emmansun/gmsm/sm2"

	verifier "github.com/cloister/cloister/broker/verifier/csv"
	"github.com/cloister/cloister/tee/csv"
	"github.com/cloister/cloister/tee/csv/csvtest"
	"github.com/cloister/cloister/tee/eventlog"
)

var ctx = context.Background()

func pki(t testing.TB) *csvtest.PKI {
	t.Helper()
	p, err := csvtest.New()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func reportData(b byte) []byte { return bytes.Repeat([]byte{b}, 48) }

// eventLog makes a log like CoCo guests without firmware log do, and the registers it leads to.
func eventLog() (string, [5][]byte) {
	le := binary.LittleEndian
	b := make([]byte, 4)
	b = le.AppendUint32(b, 3)
	b = append(b, make([]byte, 20)...)
	b = le.AppendUint32(b, 37)
	b = append(b, make([]byte, 24)...)
	b = le.AppendUint32(b, 2)
	for _, alg := range []uint16{0x0C, 48, 0x12, 32} {
		b = le.AppendUint16(b, alg)
	}
	b = append(b, 0)
	data := eventlog.AAELData("coco pull docker.io/library/busybox")
	b = append(b, eventlog.AAELRecord(4, eventlog.SM3, data)...)
	b = append(b, eventlog.AAELRecord(7, eventlog.SHA384, eventlog.AAELData("coco pull unmeasured"))...)
	b = append(b, bytes.Repeat([]byte{0xff}, 8)...)
	var rtmr [5][]byte
	rtmr[4] = eventlog.SM3.Sum(make([]byte, 32), eventlog.SM3.Sum(data))
	return base64.StdEncoding.EncodeToString(b), rtmr
}

func TestVerify(t *testing.T) {
	p := pki(t)
	log, rtmr := eventLog()
	for name, r := range map[string]csvtest.Report{
		"v1":    {ReportData: reportData(1), Measure: reportData(2), Policy: 0x41, ANonce: 0xdeadbeef},
		"v2":    {ReportData: reportData(1), Measure: reportData(2), Policy: 0x41, Extended: true, RTMR: rtmr},
		"debug": {ReportData: reportData(1), Measure: reportData(2), Policy: 0x40, Extended: true, RTMR: rtmr},
	} {
		t.Run(name, func(t *testing.T) {
			raw, err := p.Evidence(r, p.Chain, log)
			if err != nil {
				t.Fatal(err)
			}
			o := verifier.Options{Root: p.Root, ExpectedReportData: reportData(1)}
			claims, err := verifier.Verify(ctx, raw, o)
			if err != nil {
				t.Fatal(err)
			}
			if got := claims["measure"]; got != hex.EncodeToString(reportData(2)[:32]) {
				t.Errorf("measure = %v", got)
			}
			policy := claims["policy"].(map[string]any)
			if policy["nodbg"] != int64(r.Policy&1) || policy["csv3"] != int64(1) || policy["es"] != int64(0) {
				t.Errorf("policy = %v", policy)
			}
			if _, ok := claims["init_data"]; ok {
				t.Error("CSV cannot vouch for init data, but there is a claim")
			}
			events, _ := claims["uefi_event_logs"].([]any)
			if r.Extended && len(events) != 1 || !r.Extended && events != nil {
				t.Errorf("events = %v, expected the one that a register vouches for", events)
			}
			if _, err := json.Marshal(claims); err != nil {
				t.Error(err)
			}
			refused(t, raw, verifier.Options{Root: p.Root, ExpectedReportData: reportData(3)}, "report_data = ")
			refused(t, raw, verifier.Options{Root: p.Root}, "no report data")
			refused(t, raw, verifier.Options{Root: p.Root, ExpectedReportData: make([]byte, 65)}, "65 bytes")
			refused(t, raw, verifier.Options{ExpectedReportData: reportData(1)}, "signer id")
			refused(t, raw, verifier.Options{Root: pki(t).Root, ExpectedReportData: reportData(1)}, "HSK")
		})
	}
}

func refused(t *testing.T, raw json.RawMessage, o verifier.Options, why string) {
	t.Helper()
	if _, err := verifier.Verify(ctx, raw, o); err == nil || !strings.Contains(err.Error(), why) {
		t.Errorf("got %v, expected a refusal with %q", err, why)
	}
}

type store map[string][]byte

func (s store) HSKCEK(_ context.Context, serial string) ([]byte, error) {
	if b, ok := s[serial]; ok {
		return b, nil
	}
	return nil, errors.New("not here")
}

func TestEndorsements(t *testing.T) {
	p := pki(t)
	raw, err := p.Evidence(csvtest.Report{ReportData: reportData(1)}, nil, "")
	if err != nil {
		t.Fatal(err)
	}
	o := verifier.Options{Root: p.Root, ExpectedReportData: reportData(1)}
	for _, source := range []verifier.Endorsements{nil, store{}} {
		o.Endorsements = source
		if _, err := verifier.Verify(ctx, raw, o); !errors.Is(err, verifier.ErrNoEndorsement) {
			t.Errorf("without certificates: %v", err)
		}
	}
	o.Endorsements = store{csvtest.Serial: p.Chain}
	if _, err := verifier.Verify(ctx, raw, o); err != nil {
		t.Error(err)
	}
	o.Endorsements = store{csvtest.Serial: p.Chain[:100]}
	refused(t, raw, o, "100 bytes")
}

// TestChain swaps certificates for ones that are signed, but for another place.
func TestChain(t *testing.T) {
	p := pki(t)
	make := func(b []byte, err error) []byte {
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	hsk, cek := p.Chain[:csv.RootCertSize], p.Chain[csv.RootCertSize:]
	for name, c := range map[string]struct{ root, chain []byte }{
		"HRK is an HSK":         {make(csvtest.RootCert(p.HRK, p.HRK, csv.UsageHSK)), p.Chain},
		"HSK is an HRK":         {p.Root, append(make(csvtest.RootCert(p.HRK, p.HSK, csv.UsageHRK)), cek...)},
		"HSK signed by itself":  {p.Root, append(make(csvtest.RootCert(p.HSK, p.HSK, csv.UsageHSK)), cek...)},
		"CEK is a PEK":          {p.Root, append(hsk[:len(hsk):len(hsk)], make(csvtest.Cert(p.HSK, csv.UsageHSK, p.CEK, csv.UsagePEK))...)},
		"CEK signed by the HRK": {p.Root, append(hsk[:len(hsk):len(hsk)], make(csvtest.Cert(p.HRK, csv.UsageHSK, p.CEK, csv.UsageCEK))...)},
		"CEK signed as an OCA":  {p.Root, append(hsk[:len(hsk):len(hsk)], make(csvtest.Cert(p.HSK, csv.UsageOCA, p.CEK, csv.UsageCEK))...)},
	} {
		if _, err := verifier.CheckChipKey(c.root, c.chain); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := verifier.CheckChipKey(p.Root, p.Chain); err != nil {
		t.Error(err)
	}
	// A PEK that the chip did not sign.
	p.PEKCert = make(csvtest.Cert(p.PEK, csv.UsageCEK, p.PEK, csv.UsagePEK))
	raw := make(p.Evidence(csvtest.Report{ReportData: reportData(1)}, p.Chain, ""))
	refused(t, raw, verifier.Options{Root: p.Root, Offline: true}, "PEK: ")
}

func TestEventLogMismatch(t *testing.T) {
	p := pki(t)
	log, rtmr := eventLog()
	for i := 1; i < 5; i++ {
		wrong := rtmr
		wrong[i] = reportData(9)[:32]
		raw, err := p.Evidence(csvtest.Report{ReportData: reportData(1), Extended: true, RTMR: wrong}, p.Chain, log)
		if err != nil {
			t.Fatal(err)
		}
		refused(t, raw, verifier.Options{Root: p.Root, Offline: true}, "cc_eventlog gives rtmr")
	}
}

// TestTampering flips a bit in every byte of reports that something vouches for, and cuts them at every length.
func TestTampering(t *testing.T) {
	p := pki(t)
	for _, extended := range []bool{false, true} {
		page, err := p.Make(csvtest.Report{ReportData: reportData(1), Extended: extended, ANonce: 0x01020304})
		if err != nil {
			t.Fatal(err)
		}
		magic, flags, size := "", uint32(0), csv.ReportV1Size
		if extended {
			magic, flags, size = "ATTESTATION_EXT\x00", 1, csv.ReportV2Size
		}
		verify := func(b []byte) error {
			e, err := csv.ParseRawEvidence(magic, flags, b, p.Chain)
			if err == nil {
				_, err = verifier.VerifyParsed(ctx, e, verifier.Options{Root: p.Root, ExpectedReportData: reportData(1)})
			}
			return err
		}
		if err := verify(page[:size]); err != nil {
			t.Fatal(err)
		}
		for i := range size {
			b := bytes.Clone(page)
			b[i] ^= 1 << (i % 8)
			if err := verify(b); err == nil {
				t.Errorf("version 2 %t: bit flip in byte %d accepted", extended, i)
			}
		}
		for n := range size {
			if err := verify(page[:n]); err == nil {
				t.Errorf("version 2 %t: %d bytes accepted", extended, n)
			}
		}
		for i := range 576 {
			chain := bytes.Clone(p.Chain)
			chain[i] ^= 0x10
			if _, err := verifier.CheckChipKey(p.Root, chain); err == nil {
				t.Errorf("HSK: bit flip in byte %d accepted", i)
			}
		}
	}
}

// TestSM2Library fails with releases of the library before v0.44.1, whose assembly lost a carry in this signature.
func TestSM2Library(t *testing.T) {
	point, _ := hex.DecodeString("04ef4de57af00ae424c00c4caadff7193f804a19dd73a7e2954db9d0d15ab4cbba" +
		"67728c3f4572878b7a674735da9fde1682fe2d9e0799c4a5cde57e3d473039a2")
	r, _ := new(big.Int).SetString("be0ea64e1ec06f0d247093f3ccbbadcfb6260224272f86ddb78326e7cd6c7560", 16)
	s, _ := new(big.Int).SetString("e9f6ab2fcc48a2cef94838e66b5c7e21fd8e4de25990dd98ca5243f4966f2853", 16)
	var pub *ecdsa.PublicKey
	pub, err := sm2.NewPublicKey(point)
	if err != nil {
		t.Fatal(err)
	}
	if !sm2.Verify(pub, make([]byte, 32), r, s) {
		t.Error("a good signature is refused")
	}
}

func FuzzVerify(f *testing.F) {
	p := pki(f)
	log, rtmr := eventLog()
	for _, extended := range []bool{false, true} {
		raw, err := p.Evidence(csvtest.Report{ReportData: reportData(1), Extended: extended, RTMR: rtmr}, p.Chain, log)
		if err != nil {
			f.Fatal(err)
		}
		f.Add([]byte(raw))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		claims, err := verifier.Verify(ctx, raw, verifier.Options{Root: p.Root, Offline: true})
		if err == nil && claims == nil {
			t.Fatal("neither claims nor an error")
		}
	})
}
