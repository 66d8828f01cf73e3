package azurevtpm

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/cloister/cloister/tee/hcl"
	"github.com/cloister/cloister/tee/tpm"
)

const (
	maxEvidence = 1 << 20
	pcrCount    = 24
	pcrSize     = 32
)

// wireQuote has hex strings; in version 0 arrays of numbers.
type wireQuote struct {
	Signature json.RawMessage   `json:"signature"`
	Message   json.RawMessage   `json:"message"`
	PCRs      []json.RawMessage `json:"pcrs"`
}

// wireEvidence is all versions in one. Version 0 of SNP has names of its own for the quote and the HCL report.
type wireEvidence struct {
	Version   *int            `json:"version"`
	TPMQuote  *wireQuote      `json:"tpm_quote"`
	HCLReport json.RawMessage `json:"hcl_report"`
	OldQuote  *wireQuote      `json:"quote"`
	OldReport json.RawMessage `json:"report"`
	VCEK      json.RawMessage `json:"vcek"`
	TDQuote   json.RawMessage `json:"td_quote"`
}

// vtpm is evidence after parsing.
type vtpm struct {
	version   int
	hcl       *hcl.Report
	runtime   *hcl.RuntimeData
	message   []byte
	signature []byte
	attest    *tpm.Attest
	pcrs      [pcrCount][]byte
	vcek      []byte // DER or PEM, nil when the evidence has none
	tdQuote   []byte
}

func parse(evidence []byte, want hcl.HardwareType) (*vtpm, error) {
	if len(evidence) > maxEvidence {
		return nil, fmt.Errorf("evidence has %d bytes, at most %d are read", len(evidence), maxEvidence)
	}
	var w wireEvidence
	if err := json.Unmarshal(evidence, &w); err != nil {
		return nil, fmt.Errorf("reading evidence: %w", err)
	}
	var v vtpm
	if w.Version != nil {
		if v.version = *w.Version; v.version != 1 && v.version != 2 {
			return nil, fmt.Errorf("version of the evidence is %d, expected 1, 2 or none", v.version)
		}
	} else if want == hcl.SNP {
		w.TPMQuote, w.HCLReport = w.OldQuote, w.OldReport
	}
	if err := v.readHCL(w.HCLReport, want); err != nil {
		return nil, err
	}
	if w.TPMQuote == nil {
		return nil, errors.New("reading evidence: the TPM quote is missing")
	}
	if err := v.readQuote(w.TPMQuote); err != nil {
		return nil, err
	}
	return &v, v.readHardware(&w, want)
}

func (v *vtpm) readHCL(text json.RawMessage, want hcl.HardwareType) error {
	raw, err := v.decode("hcl_report", text, fromBase64)
	if err != nil {
		return err
	}
	return v.parseHCL(raw, want)
}

func (v *vtpm) parseHCL(raw []byte, want hcl.HardwareType) (err error) {
	if v.hcl, err = hcl.Parse(raw); err != nil {
		return err
	}
	if v.hcl.Type != want {
		return fmt.Errorf("HCL report is of %s hardware, expected %s", v.hcl.Type, want)
	}
	v.runtime, err = hcl.ParseRuntimeData(v.hcl.RuntimeData)
	return err
}

func (v *vtpm) readQuote(w *wireQuote) (err error) {
	if v.message, err = v.decode("TPM quote message", w.Message, hex.DecodeString); err != nil {
		return err
	}
	if v.attest, err = tpm.ParseAttest(v.message); err != nil {
		return fmt.Errorf("reading the TPM quote: %w", err)
	}
	if v.signature, err = v.decode("TPM quote signature", w.Signature, hex.DecodeString); err != nil {
		return err
	}
	if len(w.PCRs) != pcrCount {
		return fmt.Errorf("TPM quote comes with %d registers, expected %d", len(w.PCRs), pcrCount)
	}
	for i, text := range w.PCRs {
		if v.pcrs[i], err = v.decode(fmt.Sprintf("pcr%02d", i), text, hex.DecodeString); err != nil {
			return err
		}
		if len(v.pcrs[i]) != pcrSize {
			return fmt.Errorf("pcr%02d has %d bytes, expected %d", i, len(v.pcrs[i]), pcrSize)
		}
	}
	return nil
}

// readHardware reads what comes with the hardware's report: a certificate, which may be absent, or the TD quote.
func (v *vtpm) readHardware(w *wireEvidence, want hcl.HardwareType) (err error) {
	if want == hcl.TDX {
		v.tdQuote, err = v.decode("td_quote", w.TDQuote, fromBase64)
		return err
	}
	if len(w.VCEK) == 0 || string(w.VCEK) == "null" {
		return nil
	}
	if v.version > 0 {
		v.vcek, err = v.decode("vcek", w.VCEK, fromBase64)
		return err
	}
	var text string
	if err := json.Unmarshal(w.VCEK, &text); err != nil {
		return fmt.Errorf("reading vcek: %w", err)
	}
	v.vcek = []byte(text)
	return nil
}

// fromBase64 takes the URL alphabet with padding, as recorded evidence has it, and without.
func fromBase64(s string) ([]byte, error) {
	if strings.HasSuffix(s, "=") {
		return base64.URLEncoding.DecodeString(s)
	}
	return base64.RawURLEncoding.DecodeString(s)
}

// decode reads bytes: an array of numbers in version 0, a string in the versions after it.
func (v *vtpm) decode(name string, text json.RawMessage, decode func(string) ([]byte, error)) ([]byte, error) {
	if len(text) == 0 || string(text) == "null" {
		return nil, fmt.Errorf("reading evidence: %s is missing", name)
	}
	var out []byte
	var err error
	switch {
	case v.version > 0:
		var s string
		if err = json.Unmarshal(text, &s); err == nil {
			out, err = decode(s)
		}
	case text[0] != '[': // encoding/json would take a string for base64
		err = errors.New("it is not an array of numbers")
	default:
		err = json.Unmarshal(text, &out)
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	return out, nil
}
