// Package dryrun appraises saved evidence again, by another policy or other reference values, to see what would come out.
//
// What was saved can be evidence as a guest sends it, which is verified first; a record of the broker, as `cloister attest
// --json` prints it; or an attestation token. Of the latter two only the claims are left, so that they are as true as who
// keeps them. A record may have been shortened: Result says what a policy wanted to read and could not. Nothing is
// written anywhere.
package dryrun

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"

	"github.com/cloister/cloister/broker/decision"
	"github.com/cloister/cloister/wire/kbs"
)

// MaxSaved bounds what is read, in bytes: a token of the largest size in a little JSON.
const MaxSaved = 9 << 20

// The forms of what was saved.
const (
	FormRecord   = "record"   // of the broker
	FormToken    = "token"    // an EAR
	FormGuest    = "guest"    // the message a guest attests with
	FormEvidence = "evidence" // only the evidence of one TEE
	FormRefusal  = "refusal"  // the broker's answer to who was refused
)

// Saved is what a file holds; the member of its form is set.
type Saved struct {
	Form     string
	Record   *decision.Record
	Token    map[string]any
	Guest    *kbs.Attestation
	Evidence json.RawMessage
	Refusal  *kbs.ErrorInformation
}

// ErrForm is returned for what has none of the forms.
var ErrForm = errors.New("it is neither evidence, nor a record of an attestation, nor a token")

var compact = regexp.MustCompile(`\A[A-Za-z0-9_-]+\.([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]*\z`)

// Read tells what was saved. A token's signature is not checked.
func Read(raw []byte) (*Saved, error) {
	if len(raw) > MaxSaved {
		return nil, fmt.Errorf("it has %d bytes, at most %d are read", len(raw), MaxSaved)
	}
	raw = bytes.TrimSpace(raw)
	if m := compact.FindSubmatch(raw); m != nil {
		return readToken(m[1])
	}
	var top map[string]json.RawMessage
	if err := json.Unmarshal(raw, &top); err != nil || top == nil {
		return nil, ErrForm
	}
	has := func(name string) bool { _, ok := top[name]; return ok }
	switch {
	case has("token") && len(top) <= 2:
		var t kbs.TokenResponse
		if err := json.Unmarshal(raw, &t); err != nil {
			return nil, fmt.Errorf("reading the token: %w", err)
		}
		m := compact.FindStringSubmatch(t.Token)
		if m == nil {
			return nil, errors.New("its member token is no signed token")
		}
		return readToken([]byte(m[1]))
	case has("submods"):
		claims, err := object(raw)
		return &Saved{Form: FormToken, Token: claims}, err
	case has("kind") && has("decision"):
		s := &Saved{Form: FormRecord, Record: &decision.Record{}}
		if err := json.Unmarshal(raw, s.Record); err != nil {
			return nil, fmt.Errorf("reading the record: %w", err)
		}
		return s, nil
	case has("tee-evidence"):
		s := &Saved{Form: FormGuest, Guest: &kbs.Attestation{}}
		if err := json.Unmarshal(raw, s.Guest); err != nil {
			return nil, fmt.Errorf("reading the message of the guest: %w", err)
		}
		return s, nil
	case has("type") && has("detail") && len(top) == 2:
		info, err := kbs.ParseError(raw)
		return &Saved{Form: FormRefusal, Refusal: info}, err
	case len(top) == 0:
		return nil, ErrForm
	}
	return &Saved{Form: FormEvidence, Evidence: raw}, nil
}

func readToken(payload []byte) (*Saved, error) {
	raw, err := base64.RawURLEncoding.DecodeString(string(payload))
	if err != nil {
		return nil, fmt.Errorf("reading the token: %w", err)
	}
	claims, err := object(raw)
	if err != nil {
		return nil, fmt.Errorf("reading the token: %w", err)
	}
	return &Saved{Form: FormToken, Token: claims}, nil
}

// object reads a JSON object and keeps its numbers as they are.
func object(raw []byte) (map[string]any, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var m map[string]any
	if err := dec.Decode(&m); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errors.New("something follows the object")
	}
	if m == nil {
		return nil, errors.New("it is null")
	}
	return m, nil
}
