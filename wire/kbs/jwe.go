package kbs

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	josecipher "github.com/go-jose/go-jose/v4/cipher"
)

const (
	encA256GCM      = "A256GCM"
	contentKeySize  = 32
	gcmNonceSize    = 12
	gcmTagSize      = 16
	wrappedKeySize  = contentKeySize + 8
	maxHeaderLength = 8 << 10
)

// MaxPlaintext bounds what Decrypt accepts.
const MaxPlaintext = 64 << 20

// jweMessage is the flattened JSON serialisation (RFC 7516, section 7.2.2).
type jweMessage struct {
	Protected    string `json:"protected"`
	EncryptedKey string `json:"encrypted_key"`
	IV           string `json:"iv"`
	Ciphertext   string `json:"ciphertext"`
	Tag          string `json:"tag"`
}

// jweHeader keeps its members in the order in which the guest's client serialises
// them again before it authenticates them: alg, enc, then the rest by name.
type jweHeader struct {
	Alg string  `json:"alg"`
	Enc string  `json:"enc"`
	EPK *jweEPK `json:"epk,omitempty"`
}

type jweEPK struct {
	Crv string `json:"crv"`
	Kty string `json:"kty"`
	X   string `json:"x"`
	Y   string `json:"y"`
}

// Encrypt makes the reply that only the holder of key can read. RSA1_5 is refused
// unless allowRSA15 is set.
func Encrypt(plaintext []byte, key JWK, allowRSA15 bool) ([]byte, error) {
	pub, err := key.PublicKey()
	if err != nil {
		return nil, fmt.Errorf("encrypting the reply: %w", err)
	}
	header := jweHeader{Alg: key.Alg, Enc: encA256GCM}
	contentKey := make([]byte, contentKeySize)
	rand.Read(contentKey)
	defer clear(contentKey)

	var encryptedKey []byte
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		encryptedKey, header.EPK, err = wrapECDH(contentKey, pub)
	case *rsa.PublicKey:
		encryptedKey, err = wrapRSA(contentKey, pub, key.Alg, allowRSA15)
	}
	if err != nil {
		return nil, fmt.Errorf("encrypting the reply: %w", err)
	}

	headerText, err := json.Marshal(header)
	if err != nil {
		return nil, fmt.Errorf("encrypting the reply: %w", err)
	}
	protected := b64(headerText)
	aead, err := contentCipher(contentKey)
	if err != nil {
		return nil, fmt.Errorf("encrypting the reply: %w", err)
	}
	iv := make([]byte, gcmNonceSize)
	rand.Read(iv)
	sealed := aead.Seal(nil, iv, plaintext, []byte(protected))
	split := len(sealed) - gcmTagSize
	return json.Marshal(jweMessage{
		Protected:    protected,
		EncryptedKey: b64(encryptedKey),
		IV:           b64(iv),
		Ciphertext:   b64(sealed[:split]),
		Tag:          b64(sealed[split:]),
	})
}

// Decrypt reads a reply with the private key (*ecdsa.PrivateKey or
// *rsa.PrivateKey) whose JWK was sent. The header is authenticated as received.
// RSA1_5 is always refused: the guest never offers it.
func Decrypt(jwe []byte, priv crypto.PrivateKey) ([]byte, error) {
	plaintext, err := decrypt(jwe, priv)
	if err != nil {
		return nil, fmt.Errorf("decrypting the reply: %w", err)
	}
	return plaintext, nil
}

func decrypt(jwe []byte, priv crypto.PrivateKey) ([]byte, error) {
	var m jweMessage
	if err := json.Unmarshal(jwe, &m); err != nil {
		return nil, fmt.Errorf("not a JWE in JSON form: %w", err)
	}
	header, err := parseHeader(m.Protected)
	if err != nil {
		return nil, err
	}
	var fields [4][]byte
	for i, f := range []struct {
		name, text string
		limit      int
	}{
		{"encrypted_key", m.EncryptedKey, maxRSABytes},
		{"iv", m.IV, gcmNonceSize},
		{"ciphertext", m.Ciphertext, MaxPlaintext},
		{"tag", m.Tag, gcmTagSize},
	} {
		if fields[i], err = unb64(f.name, f.text, f.limit); err != nil {
			return nil, err
		}
	}
	encryptedKey, iv, ciphertext, tag := fields[0], fields[1], fields[2], fields[3]
	if len(iv) != gcmNonceSize || len(tag) != gcmTagSize {
		return nil, fmt.Errorf("iv has %d and tag %d bytes, expected %d and %d", len(iv), len(tag), gcmNonceSize, gcmTagSize)
	}

	contentKey, err := unwrapKey(encryptedKey, header, priv)
	if err != nil {
		return nil, err
	}
	defer clear(contentKey)
	aead, err := contentCipher(contentKey)
	if err != nil {
		return nil, err
	}
	plaintext, err := aead.Open(nil, iv, append(ciphertext, tag...), []byte(m.Protected))
	if err != nil {
		return nil, errors.New("authentication failed")
	}
	return plaintext, nil
}

func parseHeader(protected string) (jweHeader, error) {
	text, err := unb64("protected", protected, maxHeaderLength)
	if err != nil {
		return jweHeader{}, err
	}
	// Members that would change how the message must be processed are refused, all
	// others are authenticated and without effect.
	var h struct {
		jweHeader
		Crit json.RawMessage `json:"crit"`
		Zip  json.RawMessage `json:"zip"`
		APU  json.RawMessage `json:"apu"`
		APV  json.RawMessage `json:"apv"`
	}
	if err := json.Unmarshal(text, &h); err != nil {
		return jweHeader{}, fmt.Errorf("protected header: %w", err)
	}
	if h.Crit != nil || h.Zip != nil || h.APU != nil || h.APV != nil {
		return jweHeader{}, errors.New("protected header has a member crit, zip, apu or apv, which are not supported")
	}
	if h.Enc != encA256GCM {
		return jweHeader{}, fmt.Errorf("enc is %q, expected %q", h.Enc, encA256GCM)
	}
	return h.jweHeader, nil
}

func unwrapKey(encryptedKey []byte, header jweHeader, priv crypto.PrivateKey) ([]byte, error) {
	switch priv := priv.(type) {
	case *ecdsa.PrivateKey:
		if header.Alg != AlgECDHES {
			return nil, fmt.Errorf("alg is %q, expected %q", header.Alg, AlgECDHES)
		}
		return unwrapECDH(encryptedKey, header.EPK, priv)
	case *rsa.PrivateKey:
		if header.Alg != AlgRSAOAEP {
			return nil, fmt.Errorf("alg is %q, expected %q", header.Alg, AlgRSAOAEP)
		}
		key, err := rsa.DecryptOAEP(sha256.New(), nil, priv, encryptedKey, nil)
		if err != nil || len(key) != contentKeySize {
			return nil, errors.New("content key cannot be decrypted with this key")
		}
		return key, nil
	default:
		return nil, fmt.Errorf("private key of type %T is not supported", priv)
	}
}

func wrapRSA(contentKey []byte, pub *rsa.PublicKey, alg string, allowRSA15 bool) ([]byte, error) {
	if alg == AlgRSA15 {
		if !allowRSA15 {
			return nil, fmt.Errorf("alg %q is deprecated and not allowed", alg)
		}
		//lint:ignore SA1019 the caller asked for the deprecated algorithm by name
		return rsa.EncryptPKCS1v15(rand.Reader, pub, contentKey)
	}
	return rsa.EncryptOAEP(sha256.New(), rand.Reader, pub, contentKey, nil)
}

func wrapECDH(contentKey []byte, recipient *ecdsa.PublicKey) ([]byte, *jweEPK, error) {
	to, err := recipient.ECDH()
	if err != nil {
		return nil, nil, err
	}
	ephemeral, err := to.Curve().GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	kek, err := deriveKEK(ephemeral, to)
	if err != nil {
		return nil, nil, err
	}
	wrapped, err := josecipher.KeyWrap(kek, contentKey)
	if err != nil {
		return nil, nil, err
	}
	crv, size, err := curveName(recipient.Curve)
	if err != nil {
		return nil, nil, err
	}
	point := ephemeral.PublicKey().Bytes()
	return wrapped, &jweEPK{Crv: crv, Kty: "EC", X: b64(point[1 : 1+size]), Y: b64(point[1+size:])}, nil
}

func unwrapECDH(encryptedKey []byte, epk *jweEPK, priv *ecdsa.PrivateKey) ([]byte, error) {
	if len(encryptedKey) != wrappedKeySize {
		return nil, fmt.Errorf("encrypted_key has %d bytes, expected %d", len(encryptedKey), wrappedKeySize)
	}
	crv, _, err := curveName(priv.Curve)
	if err != nil {
		return nil, err
	}
	if epk == nil || epk.Kty != "EC" || epk.Crv != crv {
		return nil, fmt.Errorf("epk is no key on %s", crv)
	}
	peer, err := parsePoint(epk.Crv, epk.X, epk.Y)
	if err != nil {
		return nil, fmt.Errorf("epk: %w", err)
	}
	from, err := peer.ECDH()
	if err != nil {
		return nil, fmt.Errorf("epk: %w", err)
	}
	own, err := priv.ECDH()
	if err != nil {
		return nil, err
	}
	kek, err := deriveKEK(own, from)
	if err != nil {
		return nil, err
	}
	key, err := josecipher.KeyUnwrap(kek, encryptedKey)
	if err != nil {
		return nil, errors.New("content key cannot be unwrapped with this key")
	}
	return key, nil
}

// deriveKEK is ECDH and Concat KDF as RFC 7518, section 4.6, with AlgorithmID the
// name of the whole algorithm and nothing known about the parties.
func deriveKEK(own *ecdh.PrivateKey, peer *ecdh.PublicKey) (cipher.Block, error) {
	z, err := own.ECDH(peer)
	if err != nil {
		return nil, err
	}
	defer clear(z)
	algorithm := binary.BigEndian.AppendUint32(nil, uint32(len(AlgECDHES)))
	algorithm = append(algorithm, AlgECDHES...)
	nobody := make([]byte, 4)
	bits := binary.BigEndian.AppendUint32(nil, 256)
	kek := make([]byte, 32)
	defer clear(kek)
	if _, err := io.ReadFull(josecipher.NewConcatKDF(crypto.SHA256, z, algorithm, nobody, nobody, bits, nil), kek); err != nil {
		return nil, err
	}
	return aes.NewCipher(kek)
}

func contentCipher(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}
