package corim

import (
	"encoding/hex"
	"fmt"
	"strconv"

	"github.com/fxamacker/cbor/v2"
)

// Measurement is what one measured element of an environment may have.
type Measurement struct {
	// Vendor and Model are those of the environment's class, empty when it has none.
	Vendor, Model string
	// Key is the element: a text, claim<n> for a number, or a UUID; empty when there is none, or one of another type.
	Key string
	// Name and Serial are those among the measurement's values.
	Name, Serial string
	// Digests and Raw are what is measured; nil when the measurement has none.
	Digests [][]byte
	Raw     []byte
	// Identity is the encoded environment and element. It tells apart what the members above cannot, for they leave out class
	// identifiers, layers, instances, groups and elements of other types.
	Identity string
}

type comid struct {
	Triples struct {
		Reference []cbor.RawMessage `cbor:"0,keyasint"`
	} `cbor:"4,keyasint"`
}

type triple struct {
	_            struct{} `cbor:",toarray"`
	Environment  cbor.RawMessage
	Measurements []measurement
}

type environment struct {
	Class *struct {
		Vendor string `cbor:"1,keyasint"`
		Model  string `cbor:"2,keyasint"`
	} `cbor:"0,keyasint"`
}

type measurement struct {
	Key    cbor.RawMessage `cbor:"0,keyasint"`
	Values struct {
		Digests []digest        `cbor:"2,keyasint"`
		Raw     cbor.RawMessage `cbor:"4,keyasint"`
		Serial  string          `cbor:"8,keyasint"`
		Name    string          `cbor:"11,keyasint"`
	} `cbor:"1,keyasint"`
}

type digest struct {
	_         struct{} `cbor:",toarray"`
	Algorithm cbor.RawMessage
	Value     []byte
}

// digestSizes are those of the algorithms in the IANA registry of named information hashes that measurements use.
var digestSizes = map[int64]int{1: 32, 7: 48, 8: 64, 10: 32, 11: 48, 12: 64}

func parseCoMID(dec cbor.DecMode, data []byte) ([]Measurement, error) {
	var c comid
	if err := dec.Unmarshal(data, &c); err != nil {
		return nil, err
	}
	var out []Measurement
	for i, raw := range c.Triples.Reference {
		var t triple
		if err := dec.Unmarshal(raw, &t); err != nil {
			return nil, fmt.Errorf("reference triple %d: %w", i, err)
		}
		var env environment
		if err := dec.Unmarshal(t.Environment, &env); err != nil {
			return nil, fmt.Errorf("environment of reference triple %d: %w", i, err)
		}
		for j, m := range t.Measurements {
			r, err := m.read(dec)
			if err != nil {
				return nil, fmt.Errorf("measurement %d of reference triple %d: %w", j, i, err)
			}
			if env.Class != nil {
				r.Vendor, r.Model = env.Class.Vendor, env.Class.Model
			}
			for _, text := range []string{r.Vendor, r.Model, r.Key, r.Name, r.Serial} {
				if len(text) > maxText {
					return nil, fmt.Errorf("measurement %d of reference triple %d: text of %d bytes, at most %d are read", j, i, len(text), maxText)
				}
			}
			r.Identity = string(t.Environment) + "\x00" + string(m.Key)
			if out = append(out, r); len(out) > maxMeasurements {
				return nil, fmt.Errorf("it has more than %d measurements", maxMeasurements)
			}
		}
	}
	return out, nil
}

func (m *measurement) read(dec cbor.DecMode) (Measurement, error) {
	r := Measurement{Name: m.Values.Name, Serial: m.Values.Serial}
	var err error
	if r.Key, err = elementName(dec, m.Key); err != nil {
		return r, fmt.Errorf("element: %w", err)
	}
	if len(m.Values.Digests) > maxDigests {
		return r, fmt.Errorf("it has %d digests, at most %d are read", len(m.Values.Digests), maxDigests)
	}
	for i, d := range m.Values.Digests {
		if len(d.Value) == 0 || len(d.Value) > maxDigest {
			return r, fmt.Errorf("digest %d has %d bytes, want 1 to %d", i, len(d.Value), maxDigest)
		}
		var alg int64
		if dec.Unmarshal(d.Algorithm, &alg) == nil {
			if want, known := digestSizes[alg]; known && want != len(d.Value) {
				return r, fmt.Errorf("digest %d has %d bytes, its algorithm %d gives %d", i, len(d.Value), alg, want)
			}
		}
		r.Digests = append(r.Digests, d.Value)
	}
	if raw := m.Values.Raw; len(raw) > 0 && raw[0]>>5 == 6 {
		var tag cbor.RawTag
		if err := dec.Unmarshal(raw, &tag); err != nil {
			return r, fmt.Errorf("raw value: %w", err)
		}
		if tag.Number == tagBytes {
			if err := dec.Unmarshal(tag.Content, &r.Raw); err != nil {
				return r, fmt.Errorf("raw value: %w", err)
			}
			if len(r.Raw) == 0 || len(r.Raw) > maxRaw {
				return r, fmt.Errorf("raw value has %d bytes, want 1 to %d", len(r.Raw), maxRaw)
			}
		}
	}
	return r, nil
}

// elementName writes the key of a measured element as upstream does. Object identifiers and other types have no name there.
func elementName(dec cbor.DecMode, raw cbor.RawMessage) (string, error) {
	if len(raw) == 0 {
		return "", nil
	}
	switch raw[0] >> 5 {
	case 0:
		var n uint64
		err := dec.Unmarshal(raw, &n)
		return "claim" + strconv.FormatUint(n, 10), err
	case 3:
		var s string
		err := dec.Unmarshal(raw, &s)
		return s, err
	case 6:
		var tag cbor.RawTag
		if err := dec.Unmarshal(raw, &tag); err != nil {
			return "", err
		}
		if tag.Number != tagUUID {
			return "", nil
		}
		var id []byte
		if err := dec.Unmarshal(tag.Content, &id); err != nil {
			return "", err
		}
		if len(id) != 16 {
			return "", fmt.Errorf("UUID has %d bytes, want 16", len(id))
		}
		h := hex.EncodeToString(id)
		return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:], nil
	}
	return "", nil
}
