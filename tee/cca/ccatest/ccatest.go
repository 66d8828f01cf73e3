// Package ccatest makes CCA tokens under keys of its own, for tests.
package ccatest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"

	"github.com/fxamacker/cbor/v2"
	"github.com/veraison/go-cose"
)

// Claims is a claims set: tests change it before it is signed.
type Claims map[any]any

// Maker makes tokens of one platform and realm.
type Maker struct {
	CPAK, RAK       *ecdsa.PrivateKey
	Platform, Realm Claims
	// Legacy makes the older form of the realm token.
	Legacy bool
	// CPAKAlg and RAKAlg are written into the tokens.
	CPAKAlg, RAKAlg cose.Algorithm
	// Protected are additional protected headers of the realm token.
	Protected cose.ProtectedHeader
	// KeepNonce leaves the platform's nonce as it is in Platform.
	KeepNonce bool
}

func fill(n int, v byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = v
	}
	return b
}

// New makes keys, a P-256 CPAK and a P-384 RAK, and plausible claims.
func New() (*Maker, error) {
	cpak, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	rak, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		return nil, err
	}
	return &Maker{
		CPAK: cpak, RAK: rak, CPAKAlg: cose.AlgorithmES256, RAKAlg: cose.AlgorithmES384,
		Platform: Claims{
			265: "tag:arm.com,2023:cca_platform#1.0.0", 2396: fill(32, 2), 256: append([]byte{1}, fill(32, 3)...), 2401: fill(4, 4),
			2395: 0x3003, 2402: "sha-256",
			2399: []any{Claims{1: "RMM", 2: fill(32, 5), 5: fill(32, 6), 6: "sha-256", 4: "1.2"}},
		},
		Realm: Claims{
			265: "tag:arm.com,2023:realm#1.0.0", 10: fill(64, 7), 44235: fill(64, 8), 44236: "sha-256", 44238: fill(32, 9),
			44239: []any{fill(32, 0), fill(32, 1), fill(32, 2), fill(32, 3)}, 44240: "sha-256",
		},
	}, nil
}

// Key is the realm's public key as the token has it.
func (m *Maker) Key() ([]byte, error) {
	point, err := m.RAK.PublicKey.Bytes()
	if err != nil || m.Legacy {
		return point, err
	}
	n := (len(point) - 1) / 2
	return cbor.Marshal(Claims{1: 2, -1: 2, -2: point[1 : 1+n], -3: point[1+n:]})
}

// Token makes and signs both tokens.
func (m *Maker) Token() ([]byte, error) {
	key, err := m.Key()
	if err != nil {
		return nil, err
	}
	if _, ok := m.Realm[44237]; !ok {
		m.Realm[44237] = key
	}
	if m.Legacy {
		delete(m.Realm, 265)
	}
	if !m.KeepNonce {
		sum := sha256.Sum256(m.Realm[44237].([]byte))
		m.Platform[10] = sum[:]
	}
	platform, err := sign(m.CPAK, m.CPAKAlg, nil, m.Platform)
	if err != nil {
		return nil, err
	}
	realm, err := sign(m.RAK, m.RAKAlg, m.Protected, m.Realm)
	if err != nil {
		return nil, err
	}
	return cbor.Marshal(cbor.Tag{Number: 399, Content: Claims{44234: platform, 44241: realm}})
}

func sign(key *ecdsa.PrivateKey, alg cose.Algorithm, protected cose.ProtectedHeader, claims Claims) ([]byte, error) {
	signer, err := cose.NewSigner(alg, key)
	if err != nil {
		return nil, err
	}
	m := cose.NewSign1Message()
	m.Headers.Protected.SetAlgorithm(alg)
	for label, v := range protected {
		m.Headers.Protected[label] = v
	}
	if m.Payload, err = cbor.Marshal(claims); err != nil {
		return nil, err
	}
	if err := m.Sign(rand.Reader, nil, signer); err != nil {
		return nil, err
	}
	return m.MarshalCBOR()
}
