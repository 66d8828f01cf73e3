package image

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"

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
	from, err := opts.locate(src)
	if err != nil {
		return Sealed{}, err
	}
	to, err := opts.locate(dst)
	if err != nil {
		return Sealed{}, err
	}
	a, err := opts.load(ctx, from)
	if err != nil {
		return Sealed{}, err
	}
	dir, err := os.MkdirTemp(opts.TempDir, "cloister-seal-")
	if err != nil {
		return Sealed{}, fmt.Errorf("sealing %s: %w", from, err)
	}
	defer os.RemoveAll(dir)
	s := &sealing{key: key, dir: dir, done: map[v1.Hash]sealed{}}
	var out artifact
	if a.index != nil {
		out.index, err = s.index(ctx, a.index)
	} else {
		out.image, err = s.image(ctx, a.image)
	}
	if err != nil {
		return Sealed{}, fmt.Errorf("sealing %s: %w", from, err)
	}
	if err := opts.save(ctx, to, out); err != nil {
		return Sealed{}, err
	}
	digest, err := out.digest()
	if err != nil {
		return Sealed{}, fmt.Errorf("sealing %s: %w", from, err)
	}
	s.result.Digest = digest.String()
	return s.result, nil
}

// sealing is one run of Seal.
type sealing struct {
	key    Key
	dir    string
	done   map[v1.Hash]sealed // by digest of the plain layer
	result Sealed
}

func (s *sealing) index(ctx context.Context, src v1.ImageIndex) (v1.ImageIndex, error) {
	m, err := src.IndexManifest()
	if err != nil {
		return nil, err
	}
	out := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, d := range m.Manifests {
		if !d.MediaType.IsImage() || d.Platform != nil && d.Platform.OS == "unknown" {
			continue // attestations describe the plain image
		}
		img, err := src.Image(d.Digest)
		if err != nil {
			return nil, err
		}
		made, err := s.image(ctx, img)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", d.Digest, err)
		}
		out = mutate.AppendManifests(out, mutate.IndexAddendum{Add: made, Descriptor: v1.Descriptor{Platform: d.Platform, Annotations: d.Annotations}})
	}
	return out, nil
}

func (s *sealing) image(ctx context.Context, src v1.Image) (v1.Image, error) {
	m, err := src.Manifest()
	if err != nil {
		return nil, err
	}
	config, err := src.RawConfigFile()
	if err != nil {
		return nil, err
	}
	var descs []v1.Descriptor
	var layers []partial.CompressedLayer
	var diffIDs []v1.Hash
	for i, d := range m.Layers {
		made, ok := s.done[d.Digest]
		if !ok {
			l, err := src.LayerByDigest(d.Digest)
			if err != nil {
				return nil, err
			}
			if made, err = s.layer(ctx, d, l); err != nil {
				return nil, fmt.Errorf("layer %d (%s): %w", i+1, d.Digest, err)
			}
			s.done[d.Digest] = made
		}
		descs, layers, diffIDs = append(descs, made.desc), append(layers, made.layer), append(diffIDs, made.layer.diffID)
	}
	if config, err = withDiffIDs(config, diffIDs); err != nil {
		return nil, err
	}
	return assemble(config, types.OCIConfigJSON, descs, layers, m.Annotations)
}

// withDiffIDs is the configuration with the diff IDs of sealed layers: nothing is unpacked, and the digests of the plain layers would tell
// which they are.
func withDiffIDs(config []byte, diffIDs []v1.Hash) ([]byte, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(config, &fields); err != nil {
		return nil, fmt.Errorf("reading the image's configuration: %w", err)
	}
	text, err := json.Marshal(v1.RootFS{Type: "layers", DiffIDs: append([]v1.Hash{}, diffIDs...)})
	if err != nil {
		return nil, err
	}
	fields["rootfs"] = text
	return json.Marshal(fields)
}

// layer makes a block layer of a layer's tar in a file, and seals it in another.
func (s *sealing) layer(ctx context.Context, d v1.Descriptor, l v1.Layer) (_ sealed, err error) {
	if imagecrypt.IsEncrypted(string(d.MediaType)) || d.MediaType == layerformat.MediaType {
		return sealed{}, errors.New("it is encrypted already")
	}
	if !d.MediaType.IsLayer() {
		return sealed{}, fmt.Errorf("media type %q: expected a tar layer", d.MediaType)
	}
	tar, err := l.Uncompressed()
	if err != nil {
		return sealed{}, err
	}
	defer tar.Close()
	plain, err := os.CreateTemp(s.dir, "plain-")
	if err != nil {
		return sealed{}, err
	}
	defer func() { err = errors.Join(err, plain.Close(), os.Remove(plain.Name())) }()
	built, err := layer.Build(ctx, tar, plain, layer.Options{})
	if err != nil {
		return sealed{}, err
	}
	salt := make([]byte, layerformat.SaltSize)
	if _, err := rand.Read(salt); err != nil {
		return sealed{}, err
	}
	path := filepath.Join(s.dir, strconv.Itoa(len(s.done)))
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return sealed{}, err
	}
	made, err := seal.Seal(ctx, plain, built.HashOffset, f, s.key.KEK, salt)
	sum := sha256.New()
	if err == nil {
		_, err = io.Copy(sum, &contextReader{ctx, io.NewSectionReader(f, 0, made.Size)})
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return sealed{}, err
	}
	hash := v1.Hash{Algorithm: "sha256", Hex: fmt.Sprintf("%x", sum.Sum(nil))}
	diffID, err := v1.NewHash(layerformat.DiffID(hash.String(), made.Root.String(), made.HashOffset, s.key.KID))
	if err != nil {
		return sealed{}, err
	}
	s.result.Layers = append(s.result.Layers, SealedLayer{
		Digest: hash.String(), Root: made.Root.String(), HashOffset: made.HashOffset, Size: made.Size, KeyID: s.key.KID,
	})
	return sealed{
		desc: v1.Descriptor{MediaType: layerformat.MediaType, Size: made.Size, Digest: hash, Annotations: map[string]string{
			layerformat.AnnotationVersion: layerformat.Version, layerformat.AnnotationCipher: layerformat.Cipher,
			layerformat.AnnotationKeyID: s.key.KID, layerformat.AnnotationRoot: made.Root.String(),
			layerformat.AnnotationHashOffset: strconv.FormatInt(made.HashOffset, 10),
		}},
		layer: &layerBlob{digest: hash, diffID: diffID, size: made.Size, mediaType: layerformat.MediaType,
			open: func() (io.ReadCloser, error) { return os.Open(path) }},
	}, nil
}
