// Package keyprovider is the ocicrypt key provider protocol: an image tool hands
// over a layer's private options to be wrapped or unwrapped. The messages only
// carry JSON; Input and Output are its shape.
package keyprovider

import (
	"encoding/json"
	"errors"
	"fmt"
)

// Operations of an Input.
const (
	OpWrap   = "keywrap"
	OpUnwrap = "keyunwrap"
)

const maxMessage = 1 << 20

// Bytes is binary data in JSON. Rust peers write and read arrays of numbers, Go
// peers write base64 and read both; so arrays are written and both are read.
type Bytes []byte

// MarshalJSON implements json.Marshaler.
func (b Bytes) MarshalJSON() ([]byte, error) {
	numbers := make([]uint16, len(b)) // not uint8, which json writes as base64
	for i, v := range b {
		numbers[i] = uint16(v)
	}
	return json.Marshal(numbers)
}

// UnmarshalJSON implements json.Unmarshaler.
func (b *Bytes) UnmarshalJSON(text []byte) error {
	if len(text) > 0 && text[0] == '[' {
		var numbers []uint16
		if err := json.Unmarshal(text, &numbers); err != nil {
			return errors.New("not an array of bytes")
		}
		out := make([]byte, len(numbers))
		for i, n := range numbers {
			if n > 255 {
				return errors.New("not an array of bytes")
			}
			out[i] = byte(n)
		}
		*b = out
		return nil
	}
	var raw []byte
	if err := json.Unmarshal(text, &raw); err != nil {
		return errors.New("neither base64 nor an array of bytes")
	}
	*b = raw
	return nil
}

// Input is the JSON inside KeyProviderKeyWrapProtocolInput.
type Input struct {
	Op     string       `json:"op"`
	Wrap   WrapParams   `json:"keywrapparams"`
	Unwrap UnwrapParams `json:"keyunwrapparams"`
}

// WrapParams ask to wrap the options in OptsData.
type WrapParams struct {
	EC *EncryptConfig `json:"ec"`
	// OptsData is a layer's private options as JSON text.
	OptsData OptsData `json:"optsdata"`
}

// OptsData is binary data of which one encryptor forgets the base64: a JSON object
// in its place is the data itself.
type OptsData []byte

// MarshalJSON implements json.Marshaler.
func (o OptsData) MarshalJSON() ([]byte, error) { return json.Marshal([]byte(o)) }

// UnmarshalJSON implements json.Unmarshaler.
func (o *OptsData) UnmarshalJSON(text []byte) error {
	if len(text) > 0 && text[0] == '{' {
		*o = append(OptsData(nil), text...)
		return nil
	}
	var s string
	if err := json.Unmarshal(text, &s); err == nil && len(s) > 0 && s[0] == '{' {
		*o = OptsData(s)
		return nil
	}
	return (*Bytes)(o).UnmarshalJSON(text)
}

// EncryptConfig names the keys to wrap for, by provider.
type EncryptConfig struct {
	Parameters    map[string][][]byte
	DecryptConfig DecryptConfig
}

// DecryptConfig names the keys to unwrap with, by provider.
type DecryptConfig struct {
	Parameters map[string][][]byte
}

// UnwrapParams ask to unwrap the packet in Annotation.
type UnwrapParams struct {
	DC *DecryptConfig `json:"dc"`
	// Annotation is a key packet as JSON text.
	Annotation Bytes `json:"annotation"`
}

// Output is the JSON inside KeyProviderKeyWrapProtocolOutput.
type Output struct {
	Wrap   *WrapResults   `json:"keywrapresults,omitempty"`
	Unwrap *UnwrapResults `json:"keyunwrapresults,omitempty"`
}

// WrapResults answer WrapParams with a key packet.
type WrapResults struct {
	Annotation Bytes `json:"annotation"`
}

// UnwrapResults answer UnwrapParams with a layer's private options.
type UnwrapResults struct {
	OptsData Bytes `json:"optsdata"`
}

// ParseInput reads an Input and checks that it has what its operation needs. Its
// errors never quote the text, which may hold a key.
func ParseInput(text []byte) (*Input, error) {
	if len(text) > maxMessage {
		return nil, fmt.Errorf("reading the key provider request: %d bytes exceed the limit of %d", len(text), maxMessage)
	}
	var in Input
	if err := json.Unmarshal(text, &in); err != nil {
		return nil, errors.New("reading the key provider request: not the expected JSON object")
	}
	switch in.Op {
	case OpWrap:
		if len(in.Wrap.OptsData) == 0 {
			return nil, errors.New("reading the key provider request: optsdata is missing")
		}
	case OpUnwrap:
		if len(in.Unwrap.Annotation) == 0 {
			return nil, errors.New("reading the key provider request: annotation is missing")
		}
	default:
		return nil, fmt.Errorf("reading the key provider request: op is %.40q, expected %s or %s", in.Op, OpWrap, OpUnwrap)
	}
	return &in, nil
}

// ParseOutput reads an Output; its errors never quote the text.
func ParseOutput(text []byte) (*Output, error) {
	if len(text) > maxMessage {
		return nil, fmt.Errorf("reading the key provider reply: %d bytes exceed the limit of %d", len(text), maxMessage)
	}
	var out Output
	if err := json.Unmarshal(text, &out); err != nil {
		return nil, errors.New("reading the key provider reply: not the expected JSON object")
	}
	return &out, nil
}
