// Package amdkds asks AMD's key distribution service for the certificates of chips, the chains above them and the revocation lists,
// and gives them to the verifier of SEV-SNP reports.
//
// The service limits how often one address may ask (status 429), and names what it has by product line: Bergamo and Siena are asked
// for as Genoa. Addresses are those of attestation-service.md section 4.3.
package amdkds

import (
	"context"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"github.com/cloister/cloister/broker/collateral"
	"github.com/cloister/cloister/broker/collateral/web"
	verifier "github.com/cloister/cloister/broker/verifier/snp"
	"github.com/cloister/cloister/tee/snp"
)

// DefaultURL is AMD's own service.
const DefaultURL = "https://kdsintf.amd.com"

// Source asks the service.
type Source struct {
	base string
	web  *web.Client
}

var _ collateral.Source = (*Source)(nil)

// New returns a source at an address, empty for AMD's own.
func New(base string, client *web.Client) (*Source, error) {
	if base == "" {
		base = DefaultURL
	}
	base, err := web.Base(base)
	if err != nil {
		return nil, fmt.Errorf("AMD key distribution service: %w", err)
	}
	return &Source{base: base, web: client}, nil
}

// Name is part of collateral.Source.
func (s *Source) Name() string { return "AMD KDS" }

// Fetch is part of collateral.Source.
func (s *Source) Fetch(ctx context.Context, q collateral.Query) (*collateral.Answer, error) {
	path, err := path(q.Key)
	if err != nil {
		return nil, err
	}
	res, err := s.web.Get(ctx, s.base+path)
	if err != nil {
		return nil, err
	}
	data := res.Body
	if q.Key.Kind != collateral.AMDChain { // some mirrors hand out PEM
		if data, err = snp.DER(data); err != nil {
			return nil, err
		}
	}
	return &collateral.Answer{Data: data, MaxAge: res.MaxAge}, nil
}

func path(key collateral.Key) (string, error) {
	parts := strings.Split(key.Name, "/")
	switch {
	case key.Kind == collateral.VCEK && len(parts) == 3:
		query, err := query(parts[2])
		if err != nil {
			return "", err
		}
		return "/vcek/v1/" + parts[0] + "/" + parts[1] + "?" + query, nil
	case key.Kind == collateral.AMDChain && len(parts) == 2:
		return "/" + parts[1] + "/v1/" + parts[0] + "/cert_chain", nil
	case key.Kind == collateral.AMDCRL && len(parts) == 2:
		return "/" + parts[1] + "/v1/" + parts[0] + "/crl", nil
	}
	return "", collateral.ErrNotCovered
}

// query turns bl03_tee00_snp08_ucode115[_fmc01] into the parameters of an address. Turin's FMC comes first there.
func query(tcb string) (string, error) {
	var out []string
	for field := range strings.SplitSeq(tcb, "_") {
		part := strings.TrimRight(field, "0123456789")
		n, err := strconv.ParseUint(field[len(part):], 10, 8)
		if err != nil {
			return "", fmt.Errorf("TCB version is %q, expected parts such as bl03", tcb)
		}
		param := fmt.Sprintf("%sSPL=%02d", part, n)
		if part == "fmc" {
			out = append([]string{param}, out...)
		} else {
			out = append(out, param)
		}
	}
	return strings.Join(out, "&"), nil
}

// VCEKKey names the certificate of a chip for a TCB version. chipID is the bytes that name the chip: 8 on Turin, else 64.
func VCEKKey(line snp.Line, chipID []byte, tcb snp.TCB) (collateral.Key, error) {
	if !line.Known() || len(chipID) != line.ChipIDSize() {
		return collateral.Key{}, fmt.Errorf("chip id of %s has %d bytes, expected %d", line, len(chipID), line.ChipIDSize())
	}
	return collateral.Key{
		Kind: collateral.VCEK,
		Name: line.String() + "/" + hex.EncodeToString(chipID) + "/" + collateral.TCBName(tcb, line.HasFMC()),
	}, nil
}

// ChainKey and CRLKey name what is above the keys of a line: of its VLEKs if vlek, else of its VCEKs.
func ChainKey(line snp.Line, vlek bool) collateral.Key {
	return collateral.Key{Kind: collateral.AMDChain, Name: line.String() + "/" + variant(vlek)}
}

// CRLKey is described at ChainKey.
func CRLKey(line snp.Line, vlek bool) collateral.Key {
	return collateral.Key{Kind: collateral.AMDCRL, Name: line.String() + "/" + variant(vlek)}
}

func variant(vlek bool) string {
	if vlek {
		return "vlek"
	}
	return "vcek"
}

// Certificates gives the verifier of reports what is in a cache.
type Certificates struct{ Cache collateral.Getter }

var _ verifier.Certificates = Certificates{}

// VCEK is part of the verifier's interface.
func (c Certificates) VCEK(ctx context.Context, line snp.Line, chipID []byte, tcb snp.TCB) ([]byte, error) {
	key, err := VCEKKey(line, chipID, tcb)
	if err != nil {
		return nil, err
	}
	return c.get(ctx, key)
}

// CRL is part of the verifier's interface.
func (c Certificates) CRL(ctx context.Context, line snp.Line, vlek bool) ([]byte, error) {
	return c.get(ctx, CRLKey(line, vlek))
}

func (c Certificates) get(ctx context.Context, key collateral.Key) ([]byte, error) {
	it, err := c.Cache.Get(ctx, collateral.Query{Key: key})
	return it.Data, err
}
