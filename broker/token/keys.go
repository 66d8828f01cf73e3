package token

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/cloister/cloister/broker/store"
	"github.com/cloister/cloister/internal/smallfile"
)

// Where the store has the signing keys. The first place is that of brokers that had only one.
const (
	onePlace = "token-signing-key"
	KeyPlace = "token-signing-keys"
)

// KeyPlaces are all places of the store where there may be a sealed signing key.
func KeyPlaces() []string { return []string{onePlace, KeyPlace} }

// maxSigningKeys bounds how often keys can be rotated while tokens of the earlier ones still count.
const maxSigningKeys = 16

type backend interface {
	Load(ctx context.Context, ns, key string) (store.Entry, error)
	PutNew(ctx context.Context, ns, key string, value []byte) (bool, error)
	CompareAndSwap(ctx context.Context, ns, key string, version int64, value []byte, limit store.Limit) (int64, error)
}

type sealer interface {
	Seal(place string, plaintext []byte) ([]byte, error)
	Open(place string, sealed []byte) ([]byte, error)
}

// Keys keeps signing keys, sealed, where all brokers of a store have them.
type Keys struct {
	db   backend
	seal sealer
	now  func() time.Time
}

// NewKeys makes Keys.
func NewKeys(db backend, seal sealer, now func() time.Time) *Keys { return &Keys{db, seal, now} }

// storedKey is a signing key in the store.
type storedKey struct {
	DER   []byte    `json:"der"` // SEC 1
	From  time.Time `json:"from"`
	Until time.Time `json:"until,omitzero"`
}

// Load returns the keys, making the first one where there is none.
func (k *Keys) Load(ctx context.Context) ([]SigningKey, error) {
	stored, _, err := k.load(ctx)
	if err != nil {
		return nil, err
	}
	keys := make([]SigningKey, 0, len(stored))
	for _, s := range stored {
		private, err := x509.ParseECPrivateKey(s.DER)
		if err != nil {
			return nil, fmt.Errorf("reading token signing key: %w", err)
		}
		keys = append(keys, SigningKey{Private: private, From: s.From, Until: s.Until})
	}
	return keys, nil
}

func (k *Keys) load(ctx context.Context) (keys []storedKey, version int64, err error) {
	e, err := k.db.Load(ctx, store.Keys, KeyPlace)
	if errors.Is(err, store.ErrNotFound) {
		if err := k.first(ctx); err != nil {
			return nil, 0, err
		}
		// Another broker of the same store may have been faster: what is stored is the truth.
		e, err = k.db.Load(ctx, store.Keys, KeyPlace)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("reading token signing keys: %w", err)
	}
	plain, err := k.seal.Open(KeyPlace, e.Value)
	if err != nil {
		return nil, 0, fmt.Errorf("opening token signing keys: %w", err)
	}
	defer clear(plain)
	if err := json.Unmarshal(plain, &keys); err != nil {
		return nil, 0, fmt.Errorf("reading token signing keys: %w", err)
	}
	return keys, e.Version, nil
}

// first stores the first key: that of a broker that had only one, or a new one.
func (k *Keys) first(ctx context.Context) error {
	var der []byte
	e, err := k.db.Load(ctx, store.Keys, onePlace)
	switch {
	case err == nil:
		if der, err = k.seal.Open(onePlace, e.Value); err != nil {
			return fmt.Errorf("opening token signing key: %w", err)
		}
	case !errors.Is(err, store.ErrNotFound):
		return fmt.Errorf("reading token signing key: %w", err)
	default:
		if der, err = newSigningKey(); err != nil {
			return err
		}
	}
	sealed, err := k.sealed([]storedKey{{DER: der}})
	if err != nil {
		return err
	}
	if _, err := k.db.PutNew(ctx, store.Keys, KeyPlace, sealed); err != nil {
		return fmt.Errorf("storing token signing key: %w", err)
	}
	return nil
}

func newSigningKey() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making token signing key: %w", err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding token signing key: %w", err)
	}
	return der, nil
}

func (k *Keys) sealed(keys []storedKey) ([]byte, error) {
	plain, err := json.Marshal(keys)
	if err != nil {
		return nil, fmt.Errorf("encoding token signing keys: %w", err)
	}
	defer clear(plain)
	return k.seal.Seal(KeyPlace, plain)
}

// Rotate adds a key that signs after lead, when all brokers and relying parties have heard of it, and lets tokens of the earlier ones
// count for keep longer. It returns when the new key begins. A lead and a keep of zero end the earlier keys at once, which is for
// a key that others have got to know.
func (k *Keys) Rotate(ctx context.Context, lead, keep time.Duration) (time.Time, error) {
	der, err := newSigningKey()
	if err != nil {
		return time.Time{}, err
	}
	for {
		keys, version, err := k.load(ctx)
		if err != nil {
			return time.Time{}, err
		}
		now := k.now()
		from := now.Add(lead)
		var next []storedKey
		for _, old := range keys {
			if end := from.Add(keep); old.Until.IsZero() || old.Until.After(end) {
				old.Until = end
			}
			if now.Before(old.Until) {
				next = append(next, old)
			}
		}
		if next = append(next, storedKey{DER: der, From: from}); len(next) > maxSigningKeys {
			return time.Time{}, fmt.Errorf("there are %d token signing keys already whose tokens still count; wait until some have ended", len(next)-1)
		}
		sealed, err := k.sealed(next)
		if err != nil {
			return time.Time{}, err
		}
		if _, err = k.db.CompareAndSwap(ctx, store.Keys, KeyPlace, version, sealed, store.Limit{}); err == nil {
			return from, nil
		}
		if !errors.Is(err, store.ErrChanged) {
			return time.Time{}, fmt.Errorf("storing token signing keys: %w", err)
		}
	}
}

// maxKeyFile bounds files of keys and certificates.
const maxKeyFile = 1 << 20

// ReadKey reads a signing key of the operator's: a PEM file with a P-256 key (SEC 1 or PKCS #8), and one with the certificates that
// lead from it to a known one, or "".
func ReadKey(keyFile, certificateFile string) (SigningKey, error) {
	text, err := smallfile.Read(keyFile, maxKeyFile)
	if err != nil {
		return SigningKey{}, fmt.Errorf("reading token signing key: %w", err)
	}
	defer clear(text)
	block, _ := pem.Decode(text)
	if block == nil {
		return SigningKey{}, fmt.Errorf("token signing key %s holds no PEM", keyFile)
	}
	var out SigningKey
	if out.Private, err = x509.ParseECPrivateKey(block.Bytes); err != nil {
		key, pkcs8Err := x509.ParsePKCS8PrivateKey(block.Bytes)
		private, ok := key.(*ecdsa.PrivateKey)
		if pkcs8Err != nil || !ok {
			return SigningKey{}, fmt.Errorf("token signing key %s: want an EC P-256 key in SEC 1 or PKCS #8", keyFile)
		}
		out.Private = private
	}
	if certificateFile == "" {
		return out, nil
	}
	if text, err = smallfile.Read(certificateFile, maxKeyFile); err != nil {
		return SigningKey{}, fmt.Errorf("reading certificates of the token signing key: %w", err)
	}
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return SigningKey{}, fmt.Errorf("reading certificates of the token signing key: %s: %w", certificateFile, err)
		}
		out.Certificates = append(out.Certificates, cert)
	}
	if len(out.Certificates) == 0 {
		return SigningKey{}, fmt.Errorf("%s holds no PEM certificate", certificateFile)
	}
	return out, nil
}
