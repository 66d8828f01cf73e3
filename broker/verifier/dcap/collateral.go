package dcap

import (
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

const maxDocument = 1 << 20

// signedDocument is TCB info or QE identity with its signature. The inner object stays as the bytes that were signed.
type signedDocument struct {
	TCBInfo         json.RawMessage `json:"tcbInfo"`
	EnclaveIdentity json.RawMessage `json:"enclaveIdentity"`
	Signature       string          `json:"signature"`
}

// open verifies a signed document and returns its inner object.
func open(what string, data, chain []byte, root *x509.Certificate, w *windows,
	inner func(*signedDocument) json.RawMessage,
) (json.RawMessage, *x509.Certificate, error) {
	if len(data) > maxDocument {
		return nil, nil, fmt.Errorf("%s: %d bytes exceed the limit of %d", what, len(data), maxDocument)
	}
	by, err := signer(chain, root, w)
	if err != nil {
		return nil, nil, fmt.Errorf("%s issuer chain: %w", what, err)
	}
	var d signedDocument
	if err := json.Unmarshal(data, &d); err != nil {
		return nil, nil, fmt.Errorf("reading %s: %w", what, err)
	}
	key, err := p256Key(by)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", what, err)
	}
	body := inner(&d)
	if err := verifyHex(key, body, d.Signature); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", what, err)
	}
	return body, by, nil
}

// hexBytes is a hexadecimal string of collateral, in either case.
type hexBytes []byte

// UnmarshalText decodes the digits.
func (h *hexBytes) UnmarshalText(text []byte) error {
	b := make([]byte, hex.DecodedLen(len(text)))
	if _, err := hex.Decode(b, text); err != nil {
		return err
	}
	*h = b
	return nil
}

// stamp is what TCB info and QE identity begin with.
type stamp struct {
	ID         string    `json:"id"`
	Version    int       `json:"version"`
	IssueDate  time.Time `json:"issueDate"`
	NextUpdate time.Time `json:"nextUpdate"`
	EvalNumber uint32    `json:"tcbEvaluationDataNumber"`
}

// note checks that the document has dates, and notes them.
func (s *stamp) note(what string, w *windows) error {
	if s.IssueDate.IsZero() || s.NextUpdate.IsZero() {
		return errors.New(what + " has no issueDate or no nextUpdate")
	}
	w.add(what, s.IssueDate, s.NextUpdate)
	return nil
}
