package seal

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/cloister/cloister/broker/atomicfile"
)

// maxKeys bounds a Ring: keys that old go when nothing is sealed with them any more.
const maxKeys = 16

// Ring seals with one key and opens with several, so that a key can be replaced without downtime: a sealed value names
// its key.
//
// Several brokers change keys in three steps: all of them get the new key among the old ones (they can open what it
// seals); then all make it the current one; then one of them seals everything anew (Reseal), and the old key can go.
type Ring struct {
	current *Key
	byID    map[[idSize]byte]*Key
}

// NewRing makes a Ring that seals with current and opens with all.
func NewRing(current *Key, others ...*Key) (*Ring, error) {
	if len(others)+1 > maxKeys {
		return nil, fmt.Errorf("%d storage keys are given, at most %d are taken", len(others)+1, maxKeys)
	}
	r := &Ring{current: current, byID: map[[idSize]byte]*Key{current.id: current}}
	for _, k := range others {
		r.byID[k.id] = k
	}
	return r, nil
}

// LoadRing reads the current key, making it when it does not exist, and the other keys, which have to exist.
func LoadRing(current string, others ...string) (*Ring, error) {
	var keys []*Key
	for _, path := range others {
		if _, err := os.Stat(path); err != nil { // or LoadOrCreate would make one that opens nothing
			return nil, fmt.Errorf("reading storage key: %w", err)
		}
		k, err := LoadOrCreate(path)
		if err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	k, err := LoadOrCreate(current)
	if err != nil {
		return nil, err
	}
	return NewRing(k, keys...)
}

// key returns the key with an id, or nil.
func (r *Ring) key(id string) *Key {
	if r == nil {
		return nil
	}
	for _, k := range r.byID {
		if k.ID() == id {
			return k
		}
	}
	return nil
}

// ID names the current key.
func (r *Ring) ID() string { return r.current.ID() }

// IDs names all keys, the current one first.
func (r *Ring) IDs() []string {
	var out []string
	for id, k := range r.byID {
		if id != r.current.id {
			out = append(out, k.ID())
		}
	}
	slices.Sort(out)
	return append([]string{r.ID()}, out...)
}

// Seal encrypts plaintext with the current key and binds it to place.
func (r *Ring) Seal(place string, plaintext []byte) ([]byte, error) {
	return r.current.Seal(place, plaintext)
}

// Open decrypts a value that was sealed for place with any of the keys.
func (r *Ring) Open(place string, sealed []byte) ([]byte, error) {
	id, err := keyID(sealed)
	if err != nil {
		return nil, err
	}
	k, ok := r.byID[id]
	if !ok {
		return nil, fmt.Errorf("value is sealed with storage key %s, this broker has %s",
			hex.EncodeToString(id[:]), strings.Join(r.IDs(), ", "))
	}
	return k.Open(place, sealed)
}

// Reseal returns a value sealed with the current key, and whether it was sealed with another one before.
func (r *Ring) Reseal(place string, sealed []byte) (out []byte, changed bool, err error) {
	id, err := keyID(sealed)
	if err != nil {
		return nil, false, err
	}
	plain, err := r.Open(place, sealed) // what does not open is found now, while the old key is there
	if err != nil || id == r.current.id {
		return sealed, false, err
	}
	defer clear(plain)
	out, err = r.Seal(place, plain)
	return out, err == nil, err
}

func keyID(sealed []byte) (id [idSize]byte, err error) {
	if len(sealed) < overhead {
		return id, fmt.Errorf("sealed value has %d bytes, want at least %d", len(sealed), overhead)
	}
	copy(id[:], sealed[1:])
	return id, nil
}

// Rotate replaces the key file by a new key and keeps the old one beside it, in a file that is named after the old key's
// id. A crash leaves the old key in place, or the new one and the old one beside it; Rotate may be called again.
func Rotate(path string) (old string, err error) {
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("reading storage key: %w", err)
	}
	k, err := LoadOrCreate(path) // checks its mode and size
	if err != nil {
		return "", err
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("reading storage key: %w", err)
	}
	defer clear(raw)
	old = path + "." + k.ID()
	if err := atomicfile.WriteNew(old, raw, 0o600); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("keeping the old storage key: %w", err)
	}
	if kept, err := LoadOrCreate(old); err != nil || kept.id != k.id {
		return "", errors.Join(fmt.Errorf("%s is not the storage key its name says", old), err)
	}
	fresh, err := newRaw()
	if err != nil {
		return "", err
	}
	defer clear(fresh)
	if err := atomicfile.Write(path, fresh, 0o600); err != nil {
		return "", fmt.Errorf("writing storage key: %w", err)
	}
	return old, nil
}
