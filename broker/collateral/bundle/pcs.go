package bundle

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/cloister/cloister/broker/collateral"
	"github.com/cloister/cloister/broker/collateral/intelpcs"
)

// pcsFile is what Intel's PCS client tool writes (attestation-service.md section 4.5). Members are absent where the tool was not asked
// for them. Identities are texts, TCB infos objects.
type pcsFile struct {
	Collaterals *struct {
		TCBInfos []struct {
			FMSPC    string          `json:"fmspc"`
			SGX      json.RawMessage `json:"sgx_tcbinfo"`
			SGXEarly json.RawMessage `json:"sgx_tcbinfo_early"`
			TDX      json.RawMessage `json:"tdx_tcbinfo"`
			TDXEarly json.RawMessage `json:"tdx_tcbinfo_early"`
		} `json:"tcbinfos"`
		PCKCRL struct {
			Processor string `json:"processorCrl"`
			Platform  string `json:"platformCrl"`
		} `json:"pckcacrl"`
		QE           json.RawMessage `json:"qeidentity"`
		QEEarly      json.RawMessage `json:"qeidentity_early"`
		TDQE         json.RawMessage `json:"tdqeidentity"`
		TDQEEarly    json.RawMessage `json:"tdqeidentity_early"`
		Certificates struct {
			PCK struct {
				Processor string `json:"PROCESSOR"`
				Platform  string `json:"PLATFORM"`
			} `json:"SGX-PCK-Certificate-Issuer-Chain"`
			TCB        string `json:"TCB-Info-Issuer-Chain"`
			TCBLegacy  string `json:"SGX-TCB-Info-Issuer-Chain"`
			QEIdentity string `json:"SGX-Enclave-Identity-Issuer-Chain"`
		} `json:"certificates"`
		RootCRL string `json:"rootcacrl"`
	} `json:"collaterals"`
}

func parsePCS(path string, raw []byte) (Source, error) {
	var f pcsFile
	if err := json.Unmarshal(raw, &f); err != nil {
		return nil, err
	}
	c := f.Collaterals
	if c == nil {
		return nil, errors.New("it is JSON without the member collaterals: no file of Intel's PCS client tool")
	}
	if len(c.TCBInfos) > maxItems/4 {
		return nil, fmt.Errorf("it has %d platforms, at most %d are read", len(c.TCBInfos), maxItems/4)
	}
	p := pcsParser{memory: newMemory("PCS client tool's file " + path)}
	tcbChain := c.Certificates.TCB
	if tcbChain == "" {
		tcbChain = c.Certificates.TCBLegacy
	}
	for _, t := range c.TCBInfos {
		fmspc := strings.ToUpper(t.FMSPC)
		p.signed(collateral.TCBInfo, "sgx/"+fmspc+"/standard", t.SGX, tcbChain)
		p.signed(collateral.TCBInfo, "sgx/"+fmspc+"/early", t.SGXEarly, tcbChain)
		p.signed(collateral.TCBInfo, "tdx/"+fmspc+"/standard", t.TDX, tcbChain)
		p.signed(collateral.TCBInfo, "tdx/"+fmspc+"/early", t.TDXEarly, tcbChain)
	}
	p.signed(collateral.QEIdentity, "sgx/standard", c.QE, c.Certificates.QEIdentity)
	p.signed(collateral.QEIdentity, "sgx/early", c.QEEarly, c.Certificates.QEIdentity)
	p.signed(collateral.QEIdentity, "tdx/standard", c.TDQE, c.Certificates.QEIdentity)
	p.signed(collateral.QEIdentity, "tdx/early", c.TDQEEarly, c.Certificates.QEIdentity)
	p.crl(collateral.PCKCRL, "processor", c.PCKCRL.Processor, c.Certificates.PCK.Processor)
	p.crl(collateral.PCKCRL, "platform", c.PCKCRL.Platform, c.Certificates.PCK.Platform)
	p.crl(collateral.RootCRL, "root", c.RootCRL, "")
	if p.err != nil {
		return nil, p.err
	}
	return p.memory, nil
}

// pcsParser collects documents until the first error.
type pcsParser struct {
	*memory
	err error
}

func (p *pcsParser) put(kind collateral.Kind, name string, data []byte, chain string) {
	it := collateral.Item{Key: collateral.Key{Kind: kind, Name: name}, Data: data, Source: p.name}
	if chain != "" {
		if it.Chain, p.err = intelpcs.Unescape(chain); p.err != nil {
			return
		}
	}
	p.err = p.add(it)
}

// signed takes a JSON document, given as an object or as a text. The tool is written in Python and puts spaces between the members of
// an object; signatures are over the compact form that Intel published.
func (p *pcsParser) signed(kind collateral.Kind, name string, raw json.RawMessage, chain string) {
	if p.err != nil || len(raw) == 0 || string(raw) == "null" || string(raw) == `""` {
		return
	}
	if raw[0] == '"' {
		var text string
		if p.err = json.Unmarshal(raw, &text); p.err == nil {
			p.put(kind, name, []byte(text), chain)
		}
		return
	}
	var compact bytes.Buffer
	if p.err = json.Compact(&compact, raw); p.err == nil {
		p.put(kind, name, compact.Bytes(), chain)
	}
}

func (p *pcsParser) crl(kind collateral.Kind, name, text, chain string) {
	if p.err != nil || text == "" {
		return
	}
	der, err := intelpcs.CRL([]byte(text))
	if err != nil {
		p.err = fmt.Errorf("%s %s: %w", kind, name, err)
		return
	}
	p.put(kind, name, der, chain)
}
