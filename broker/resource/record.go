package resource

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/cloister/cloister/broker/store"
)

// Version tells about one version of a resource; it never holds its content.
type Version struct {
	Number uint64 `json:"version"`
	// Time is when the version was written; zero for what was stored before there were versions.
	Time time.Time `json:"time,omitzero"`
	// Size is the number of bytes, -1 where it is only known after opening.
	Size int `json:"size"`
}

// stored is a version as it is kept.
type stored struct {
	Version
	sealed []byte
	// legacy is a value from before there were versions: sealed for its path only.
	legacy bool
}

// A record is magic, the number of versions (1 byte), a head per version, newest first, and the sealed contents in the
// same order. A head is: number (8 bytes), time (Unix nanoseconds, 8), size (4), length of the sealed content (4), all
// big-endian. Numbers and times are bound to the content by its place; see versionPlace.
const (
	magic    = "CRV1"
	headSize = 24
)

// sealVersion is the first byte of a sealed value, which is what the store held before there were records.
const sealVersion = 1

func legacyPlace(p Path) string { return "resource:" + p.String() }

func versionPlace(p Path, v Version) string {
	return fmt.Sprintf("resource:%s#%d@%d", p, v.Number, unixNano(v.Time))
}

func unixNano(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func encode(versions []stored) []byte {
	size := len(magic) + 1
	for _, v := range versions {
		size += headSize + len(v.sealed)
	}
	out := append(make([]byte, 0, size), magic...)
	out = append(out, byte(len(versions)))
	for _, v := range versions {
		out = binary.BigEndian.AppendUint64(out, v.Number)
		out = binary.BigEndian.AppendUint64(out, uint64(unixNano(v.Time)))
		out = binary.BigEndian.AppendUint32(out, uint32(int32(v.Size)))
		out = binary.BigEndian.AppendUint32(out, uint32(len(v.sealed)))
	}
	for _, v := range versions {
		out = append(out, v.sealed...)
	}
	return out
}

// maxRecord bounds a record, in bytes: stores take no greater value.
const maxRecord = store.MaxValue

// fit drops the oldest versions that a record has no room for; the newest always has.
func fit(versions []stored) []stored {
	size := len(magic) + 1
	for i, v := range versions {
		if size += headSize + len(v.sealed); size > maxRecord {
			return versions[:max(i, 1)]
		}
	}
	return versions
}

// legacyNumber is the version of what was stored before there were versions.
const legacyNumber = 1

// decode reads a record. The contents point into raw.
func decode(raw []byte) ([]stored, error) {
	if len(raw) > 0 && raw[0] == sealVersion {
		return []stored{{Version: Version{Number: legacyNumber, Size: -1}, sealed: raw, legacy: true}}, nil
	}
	if len(raw) < len(magic)+1 || string(raw[:len(magic)]) != magic {
		return nil, errors.New("the record is not one of this broker's")
	}
	count := int(raw[len(magic)])
	heads, rest := raw[len(magic)+1:], []byte(nil)
	if count == 0 || len(heads) < count*headSize {
		return nil, fmt.Errorf("the record has %d bytes for the heads of %d versions", len(heads), count)
	}
	heads, rest = heads[:count*headSize], heads[count*headSize:]
	versions := make([]stored, 0, count)
	for last := uint64(math.MaxUint64); len(heads) > 0; heads = heads[headSize:] {
		v := stored{Version: Version{Number: binary.BigEndian.Uint64(heads), Size: int(int32(binary.BigEndian.Uint32(heads[16:])))}}
		if ns := int64(binary.BigEndian.Uint64(heads[8:])); ns != 0 {
			v.Time = time.Unix(0, ns).UTC()
		}
		// Only a value from before there were versions has no size.
		if v.legacy = v.Size == -1; v.legacy && (v.Number != legacyNumber || !v.Time.IsZero()) {
			return nil, fmt.Errorf("version %d of %s has no size in the record", v.Number, v.Time)
		}
		length := int64(binary.BigEndian.Uint32(heads[20:]))
		if length > int64(len(rest)) {
			return nil, fmt.Errorf("version %d has %d bytes in the record, got %d", v.Number, length, len(rest))
		}
		if v.Number == 0 || v.Number >= last || v.Size < -1 || v.Size > MaxSize {
			return nil, fmt.Errorf("version %d of %d bytes is not one to follow version %d", v.Number, v.Size, last)
		}
		last = v.Number
		v.sealed, rest = rest[:length:length], rest[length:]
		versions = append(versions, v)
	}
	if len(rest) > 0 {
		return nil, fmt.Errorf("the record has %d bytes too many", len(rest))
	}
	return versions, nil
}

func public(versions []stored) []Version {
	var out []Version
	for _, v := range versions {
		out = append(out, v.Version)
	}
	return out
}
