// Package intelpcs asks Intel's provisioning certification service (PCS), or a caching service of one's own that speaks the same
// protocol (PCCS), for what Intel publishes about SGX and TDX platforms, and gives it to the verifier of quotes.
//
// Endpoints are those of version 4, attestation-service.md section 4.5. Documents are kept byte for byte, for their signatures are over
// bytes; only the encodings of revocation lists are made one, DER.
package intelpcs

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/cloister/cloister/broker/collateral"
	"github.com/cloister/cloister/broker/collateral/web"
)

const (
	// DefaultURL is Intel's own service.
	DefaultURL = "https://api.trustedservices.intel.com"
	// RootCRLURL is where Intel's root certificate says its revocation list is. It is a constant here: an address that comes with
	// documents not yet verified is nothing to follow.
	RootCRLURL = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
)

// Source asks one service.
type Source struct {
	name    string
	base    string
	rootCRL string
	web     *web.Client
}

var _ collateral.Source = (*Source)(nil)

// New returns a source at the address of a PCS, empty for Intel's own. rootCRL is where the root's revocation list is, empty for the
// place that the root certificate names.
func New(base, rootCRL string, client *web.Client) (*Source, error) {
	if base == "" {
		base = DefaultURL
	}
	if rootCRL == "" {
		rootCRL = RootCRLURL
	}
	if _, err := web.Base(rootCRL); err != nil {
		return nil, fmt.Errorf("revocation list of Intel's root: %w", err)
	}
	return newSource("Intel PCS", base, rootCRL, client)
}

// NewPCCS returns a source at the address of a caching service, which serves the root's revocation list itself.
func NewPCCS(base string, client *web.Client) (*Source, error) {
	s, err := newSource("PCCS", base, "", client)
	if err != nil {
		return nil, err
	}
	s.rootCRL = s.base + "/sgx/certification/v4/rootcacrl"
	return s, nil
}

// newSource takes an address with or without the path of the service: endpoints are made anew, as upstream does.
func newSource(name, base, rootCRL string, client *web.Client) (*Source, error) {
	base, err := web.Base(base)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	for _, tee := range []string{"/sgx", "/tdx"} {
		base = strings.TrimSuffix(base, tee+"/certification/v4")
	}
	return &Source{name: name, base: base, rootCRL: rootCRL, web: client}, nil
}

// Name is part of collateral.Source.
func (s *Source) Name() string { return s.name }

// Fetch is part of collateral.Source.
func (s *Source) Fetch(ctx context.Context, q collateral.Query) (*collateral.Answer, error) {
	target, chainHeaders, err := s.target(q.Key)
	if err != nil {
		return nil, err
	}
	res, err := s.web.Get(ctx, target)
	if err != nil {
		return nil, err
	}
	a := &collateral.Answer{Data: res.Body, MaxAge: res.MaxAge}
	if q.Key.Kind == collateral.PCKCRL || q.Key.Kind == collateral.RootCRL {
		if a.Data, err = CRL(res.Body); err != nil {
			return nil, fmt.Errorf("GET %s: %w", target, err)
		}
	}
	if len(chainHeaders) > 0 {
		if a.Chain, err = chain(res.Header, chainHeaders); err != nil {
			return nil, fmt.Errorf("GET %s: %w", target, err)
		}
	}
	return a, nil
}

// target is the address of a document and the headers its issuer chain may come in.
func (s *Source) target(key collateral.Key) (target string, chainHeaders []string, err error) {
	parts := strings.Split(key.Name, "/")
	switch {
	case key.Kind == collateral.TCBInfo && len(parts) == 3:
		return s.base + "/" + parts[0] + "/certification/v4/tcb?fmspc=" + parts[1] + "&update=" + parts[2],
			[]string{"TCB-Info-Issuer-Chain", "SGX-TCB-Info-Issuer-Chain"}, nil
	case key.Kind == collateral.QEIdentity && len(parts) == 2:
		return s.base + "/" + parts[0] + "/certification/v4/qe/identity?update=" + parts[1],
			[]string{"SGX-Enclave-Identity-Issuer-Chain"}, nil
	case key.Kind == collateral.PCKCRL && len(parts) == 1:
		return s.base + "/sgx/certification/v4/pckcrl?ca=" + parts[0] + "&encoding=der", []string{"SGX-PCK-CRL-Issuer-Chain"}, nil
	case key.Kind == collateral.RootCRL:
		return s.rootCRL, nil, nil
	}
	return "", nil, collateral.ErrNotCovered
}

// chain reads an issuer chain, PEM in URL encoding, from the first header that there is.
func chain(h http.Header, names []string) ([]byte, error) {
	for _, name := range names {
		if text := h.Get(name); text != "" {
			return Unescape(text)
		}
	}
	return nil, fmt.Errorf("header %s is missing", names[0])
}

// Unescape decodes an issuer chain. A plus sign stands for itself: it belongs to the base64 inside.
func Unescape(text string) ([]byte, error) {
	pem, err := url.PathUnescape(text)
	if err != nil {
		return nil, fmt.Errorf("issuer chain: %w", err)
	}
	return []byte(pem), nil
}

// CRL decodes a revocation list to DER: services answer with DER, PEM, or DER in hexadecimal or base64.
func CRL(data []byte) ([]byte, error) {
	text := bytes.TrimSpace(data)
	switch {
	case len(text) == 0:
		return nil, errors.New("got an empty revocation list")
	case data[0] == 0x30 && !isText(text):
		return data, nil
	case bytes.HasPrefix(text, []byte("-----BEGIN")):
		block, _ := pem.Decode(text)
		if block == nil {
			return nil, errors.New("got a revocation list in PEM that cannot be decoded")
		}
		return block.Bytes, nil
	}
	text = bytes.Trim(text, `"`)
	if der, err := hex.DecodeString(string(text)); err == nil {
		return der, nil
	}
	if der, err := base64.StdEncoding.DecodeString(string(text)); err == nil && len(der) > 0 && der[0] == 0x30 {
		return der, nil
	}
	return nil, fmt.Errorf("got %.40q, expected a revocation list", text)
}

// isText tells hexadecimal and base64, which may begin with the digit 0 (30h) too, from DER.
func isText(b []byte) bool {
	for _, c := range b[:min(len(b), 64)] {
		if c < 0x20 || c > 0x7e {
			return false
		}
	}
	return true
}
