package kbs

import (
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
)

// DefaultHash binds evidence unless a Challenge selects another algorithm.
const DefaultHash = "sha384"

// ReportData is the digest that evidence must carry: of the nonce and the public
// key for a device (additional is nil), and of those and the devices' evidence for
// the machine (additional is "" without devices). The algorithm is sha256, sha384
// or sha512; a platform pads or truncates the digest to its own field.
func ReportData(rd RuntimeData, additional *string, alg string) ([]byte, error) {
	bound := struct {
		Additional *string `json:"additional-evidence,omitempty"`
		RuntimeData
	}{additional, rd}
	text, err := Canonical(bound)
	if err != nil {
		return nil, fmt.Errorf("binding the runtime data: %w", err)
	}
	switch alg {
	case "sha256":
		sum := sha256.Sum256(text)
		return sum[:], nil
	case "sha384":
		sum := sha512.Sum384(text)
		return sum[:], nil
	case "sha512":
		sum := sha512.Sum512(text)
		return sum[:], nil
	default:
		return nil, fmt.Errorf("binding the runtime data: hash algorithm %q is not sha256, sha384 or sha512", alg)
	}
}
