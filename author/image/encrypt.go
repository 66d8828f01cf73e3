package image

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/cloister/cloister/wire/imagecrypt"
)

// Key is a key encryption key: 32 bytes, which the broker has under KID (a resource URI like
// kbs:///default/image-kek/demo).
type Key struct {
	KID string
	KEK []byte
}

// String keeps the key out of logs.
func (k Key) String() string { return k.KID }

// GoString keeps the key out of logs.
func (k Key) GoString() string { return k.KID }

// EncryptOptions refine an encryption.
type EncryptOptions struct {
	Options
	// TempDir holds the encrypted layers until they are pushed. Default: the system's.
	TempDir string
}

// Encrypted says what Encrypt did.
type Encrypted struct {
	Digest string // of the encrypted manifest or index
	Layers int    // encrypted layers
	Bytes  int64  // their size
}

// Encrypt copies the image or index src to dst with every layer encrypted. Any one of the keys opens it. Layers that
// are encrypted already are an error. The image configuration, with its environment and command line, stays in clear.
func Encrypt(ctx context.Context, src, dst string, keys []Key, opts EncryptOptions) (Encrypted, error) {
	if len(keys) == 0 {
		return Encrypted{}, errors.New("encrypting image: no key is given")
	}
	for _, k := range keys {
		if len(k.KEK) != 32 {
			return Encrypted{}, fmt.Errorf("encrypting image: key %s has %d bytes, expected 32", k.KID, len(k.KEK))
		}
		if !strings.HasPrefix(k.KID, "kbs:///") && !strings.HasPrefix(k.KID, "kbs+plugin:///") {
			return Encrypted{}, fmt.Errorf("encrypting image: key id %q is not a resource URI like kbs:///default/image-kek/name", k.KID)
		}
	}
	from, err := opts.locate(src)
	if err != nil {
		return Encrypted{}, err
	}
	to, err := opts.locate(dst)
	if err != nil {
		return Encrypted{}, err
	}
	a, err := opts.load(ctx, from)
	if err != nil {
		return Encrypted{}, err
	}
	dir, err := os.MkdirTemp(opts.TempDir, "cloister-encrypt-")
	if err != nil {
		return Encrypted{}, fmt.Errorf("encrypting %s: %w", from, err)
	}
	defer os.RemoveAll(dir)
	e := &encryption{keys: keys, dir: dir, done: map[v1.Hash]sealed{}}
	var out artifact
	if a.index != nil {
		out.index, err = e.index(ctx, a.index)
	} else {
		out.image, err = e.image(ctx, a.image)
	}
	if err != nil {
		return Encrypted{}, fmt.Errorf("encrypting %s: %w", from, err)
	}
	if err := opts.save(ctx, to, out); err != nil {
		return Encrypted{}, err
	}
	digest, err := out.digest()
	if err != nil {
		return Encrypted{}, fmt.Errorf("encrypting %s: %w", from, err)
	}
	e.result.Digest = digest.String()
	return e.result, nil
}

// encryption is one run of Encrypt.
type encryption struct {
	keys   []Key
	dir    string
	done   map[v1.Hash]sealed // by digest of the plain layer: platforms of an index share layers
	result Encrypted
}

// sealed is an encrypted layer and its descriptor.
type sealed struct {
	desc  v1.Descriptor
	layer *layerBlob
}

func (e *encryption) index(ctx context.Context, src v1.ImageIndex) (v1.ImageIndex, error) {
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
		enc, err := e.image(ctx, img)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", d.Digest, err)
		}
		out = mutate.AppendManifests(out, mutate.IndexAddendum{Add: enc, Descriptor: v1.Descriptor{Platform: d.Platform, Annotations: d.Annotations}})
	}
	return out, nil
}

func (e *encryption) image(ctx context.Context, src v1.Image) (v1.Image, error) {
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
	for i, d := range m.Layers {
		s, ok := e.done[d.Digest]
		if !ok {
			l, err := src.LayerByDigest(d.Digest)
			if err != nil {
				return nil, err
			}
			if s, err = e.layer(ctx, d, l); err != nil {
				return nil, fmt.Errorf("layer %d (%s): %w", i+1, d.Digest, err)
			}
			e.done[d.Digest] = s
		}
		descs, layers = append(descs, s.desc), append(layers, s.layer)
	}
	return assemble(config, types.OCIConfigJSON, descs, layers, m.Annotations)
}

// plainMediaType is the OCI media type that an encrypted layer's type is derived from.
func plainMediaType(t types.MediaType) string {
	switch t {
	case types.DockerLayer, types.DockerForeignLayer:
		return string(types.OCILayer)
	case types.DockerUncompressedLayer:
		return string(types.OCIUncompressedLayer)
	}
	return string(t)
}

func (e *encryption) layer(ctx context.Context, d v1.Descriptor, l v1.Layer) (sealed, error) {
	if imagecrypt.IsEncrypted(string(d.MediaType)) {
		return sealed{}, errors.New("it is encrypted already")
	}
	mediaType, err := imagecrypt.EncryptedMediaType(plainMediaType(d.MediaType))
	if err != nil {
		return sealed{}, err
	}
	src, err := l.Compressed()
	if err != nil {
		return sealed{}, err
	}
	defer src.Close()
	path := filepath.Join(e.dir, strconv.Itoa(len(e.done)))
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return sealed{}, err
	}
	encrypted, finish := imagecrypt.EncryptReader(&contextReader{ctx, src}, imagecrypt.NewLayerKey())
	sum := sha256.New()
	size, err := io.Copy(io.MultiWriter(f, sum), encrypted)
	if err := errors.Join(err, f.Close()); err != nil {
		return sealed{}, err
	}
	pub, priv, err := finish()
	if err != nil {
		return sealed{}, err
	}
	if size != d.Size || priv.Digest != d.Digest.String() {
		return sealed{}, fmt.Errorf("source has %d bytes with digest %s, its manifest says %d", size, priv.Digest, d.Size)
	}
	annotations, err := e.annotate(d.Annotations, pub, priv)
	if err != nil {
		return sealed{}, err
	}
	e.result.Layers++
	e.result.Bytes += size
	hash := v1.Hash{Algorithm: "sha256", Hex: fmt.Sprintf("%x", sum.Sum(nil))}
	return sealed{
		desc: v1.Descriptor{MediaType: types.MediaType(mediaType), Size: size, Digest: hash, Annotations: annotations},
		layer: &layerBlob{digest: hash, size: size, mediaType: types.MediaType(mediaType),
			open: func() (io.ReadCloser, error) { return os.Open(path) }},
	}, nil
}

// annotate adds the public options and the key, wrapped for every recipient, to a layer's annotations.
func (e *encryption) annotate(old map[string]string, pub imagecrypt.PublicOptions, priv imagecrypt.PrivateOptions) (map[string]string, error) {
	var packets []imagecrypt.Packet
	for _, k := range e.keys {
		p, err := imagecrypt.WrapPLBCO(k.KEK, k.KID, priv)
		if err != nil {
			return nil, err
		}
		packets = append(packets, p)
	}
	keys, err := imagecrypt.EncodePackets(packets...)
	if err != nil {
		return nil, err
	}
	public, err := imagecrypt.EncodePublicOptions(pub)
	if err != nil {
		return nil, err
	}
	out := map[string]string{imagecrypt.AnnotationKeys: keys, imagecrypt.AnnotationPublicOptions: public}
	for k, v := range old {
		if !strings.HasPrefix(k, "org.opencontainers.image.enc.") {
			out[k] = v
		}
	}
	return out, nil
}

// KeyIDs lists the keys of an inspected image, each once.
func (p Platform) KeyIDs() []string {
	var out []string
	for _, l := range p.Layers {
		out = append(out, l.KeyIDs...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// contextReader ends with its context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

var _ json.Marshaler = Key{}

// MarshalJSON keeps the key out of reports.
func (k Key) MarshalJSON() ([]byte, error) { return json.Marshal(map[string]string{"kid": k.KID}) }
