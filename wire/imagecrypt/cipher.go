package imagecrypt

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"log/slog"
)

// Cipher is the only layer cipher: AES-256 in counter mode, then HMAC-SHA256 over
// the ciphertext with the same key.
const Cipher = "AES_256_CTR_HMAC_SHA256"

const (
	keySize        = 32
	nonceSize      = aes.BlockSize
	nonceOption    = "nonce"
	maxOptionsSize = 64 << 10
)

// ErrDamaged says that a layer is not the one that was encrypted.
var ErrDamaged = errors.New("encrypted layer is damaged: its HMAC does not match")

// PublicOptions are stored with the layer in clear.
type PublicOptions struct {
	Cipher        string            `json:"cipher"`
	HMAC          []byte            `json:"hmac"`
	CipherOptions map[string][]byte `json:"cipheroptions"`
}

// PrivateOptions are what gets wrapped: whoever has them can read the layer.
type PrivateOptions struct {
	SymKey        []byte            `json:"symkey"`
	Digest        string            `json:"digest"`
	CipherOptions map[string][]byte `json:"cipheroptions"`
}

// String keeps the key out of logs.
func (PrivateOptions) String() string { return "PrivateOptions(secret)" }

// GoString keeps the key out of logs.
func (o PrivateOptions) GoString() string { return o.String() }

// LogValue keeps the key out of logs.
func (o PrivateOptions) LogValue() slog.Value { return slog.StringValue(o.String()) }

// ParsePublicOptions reads the JSON text of public options.
func ParsePublicOptions(text []byte) (PublicOptions, error) {
	var o PublicOptions
	if err := parseOptions(text, &o); err != nil {
		return PublicOptions{}, fmt.Errorf("reading public options of a layer: %w", err)
	}
	if o.Cipher != Cipher {
		return PublicOptions{}, fmt.Errorf("reading public options of a layer: cipher is %q, expected %q", o.Cipher, Cipher)
	}
	if len(o.HMAC) != sha256.Size {
		return PublicOptions{}, fmt.Errorf("reading public options of a layer: hmac has %d bytes, expected %d", len(o.HMAC), sha256.Size)
	}
	return o, nil
}

// ParsePrivateOptions reads the JSON text of private options.
func ParsePrivateOptions(text []byte) (PrivateOptions, error) {
	var o PrivateOptions
	if err := parseOptions(text, &o); err != nil {
		return PrivateOptions{}, fmt.Errorf("reading private options of a layer: %w", err)
	}
	if len(o.SymKey) != keySize {
		return PrivateOptions{}, fmt.Errorf("reading private options of a layer: key has %d bytes, expected %d", len(o.SymKey), keySize)
	}
	return o, nil
}

func parseOptions(text []byte, into any) error {
	if len(text) > maxOptionsSize {
		return fmt.Errorf("%d bytes exceed the limit of %d", len(text), maxOptionsSize)
	}
	if err := json.Unmarshal(text, into); err != nil {
		// The decoder's message may quote the text, which may be a secret.
		return errors.New("not the expected JSON object")
	}
	return nil
}

// LayerKey encrypts one layer and must not be used for a second.
type LayerKey struct {
	key   [keySize]byte
	nonce [nonceSize]byte
}

// String keeps the key out of logs.
func (LayerKey) String() string { return "LayerKey(secret)" }

// GoString keeps the key out of logs.
func (k LayerKey) GoString() string { return k.String() }

// NewLayerKey makes a random key.
func NewLayerKey() LayerKey {
	var k LayerKey
	rand.Read(k.key[:])
	rand.Read(k.nonce[:])
	return k
}

// EncryptReader encrypts the bytes of r, a layer as it is stored (compressed).
// After the returned reader ended, finish gives the options that belong to it.
func EncryptReader(r io.Reader, key LayerKey) (encrypted io.Reader, finish func() (PublicOptions, PrivateOptions, error)) {
	e := &encryptReader{r: r, stream: newStream(key.key[:], key.nonce[:]), mac: hmac.New(sha256.New, key.key[:]), digest: sha256.New()}
	return e, func() (PublicOptions, PrivateOptions, error) {
		if !e.done {
			return PublicOptions{}, PrivateOptions{}, errors.New("encrypting a layer: it was not read to its end")
		}
		pub := PublicOptions{Cipher: Cipher, HMAC: e.mac.Sum(nil), CipherOptions: map[string][]byte{}}
		priv := PrivateOptions{
			SymKey:        key.key[:],
			Digest:        "sha256:" + hex.EncodeToString(e.digest.Sum(nil)),
			CipherOptions: map[string][]byte{nonceOption: key.nonce[:]},
		}
		return pub, priv, nil
	}
}

type encryptReader struct {
	r           io.Reader
	stream      cipher.Stream
	mac, digest hash.Hash
	done        bool
}

func (e *encryptReader) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	e.digest.Write(p[:n])
	e.stream.XORKeyStream(p[:n], p[:n])
	e.mac.Write(p[:n])
	if errors.Is(err, io.EOF) {
		e.done = true
	}
	return n, err
}

// NewDecryptReader decrypts the bytes of r. Instead of io.EOF it returns
// ErrDamaged if the layer does not match its HMAC: nothing that was read may be
// used before the reader ended with io.EOF.
func NewDecryptReader(r io.Reader, priv PrivateOptions, pub PublicOptions) (io.Reader, error) {
	if pub.Cipher != Cipher {
		return nil, fmt.Errorf("decrypting a layer: cipher is %q, expected %q", pub.Cipher, Cipher)
	}
	if len(pub.HMAC) != sha256.Size {
		return nil, fmt.Errorf("decrypting a layer: hmac has %d bytes, expected %d", len(pub.HMAC), sha256.Size)
	}
	if len(priv.SymKey) != keySize {
		return nil, fmt.Errorf("decrypting a layer: key has %d bytes, expected %d", len(priv.SymKey), keySize)
	}
	nonce, ok := pub.CipherOptions[nonceOption]
	if !ok {
		nonce = priv.CipherOptions[nonceOption]
	}
	if len(nonce) != nonceSize {
		return nil, fmt.Errorf("decrypting a layer: nonce has %d bytes, expected %d", len(nonce), nonceSize)
	}
	return &decryptReader{r: r, stream: newStream(priv.SymKey, nonce), mac: hmac.New(sha256.New, priv.SymKey), want: pub.HMAC}, nil
}

type decryptReader struct {
	r      io.Reader
	stream cipher.Stream
	mac    hash.Hash
	want   []byte
	err    error
}

func (d *decryptReader) Read(p []byte) (int, error) {
	if d.err != nil {
		return 0, d.err
	}
	n, err := d.r.Read(p)
	d.mac.Write(p[:n])
	d.stream.XORKeyStream(p[:n], p[:n])
	if errors.Is(err, io.EOF) && subtle.ConstantTimeCompare(d.mac.Sum(nil), d.want) != 1 {
		err = ErrDamaged
	}
	d.err = err
	return n, err
}

// newStream counts in the whole 128-bit block, as ocicrypt does.
func newStream(key, nonce []byte) cipher.Stream {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic("imagecrypt: key size was checked before: " + err.Error())
	}
	return cipher.NewCTR(block, nonce)
}
