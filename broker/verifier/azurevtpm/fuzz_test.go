package azurevtpm_test

import (
	"context"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/verifier/azurevtpm"
	"github.com/cloister/cloister/broker/verifier/snp"
)

var update = flag.Bool("update", false, "make the evidence in testdata anew")

const storedRoots = "testdata/roots.pem"

func storedName(tdx bool, version int) string {
	return fmt.Sprintf("testdata/evidence-tdx-%t-v%d.json", tdx, version)
}

func read(t testing.TB, name string) []byte {
	t.Helper()
	return must[[]byte](t)(os.ReadFile(name))
}

func storedOptions(t testing.TB) azurevtpm.Options {
	t.Helper()
	return azurevtpm.Options{ExpectedReportData: nonce, Now: now, Roots: must[*snp.Roots](t)(snp.ParseRoots(read(t, storedRoots)))}
}

// echoTD believes every quote that starts with 64 bytes of report data.
func echoTD(_ context.Context, quote []byte, _ time.Time) (map[string]any, []byte, error) {
	if len(quote) < 64 {
		return nil, nil, fmt.Errorf("quote has %d bytes", len(quote))
	}
	return map[string]any{}, quote[:64], nil
}

// TestStored verifies evidence that was made once. It is stored because the processes of a fuzz run share no keys, and
// making some takes them longer than many inputs.
func TestStored(t *testing.T) {
	for _, tdx := range []bool{false, true} {
		for version := range 3 {
			name := storedName(tdx, version)
			if *update {
				v := newVM(t, tdx)
				v.version, v.tdQuote = version, v.hash(v.runtime())
				if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
					t.Fatal(err)
				}
				for name, data := range map[string][]byte{storedRoots: v.platform.RootsPEM(), name: v.evidence(t)} {
					if err := os.WriteFile(name, data, 0o644); err != nil {
						t.Fatal(err)
					}
				}
			}
			var err error
			if tdx {
				_, err = azurevtpm.VerifyTDX(context.Background(), read(t, name), storedOptions(t), azurevtpm.TDQuoteFunc(echoTD))
			} else {
				_, err = azurevtpm.VerifySNP(context.Background(), read(t, name), storedOptions(t))
			}
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

// FuzzVerify looks for panics, and for evidence that verifies without its nonce.
func FuzzVerify(f *testing.F) {
	for _, tdx := range []bool{false, true} {
		for version := range 3 {
			f.Add(tdx, read(f, storedName(tdx, version)))
		}
	}
	o := storedOptions(f)
	f.Fuzz(func(t *testing.T, tdx bool, e []byte) {
		var claims map[string]any
		var err error
		if tdx {
			claims, err = azurevtpm.VerifyTDX(context.Background(), e, o, azurevtpm.TDQuoteFunc(echoTD))
		} else {
			claims, err = azurevtpm.VerifySNP(context.Background(), e, o)
		}
		if err == nil && claims["report_data"] != hex.EncodeToString(nonce) {
			t.Fatal("evidence was forged")
		}
	})
}
