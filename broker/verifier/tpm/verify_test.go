package tpm

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/internal/needs"
	"github.com/cloister/cloister/test/faketpm"
	"github.com/cloister/cloister/wire/kbs"
)

// shared is where evidence from real machines lies when this tree is beside it.
const shared = "../../../../shared/testdata/evidence/tpm/"

// TestRealEvidence verifies evidence that another implementation's guest made.
func TestRealEvidence(t *testing.T) {
	raw, err := os.ReadFile(shared + "coco-tpm-evidence.json")
	if errors.Is(err, fs.ErrNotExist) {
		needs.Optional(t, "recorded evidence, which is not part of the repository, is not here")
	}
	if err != nil {
		t.Fatal(err)
	}
	nonce, err := hex.DecodeString("a04182b506878d4f29b91ee606a71a0d3361ccf1b22db20c98adcaa537bea393ef0e41a18b3569ab678f1497fbc5c120")
	if err != nil {
		t.Fatal(err)
	}
	claims, err := Verify(raw, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := claims["report_data"].(string); !strings.HasPrefix(got, hex.EncodeToString(nonce)) || len(got) != 128 {
		t.Errorf("report_data is %s", got)
	}
	if _, err := Verify(raw, Options{ExpectedReportData: nonce}); err != nil {
		t.Errorf("the right report data: %v", err)
	}
	nonce[3] ^= 1
	if _, err := Verify(raw, Options{ExpectedReportData: nonce}); err == nil {
		t.Error("wrong report data is accepted")
	}
	if claims["ak_endorsement"] != EndorsedNot {
		t.Errorf("ak_endorsement is %v", claims["ak_endorsement"])
	}
}

func evidence(t testing.TB) []byte {
	t.Helper()
	f, err := faketpm.New(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	f.Measure(4, []byte("kernel"))
	e, err := f.Evidence(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestVerifyOffline(t *testing.T) {
	raw := evidence(t)
	claims, err := Verify(raw, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"init_data", "report_data", "ak_public", "pcr00", "pcr23", "ak_endorsement", "uefi_event_logs"} {
		if claims[name] == nil {
			t.Errorf("claim %s is missing", name)
		}
	}
	if _, err := Verify(raw, Options{ExpectedReportData: make([]byte, 48)}); err != nil {
		t.Errorf("longer report data is cut: %v", err)
	}
	if _, err := Verify(raw, Options{ExpectedReportData: []byte{1}}); err == nil {
		t.Error("other report data is accepted")
	}
	if _, err := Verify(raw, Options{InitDataDigest: make([]byte, 32)}); err == nil || !strings.Contains(err.Error(), "pcr08 = ") {
		t.Errorf("init data that was not measured: %v", err)
	}
}

// TestEventsWithoutQuote adds events to a log for registers whose values the log is not held against.
func TestEventsWithoutQuote(t *testing.T) {
	var e kbs.TPMEvidence
	if err := json.Unmarshal(evidence(t), &e); err != nil {
		t.Fatal(err)
	}
	log, err := base64.StdEncoding.DecodeString(e.EventLog)
	if err != nil {
		t.Fatal(err)
	}
	digest := bytes.Repeat([]byte{0xaa}, 32) // of a kernel that was never started
	for _, register := range []byte{8, 14, 24, 200} {
		log = append(log, register, 0, 0, 0, 3, 0, 0, 0x80, 1, 0, 0, 0, 0x0b, 0) // EV_EFI_BOOT_SERVICES_APPLICATION
		log = append(append(log, digest...), 0, 0, 0, 0)
	}
	e.EventLog = base64.StdEncoding.EncodeToString(log)
	raw, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	claims, err := Verify(raw, Options{})
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(claims["uefi_event_logs"])
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(text, []byte(hex.EncodeToString(digest))) || !bytes.Contains(text, []byte(`"index":4`)) {
		t.Errorf("claims hold events that no quoted register vouches for: %s", text)
	}
}

func TestRootFiles(t *testing.T) {
	empty := t.TempDir() + "/empty.pem"
	if err := os.WriteFile(empty, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{empty, empty + ".absent"} {
		if _, err := (Config{EKRootFiles: []string{path}}).Roots(); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("roots from %s: %v", path, err)
		}
	}
}

func FuzzVerify(f *testing.F) {
	f.Add(evidence(f))
	f.Add([]byte(`{"tpm_quote":{}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		claims, err := Verify(raw, Options{InitDataDigest: make([]byte, 32), ExpectedReportData: make([]byte, 32)})
		if err == nil && claims == nil {
			t.Fatal("neither claims nor an error")
		}
	})
}
