package refstore

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"
)

// Record is one reference value. The first four members are upstream's stored form; Value is what policies see.
type Record struct {
	Version string `json:"version"`
	Name    string `json:"name"`
	// Expiration is when the last of the elements ends.
	Expiration time.Time       `json:"expiration"`
	Value      json.RawMessage `json:"value"`
	// Registered, By, Source and Signer are those of the latest registration.
	Registered time.Time `json:"registered"`
	By         string    `json:"by"`
	Source     string    `json:"source"`
	// Signer is who vouches for the values: the subject of a certificate, the digest of a key, or Unsigned.
	Signer string `json:"signer,omitempty"`
	// Elements tell of each element of Value who approved it; of a value that is no array, there is one.
	Elements []Element `json:"elements,omitempty"`
}

// Element is one accepted value.
type Element struct {
	Value     json.RawMessage `json:"value"`
	Approvals []Approval      `json:"approvals"`
}

// Approval is one registration of an element: that of a group, or that of no group.
type Approval struct {
	Group      string    `json:"group,omitempty"`
	Registered time.Time `json:"registered"`
	Expiration time.Time `json:"expiration"`
	By         string    `json:"by"`
	Source     string    `json:"source"`
	Signer     string    `json:"signer"`
}

// Expiration is when the last of the approvals ends.
func (e Element) Expiration() time.Time {
	var t time.Time
	for _, a := range e.Approvals {
		if a.Expiration.After(t) {
			t = a.Expiration
		}
	}
	return t
}

// of returns the index of a group's approval, or -1.
func (e Element) of(group string) int {
	for i, a := range e.Approvals {
		if a.Group == group {
			return i
		}
	}
	return -1
}

// List tells whether the value is an array.
func (r *Record) List() bool { return len(r.Value) > 0 && r.Value[0] == '[' }

// stored is a record in the store.
type stored struct {
	Record
	// Removed marks a record that an older broker removed and did not get to clear away.
	Removed bool `json:"removed,omitempty"`
}

// decode reads a stored record, nil when it is removed. Records of older brokers and of upstream have no elements: all of
// their elements were registered together.
func decode(name string, raw []byte) (*Record, error) {
	var s stored
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, fmt.Errorf("reading reference value %q: %w", name, err)
	}
	if s.Removed {
		return nil, nil
	}
	r := &s.Record
	r.Value = bytes.TrimSpace(r.Value)
	if len(r.Value) == 0 {
		return nil, fmt.Errorf("reading reference value %q: it has no value", name)
	}
	if r.Signer == "" {
		r.Signer = Unsigned
	}
	if len(r.Elements) > 0 {
		return r, nil
	}
	approval := Approval{Registered: r.Registered, Expiration: r.Expiration, By: r.By, Source: r.Source, Signer: r.Signer}
	elements := []json.RawMessage{r.Value}
	if r.List() {
		elements = nil
		if err := json.Unmarshal(r.Value, &elements); err != nil {
			return nil, fmt.Errorf("reading reference value %q: %w", name, err)
		}
	}
	for _, e := range elements {
		r.Elements = append(r.Elements, Element{Value: e, Approvals: []Approval{approval}})
	}
	return r, nil
}

func encodeRecord(name string, r *Record) ([]byte, error) {
	raw, err := json.Marshal(stored{Record: *r})
	if err != nil {
		return nil, fmt.Errorf("encoding reference value %q: %w", name, err)
	}
	return raw, nil
}

// at returns what of a record holds at a time, nil when that is nothing. A null of an older broker, which refused none, is
// nothing.
func (r *Record) at(now time.Time) (*Record, error) {
	if len(r.Elements) == 0 { // an empty list
		if !now.Before(r.Expiration) {
			return nil, nil
		}
		return r, nil
	}
	return r.filter(func(a Approval) bool { return now.Before(a.Expiration) })
}

// filter returns a record with the approvals that keep chooses, nil when there are none.
func (r *Record) filter(keep func(Approval) bool) (*Record, error) {
	out := *r
	out.Elements = nil
	for _, e := range r.Elements {
		if string(bytes.TrimSpace(e.Value)) == "null" {
			continue
		}
		var approvals []Approval
		for _, a := range e.Approvals {
			if keep(a) {
				approvals = append(approvals, a)
			}
		}
		if len(approvals) > 0 {
			out.Elements = append(out.Elements, Element{Value: e.Value, Approvals: approvals})
		}
	}
	if len(out.Elements) == 0 {
		return nil, nil
	}
	return &out, out.seal()
}

// seal makes Value and Expiration what the elements say.
func (r *Record) seal() error {
	r.Expiration = time.Time{}
	values := make([]json.RawMessage, 0, len(r.Elements))
	for _, e := range r.Elements {
		values = append(values, e.Value)
		if t := e.Expiration(); t.After(r.Expiration) {
			r.Expiration = t
		}
	}
	if !r.List() {
		r.Value = values[0]
		return nil
	}
	raw, err := json.Marshal(values)
	if err != nil {
		return fmt.Errorf("encoding reference value %q: %w", r.Name, err)
	}
	r.Value = raw
	return nil
}
