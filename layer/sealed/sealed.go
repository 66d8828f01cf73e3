// Package sealed is the format of sealed layers, version 1: block layers that are both encrypted and authenticated. A sealed layer looks
// like any other block layer (data, dm-verity superblock, tree), so that nodes keep, share and attach it as such; its data is ciphertext.
// The guest opens dm-verity over the ciphertext first and dm-crypt over that: a changed bit is an I/O error before it is decrypted. The key
// of a layer is derived from a key that the broker gives to attested guests, and from the salt of the tree, which the root hash binds.
//
// docs/reference/sealed-layers.md is the specification. This package is linked into the guest: it needs the standard library only.
package sealed

import (
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
)

// Names that appear in registries.
const (
	// MediaType of a layer's blob. It begins as those of all layers do, without which containerd takes a blob for none.
	MediaType = "application/vnd.oci.image.layer.v1.erofs+sealed"

	AnnotationVersion    = "dev.cloister.sealed.version"   // Version
	AnnotationCipher     = "dev.cloister.sealed.cipher"    // Cipher
	AnnotationKeyID      = "dev.cloister.sealed.key-id"    // resource of the broker, kbs:///…
	AnnotationRoot       = "dev.cloister.layer.roothash"   // of the tree over the ciphertext, 64 hexadecimal characters
	AnnotationHashOffset = "dev.cloister.layer.hashoffset" // bytes of ciphertext, decimal; the superblock is there
)

const (
	// Version is the only one.
	Version = "1"
	// Cipher is dm-crypt's name of it; the key has 64 bytes, AES-256 in XTS mode, and a sector BlockSize bytes.
	Cipher = "aes-xts-plain64"
	// BlockSize is the size of a sector of the cipher and of both kinds of blocks of the tree, in bytes.
	BlockSize = 4096
	// KeySize is the size of the broker's key, LayerKeySize that of a layer's, SaltSize that of the tree's salt, in bytes.
	KeySize      = 32
	LayerKeySize = 64
	SaltSize     = 32

	info = "cloister sealed layer 1"
	// diffIDHeader begins what a diff ID is the digest of, so that it is never that of something else.
	diffIDHeader = info + "\n"
)

// ErrKey means that a key or its name cannot be one.
var ErrKey = errors.New("not a key of sealed layers")

// LayerKey derives the key of a layer from the broker's key and the salt of the layer's tree: HKDF with SHA-256 (RFC 5869).
func LayerKey(key, salt []byte) ([]byte, error) {
	if len(key) != KeySize {
		return nil, fmt.Errorf("%w: it has %d bytes, expected %d", ErrKey, len(key), KeySize)
	}
	if len(salt) != SaltSize {
		return nil, fmt.Errorf("%w: the layer's salt has %d bytes, expected %d", ErrKey, len(salt), SaltSize)
	}
	return hkdf.Key(sha256.New, key, salt, info, LayerKeySize)
}

// DiffID stands for the digest of the tar in the configuration of an image, sha256:…: nobody but the owner has the tar. It is no digest of
// bytes that a registry has, so that a sealed layer cannot take the place of a plain one, and it binds all that the layer is opened with.
// blob is the digest of the layer's blob, sha256:… The caller has checked the form of each: none has a line break.
func DiffID(blob, root string, hashOffset int64, keyID string) string {
	text := fmt.Sprintf("%s%s\n%s\n%d\n%s\n", diffIDHeader, blob, root, hashOffset, keyID)
	return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(text)))
}

// maxKeyID bounds the name of a key.
const maxKeyID = 512

// CheckKeyID says whether a text can be the name of a key: a resource of the broker.
func CheckKeyID(id string) error {
	if !strings.HasPrefix(id, "kbs:///") || len(id) > maxKeyID || strings.ContainsAny(id, " \t\r\n,\x00") {
		return fmt.Errorf("%w: %.80q, expected a resource like kbs:///default/image-key/name", ErrKey, id)
	}
	return nil
}
