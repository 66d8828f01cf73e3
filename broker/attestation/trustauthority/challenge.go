package trustauthority

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/cloister/cloister/broker/verifier"
	"github.com/cloister/cloister/wire/kbs"
)

// The TEEs that a guest can be.
const (
	teeTDX   = "tdx"
	teeSGX   = "sgx"
	teeAzure = "az-tdx-vtpm"
	// teeGPU is that of a device.
	teeGPU = "nvidia"
)

// hashes is the digest the service computes of runtime data, by TEE (kbs-protocol.md section 2.1).
func hashes(tee string) (string, error) {
	switch tee {
	case teeTDX:
		return "sha512", nil
	case teeSGX, teeAzure:
		return "sha256", nil
	}
	return "", fmt.Errorf("tee %.32q cannot be attested by Intel Trust Authority, only %s, %s and %s", tee, teeTDX, teeSGX, teeAzure)
}

// Challenge selects the hash of the report data. A guest that does not say which hashes it can do would use one that the service
// refuses, and is told so at once.
func (c *Client) Challenge(_ context.Context, tee string, params json.RawMessage) (*verifier.Challenge, error) {
	hash, err := hashes(verifier.Canonical(tee))
	if err != nil {
		return nil, err
	}
	p, err := kbs.Request{ExtraParams: params}.Params()
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(p.SupportedHashAlgorithms, func(name string) bool { return strings.EqualFold(name, hash) }) {
		return nil, fmt.Errorf("the guest supports report data of %q, Intel Trust Authority needs %s for %s",
			p.SupportedHashAlgorithms, hash, tee)
	}
	return &verifier.Challenge{Hash: hash, Params: &kbs.ChallengeParams{SelectedHashAlgorithm: hash}}, nil
}
