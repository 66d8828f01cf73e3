package aci

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/cloister/cloister/wire/didx509"
)

// Fragment is a signed part of a policy that the guest may load when its issuer, feed and security version are right.
type Fragment struct {
	Issuer     string   `json:"issuer"` // did:x509
	Feed       string   `json:"feed"`
	MinimumSVN string   `json:"minimum_svn"`
	Includes   []string `json:"includes"` // of containers, fragments, external_processes, namespace
}

// Infrastructure is the fragment with the service's own containers, which mount volumes and serve identities.
func Infrastructure(minimumSVN int) Fragment {
	return Fragment{
		Issuer:     "did:x509:0:sha256:I__iuL25oXEVFdTP_aBLx_eT1RPHbCQ_ECBQfYZpt9s::eku:1.3.6.1.4.1.311.76.59.1.3",
		Feed:       "mcr.microsoft.com/aci/aci-cc-infra-fragment",
		MinimumSVN: strconv.Itoa(minimumSVN),
		Includes:   []string{"containers", "fragments"},
	}
}

// InfrastructureSVN is the lowest security version of the infrastructure fragment that is not known to be revoked.
const InfrastructureSVN = 4

// ReadFragments reads declarations of fragments: {"fragments": [{"issuer", "feed", "minimum_svn", "includes"}]}, as the confcom extension of
// the Azure CLI writes them, too.
func ReadFragments(text []byte) ([]Fragment, error) {
	var file struct {
		Fragments []Fragment `json:"fragments"`
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&file); err != nil {
		return nil, fmt.Errorf("reading the fragments: %w", err)
	}
	for i, f := range file.Fragments {
		_, err := didx509.Parse(f.Issuer)
		svn, serr := strconv.ParseUint(f.MinimumSVN, 10, 53)
		switch {
		case err != nil:
		case f.Feed == "":
			err = errors.New("it has no feed")
		case serr != nil || strconv.FormatUint(svn, 10) != f.MinimumSVN:
			err = fmt.Errorf("minimum_svn %q is no whole number in quotes", f.MinimumSVN)
		case len(f.Includes) == 0:
			err = errors.New("it includes nothing")
		}
		for _, inc := range f.Includes {
			if !slices.Contains([]string{"containers", "fragments", "external_processes", "namespace"}, inc) {
				err = fmt.Errorf("it includes %.40q", inc)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("reading the fragments: fragment %d: %w", i, err)
		}
	}
	return file.Fragments, nil
}
