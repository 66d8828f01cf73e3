package token

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/base64"
	"strings"
	"sync"
)

// maxIssued is how many tokens a Signer knows again, which takes about 1 MiB.
const maxIssued = 8192

// issued knows the latest tokens of a Signer again by their digests, so that its own signatures need not be checked a moment after they
// were made. A token of another broker, or one that was forgotten, is checked as ever.
type issued struct {
	mu   sync.Mutex
	by   map[[sha256.Size]byte]*ecdsa.PublicKey
	ring [][sha256.Size]byte // oldest at next once it is full
	next int
}

func (i *issued) add(compact string, key *ecdsa.PublicKey) {
	sum := sha256.Sum256([]byte(compact))
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.by == nil {
		i.by = map[[sha256.Size]byte]*ecdsa.PublicKey{}
	}
	if len(i.ring) < maxIssued {
		i.ring = append(i.ring, sum)
	} else {
		delete(i.by, i.ring[i.next])
		i.ring[i.next] = sum
		i.next = (i.next + 1) % maxIssued
	}
	i.by[sum] = key
}

// payload returns that of a known token which one of the keys signed; a key that has ended is not among them.
func (i *issued) payload(compact string, keys []usable) ([]byte, bool) {
	sum := sha256.Sum256([]byte(compact))
	i.mu.Lock()
	key, ok := i.by[sum]
	i.mu.Unlock()
	if !ok {
		return nil, false
	}
	for _, k := range keys {
		if !k.Private.PublicKey.Equal(key) {
			continue
		}
		_, rest, _ := strings.Cut(compact, ".")
		text, _, _ := strings.Cut(rest, ".")
		payload, err := base64.RawURLEncoding.DecodeString(text)
		return payload, err == nil
	}
	return nil, false
}
