package judge

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/cloister/cloister/broker/verifier/azurevtpm"
	"github.com/cloister/cloister/broker/verifier/snp"
	"github.com/cloister/cloister/broker/verifier/tdx"
	"github.com/cloister/cloister/tee/hcl"
	"github.com/cloister/cloister/tee/quote"
)

// azureSNP judges a VM of Azure on SEV-SNP: the JSON of guests, or an HCL report with the files of its TPM quote beside it.
func (j *judging) azureSNP() {
	beside := j.azureChain()
	var chain snp.Chain
	roots, sources := j.amd(&chain)
	leaf := chain.Leaf
	if leaf == nil {
		leaf = beside
	}
	if len(j.bad) > 0 {
		return
	}
	o := azurevtpm.Options{Roots: roots, Certificates: sources, Offline: true}
	var claims map[string]any
	var err error
	own := azureVCEK(j.Evidence)
	if leaf == nil && own == nil && sources.next == nil {
		j.open(ParseOnly, "no VCEK certificate, expected one with the evidence or by --cert: nothing tells who signed the SNP report")
		return
	}
	if isJSON(j.Evidence) {
		o.Now = j.at(issuedAll(leaf, own)...)
		o.InitDataDigest = j.InitData
		claims, err = azurevtpm.VerifySNP(j.ctx, j.Evidence, o)
	} else {
		o.Now = j.at(issuedAll(leaf)...)
		claims, err = azurevtpm.VerifySNPParts(j.ctx, j.azureParts(leaf), o)
	}
	if errors.Is(err, snp.ErrNoIssuer) {
		j.open(ParseOnly, noIssuer, err)
		return
	}
	if err != nil {
		j.refuse("%v", err)
		return
	}
	j.hclLayout(j.hclReport())
	j.azureClaims(claims)
	j.azurePolicy(claims)
	j.endorsement(fmt.Sprint(claims["cert_validity"]), fmt.Sprint(claims["cert_revocation"]), sources.fault(o.Now), sources)
}

// azureChain is the leaf of the "chain" of a folder of cases, where it comes first. What issued it is used below a root that is given
// without its own.
func (j *judging) azureChain() []byte {
	if j.Chain == nil {
		return nil
	}
	certs, err := certificates(j.Chain)
	if err != nil {
		j.refuse("the VCEK certificate cannot be read: %v", err)
		return nil
	}
	j.linked(certs)
	if len(certs) > 1 && len(j.Issuers) == 0 && !selfSigned(certs[1]) {
		j.Issuers = append(j.Issuers, certs[1].Raw)
	}
	return certs[0].Raw
}

// azurePolicy is snpPolicy by the claims, all of which are text.
func (j *judging) azurePolicy(claims map[string]any) {
	for _, name := range []string{"policy_debug_allowed", "policy_migrate_ma", "chip_id_masked"} {
		if claims[name] == "true" {
			j.reject("%s is true, expected false", name)
		}
	}
}

// azureTDX judges a VM of Azure on TDX.
func (j *judging) azureTDX() {
	var td *quote.Quote
	quotes := azurevtpm.TDQuoteFunc(func(_ context.Context, raw []byte, _ time.Time) (map[string]any, []byte, error) {
		q, err := quote.Parse(raw)
		if err != nil {
			return nil, nil, err
		}
		o := j.intel(pckIssued(q)...)
		claims, data, err := tdx.VerifyTDQuote(j.ctx, raw, o)
		if err == nil {
			td = q
			j.intelLists(q, o.Now)
			return claims, data, nil
		}
		j.quoteFault(q, err)
		return nil, nil, err
	})
	o := azurevtpm.Options{Now: j.Time, Offline: true}
	var claims map[string]any
	var err error
	if isJSON(j.Evidence) {
		o.InitDataDigest = j.InitData
		claims, err = azurevtpm.VerifyTDX(j.ctx, j.Evidence, o, quotes)
	} else {
		if j.TDQuote == nil {
			j.open(ParseOnly, "no TD quote, expected one by --quote: a TDREPORT proves nothing on another machine")
			return
		}
		claims, err = azurevtpm.VerifyTDXParts(j.ctx, j.azureParts(nil), o, quotes)
	}
	if err != nil {
		if len(j.bad) == 0 && len(j.open_) == 0 {
			j.refuse("%v", err)
		}
		return
	}
	j.hclLayout(j.hclReport())
	j.tdReport(j.hclReport(), td.TD)
	j.azureClaims(claims)
	j.platform(claims)
	j.tdPolicy(td.TD)
}

func (j *judging) azureParts(leaf []byte) azurevtpm.Parts {
	return azurevtpm.Parts{HCL: text(j.Evidence), Message: j.Message, Signature: j.Signature, VCEK: leaf, TDQuote: j.TDQuote}
}

// azureClaims binds what both kinds have. The nonce is that of the TPM quote; what the hardware signed is the hash of the runtime
// data, which has the quote's key in it.
func (j *judging) azureClaims(claims map[string]any) {
	j.addClaims(claims)
	quoted, _ := claims["report_data"].(string)
	nonce, _ := hex.DecodeString(quoted)
	_, whole := claims["tpm"]
	_, hasQuote := claims["tpm_pcr_digest"]
	if !whole && !hasQuote {
		j.open(ValidSignature, "the registers and the moment are not known: no TPM quote given, expected message and signature")
	}
	if !whole {
		if hasQuote {
			j.note("the register values were not checked: none given, only their digest is known")
		}
		j.noInitData("an HCL report without register values")
	}
	switch hardware, err := j.hardwareReportData(); {
	case j.ReportData == nil:
	case err == nil && bytes.Equal(hardware, j.ReportData):
	default:
		j.bind("report_data (nonce of the TPM quote)", nonce, j.ReportData)
	}
	j.bind("nonce of the TPM quote", nonce, j.Nonce)
	if j.Nonce == nil && j.ReportData == nil {
		j.note("the nonce of the TPM quote was not compared: none given, so the evidence may be a replay")
	}
	if j.PCRDigest != nil && hasQuote {
		if got := fmt.Sprint(claims["tpm_pcr_digest"]); got != hex.EncodeToString(j.PCRDigest) {
			j.refuse("register digest of the TPM quote is %s, expected %x as given by the caller", got, j.PCRDigest)
		}
	}
}

// hclReport is the HCL report of either form, nil when it cannot be read.
func (j *judging) hclReport() []byte {
	if !isJSON(j.Evidence) {
		return text(j.Evidence)
	}
	raw, err := azureBytes(j.Evidence, "hcl_report", "report")
	if err != nil {
		return nil
	}
	return raw
}

// hardwareReportData is the report data of the hardware's own report, for callers who mean that.
func (j *judging) hardwareReportData() ([]byte, error) {
	r, err := hcl.Parse(j.hclReport())
	if err != nil {
		return nil, err
	}
	if r.Type == hcl.TDX {
		data, err := r.TDReportData()
		return data[:], err
	}
	report, err := r.SNPReport()
	if err != nil {
		return nil, err
	}
	return report[0x50:0x90], nil
}

// azureBytes reads a member of evidence of any version: base64url text, or a list of numbers.
func azureBytes(evidence []byte, names ...string) ([]byte, error) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(evidence, &members); err != nil {
		return nil, fmt.Errorf("reading evidence: %w", err)
	}
	for _, name := range names {
		m := members[name]
		if len(m) == 0 {
			continue
		}
		var list []byte
		if m[0] == '[' {
			return list, json.Unmarshal(m, &list)
		}
		var s string
		if err := json.Unmarshal(m, &s); err != nil {
			return nil, err
		}
		if bytes.HasPrefix([]byte(s), []byte("-----BEGIN")) {
			return []byte(s), nil
		}
		return anyBase64(s)
	}
	return nil, fmt.Errorf("evidence has none of %q", names)
}

// azureVCEK is the certificate in evidence, nil without.
func azureVCEK(evidence []byte) []byte {
	b, err := azureBytes(evidence, "vcek")
	if err != nil {
		return nil
	}
	return b
}
