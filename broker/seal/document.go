package seal

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"time"
)

const (
	format = 1
	// maxWrapped bounds one wrapped key, maxDocument all of them, in bytes.
	maxWrapped  = 16 << 10
	maxDocument = 512 << 10
)

// document is all wrapped keys. It is one value, so that a crash leaves the old one or the new one.
type document struct {
	Format   int    `json:"format"`
	Identity string `json:"identity"`
	// Current is the id of the key that seals.
	Current string    `json:"current"`
	Keys    []wrapped `json:"keys"`
}

type wrapped struct {
	ID      string `json:"id"`
	Wrapper string `json:"wrapper"`
	Wrapped []byte `json:"wrapped"`
	// Made and Replaced (zero for the current key) are by the clock of the KeyStore.
	Made     time.Time `json:"made"`
	Replaced time.Time `json:"replaced,omitzero"`
}

var identityText = regexp.MustCompile(`\A[A-Za-z0-9][A-Za-z0-9_.:/-]{0,127}\z`)

// CheckIdentity refuses what is no identity of brokers.
func CheckIdentity(text string) error {
	if !identityText.MatchString(text) {
		return fmt.Errorf("identity is %.64q, want a name of letters, digits and '_.:/-' that no other broker has", text)
	}
	return nil
}

func parseDocument(raw []byte) (document, error) {
	var d document
	if len(raw) > maxDocument {
		return d, fmt.Errorf("the record of storage keys has %d bytes, at most %d are taken", len(raw), maxDocument)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&d); err != nil {
		return d, fmt.Errorf("the record of storage keys is not JSON of this broker: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return d, errors.New("the record of storage keys has something behind its end")
	}
	if d.Format != format {
		return d, fmt.Errorf("the record of storage keys has format %d, want %d", d.Format, format)
	}
	if err := CheckIdentity(d.Identity); err != nil {
		return d, fmt.Errorf("the record of storage keys: %w", err)
	}
	if len(d.Keys) == 0 || len(d.Keys) > maxKeys {
		return d, fmt.Errorf("the record holds %d storage keys, want 1 to %d", len(d.Keys), maxKeys)
	}
	seen := map[string]bool{}
	for _, k := range d.Keys {
		id, err := hex.DecodeString(k.ID)
		switch {
		case err != nil || len(id) != idSize || hex.EncodeToString(id) != k.ID || seen[k.ID]:
			return d, fmt.Errorf("the record holds a storage key %.32q: that is no id, or twice the same", k.ID)
		case len(k.Wrapped) == 0 || len(k.Wrapped) > maxWrapped || k.Wrapper == "" || len(k.Wrapper) > 1024:
			return d, fmt.Errorf("storage key %s in the record has %d bytes and a wrapper of %d", k.ID, len(k.Wrapped), len(k.Wrapper))
		case (k.ID == d.Current) != k.Replaced.IsZero():
			return d, fmt.Errorf("storage key %s in the record is both current and replaced, or neither", k.ID)
		}
		seen[k.ID] = true
	}
	if !seen[d.Current] {
		return d, fmt.Errorf("the record does not hold its current storage key %.32q", d.Current)
	}
	return d, nil
}

func (d document) encode() ([]byte, error) {
	raw, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return nil, err
	}
	if _, err := parseDocument(raw); err != nil { // never write what would not be read
		return nil, err
	}
	return append(raw, '\n'), nil
}

// find returns the entry of a key, or nil.
func (d document) find(id string) *wrapped {
	for i := range d.Keys {
		if d.Keys[i].ID == id {
			return &d.Keys[i]
		}
	}
	return nil
}
