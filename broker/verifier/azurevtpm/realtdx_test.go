package azurevtpm_test

import (
	"context"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/verifier/azurevtpm"
	"github.com/cloister/cloister/broker/verifier/dcap"
	"github.com/cloister/cloister/broker/verifier/tdx"
	"github.com/cloister/cloister/test/evidence"
)

// TestRealTDQuote puts the two verifiers together: recorded evidence whose TD quote is checked up to Intel's root.
func TestRealTDQuote(t *testing.T) {
	intel := azurevtpm.TDQuoteFunc(func(ctx context.Context, quote []byte, now time.Time) (map[string]any, []byte, error) {
		return tdx.VerifyTDQuote(ctx, quote, dcap.Options{Now: now, AllowNoCollateral: true})
	})
	for _, c := range append(evidence.Cases[recorded](t, "az-tdx-vtpm"), evidence.Cases[recorded](t, "az-tdx-raw")...) {
		if c.Quote == "" && c.Evidence == "" {
			quote := evidence.Read(t, c.TDQuote)
			if _, _, err := intel(context.Background(), quote, c.at()); err != nil {
				t.Errorf("%s: %v", c.ID, err)
			}
			continue
		}
		claims, err := azurevtpm.VerifyTDX(context.Background(), c.evidenceOf(t, "azure-tdx-vtpm"),
			azurevtpm.Options{Now: c.at(), Offline: true}, intel)
		if err != nil {
			t.Errorf("%s: %v", c.ID, err)
			continue
		}
		if claims["report_data"] != c.Fields.Nonce || claims["quote"] == nil || claims["tpm"] == nil {
			t.Errorf("%s: claims are %v", c.ID, claims)
		}
		e := c.evidenceOf(t, "azure-tdx-vtpm")
		broken := azurevtpm.TDQuoteFunc(func(ctx context.Context, quote []byte, now time.Time) (map[string]any, []byte, error) {
			quote[200] ^= 1
			return intel(ctx, quote, now)
		})
		if _, err := azurevtpm.VerifyTDX(context.Background(), e, azurevtpm.Options{Now: c.at(), Offline: true}, broken); err == nil {
			t.Errorf("%s: accepted with a changed quote", c.ID)
		}
	}
}
