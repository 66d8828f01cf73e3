package image

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strconv"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// EncryptOptions refine Encrypt and Seal.
type EncryptOptions struct {
	Options
	// TempDir holds the new layers until they are pushed. Default: the system's.
	TempDir string
}

// made is a layer that takes another one's place, and its descriptor.
type made struct {
	desc v1.Descriptor
	blob *layerBlob
}

// remaking is one walk over an image or index that makes each of its layers anew.
type remaking struct {
	doing string // for messages, "encrypting"
	// layer makes a layer. It writes the blob to a file of spool.
	layer func(ctx context.Context, d v1.Descriptor, l v1.Layer) (made, error)
	// config makes the configuration of an image that gets these layers. nil leaves it as it is.
	config func(old []byte, layers []made) ([]byte, error)

	dir  string
	done map[v1.Hash]made // by digest of the old layer: platforms of an index share layers
}

// run copies src to dst with all layers made anew and returns the new digest.
func (r *remaking) run(ctx context.Context, src, dst string, opts EncryptOptions) (string, error) {
	dir, err := os.MkdirTemp(opts.TempDir, "cloister-image-")
	if err != nil {
		return "", fmt.Errorf("%s %s: %w", r.doing, src, err)
	}
	defer os.RemoveAll(dir)
	r.dir, r.done = dir, map[v1.Hash]made{}
	return opts.transfer(ctx, src, dst, func(from location, a artifact) (artifact, error) {
		var err error
		if a.index != nil {
			a.index, err = r.index(ctx, a.index)
		} else {
			a.image, err = r.image(ctx, a.image)
		}
		if err != nil {
			err = fmt.Errorf("%s %s: %w", r.doing, from, err)
		}
		return a, err
	})
}

func (r *remaking) index(ctx context.Context, src v1.ImageIndex) (v1.ImageIndex, error) {
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
		if img, err = r.image(ctx, img); err != nil {
			return nil, fmt.Errorf("%s: %w", d.Digest, err)
		}
		out = mutate.AppendManifests(out, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: d.Platform, Annotations: d.Annotations}})
	}
	return out, nil
}

func (r *remaking) image(ctx context.Context, src v1.Image) (v1.Image, error) {
	m, err := src.Manifest()
	if err != nil {
		return nil, err
	}
	config, err := src.RawConfigFile()
	if err != nil {
		return nil, err
	}
	var layers []made
	var descs []v1.Descriptor
	var blobs []partial.CompressedLayer
	for i, d := range m.Layers {
		x, ok := r.done[d.Digest]
		if !ok {
			l, err := src.LayerByDigest(d.Digest)
			if err != nil {
				return nil, err
			}
			if x, err = r.layer(ctx, d, l); err != nil {
				return nil, fmt.Errorf("layer %d (%s): %w", i+1, d.Digest, err)
			}
			r.done[d.Digest] = x
		}
		layers, descs, blobs = append(layers, x), append(descs, x.desc), append(blobs, x.blob)
	}
	if r.config != nil {
		if config, err = r.config(config, layers); err != nil {
			return nil, err
		}
	}
	return assemble(config, types.OCIConfigJSON, descs, blobs, m.Annotations)
}

// spool writes a new layer to a file by write, which says how much of it is the blob, and returns the blob.
func (r *remaking) spool(ctx context.Context, mediaType types.MediaType, write func(f *os.File) (size int64, err error)) (*layerBlob, error) {
	path := filepath.Join(r.dir, strconv.Itoa(len(r.done)))
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	size, err := write(f)
	sum := sha256.New()
	if err == nil {
		_, err = io.Copy(sum, &contextReader{ctx, io.NewSectionReader(f, 0, size)})
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	return &layerBlob{digest: digestOf(sum), size: size, mediaType: mediaType, open: func() (io.ReadCloser, error) { return os.Open(path) }}, nil
}

func digestOf(sum hash.Hash) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: fmt.Sprintf("%x", sum.Sum(nil))}
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
