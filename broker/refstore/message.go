package refstore

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/cloister/cloister/broker/refstore/extract"
)

// MessageVersion is the only version of the registration message.
const MessageVersion = "0.1.0"

// Unsigned is the signer of values that nobody signed.
const Unsigned = extract.Unsigned

// Modes of registering; see the package comment.
const (
	ModeReplace = "replace"
	ModeAdd     = "add"
)

// Bounds.
const (
	maxMessage  = 6 << 20 // bytes: the largest payload in base64
	maxName     = 512
	maxLabel    = 256 // bytes of a group's or a registrant's name
	maxNames    = 4096
	maxElements = 4096
	maxGroups   = 256     // approvals of one value
	maxValue    = 1 << 20 // bytes of a value
)

// Message is what a tool sends to register values.
type Message struct {
	Version string `json:"version,omitempty"`
	Type    string `json:"type"`
	Payload string `json:"payload"`
	// Group labels the values, by a pod or an image for example, so that they can be listed, compared and removed together.
	Group string `json:"group,omitempty"`
	// Mode is ModeReplace, also when empty, or ModeAdd.
	Mode string `json:"mode,omitempty"`
	// Renew tells whether values that are there get a new expiry; nil leaves it to the mode.
	Renew *bool `json:"renew,omitempty"`
}

// incoming is one value of a message.
type incoming struct {
	name     string
	value    parsed
	add      bool
	renew    *bool
	approval Approval
}

// read reads a message and extracts its values.
func (s *Store) read(message []byte, by string) ([]incoming, error) {
	m, err := parseMessage(message)
	if err != nil {
		return nil, err
	}
	payload, err := base64.StdEncoding.DecodeString(m.Payload)
	if err != nil {
		return nil, fmt.Errorf("reading reference value payload: %w", err)
	}
	now := s.now().UTC().Truncate(time.Second)
	values, err := s.trust.Load().Extract(m.Type, payload, now)
	if err != nil {
		return nil, err
	}
	if by == "" && values.Signer == Unsigned {
		return nil, errors.New("reference values that nobody signed are taken from an administrator only")
	}
	if len(by) > maxLabel {
		return nil, fmt.Errorf("registrant's name has %d bytes, at most %d are taken", len(by), maxLabel)
	}
	if len(values.Named) > maxNames {
		return nil, fmt.Errorf("message names %d reference values, at most %d are taken at once", len(values.Named), maxNames)
	}
	until := now.Add(s.lifetime)
	if !values.NotAfter.IsZero() && values.NotAfter.Before(until) {
		until = values.NotAfter.UTC().Truncate(time.Second)
	}
	approval := Approval{Group: m.Group, Registered: now, Expiration: until, By: by, Source: m.Type, Signer: values.Signer}
	out := make([]incoming, 0, len(values.Named))
	for name, raw := range values.Named {
		if err := checkName(name); err != nil {
			return nil, err
		}
		v, err := parseValue(raw)
		if err != nil {
			return nil, fmt.Errorf("reference value %q: %w", name, err)
		}
		if v.list && len(v.items) == 0 && (m.Group != "" || m.Mode == ModeAdd) {
			return nil, fmt.Errorf("reference value %q is an empty list, which adds nothing and belongs to no group", name)
		}
		out = append(out, incoming{name: name, value: *v, add: m.Mode == ModeAdd, renew: m.Renew, approval: approval})
	}
	return out, nil
}

func parseMessage(message []byte) (*Message, error) {
	if len(message) > maxMessage {
		return nil, fmt.Errorf("reference value message has %d bytes, at most %d are taken", len(message), maxMessage)
	}
	var m Message
	if err := json.Unmarshal(message, &m); err != nil {
		return nil, fmt.Errorf("reading reference value message: %w", err)
	}
	if m.Version != "" && m.Version != MessageVersion {
		return nil, fmt.Errorf("reference value message has version %.32q, want %q", m.Version, MessageVersion)
	}
	if m.Mode != "" && m.Mode != ModeReplace && m.Mode != ModeAdd {
		return nil, fmt.Errorf("reference value message has mode %.32q, want %q or %q", m.Mode, ModeReplace, ModeAdd)
	}
	if m.Group != "" {
		if err := checkGroup(m.Group); err != nil {
			return nil, err
		}
	}
	return &m, nil
}

func checkName(name string) error { return checkText("reference value name", name, maxName) }

func checkGroup(group string) error { return checkText("reference value group", group, maxLabel) }

func checkText(what, text string, most int) error {
	if text == "" || len(text) > most {
		return fmt.Errorf("%s has %d bytes, want 1 to %d", what, len(text), most)
	}
	for _, r := range text {
		if r < 0x20 || r == 0x7f || r == 0xfffd {
			return fmt.Errorf("%s %q has a control character", what, text)
		}
	}
	return nil
}
