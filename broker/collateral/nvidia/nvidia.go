// Package nvidia asks NVIDIA's services for reference manifests (RIM) and for the state of certificates (OCSP), and gives them to the
// verifier of GPUs and switches.
package nvidia

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"

	"github.com/cloister/cloister/broker/collateral"
	"github.com/cloister/cloister/broker/collateral/web"
	verifier "github.com/cloister/cloister/broker/verifier/nvidia"
)

// NVIDIA's own services.
const (
	DefaultRIMURL  = "https://rim.attestation.nvidia.com/v1/rim"
	DefaultOCSPURL = "https://ocsp.ndis.nvidia.com"
)

// Source asks both services.
type Source struct {
	rim, ocsp string
	web       *web.Client
}

var _ collateral.Source = (*Source)(nil)

// New returns a source at the addresses of the two services, empty for NVIDIA's own.
func New(rimURL, ocspURL string, client *web.Client) (*Source, error) {
	if rimURL == "" {
		rimURL = DefaultRIMURL
	}
	if ocspURL == "" {
		ocspURL = DefaultOCSPURL
	}
	rim, err := web.Base(rimURL)
	if err != nil {
		return nil, fmt.Errorf("NVIDIA RIM service: %w", err)
	}
	ocsp, err := web.Base(ocspURL)
	if err != nil {
		return nil, fmt.Errorf("NVIDIA OCSP service: %w", err)
	}
	return &Source{rim: rim, ocsp: ocsp, web: client}, nil
}

// Name is part of collateral.Source.
func (s *Source) Name() string { return "NVIDIA" }

// Fetch is part of collateral.Source.
func (s *Source) Fetch(ctx context.Context, q collateral.Query) (*collateral.Answer, error) {
	switch q.Key.Kind {
	case collateral.RIM:
		return s.fetchRIM(ctx, q.Key.Name)
	case collateral.OCSP:
		return s.fetchOCSP(ctx, q)
	}
	return nil, collateral.ErrNotCovered
}

// fetchRIM takes the document out of the JSON it comes in. The manifest is signed itself, so the digest beside it adds
// nothing.
func (s *Source) fetchRIM(ctx context.Context, id string) (*collateral.Answer, error) {
	target := s.rim + "/" + url.PathEscape(id)
	res, err := s.web.Get(ctx, target)
	if err != nil {
		return nil, err
	}
	var doc struct {
		ID  string `json:"id"`
		RIM string `json:"rim"`
	}
	if err := json.Unmarshal(res.Body, &doc); err != nil {
		return nil, fmt.Errorf("GET %s: got %.40q, expected JSON: %w", target, res.Body, err)
	}
	if doc.ID != "" && doc.ID != id {
		return nil, fmt.Errorf("GET %s: id is %.64q, expected %s", target, doc.ID, id)
	}
	text, err := base64.StdEncoding.DecodeString(doc.RIM)
	if err != nil {
		return nil, fmt.Errorf("GET %s: member rim: %w", target, err)
	}
	return &collateral.Answer{Data: text, MaxAge: res.MaxAge}, nil
}

// fetchOCSP asks the configured responder. The address that a certificate names is not followed: the certificate comes with the
// evidence. It is compared only, so that a chain of somebody else is not taken to NVIDIA for an answer.
func (s *Source) fetchOCSP(ctx context.Context, q collateral.Query) (*collateral.Answer, error) {
	if q.URL != "" && s.ocsp == DefaultOCSPURL {
		u, err := url.Parse(q.URL)
		if err != nil || !strings.HasSuffix("."+u.Hostname(), ".nvidia.com") {
			return nil, fmt.Errorf("the certificate names the responder %.80q, expected one of nvidia.com", q.URL)
		}
	}
	if len(q.Body) == 0 {
		return nil, collateral.ErrNotFound // it was asked for by its digest alone
	}
	res, err := s.web.Post(ctx, s.ocsp, "application/ocsp-request", q.Body)
	if err != nil {
		return nil, err
	}
	return &collateral.Answer{Data: res.Body, MaxAge: res.MaxAge}, nil
}

// RIMKey names a manifest.
func RIMKey(id string) collateral.Key { return collateral.Key{Kind: collateral.RIM, Name: id} }

// OCSPKey names the answer to a request.
func OCSPKey(request []byte) collateral.Key {
	sum := sha256.Sum256(request)
	return collateral.Key{Kind: collateral.OCSP, Name: hex.EncodeToString(sum[:])}
}

// oidNonce is the extension id-pkix-ocsp-nonce in DER.
var oidNonce = []byte{0x06, 0x09, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x30, 0x01, 0x02}

// Collateral gives the verifier of devices what is in a cache.
type Collateral struct{ Cache collateral.Getter }

var _ verifier.Collateral = Collateral{}

// RIM is part of the verifier's interface.
func (c Collateral) RIM(ctx context.Context, id string) ([]byte, error) {
	it, err := c.Cache.Get(ctx, collateral.Query{Key: RIMKey(id)})
	return it.Data, err
}

// maxRequest bounds an OCSP request in bytes.
const maxRequest = 8 << 10

// OCSP is part of the verifier's interface. The answer to a request with a nonce is good for that one only and is not kept.
func (c Collateral) OCSP(ctx context.Context, request []byte, url string) ([]byte, error) {
	if len(request) == 0 || len(request) > maxRequest {
		return nil, fmt.Errorf("OCSP request has %d bytes, expected 1 to %d", len(request), maxRequest)
	}
	it, err := c.Cache.Get(ctx, collateral.Query{
		Key: OCSPKey(request), Body: request, URL: url, NoStore: bytes.Contains(request, oidNonce),
	})
	return it.Data, err
}
