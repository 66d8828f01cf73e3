package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	api "github.com/containerd/containerd/api/services/diff/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"

	"github.com/cloister/cloister/layer/sealed"
)

// mediaTypeTar is that of an unpacked layer.
const mediaTypeTar = "application/vnd.oci.image.layer.v1.tar"

// layerTypes are the media types of layers that this package can read, without their compression.
var layerTypes = map[string]bool{
	"application/vnd.docker.image.rootfs.diff.tar":         true,
	"application/vnd.docker.image.rootfs.foreign.diff.tar": true,
	mediaTypeTar: true,
	"application/vnd.oci.image.layer.nondistributable.v1.tar": true,
}

// readable says whether layers of a media type can be read. Encrypted ones cannot.
func readable(mediaType string) bool {
	for _, end := range []string{"+gzip", ".gzip", "+zstd", ".zstd"} {
		if base, is := strings.CutSuffix(mediaType, end); is {
			return layerTypes[base]
		}
	}
	return layerTypes[mediaType]
}

// differ is containerd's diff service (1.7 and later), which makes block layers straight from blobs. It leaves to containerd's own
// whatever is not a layer for a snapshot of ours.
type differ struct {
	api.UnimplementedDiffServer
	s *Snapshotter
}

// Apply makes the layer of a blob in the snapshot that the mounts are of.
func (d differ) Apply(ctx context.Context, r *api.ApplyRequest) (*api.ApplyResponse, error) {
	id, chain := d.s.waiting(r.GetMounts())
	if id != "" && r.GetDiff().GetMediaType() == sealed.MediaType {
		l, err := d.s.applySealed(ctx, id, r.GetDiff())
		if err != nil {
			return nil, errgrpc.ToGRPC(fmt.Errorf("keeping the sealed layer %s: %w", r.GetDiff().GetDigest(), err))
		}
		return &api.ApplyResponse{Applied: &types.Descriptor{MediaType: sealed.MediaType, Digest: l.DiffID}}, nil
	}
	if id == "" || !readable(r.GetDiff().GetMediaType()) || !digestForm.MatchString(r.GetDiff().GetDigest()) {
		return nil, errgrpc.ToGRPC(errdefs.ErrNotImplemented)
	}
	l, err := d.s.apply(ctx, id, chain, r.GetDiff().GetDigest())
	if err != nil {
		return nil, errgrpc.ToGRPC(fmt.Errorf("making a block layer of %s: %w", r.GetDiff().GetDigest(), err))
	}
	return &api.ApplyResponse{Applied: &types.Descriptor{MediaType: mediaTypeTar, Digest: l.DiffID}}, nil
}

// waiting is the id of a snapshot that waits for a layer, and the layer's chain ID, by the mounts that Prepare returned.
func (s *Snapshotter) waiting(mounts []*types.Mount) (id, chain string) {
	if len(mounts) != 1 || mounts[0].GetType() != "bind" {
		return "", ""
	}
	dir, base := filepath.Split(mounts[0].GetSource())
	dir = filepath.Clean(dir)
	if base != upperDir || filepath.Dir(dir) != filepath.Join(s.cfg.Root, snapshotsDir) {
		return "", ""
	}
	raw, err := os.ReadFile(filepath.Join(dir, extraction))
	if err != nil {
		return "", ""
	}
	return filepath.Base(dir), string(raw)
}

func (s *Snapshotter) apply(ctx context.Context, id, chain, blob string) (stored, error) {
	if l, err := s.linked(id); err == nil {
		return l, nil
	} else if !errors.Is(err, os.ErrNotExist) {
		return stored{}, err
	}
	s.differs.Store(true)
	src, err := s.search(ctx, chain)
	if err != nil || src.Blob != blob {
		src = source{Blob: blob} // only what helps is lost: that the other layers are begun
	}
	s.convertAhead(ctx, src)
	l, err := s.convertBlob(ctx, src)
	if err != nil {
		return stored{}, err
	}
	defer s.unpin(l)
	return l, s.link(l, id)
}
