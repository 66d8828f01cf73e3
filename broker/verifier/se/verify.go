// Package se verifies the evidence of IBM Secure Execution guests, and makes the challenges they answer.
//
// A measurement is an HMAC-SHA512 under a key that the verifier made and encrypted to the machine's firmware, in a request
// whose key slots are host keys of known machines. So the machine proves itself by having been able to read the request.
// Challenge makes requests, HostKeyTrust says which host keys are IBM's, Verify checks the measurement.
//
// The broker keeps nothing between the two: measurement key and nonce travel with the guest, encrypted to the broker's own
// RSA key (PKCS #1 v1.5, as upstream). Encryption alone does not tell who made a key, and whoever chooses the measurement
// key can forge measurements. Upstream relies on nobody knowing its public key. Here the encrypted nonce is followed by an
// expiry and a MAC under a key derived from the private key, over both ciphertexts and the image's tags: guests hand it back
// as they got it, evidence for another challenge or another image is refused, and so is nothing else ever decrypted, which
// is what attacks on this padding need.
//
// Claims are those of attestation-service.md section 4.8. There is no field for init data, so no claim init_data.
package se

import (
	"bytes"
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/cloister/cloister/tee/se"
)

const reportDataSize = 64

// Options is what the evidence is held against.
type Options struct {
	// ExpectedReportData must be the first 64 bytes of the user data, padded with zeros.
	ExpectedReportData []byte
	// InitDataDigest is not looked at: Secure Execution has no field for it.
	InitDataDigest []byte
	// MeasurementKey opens the measurement key and the nonce.
	MeasurementKey *rsa.PrivateKey
	// ForeignChallenge accepts evidence for a challenge that Challenge did not make: upstream's, with the same key.
	ForeignChallenge bool
	// Now is the time challenges expire by.
	Now time.Time
	// Offline checks the measurement alone: user data, origin and expiry of the challenge are not looked at.
	Offline bool
}

// Verify checks evidence and returns its claims.
func Verify(_ context.Context, evidence json.RawMessage, o Options) (map[string]any, error) {
	e, err := se.ParseEvidence(evidence)
	if err != nil {
		return nil, err
	}
	if o.MeasurementKey == nil {
		return nil, errors.New("no key to open the measurement key with")
	}
	if err := checkUserData(e.UserData, o); err != nil {
		return nil, err
	}
	encryptedNonce, err := checkProof(e, o)
	if err != nil {
		return nil, err
	}
	key, err := open(o.MeasurementKey, e.EncryptedKey, se.MeasurementKeySize)
	if err != nil {
		return nil, fmt.Errorf("encr_measurement_key: %w", err)
	}
	nonce, err := open(o.MeasurementKey, encryptedNonce, se.NonceSize)
	if err != nil {
		return nil, fmt.Errorf("encr_request_nonce: %w", err)
	}
	mac := hmac.New(sha512.New, key)
	mac.Write(se.Measured(e.Tags, e.CUID, e.UserData, nonce, e.AdditionalData))
	if !hmac.Equal(mac.Sum(nil), e.Measurement) {
		return nil, errors.New("the measurement is not that of these tags, cuid, user data and additional data under the challenge's key")
	}
	additional, err := se.ParseAdditional(e.AdditionalData, requestFlags)
	if err != nil {
		return nil, err
	}
	claims := map[string]any{
		"cuid":             hex.EncodeToString(e.CUID),
		"image_phkh":       hex.EncodeToString(additional.ImageHostKey),
		"attestation_phkh": hex.EncodeToString(additional.AttestationHostKey),
		"tag":              hex.EncodeToString(e.Tags.Tag[:]),
		"version":          int64(se.Version1),
		"report_data":      "",
	}
	if !o.Offline {
		claims["report_data"] = hex.EncodeToString(o.ExpectedReportData)
	}
	return claims, nil
}

func checkUserData(got []byte, o Options) error {
	if o.Offline {
		return nil
	}
	if n := len(o.ExpectedReportData); n == 0 || n > reportDataSize {
		return fmt.Errorf("report data of %d bytes to bind a measurement to, expected 1 to %d", n, reportDataSize)
	}
	if len(got) < reportDataSize {
		return fmt.Errorf("user_data has %d bytes, expected at least %d", len(got), reportDataSize)
	}
	want := make([]byte, reportDataSize)
	copy(want, o.ExpectedReportData)
	if got = got[:reportDataSize]; subtle.ConstantTimeCompare(got, want) != 1 {
		return fmt.Errorf("user_data = %x, expected %x: the measurement was made for another session", got, want)
	}
	return nil
}

// proofSize is an expiry (seconds since 1970, big-endian) and a MAC.
const proofSize = 8 + sha256.Size

// checkProof makes sure that the challenge was made here, and returns the encrypted nonce without the proof of that.
func checkProof(e *se.Evidence, o Options) ([]byte, error) {
	size := o.MeasurementKey.Size()
	if len(e.EncryptedNonce) == size {
		if o.Offline || o.ForeignChallenge {
			return e.EncryptedNonce, nil
		}
		return nil, errors.New("encr_request_nonce carries no proof that the challenge was made here")
	}
	if len(e.EncryptedNonce) != size+proofSize || len(e.EncryptedKey) != size {
		return nil, fmt.Errorf("encr_measurement_key and encr_request_nonce have %d and %d bytes, expected %d and %d",
			len(e.EncryptedKey), len(e.EncryptedNonce), size, size+proofSize)
	}
	nonce, expiry, tag := e.EncryptedNonce[:size], e.EncryptedNonce[size:size+8], e.EncryptedNonce[size+8:]
	want, err := proof(o.MeasurementKey, e.EncryptedKey, nonce, expiry, e.Tags)
	if err != nil {
		return nil, err
	}
	if !hmac.Equal(tag, want) {
		return nil, errors.New("the challenge was not made here, or for another image: its proof does not fit keys and image_hdr_tags")
	}
	if until := time.Unix(int64(binary.BigEndian.Uint64(expiry)), 0); !o.Offline && !o.Now.Before(until) {
		return nil, fmt.Errorf("the challenge expired at %s, it is %s", until.UTC().Format(time.RFC3339), o.Now.UTC().Format(time.RFC3339))
	}
	return nonce, nil
}

// proof is the MAC over a challenge's secrets. Replicas of a broker have the private key, and nothing else, in common.
func proof(key *rsa.PrivateKey, encryptedKey, encryptedNonce, expiry []byte, tags se.Tags) ([]byte, error) {
	secret, err := hkdf.Key(sha256.New, x509.MarshalPKCS1PrivateKey(key), nil, "cloister SE challenge proof 1", sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("deriving the key of proofs: %w", err)
	}
	mac := hmac.New(sha256.New, secret)
	for _, part := range [][]byte{encryptedKey, encryptedNonce, expiry, tags.Bytes()} { // each of one size only
		mac.Write(part)
	}
	return mac.Sum(nil), nil
}

// open decrypts what is size bytes long. Wrong padding gives random bytes instead of an error: an answer that depended on
// the padding would let a guest decrypt the challenges of others.
func open(key *rsa.PrivateKey, b []byte, size int) ([]byte, error) {
	if len(b) != key.Size() {
		return nil, fmt.Errorf("it has %d bytes, expected %d", len(b), key.Size())
	}
	out := make([]byte, size)
	if _, err := rand.Read(out); err != nil {
		return nil, fmt.Errorf("reading random bytes: %w", err)
	}
	//lint:ignore SA1019 the padding is upstream's wire format; this form of decryption does not tell about it
	if err := rsa.DecryptPKCS1v15SessionKey(nil, key, bytes.Clone(b), out); err != nil {
		return nil, fmt.Errorf("decrypting: %w", err)
	}
	return out, nil
}
