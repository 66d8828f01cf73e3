package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/cloister/cloister/wire/imagecrypt"
)

// decryptFunc makes the decryption stage of one layer.
type decryptFunc func(io.Reader) (io.Reader, error)

// keyring opens the keys of one image's layers. Key encryption keys are kept for one pull, so that an image whose
// layers share a key asks the broker once, and are wiped by close.
type keyring struct {
	provider KeyProvider

	mu   sync.Mutex
	keks map[string][]byte
}

func newKeyring(provider KeyProvider) *keyring {
	return &keyring{provider: provider, keks: map[string][]byte{}}
}

func (k *keyring) close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, kek := range k.keks {
		clear(kek)
	}
	clear(k.keks)
}

// unwrap finds the key of a layer in its annotations: the packets are tried in order, the first whose key can be had
// and opens it counts.
func (k *keyring) unwrap(ctx context.Context, annotations map[string]string) (decryptFunc, error) {
	value, name := "", imagecrypt.AnnotationKeys
	if value = annotations[name]; value == "" { // another provider's name holds the same packets
		for _, key := range slices.Sorted(maps.Keys(annotations)) {
			if strings.HasPrefix(key, imagecrypt.AnnotationKeysPrefix) {
				value, name = annotations[key], key
				break
			}
		}
	}
	if value == "" {
		return nil, fmt.Errorf("layer is encrypted, but has no annotation %s with its key", imagecrypt.AnnotationKeys)
	}
	pub, err := imagecrypt.DecodePublicOptions(annotations[imagecrypt.AnnotationPublicOptions])
	if err != nil {
		return nil, fmt.Errorf("layer is encrypted: annotation %s: %w", imagecrypt.AnnotationPublicOptions, err)
	}
	packets, err := imagecrypt.DecodePackets(value)
	if err != nil {
		return nil, fmt.Errorf("layer is encrypted: annotation %s: %w", name, err)
	}
	var errs []error
	for _, p := range packets {
		kek, err := k.kek(ctx, p.KID)
		if err != nil {
			errs = append(errs, fmt.Errorf("layer is encrypted with key %s, which cannot be had: %w", truncate(p.KID, 300), err))
			continue
		}
		priv, err := imagecrypt.UnwrapPLBCO(p, kek)
		if err != nil {
			errs = append(errs, fmt.Errorf("layer is encrypted with key %s: %w", truncate(p.KID, 300), err))
			continue
		}
		return func(r io.Reader) (io.Reader, error) { return imagecrypt.NewDecryptReader(r, priv, pub) }, nil
	}
	return nil, errors.Join(errs...)
}

func (k *keyring) kek(ctx context.Context, kid string) ([]byte, error) {
	k.mu.Lock() // also across the fetch: layers that need the same key wait for one answer
	defer k.mu.Unlock()
	if kek, ok := k.keks[kid]; ok {
		return kek, nil
	}
	if k.provider == nil {
		return nil, errors.New("this guest has no key provider")
	}
	uri := kid
	for strings.HasPrefix(uri, "kbs:///kbs:///") { // written by old encryptors
		uri = strings.TrimPrefix(uri, "kbs:///")
	}
	answer, err := k.provider.Resource(ctx, uri)
	if err != nil {
		return nil, err
	}
	kek := slices.Clone(answer)
	k.keks[kid] = kek
	return kek, nil
}
