package se

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/cloister/cloister/tee/se"
)

// requestFlags are what upstream's guests are asked for: a nonce, and the host keys the image and the request were made for.
const requestFlags = se.FlagNonce | se.FlagImageHostKey | se.FlagAttestationHostKey

const (
	coordinateSize  = 66 // P-521
	paddedSize      = 80
	defaultLifetime = 5 * time.Minute
)

// ChallengeOptions is what a challenge is made of.
type ChallengeOptions struct {
	// HostKeys are the verified keys of the machines that may answer, P-521.
	HostKeys []*ecdsa.PublicKey
	// Tags are those of the image that may answer.
	Tags se.Tags
	// MeasurementKey is the broker's own.
	MeasurementKey *rsa.PrivateKey
	Now            time.Time
	// Lifetime is how long the challenge may be answered; 0 is five minutes.
	Lifetime time.Duration
}

// Challenge makes a challenge: an attestation request for the machine's firmware, and its secrets for us to get back.
func Challenge(o ChallengeOptions) (*se.Challenge, error) {
	if o.MeasurementKey == nil {
		return nil, errors.New("making an SE challenge: no key to encrypt the measurement key to")
	}
	if o.Lifetime == 0 {
		o.Lifetime = defaultLifetime
	}
	secret := make([]byte, se.MeasurementKeySize+se.NonceSize)
	if _, err := rand.Read(secret); err != nil {
		return nil, fmt.Errorf("making an SE challenge: %w", err)
	}
	request, err := newRequest(o.HostKeys, secret)
	if err != nil {
		return nil, fmt.Errorf("making an SE challenge: %w", err)
	}
	c := &se.Challenge{
		Request: request, MeasurementSize: se.MeasurementSize, AdditionalSize: requestFlags.AdditionalSize(), Tags: o.Tags.Bytes(),
	}
	public := &o.MeasurementKey.PublicKey
	//lint:ignore SA1019 the padding is upstream's wire format
	if c.EncryptedKey, err = rsa.EncryptPKCS1v15(rand.Reader, public, secret[:se.MeasurementKeySize]); err != nil {
		return nil, fmt.Errorf("making an SE challenge: encrypting the measurement key: %w", err)
	}
	//lint:ignore SA1019 the padding is upstream's wire format
	nonce, err := rsa.EncryptPKCS1v15(rand.Reader, public, secret[se.MeasurementKeySize:])
	if err != nil {
		return nil, fmt.Errorf("making an SE challenge: encrypting the nonce: %w", err)
	}
	expiry := binary.BigEndian.AppendUint64(nil, uint64(o.Now.Add(o.Lifetime).Unix()))
	tag, err := proof(o.MeasurementKey, c.EncryptedKey, nonce, expiry, o.Tags)
	if err != nil {
		return nil, fmt.Errorf("making an SE challenge: %w", err)
	}
	c.EncryptedNonce = append(append(nonce, expiry...), tag...)
	return c, nil
}

// newRequest encrypts measurement key and nonce to every host key: under a key of its own, which each slot wraps.
func newRequest(hostKeys []*ecdsa.PublicKey, secret []byte) ([]byte, error) {
	requester, err := ecdh.P521().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	key := make([]byte, 32)
	r := &se.Request{Flags: requestFlags}
	for _, b := range [][]byte{key, r.IV[:]} {
		if _, err := rand.Read(b); err != nil {
			return nil, err
		}
	}
	if r.PublicKey, err = coordinates(requester.PublicKey().Bytes()); err != nil {
		return nil, err
	}
	seen := map[[se.HashSize]byte]bool{}
	for i, host := range hostKeys {
		slot, err := keySlot(requester, host, key)
		if err != nil {
			return nil, fmt.Errorf("host key %d: %w", i+1, err)
		}
		if hash := [se.HashSize]byte(slot[:se.HashSize]); !seen[hash] {
			seen[hash] = true
			r.KeySlots = append(r.KeySlots, slot)
		}
	}
	aad, err := r.Authenticated(len(secret))
	if err != nil {
		return nil, err
	}
	gcm, err := newGCM(key)
	if err != nil {
		return nil, err
	}
	sealed := gcm.Seal(nil, r.IV[:], secret, aad)
	r.Encrypted = sealed[:len(secret)]
	copy(r.Tag[:], sealed[len(secret):])
	return r.Bytes()
}

// keySlot wraps key for one host: digest of the host's key, then AES-256-GCM with a zero IV under SHA-256(Z ‖ 00000001).
// The IV may be zero because the requester's key, and so the wrapping key, is used for one message only.
func keySlot(requester *ecdh.PrivateKey, host *ecdsa.PublicKey, key []byte) (slot [se.KeySlotSize]byte, err error) {
	public, err := host.ECDH() // refuses points off the curve
	if err != nil {
		return slot, err
	}
	point, err := coordinates(public.Bytes())
	if err != nil {
		return slot, err
	}
	wrapping, err := wrappingKey(requester, public)
	if err != nil {
		return slot, err
	}
	gcm, err := newGCM(wrapping)
	if err != nil {
		return slot, err
	}
	hash := sha256.Sum256(point[:])
	copy(slot[:], gcm.Seal(hash[:], make([]byte, se.IVSize), key, nil))
	return slot, nil
}

func wrappingKey(private *ecdh.PrivateKey, public *ecdh.PublicKey) ([]byte, error) {
	shared, err := private.ECDH(public)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(append(shared, 0, 0, 0, 1))
	return sum[:], nil
}

func newGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// coordinates pads the coordinates of an uncompressed P-521 point to 80 bytes each, as the firmware has them.
func coordinates(point []byte) (out [se.PublicKeySize]byte, err error) {
	if len(point) != 1+2*coordinateSize {
		return out, fmt.Errorf("a point of %d bytes, expected %d: host keys are of P-521", len(point), 1+2*coordinateSize)
	}
	copy(out[paddedSize-coordinateSize:], point[1:1+coordinateSize])
	copy(out[2*paddedSize-coordinateSize:], point[1+coordinateSize:])
	return out, nil
}
