package main

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// published answers as Intel's services do, out of a folder.
type published map[string]answer

type answer struct {
	header map[string][]string
	body   []byte
}

func newPublished(folder string) (published, error) {
	p := published{}
	for _, f := range []struct{ in, body, header, chain string }{
		{"/tcb?", "tcb_info.json", "Tcb-Info-Issuer-Chain", "tcb_info_issuer_chain.pem"},
		{"/qe/identity", "qe_identity.json", "Sgx-Enclave-Identity-Issuer-Chain", "qe_identity_issuer_chain.pem"},
		{"/pckcrl?", "pck_crl.der", "Sgx-Pck-Crl-Issuer-Chain", "pck_crl_issuer_chain.pem"},
		{"RootCA", "root_ca_crl.der", "", ""},
	} {
		body, err := os.ReadFile(filepath.Join(folder, f.body))
		if err != nil {
			return nil, err
		}
		a := answer{map[string][]string{}, body}
		if f.chain != "" {
			chain, err := os.ReadFile(filepath.Join(folder, f.chain))
			if err != nil {
				return nil, err
			}
			a.header[f.header] = []string{url.QueryEscape(string(chain))}
		}
		p[f.in] = a
	}
	return p, nil
}

// Get is part of the library's getter.
func (p published) Get(address string) (map[string][]string, []byte, error) {
	for part, a := range p {
		if strings.Contains(address, part) {
			return a.header, a.body, nil
		}
	}
	return nil, nil, fmt.Errorf("%s is not among what was recorded", address)
}
