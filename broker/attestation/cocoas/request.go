package cocoas

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/cloister/cloister/broker/attestation"
	"github.com/cloister/cloister/broker/verifier"
	"github.com/cloister/cloister/wire/as"
	"github.com/cloister/cloister/wire/kbs"
)

// request is an item as the protocol has it. The service computes the report data itself from the runtime data, which also go
// into the token; they are sent in canonical form with the hash that gives the report data this broker expects.
func request(it attestation.Item) (*as.IndividualAttestationRequest, error) {
	b64 := base64.RawURLEncoding.EncodeToString
	r := &as.IndividualAttestationRequest{Tee: verifier.Canonical(it.TEE), Evidence: b64(it.Evidence)}
	if it.Runtime == nil {
		return nil, errors.New("it has no runtime data that it is bound to")
	}
	text, err := kbs.Canonical(it.Runtime)
	if err != nil {
		return nil, fmt.Errorf("reading the runtime data: %w", err)
	}
	if r.RuntimeDataHashAlgorithm, err = hashOf(text, it.ReportData); err != nil {
		return nil, err
	}
	r.RuntimeData = &as.IndividualAttestationRequest_StructuredRuntimeData{StructuredRuntimeData: string(text)}
	switch {
	case it.InitTOML != "":
		r.InitData = &as.IndividualAttestationRequest_InitDataToml{InitDataToml: it.InitTOML}
	case it.InitData != nil:
		r.InitData = &as.IndividualAttestationRequest_InitDataDigest{InitDataDigest: b64(it.InitData)}
	}
	return r, nil
}

// hashOf names the algorithm by which a text has a digest.
func hashOf(text, digest []byte) (string, error) {
	s256, s384, s512 := sha256.Sum256(text), sha512.Sum384(text), sha512.Sum512(text)
	for _, h := range []struct {
		name string
		sum  []byte
	}{{"sha384", s384[:]}, {"sha512", s512[:]}, {"sha256", s256[:]}} {
		if bytes.Equal(h.sum, digest) {
			return h.name, nil
		}
	}
	return "", fmt.Errorf("its report data %x is no SHA-2 digest of its runtime data", digest)
}
