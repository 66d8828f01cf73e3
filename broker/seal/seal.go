// Package seal encrypts what the broker keeps at rest.
//
// The key is 32 random bytes. Ring has it in a file of mode 0600 that is made at the first start and never leaves the
// machine. Keys has it wrapped by a key that is kept elsewhere (a key management service, an HSM), in a file or in the
// database that several brokers share; unwrapped it is in memory only. A sealed value names its key and is bound to where
// it is kept (the additional data), so a value copied from one place in the store to another does not open there.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/cloister/cloister/broker/atomicfile"
)

const (
	keySize   = 32
	idSize    = 8
	nonceSize = 12
	version   = 1
	overhead  = 1 + idSize + nonceSize + 16
)

// Key seals and opens values.
type Key struct {
	id   [idSize]byte
	aead cipher.AEAD
}

// LoadOrCreate reads the key file, or makes it when it does not exist. A key file that others may read is refused.
func LoadOrCreate(path string) (*Key, error) {
	k, err := load(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return k, err
	}
	raw, err := newRaw()
	if err != nil {
		return nil, err
	}
	if err := atomicfile.WriteNew(path, raw, 0o600); err != nil {
		return nil, fmt.Errorf("writing storage key: %w", err)
	}
	return New(raw)
}

func load(path string) (*Key, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading storage key: %w", err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("reading storage key: %w", err)
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		return nil, fmt.Errorf("storage key %s has mode %04o, want 0600: others could read every secret", path, perm)
	}
	return New(raw)
}

func newRaw() ([]byte, error) {
	raw := make([]byte, keySize)
	if _, err := rand.Read(raw); err != nil {
		return nil, fmt.Errorf("making storage key: %w", err)
	}
	return raw, nil
}

// New makes a Key from 32 bytes.
func New(raw []byte) (*Key, error) {
	if len(raw) != keySize {
		return nil, fmt.Errorf("storage key has %d bytes, want %d", len(raw), keySize)
	}
	block, err := aes.NewCipher(raw)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	k := &Key{aead: aead}
	sum := sha256.Sum256(append([]byte("cloister storage key id\x00"), raw...))
	copy(k.id[:], sum[:])
	return k, nil
}

// ID names the key; it tells nothing about its value.
func (k *Key) ID() string { return hex.EncodeToString(k.id[:]) }

// Seal encrypts plaintext and binds it to place.
func (k *Key) Seal(place string, plaintext []byte) ([]byte, error) {
	out := make([]byte, 0, overhead+len(plaintext))
	out = append(out, version)
	out = append(out, k.id[:]...)
	nonce := make([]byte, nonceSize)
	if _, err := rand.Read(nonce); err != nil {
		return nil, fmt.Errorf("sealing: %w", err)
	}
	out = append(out, nonce...)
	return k.aead.Seal(out, nonce, plaintext, k.aad(place)), nil
}

// Open decrypts a value that was sealed for place.
func (k *Key) Open(place string, sealed []byte) ([]byte, error) {
	if len(sealed) < overhead {
		return nil, fmt.Errorf("sealed value has %d bytes, want at least %d", len(sealed), overhead)
	}
	if sealed[0] != version {
		return nil, fmt.Errorf("sealed value has version %d, want %d", sealed[0], version)
	}
	if id := hex.EncodeToString(sealed[1 : 1+idSize]); id != k.ID() {
		return nil, fmt.Errorf("value is sealed with storage key %s, this broker has %s", id, k.ID())
	}
	nonce := sealed[1+idSize : 1+idSize+nonceSize]
	plaintext, err := k.aead.Open(nil, nonce, sealed[1+idSize+nonceSize:], k.aad(place))
	if err != nil {
		return nil, errors.New("sealed value is damaged or belongs to another place")
	}
	return plaintext, nil
}

func (k *Key) aad(place string) []byte {
	return append(append([]byte{version}, k.id[:]...), place...)
}
