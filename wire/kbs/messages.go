package kbs

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

const (
	// Version is the only protocol version that is spoken.
	Version = "0.4.0"
	// PathPrefix precedes every path of the protocol.
	PathPrefix = "/kbs/v0"
	// SessionCookie is the cookie that carries a handshake's session.
	SessionCookie = "kbs-session-id"
)

// Request opens a handshake: POST auth.
type Request struct {
	Version     string          `json:"version"`
	TEE         string          `json:"tee"`
	ExtraParams json.RawMessage `json:"extra-params"`
}

// Params reads ExtraParams; absent, null and "" mean no parameters.
func (r Request) Params() (RequestParams, error) {
	var p RequestParams
	if err := readParams(r.ExtraParams, &p); err != nil {
		return RequestParams{}, fmt.Errorf("reading extra-params of the request: %w", err)
	}
	return p, nil
}

// RequestParams is what a Request's extra-params may hold.
type RequestParams struct {
	SupportedHashAlgorithms []string  `json:"supported-hash-algorithms"`
	TPM                     *TPMEnrol `json:"cloister.tpm,omitempty"`
}

// Challenge answers a Request.
type Challenge struct {
	Nonce       string          `json:"nonce"`
	ExtraParams json.RawMessage `json:"extra-params"`
}

// Params reads ExtraParams; absent, null and "" mean no parameters.
func (c Challenge) Params() (ChallengeParams, error) {
	var p ChallengeParams
	if err := readParams(c.ExtraParams, &p); err != nil {
		return ChallengeParams{}, fmt.Errorf("reading extra-params of the challenge: %w", err)
	}
	return p, nil
}

// ChallengeParams is what a Challenge's extra-params may hold.
type ChallengeParams struct {
	SelectedHashAlgorithm string         `json:"selected-hash-algorithm,omitempty"`
	TPM                   *TPMCredential `json:"cloister.tpm,omitempty"`
}

// HashAlgorithm is the selected algorithm in lower case, or the default.
func (p ChallengeParams) HashAlgorithm() string {
	if p.SelectedHashAlgorithm == "" {
		return DefaultHash
	}
	return strings.ToLower(p.SelectedHashAlgorithm)
}

func readParams(raw json.RawMessage, into any) error {
	switch trimmed := bytes.TrimSpace(raw); string(trimmed) {
	case "", "null", `""`:
		return nil
	default:
		return json.Unmarshal(trimmed, into)
	}
}

// Attestation proves what asks: POST attest.
type Attestation struct {
	InitData    *InitData         `json:"init-data"`
	RuntimeData RuntimeData       `json:"runtime-data"`
	TEEEvidence CompositeEvidence `json:"tee-evidence"`
}

// InitData is the measured document in clear; Format is "toml".
type InitData struct {
	Format string `json:"format"`
	Body   string `json:"body"`
}

// RuntimeData is what the evidence is bound to.
type RuntimeData struct {
	Nonce     string `json:"nonce"`
	TEEPubKey JWK    `json:"tee-pubkey"`
}

// CompositeEvidence holds the evidence of the machine, and of its devices as JSON
// text ("" without devices).
type CompositeEvidence struct {
	Primary    json.RawMessage `json:"primary_evidence"`
	Additional string          `json:"additional_evidence"`
}

// TokenResponse answers an Attestation.
type TokenResponse struct {
	Token string `json:"token"`
}
