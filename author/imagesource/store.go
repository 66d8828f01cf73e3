package imagesource

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// ErrNotFound says that a store does not have an image; another may.
var ErrNotFound = errors.New("image not found")

// store is a place that images come from.
type store interface {
	// resolve finds what a reference names.
	resolve(ctx context.Context, ref string) (handle, error)
	io.Closer
}

// handle is an image of a store.
type handle struct {
	desc v1.Descriptor
	// open reads a blob. What it gives is checked by the caller.
	open func(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error)
	// docker is set for archives of docker, which have no manifest in them.
	docker *dockerImage
	// found is Image.Found.
	found string
}

// Limits of what is read into memory.
const (
	maxManifest = 4 << 20
	maxConfig   = 8 << 20
	maxLayers   = 512
)

// checked reads a blob and reports at its end whether it is what the descriptor says.
type checked struct {
	r    io.Reader
	sum  hash.Hash
	want string
	left int64 // -1: unknown
	err  error
}

func checkBlob(r io.Reader, d v1.Descriptor) (*checked, error) {
	if d.Digest.Algorithm != "sha256" || len(d.Digest.Hex) != 64 {
		return nil, fmt.Errorf("digest %q is not of SHA-256", d.Digest)
	}
	c := &checked{r: r, sum: sha256.New(), want: d.Digest.Hex, left: -1}
	if d.Size > 0 {
		c.left = d.Size
	}
	return c, nil
}

func (c *checked) Read(p []byte) (int, error) {
	if c.err != nil {
		return 0, c.err
	}
	n, err := c.r.Read(p)
	c.sum.Write(p[:n])
	if c.left >= 0 {
		if c.left -= int64(n); c.left < 0 {
			err = errors.New("the blob is longer than its descriptor says")
			n = 0
		}
	}
	if errors.Is(err, io.EOF) {
		if got := hex.EncodeToString(c.sum.Sum(nil)); got != c.want {
			err = fmt.Errorf("the blob has the digest sha256:%s, expected sha256:%s", got, c.want)
		} else if c.left > 0 {
			err = errors.New("the blob is shorter than its descriptor says")
		}
	}
	c.err = err
	return n, err
}

// blob reads a small blob and checks it.
func (h handle) blob(ctx context.Context, d v1.Descriptor, limit int64) ([]byte, error) {
	if d.Size > limit {
		return nil, fmt.Errorf("blob %s has %d bytes, the limit is %d", d.Digest, d.Size, limit)
	}
	r, err := h.open(ctx, d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	c, err := checkBlob(r, d)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(c, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("blob %s has more than %d bytes", d.Digest, limit)
	}
	return data, err
}

// manifest is an image for one architecture, before its layers are read.
type manifest struct {
	image  Image
	layers []v1.Descriptor
	config *v1.ConfigFile
}

// load finds the manifest and configuration for an architecture.
func (h handle) load(ctx context.Context, arch string) (*manifest, error) {
	if h.docker != nil {
		return h.docker.load(ctx, h, arch)
	}
	d := h.desc
	for range 3 { // an index may name an index
		if !d.MediaType.IsIndex() {
			break
		}
		raw, err := h.blob(ctx, d, maxManifest)
		if err != nil {
			return nil, fmt.Errorf("reading the index: %w", err)
		}
		ix, err := v1.ParseIndexManifest(bytes.NewReader(raw))
		if err != nil {
			return nil, fmt.Errorf("reading the index: %w", err)
		}
		if d, err = choose(ix.Manifests, arch); err != nil {
			return nil, err
		}
	}
	if !d.MediaType.IsImage() {
		return nil, fmt.Errorf("it is of type %q, not an image", d.MediaType)
	}
	raw, err := h.blob(ctx, d, maxManifest)
	if err != nil {
		return nil, fmt.Errorf("reading the manifest: %w", err)
	}
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("reading the manifest: %w", err)
	}
	if len(m.Layers) > maxLayers {
		return nil, fmt.Errorf("it has %d layers, the limit is %d", len(m.Layers), maxLayers)
	}
	config, err := h.blob(ctx, m.Config, maxConfig)
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	out := &manifest{layers: m.Layers}
	if out.config, err = parseConfig(config, arch); err != nil {
		return nil, err
	}
	if n := len(out.config.RootFS.DiffIDs); n != len(m.Layers) {
		return nil, fmt.Errorf("its configuration lists %d layers, its manifest %d", n, len(m.Layers))
	}
	out.image = Image{Digest: h.desc.Digest.String(), Manifest: d.Digest.String(), Config: configOf(out.config)}
	return out, nil
}

// architecture splits "arm/v7".
func architecture(s string) (arch, variant string) {
	arch, variant, _ = strings.Cut(s, "/")
	return arch, variant
}

// choose finds the manifest for linux on an architecture.
func choose(list []v1.Descriptor, want string) (v1.Descriptor, error) {
	arch, variant := architecture(want)
	var have []string
	var found []v1.Descriptor
	for _, d := range list {
		p := d.Platform
		if p == nil || p.OS != "linux" {
			continue
		}
		have = append(have, strings.TrimSuffix(p.Architecture+"/"+p.Variant, "/"))
		if p.Architecture == arch && (variant == "" || variant == p.Variant) {
			found = append(found, d)
		}
	}
	if len(found) == 0 {
		return v1.Descriptor{}, fmt.Errorf("it is not for linux on %s; it is for %s", want, cmp.Or(strings.Join(have, ", "), "nothing that is known"))
	}
	return found[0], nil
}

func parseConfig(raw []byte, want string) (*v1.ConfigFile, error) {
	c := &v1.ConfigFile{}
	if err := json.Unmarshal(raw, c); err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	arch, _ := architecture(want)
	if c.OS != "" && c.OS != "linux" || c.Architecture != "" && c.Architecture != arch {
		return nil, fmt.Errorf("it is for %s on %s, not for linux on %s", c.OS, c.Architecture, arch)
	}
	return c, nil
}
