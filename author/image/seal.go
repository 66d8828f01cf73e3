package image

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/cloister/cloister/layer"
	layerformat "github.com/cloister/cloister/layer/sealed"
	"github.com/cloister/cloister/layer/sealed/seal"
	"github.com/cloister/cloister/wire/imagecrypt"
)

// SealedLayer describes a layer that Seal made, for a policy.
type SealedLayer struct {
	Digest     string `json:"digest"` // of the blob
	Root       string `json:"root"`   // dm-verity root hash of the ciphertext
	HashOffset int64  `json:"hash_offset"`
	Size       int64  `json:"size"` // bytes
	KeyID      string `json:"key_id"`
}

// Sealed says what Seal did.
type Sealed struct {
	Digest string        `json:"digest"` // of the sealed manifest or index
	Layers []SealedLayer `json:"layers"` // of all platforms, each once, the lowest first
}

// Seal copies the image or index src to dst with every layer as a sealed layer: a block device that is encrypted and authenticated, which
// guests open with the key from the broker and read when they need it (docs/reference/sealed-layers.md). The configuration stays in clear.
func Seal(ctx context.Context, src, dst string, key Key, opts EncryptOptions) (Sealed, error) {
	if err := layerformat.CheckKeyID(key.KID); err != nil {
		return Sealed{}, fmt.Errorf("sealing image: %w", err)
	}
	if len(key.KEK) != layerformat.KeySize {
		return Sealed{}, fmt.Errorf("sealing image: key %s has %d bytes, expected %d", key.KID, len(key.KEK), layerformat.KeySize)
	}
	s := &sealing{key: key}
	s.remaking = remaking{doing: "sealing", layer: s.layer, config: withDiffIDs}
	digest, err := s.run(ctx, src, dst, opts)
	if err != nil {
		return Sealed{}, err
	}
	s.result.Digest = digest
	return s.result, nil
}

// sealing is one run of Seal.
type sealing struct {
	remaking
	key    Key
	result Sealed
}

// withDiffIDs is the configuration with the diff IDs of sealed layers: nothing is unpacked, and the digests of the plain layers would tell
// which they are.
func withDiffIDs(config []byte, layers []made) ([]byte, error) {
	diffIDs := []v1.Hash{}
	for _, l := range layers {
		diffIDs = append(diffIDs, l.blob.diffID)
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(config, &fields); err != nil {
		return nil, fmt.Errorf("reading the image's configuration: %w", err)
	}
	text, err := json.Marshal(v1.RootFS{Type: "layers", DiffIDs: diffIDs})
	if err != nil {
		return nil, err
	}
	fields["rootfs"] = text
	return json.Marshal(fields)
}

// layer makes a block layer of a layer's tar in a file, and seals it in another.
func (s *sealing) layer(ctx context.Context, d v1.Descriptor, l v1.Layer) (_ made, err error) {
	if imagecrypt.IsEncrypted(string(d.MediaType)) || d.MediaType == layerformat.MediaType {
		return made{}, errors.New("it is encrypted already")
	}
	if !d.MediaType.IsLayer() {
		return made{}, fmt.Errorf("media type %q: expected a tar layer", d.MediaType)
	}
	tar, err := l.Uncompressed()
	if err != nil {
		return made{}, err
	}
	defer tar.Close()
	plain, err := os.CreateTemp(s.dir, "plain-")
	if err != nil {
		return made{}, err
	}
	defer func() { err = errors.Join(err, plain.Close(), os.Remove(plain.Name())) }()
	built, err := layer.Build(ctx, tar, plain, layer.Options{})
	if err != nil {
		return made{}, err
	}
	salt := make([]byte, layerformat.SaltSize)
	if _, err := rand.Read(salt); err != nil {
		return made{}, err
	}
	var root string
	var hashOffset int64
	blob, err := s.spool(ctx, layerformat.MediaType, func(f *os.File) (int64, error) {
		sealed, err := seal.Seal(ctx, plain, built.HashOffset, f, s.key.KEK, salt)
		root, hashOffset = sealed.Root.String(), sealed.HashOffset
		return sealed.Size, err
	})
	if err != nil {
		return made{}, err
	}
	digest := blob.digest.String()
	if blob.diffID, err = v1.NewHash(layerformat.DiffID(digest, root, hashOffset, s.key.KID)); err != nil {
		return made{}, err
	}
	s.result.Layers = append(s.result.Layers, SealedLayer{Digest: digest, Root: root, HashOffset: hashOffset, Size: blob.size, KeyID: s.key.KID})
	out := made{blob.descriptor(), blob}
	out.desc.Annotations = map[string]string{
		layerformat.AnnotationVersion: layerformat.Version, layerformat.AnnotationCipher: layerformat.Cipher,
		layerformat.AnnotationKeyID: s.key.KID, layerformat.AnnotationRoot: root,
		layerformat.AnnotationHashOffset: strconv.FormatInt(hashOffset, 10),
	}
	return out, nil
}
