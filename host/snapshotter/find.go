package snapshotter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/containerd/errdefs"
)

// Labels that containerd's CRI plugin, or its unpacker, puts on a snapshot for a layer.
const (
	labelRef            = "containerd.io/snapshot.ref"
	labelLayerDigest    = "containerd.io/snapshot/cri.layer-digest"
	labelManifestDigest = "containerd.io/snapshot/cri.manifest-digest"
)

// Limits of what is read of images that nobody vouches for.
const (
	maxManifest    = 4 << 20
	maxImageConfig = 8 << 20
	maxLayers      = 512
	maxKnownImages = 4096 // both bound the memory of what was found out
	maxKnownLayers = 64 << 10
)

// image is what an image says of its layers, the lowest first.
type image struct {
	chains []string
	layers []source
}

// finder remembers images by the digest of their manifest, which never changes.
type finder struct {
	mu     sync.Mutex
	images map[string]*image // nil: not an image with layers
	layers int               // of all images
}

// locate finds the blob of which the layer with a chain ID is made. CRI says it in labels if it is asked to; otherwise the image is
// searched in the content store, where it is before its layers are unpacked.
func (s *Snapshotter) locate(ctx context.Context, chain, below string, labels map[string]string) (source, error) {
	if digest := labels[labelManifestDigest]; digestForm.MatchString(digest) {
		if src, ok := s.inImage(ctx, digest, chain); ok {
			return src, nil
		}
	}
	if digest := labels[labelLayerDigest]; digestForm.MatchString(digest) {
		if _, err := s.content.Size(ctx, digest); err == nil {
			src := source{Blob: digest}
			if below == "" {
				src.DiffID = chain
			}
			return src, nil
		} else if !errdefs.IsNotFound(err) {
			return source{}, err
		}
	}
	return s.search(ctx, chain)
}

// search looks for a layer in all images of the content store.
func (s *Snapshotter) search(ctx context.Context, chain string) (source, error) {
	manifests, err := s.content.Manifests(ctx)
	if err != nil {
		return source{}, fmt.Errorf("looking for the image of the layer %s: %w", chain, err)
	}
	for i := len(manifests) - 1; i >= 0; i-- {
		if src, ok := s.inImage(ctx, manifests[i], chain); ok {
			return src, nil
		}
		if err := ctx.Err(); err != nil {
			return source{}, fmt.Errorf("looking for the image of the layer %s: %w", chain, err)
		}
	}
	return source{}, fmt.Errorf("none of the %d images in containerd's content store has the layer %s: %w\n"+
		"hint: pull the image again; layers come from the registry's blobs, so containerd has to have them", len(manifests), chain, errdefs.ErrNotFound)
}

// inImage looks for a layer in one image. It is found only if its blob is there.
func (s *Snapshotter) inImage(ctx context.Context, manifest, chain string) (source, bool) {
	img, err := s.image(ctx, manifest)
	if err != nil {
		s.log.Debug("an image that cannot be read", "manifest", manifest, "error", err)
		return source{}, false
	}
	if img == nil {
		return source{}, false
	}
	for i, c := range img.chains {
		if c != chain {
			continue
		}
		if _, err := s.content.Size(ctx, img.layers[i].Blob); err != nil {
			return source{}, false // another image may have the same layer in another form
		}
		src := img.layers[i]
		if i > 0 {
			src.Below = img.chains[i-1]
		}
		for _, next := range img.layers[i+1:] {
			if _, err := s.content.Size(ctx, next.Blob); err == nil && !next.unreadable {
				src.Ahead = append(src.Ahead, next)
			}
		}
		return src, true
	}
	return source{}, false
}

// image reads a manifest and its configuration.
func (s *Snapshotter) image(ctx context.Context, digest string) (*image, error) {
	s.finder.mu.Lock()
	img, known := s.finder.images[digest]
	s.finder.mu.Unlock()
	if known {
		return img, nil
	}
	var manifest struct {
		Config struct {
			Digest string `json:"digest"`
		} `json:"config"`
		Layers []struct {
			MediaType string `json:"mediaType"`
			Digest    string `json:"digest"`
		} `json:"layers"`
	}
	if err := readJSON(ctx, s.content, digest, maxManifest, &manifest); err != nil {
		return nil, err
	}
	if !digestForm.MatchString(manifest.Config.Digest) {
		return nil, fmt.Errorf("the configuration's digest is %.100q", manifest.Config.Digest)
	}
	var config struct {
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := readJSON(ctx, s.content, manifest.Config.Digest, maxImageConfig, &config); err != nil {
		return nil, err
	}
	if n := len(manifest.Layers); n == len(config.RootFS.DiffIDs) && n <= maxLayers {
		img = &image{}
		below := ""
		for i, l := range manifest.Layers {
			diffID := config.RootFS.DiffIDs[i]
			if !digestForm.MatchString(l.Digest) || !digestForm.MatchString(diffID) {
				img = nil
				break
			}
			below = chainID(below, diffID)
			img.chains = append(img.chains, below)
			img.layers = append(img.layers, source{Blob: l.Digest, DiffID: diffID, unreadable: l.MediaType != "" && !readable(l.MediaType)})
		}
	}
	s.finder.mu.Lock()
	defer s.finder.mu.Unlock()
	if s.finder.images == nil || len(s.finder.images) >= maxKnownImages || s.finder.layers >= maxKnownLayers {
		s.finder.images, s.finder.layers = map[string]*image{}, 0
	}
	if s.finder.images[digest] == nil && img != nil {
		s.finder.layers += len(img.layers)
	}
	s.finder.images[digest] = img
	return img, nil
}

func readJSON(ctx context.Context, from contentStore, digest string, limit int64, into any) (err error) {
	r, err := from.Open(ctx, digest)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	raw, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return err
	}
	if int64(len(raw)) > limit {
		return fmt.Errorf("blob %s has more than %d bytes", digest, limit)
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("blob %s: %w", digest, err)
	}
	return nil
}
