package judge_test

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/cloister/cloister/broker/judge"
	"github.com/cloister/cloister/broker/verifier/dcap"
	"github.com/cloister/cloister/internal/needs"
)

// docs is a Source with one answer.
type docs struct{ c dcap.Collateral }

func (d docs) Collateral(context.Context, string, string, string) (*dcap.Collateral, error) {
	return &d.c, nil
}

// TestCollateralMutations changes and cuts every document that a TCB status rests on.
func TestCollateralMutations(t *testing.T) {
	checked := 0
	for _, c := range load(t) {
		if !strings.HasPrefix(c.ID, "syn-dcap-tdx-v4") && !strings.HasPrefix(c.ID, "v3-00606a-teepot-1@") {
			continue
		}
		checked++
		whole, err := c.in.Collateral.Collateral(t.Context(), "", "", "")
		if err != nil {
			t.Fatal(err)
		}
		for name := range documents(whole) {
			original := *documents(whole)[name]
			step := max(1, len(original)/60)
			for at := 0; at < len(original); at += step {
				changed := slices.Clone(original)
				changed[at] ^= 1 << (at % 8)
				for what, data := range map[string][]byte{"changed": changed, "cut": original[:at]} {
					lastWhole := bytes.HasSuffix(bytes.TrimSpace(data), []byte("-----END CERTIFICATE-----"))
					if what == "cut" && (lastWhole || name == "pck_crl_issuer_chain.pem" && len(data) == 0) {
						continue // the root of a chain may be absent, and the chain whose issuer is in the quote as well
					}
					// White space, and the case of the hex digits of a signature, mean nothing.
					meaningless := bytes.Equal(bytes.Join(bytes.Fields(data), nil), bytes.Join(bytes.Fields(original), nil)) ||
						strings.HasSuffix(name, ".json") && bytes.EqualFold(data, original)
					if meaningless {
						continue
					}
					d := docs{*whole}
					*documents(&d.c)[name] = data
					in := c.in
					in.Collateral = d
					if v := judge.Judge(t.Context(), in); slices.Contains(accepted, v.Word) {
						t.Errorf("%s: %s %s at %d: verdict %s", c.ID, name, what, at, v.Word)
					}
				}
			}
		}
	}
	if checked == 0 {
		needs.Optional(t, "the folder of recorded evidence has none of the quotes")
	}
}

func documents(c *dcap.Collateral) map[string]*[]byte {
	return map[string]*[]byte{
		"tcb_info.json": &c.TCBInfo, "tcb_info_issuer_chain.pem": &c.TCBInfoIssuerChain, "qe_identity.json": &c.QEIdentity,
		"qe_identity_issuer_chain.pem": &c.QEIdentityIssuerChain, "pck_crl.der": &c.PCKCRL, "root_ca_crl.der": &c.RootCRL,
		"pck_crl_issuer_chain.pem": &c.PCKCRLIssuerChain,
	}
}
