package snp

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/cloister/cloister/tee/snp"
)

// maxChain bounds the certificates of evidence; more than one of each kind is never needed.
const maxChain = 16

// certificate is a member of cert_chain. cert_type is a string, or {"OTHER":"<uuid>"}.
type certificate struct {
	Type json.RawMessage `json:"cert_type"`
	Data json.RawMessage `json:"data"`
}

// ParseEvidence reads evidence as guests send it: the report in its binary form, and the certificates beside it.
func ParseEvidence(evidence []byte) (report []byte, chain Chain, err error) {
	if len(evidence) > maxEvidence {
		return nil, chain, fmt.Errorf("evidence has %d bytes, at most %d are read", len(evidence), maxEvidence)
	}
	var e struct {
		Report json.RawMessage `json:"attestation_report"`
		Chain  []certificate   `json:"cert_chain"`
	}
	if err := json.Unmarshal(evidence, &e); err != nil {
		return nil, chain, fmt.Errorf("reading evidence: %w", err)
	}
	if len(e.Report) == 0 || string(e.Report) == "null" {
		return nil, chain, errors.New("reading evidence: attestation_report is missing")
	}
	if report, err = snp.FromJSON(e.Report); err != nil {
		return nil, chain, err
	}
	chain, err = parseChain(e.Chain)
	return report, chain, err
}

// parseChain sorts certificates by what they say they are, the first of each kind wins. A chain that is given must have a
// leaf; null and [] mean none is given.
func parseChain(certs []certificate) (Chain, error) {
	var c Chain
	if len(certs) > maxChain {
		return c, fmt.Errorf("reading evidence: cert_chain has %d certificates, at most %d are read", len(certs), maxChain)
	}
	for i, cert := range certs {
		var kind snp.CertType
		if err := json.Unmarshal(cert.Type, &kind); err != nil {
			continue // {"OTHER": ...}: not ours
		}
		var to *[]byte
		switch kind {
		case snp.CertVCEK, snp.CertVLEK:
			to = &c.Leaf
		case snp.CertASK:
			to = &c.ASK
		case snp.CertARK:
			to = &c.ARK
		case snp.CertCRL:
			to = &c.CRL
		default:
			continue
		}
		if *to != nil {
			continue
		}
		data, err := numbers(cert.Data)
		if err != nil {
			return c, fmt.Errorf("reading evidence: cert_chain[%d] (%s): %w", i, kind, err)
		}
		*to = data
	}
	if len(certs) > 0 && c.Leaf == nil {
		return c, errors.New("reading evidence: cert_chain has neither VCEK nor VLEK")
	}
	return c, nil
}

// numbers reads an array of byte values. encoding/json would take a string for base64, which upstream never sends.
func numbers(text json.RawMessage) ([]byte, error) {
	if len(text) == 0 || text[0] != '[' {
		return nil, errors.New("data is not an array of numbers")
	}
	var out []byte
	if err := json.Unmarshal(text, &out); err != nil {
		return nil, err
	}
	if len(out) == 0 {
		return nil, errors.New("data is empty")
	}
	return out, nil
}
