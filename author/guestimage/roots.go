package guestimage

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"sort"

	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// rootsPath is where Go programs look first for the certificate authorities of the public web.
const rootsPath = "etc/ssl/certs/ca-certificates.crt"

// rootsModule is where they come from; go.sum pins it.
const rootsModule = "golang.org/x/crypto/x509roots/fallback"

// publicRoots is the PEM bundle of Mozilla's certificate authorities, with which the guest checks public registries. An
// authority that is trusted only under a constraint is left out, because PEM cannot carry the constraint.
func publicRoots() ([]byte, error) {
	var all [][]byte
	for root := range bundle.Roots() {
		if root.Constraint == nil {
			all = append(all, root.Certificate)
		}
	}
	sort.Slice(all, func(i, j int) bool { return bytes.Compare(all[i], all[j]) < 0 })
	var out bytes.Buffer
	for _, der := range all {
		if err := pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
			return nil, fmt.Errorf("encoding certificate authorities: %w", err)
		}
	}
	return out.Bytes(), nil
}
