// Package need tells which collateral the verification of evidence takes, from the evidence alone.
//
// It reads what guests send (attestation-service.md section 4), the bodies of attestation requests around it, and what tools save: raw
// SNP reports, raw quotes, reports with the host's certificate table as configfs-tsm delivers them. It verifies nothing.
package need

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cloister/cloister/broker/collateral"
	"github.com/cloister/cloister/broker/collateral/amdkds"
	"github.com/cloister/cloister/broker/collateral/intelpcs"
	"github.com/cloister/cloister/broker/verifier/dcap"
	"github.com/cloister/cloister/tee/quote"
	"github.com/cloister/cloister/tee/snp"
)

// Options are what evidence may leave open.
type Options struct {
	// Line is the product line for SNP reports of version 2, which do not name it; zero when it is not known.
	Line snp.Line
	// Update is intelpcs.Early or intelpcs.Standard.
	Update string
}

// Needs is what to fetch.
type Needs struct {
	Keys []collateral.Key
	// Devices is evidence of NVIDIA devices, one JSON document each. What these take comes out in their verification: manifests name
	// the certificates whose revocation is asked for.
	Devices []json.RawMessage
	// Notes say what is not needed, and why.
	Notes []string
}

func (n *Needs) add(keys ...collateral.Key) {
	for _, k := range keys {
		if !slices.Contains(n.Keys, k) {
			n.Keys = append(n.Keys, k)
		}
	}
}

// maxEvidence bounds evidence in bytes.
const maxEvidence = 16 << 20

// FromEvidence reads one piece of evidence.
func FromEvidence(data []byte, o Options) (*Needs, error) {
	if len(data) > maxEvidence {
		return nil, fmt.Errorf("evidence has %d bytes, at most %d are read", len(data), maxEvidence)
	}
	n := &Needs{}
	p := parser{Needs: n, o: o}
	if err := p.any(data, 0); err != nil {
		return nil, err
	}
	if len(n.Keys) == 0 && len(n.Devices) == 0 && len(n.Notes) == 0 {
		return nil, errors.New("the evidence is of no kind that takes collateral: known are SNP, TDX, SGX, Azure's two, and NVIDIA devices")
	}
	return n, nil
}

type parser struct {
	*Needs
	o Options
}

// any tells the forms apart by their content.
func (p *parser) any(data []byte, depth int) error {
	text := bytes.TrimSpace(data)
	switch {
	case depth > 4:
		return errors.New("evidence is nested too deeply")
	case len(text) > 0 && text[0] == '{':
		return p.object(text, depth)
	case len(text) > 0 && text[0] == '[':
		return p.array(text)
	case len(data) == snp.ReportSize && binary.LittleEndian.Uint32(data) <= 16:
		return p.report(data, nil)
	case len(data) > 48 && binary.LittleEndian.Uint16(data) >= 3 && binary.LittleEndian.Uint16(data) <= 5:
		return p.quote(data)
	}
	return errors.New("evidence is neither JSON, a raw SNP report nor a raw quote")
}

// object is every JSON form; members that are absent are nil.
func (p *parser) object(text []byte, depth int) error {
	var e struct {
		Evidence   json.RawMessage `json:"tee-evidence"`
		Primary    json.RawMessage `json:"primary_evidence"`
		Additional string          `json:"additional_evidence"`

		Report    json.RawMessage `json:"attestation_report"`
		CertChain json.RawMessage `json:"cert_chain"`
		Quote     json.RawMessage `json:"quote"`
		TDQuote   json.RawMessage `json:"td_quote"`
		HCL       json.RawMessage `json:"hcl_report"`
		HCLOld    json.RawMessage `json:"report"`
		VCEK      string          `json:"vcek"`
		Devices   json.RawMessage `json:"device_evidence_list"`
		OutBlob   string          `json:"outblob"`
		AuxBlob   string          `json:"auxblob"`
	}
	if err := json.Unmarshal(text, &e); err != nil {
		return fmt.Errorf("reading evidence: %w", err)
	}
	switch {
	case len(e.Evidence) > 0:
		return p.any(e.Evidence, depth+1)
	case len(e.Primary) > 0:
		return errors.Join(p.any(e.Primary, depth+1), p.additional(e.Additional, depth))
	case len(e.Devices) > 0:
		p.Devices = append(p.Devices, bytes.Clone(text))
		return nil
	case len(e.Report) > 0 && !isObject(e.CertChain): // Hygon's has an object there
		return p.snpEvidence(e.Report, e.CertChain)
	case e.OutBlob != "":
		return p.tsm(e.OutBlob, e.AuxBlob)
	case len(e.TDQuote) > 0:
		raw, err := blob(e.TDQuote)
		if err != nil {
			return fmt.Errorf("td_quote: %w", err)
		}
		return p.quote(raw)
	case len(e.HCL) > 0 || len(e.HCLOld) > 0:
		return p.azureSNP(e.HCL, e.HCLOld, e.VCEK)
	case len(e.Quote) > 0:
		raw, err := blob(e.Quote)
		if err != nil {
			return fmt.Errorf("quote: %w", err)
		}
		return p.quote(raw)
	}
	return nil // of a kind that takes none, such as a TPM
}

// array is the form in which NVIDIA's tools save evidence.
func (p *parser) array(text []byte) error {
	var list []struct {
		Arch string `json:"arch"`
	}
	if err := json.Unmarshal(text, &list); err != nil || len(list) == 0 || list[0].Arch == "" {
		return errors.New("evidence is a JSON array without devices")
	}
	p.Devices = append(p.Devices, fmt.Appendf(nil, `{"device_evidence_list":%s}`, text))
	return nil
}

// additional is evidence of devices beside a guest's own: a JSON object in a string, by TEE.
func (p *parser) additional(text string, depth int) error {
	if text == "" {
		return nil
	}
	var byTEE map[string]json.RawMessage
	if err := json.Unmarshal([]byte(text), &byTEE); err != nil {
		return fmt.Errorf("additional_evidence: %w", err)
	}
	for tee, evidence := range byTEE {
		if err := p.any(evidence, depth+1); err != nil {
			return fmt.Errorf("additional_evidence of %.32q: %w", tee, err)
		}
	}
	return nil
}

type certificate struct {
	Type json.RawMessage `json:"cert_type"`
	Data []uint16        `json:"data"`
}

func (p *parser) snpEvidence(report, certs json.RawMessage) error {
	raw, err := snp.FromJSON(report)
	if err != nil {
		return err
	}
	var chain []certificate
	if len(certs) > 0 {
		if err := json.Unmarshal(certs, &chain); err != nil {
			return fmt.Errorf("cert_chain: %w", err)
		}
	}
	for _, c := range chain {
		var kind string
		if json.Unmarshal(c.Type, &kind) != nil || kind != "VCEK" && kind != "VLEK" {
			continue
		}
		data := make([]byte, len(c.Data))
		for i, v := range c.Data {
			data[i] = byte(v)
		}
		return p.report(raw, data)
	}
	return p.report(raw, nil)
}

// tsm is a report beside the certificate table of the host, as configfs-tsm delivers them; texts are base64.
func (p *parser) tsm(out, aux string) error {
	raw, err := unbase64(out)
	if err != nil {
		return fmt.Errorf("outblob: %w", err)
	}
	if len(raw) != snp.ReportSize {
		return p.any(raw, 4)
	}
	var leaf []byte
	if table, err := unbase64(aux); err == nil && len(table) > 0 {
		entries, err := snp.ParseCertTable(table)
		if err != nil {
			return fmt.Errorf("auxblob: %w", err)
		}
		for _, e := range entries {
			if t := e.GUID.Type(); t == snp.CertVCEK || t == snp.CertVLEK {
				leaf = e.Data
			}
		}
	}
	return p.report(raw, leaf)
}

// HCL report: 32 bytes of header, then the hardware's report (evidence-layouts.md section 5).
const hclHeader = 32

func (p *parser) azureSNP(hcl, old json.RawMessage, vcek string) error {
	if len(hcl) == 0 {
		hcl = old
	}
	raw, err := blob(hcl)
	if err != nil {
		return fmt.Errorf("hcl_report: %w", err)
	}
	if len(raw) < hclHeader+snp.ReportSize {
		return fmt.Errorf("hcl_report has %d bytes, expected at least %d", len(raw), hclHeader+snp.ReportSize)
	}
	leaf := []byte(vcek)
	if !strings.Contains(vcek, "-----BEGIN") {
		if leaf, err = unbase64(vcek); err != nil {
			return fmt.Errorf("vcek: %w", err)
		}
	}
	return p.report(raw[hclHeader:hclHeader+snp.ReportSize], leaf)
}

// report asks for the VCEK unless the leaf came along, and for the revocation list above it.
func (p *parser) report(raw, leaf []byte) error {
	r, err := snp.Parse(raw)
	if err != nil {
		return err
	}
	line, vlek, err := p.line(r, leaf)
	if err != nil {
		return err
	}
	p.add(amdkds.CRLKey(line, vlek), amdkds.ChainKey(line, vlek))
	switch {
	case len(leaf) > 0:
		p.Notes = append(p.Notes, "the evidence carries the certificate of its key")
	case vlek:
		return errors.New("the report is signed with a VLEK and the evidence does not carry its certificate: only the cloud provider has it")
	case r.ChipIDMasked():
		return errors.New("the evidence carries no VCEK and its host hides the chip id: the certificate cannot be fetched")
	default:
		key, err := amdkds.VCEKKey(line, r.ChipID[:line.ChipIDSize()], snp.DecodeTCB(line, r.ReportedTCB))
		if err != nil {
			return err
		}
		p.add(key)
	}
	return nil
}

func (p *parser) line(r *snp.Report, leaf []byte) (line snp.Line, vlek bool, err error) {
	vlek = r.KeyInfo.SigningKey() == snp.VLEK
	if r.HasCPUID() {
		line, err = r.Line()
		return line, vlek, err
	}
	if len(leaf) > 0 {
		der, err := snp.DER(leaf)
		if err != nil {
			return 0, false, err
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return 0, false, fmt.Errorf("certificate beside the report: %w", err)
		}
		line, _, err := snp.LineOfIssuer(cert.Issuer.CommonName)
		return line, vlek, err
	}
	if p.o.Line.Known() {
		return p.o.Line, vlek, nil
	}
	return 0, false, fmt.Errorf("the report has version %d, which does not name the product line, and no certificate came along", r.Version)
}

// quote asks for Intel's four documents about the platform that the quote's PCK certificate describes.
func (p *parser) quote(raw []byte) error {
	q, err := quote.Parse(raw)
	if err != nil {
		return err
	}
	chain, ok := q.Certification.PEMChain()
	if !ok {
		return fmt.Errorf("the quote carries %s, expected a chain of PCK certificates", q.Certification)
	}
	block, _ := pem.Decode(chain)
	if block == nil {
		return errors.New("the quote's PCK certificate is not PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return fmt.Errorf("PCK certificate: %w", err)
	}
	tee := dcap.TEESGX
	if q.TD != nil {
		tee = dcap.TEETDX
	}
	var ca string
	switch cn := cert.Issuer.CommonName; cn {
	case "Intel SGX PCK Platform CA":
		ca = dcap.CAPlatform
	case "Intel SGX PCK Processor CA":
		ca = dcap.CAProcessor
	default:
		return fmt.Errorf("issuer of the PCK certificate is %.48q, expected Intel SGX PCK Platform CA or Processor CA", cn)
	}
	for _, ext := range cert.Extensions {
		if !ext.Id.Equal(quote.OIDSGXExtension) {
			continue
		}
		pck, err := quote.ParsePCK(ext.Value)
		if err != nil {
			return err
		}
		keys, err := intelpcs.KeysOf(hex.EncodeToString(pck.FMSPC), ca, tee, p.o.Update)
		p.add(keys.List()...)
		return err
	}
	return errors.New("the PCK certificate has no Intel extension")
}

func isObject(raw json.RawMessage) bool { return len(raw) > 0 && raw[0] == '{' }

// blob is bytes in JSON: base64 of some kind, or an array of numbers.
func blob(raw json.RawMessage) ([]byte, error) {
	if raw[0] == '"' {
		var text string
		if err := json.Unmarshal(raw, &text); err != nil {
			return nil, err
		}
		return unbase64(text)
	}
	var numbers []uint8
	var wide []uint16
	if err := json.Unmarshal(raw, &wide); err != nil {
		return nil, errors.New("expected base64 or an array of bytes")
	}
	for i, v := range wide {
		if v > 255 {
			return nil, fmt.Errorf("element %d is %d, expected a byte", i, v)
		}
		numbers = append(numbers, uint8(v))
	}
	return numbers, nil
}

// unbase64 takes both alphabets, with padding or without.
func unbase64(text string) ([]byte, error) {
	text = strings.NewReplacer("-", "+", "_", "/", "\n", "", "\r", "").Replace(strings.TrimSpace(text))
	return base64.RawStdEncoding.DecodeString(strings.TrimRight(text, "="))
}
