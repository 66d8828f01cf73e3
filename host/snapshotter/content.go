package snapshotter

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	api "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
)

// contentStore is what is needed of containerd's. The context has the namespace.
type contentStore interface {
	// Size is the number of bytes of a blob that is there as a whole; an error that is errdefs.ErrNotFound if it is not.
	Size(ctx context.Context, digest string) (int64, error)
	Open(ctx context.Context, digest string) (io.ReadCloser, error)
	// Manifests are the digests of blobs that refer to an image's configuration.
	Manifests(ctx context.Context) ([]string, error)
}

// grpcContent is containerd's content store.
type grpcContent struct{ client api.ContentClient }

// maxMessage is more than containerd sends at once.
const maxMessage = 16 << 20

// maxManifests bounds the search for the image that a layer is of.
const maxManifests = 20000

func outgoing(ctx context.Context) (context.Context, error) {
	ns, ok := namespaces.Namespace(ctx)
	if !ok {
		return nil, fmt.Errorf("the request has no namespace: %w", errdefs.ErrFailedPrecondition)
	}
	return namespaces.WithNamespace(ctx, ns), nil
}

func (g grpcContent) Size(ctx context.Context, digest string) (int64, error) {
	ctx, err := outgoing(ctx)
	if err != nil {
		return 0, err
	}
	r, err := g.client.Info(ctx, &api.InfoRequest{Digest: digest})
	if err != nil {
		return 0, fmt.Errorf("asking containerd for blob %s: %w", digest, errgrpc.ToNative(err))
	}
	return r.GetInfo().GetSize(), nil
}

func (g grpcContent) Manifests(ctx context.Context) ([]string, error) {
	ctx, err := outgoing(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := g.client.List(ctx, &api.ListContentRequest{Filters: []string{`labels."containerd.io/gc.ref.content.config"`}})
	if err != nil {
		return nil, fmt.Errorf("asking containerd for manifests: %w", errgrpc.ToNative(err))
	}
	var found []string
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return found, nil
		}
		if err != nil {
			return nil, fmt.Errorf("asking containerd for manifests: %w", errgrpc.ToNative(err))
		}
		for _, info := range r.GetInfo() {
			found = append(found, info.GetDigest())
		}
		if len(found) > maxManifests {
			return nil, fmt.Errorf("containerd has more than %d manifests", maxManifests)
		}
	}
}

func (g grpcContent) Open(ctx context.Context, digest string) (io.ReadCloser, error) {
	ctx, err := outgoing(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	stream, err := g.client.Read(ctx, &api.ReadContentRequest{Digest: digest}, grpc.MaxCallRecvMsgSize(maxMessage))
	if err != nil {
		cancel()
		return nil, fmt.Errorf("reading blob %s: %w", digest, errgrpc.ToNative(err))
	}
	return &blobReader{stream: stream, cancel: cancel, digest: digest}, nil
}

type blobReader struct {
	stream api.Content_ReadClient
	cancel context.CancelFunc
	digest string
	rest   []byte
}

func (b *blobReader) Read(p []byte) (int, error) {
	for len(b.rest) == 0 {
		r, err := b.stream.Recv()
		if errors.Is(err, io.EOF) {
			return 0, io.EOF
		}
		if err != nil {
			return 0, fmt.Errorf("reading blob %s: %w", b.digest, errgrpc.ToNative(err))
		}
		b.rest = r.GetData()
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}

func (b *blobReader) Close() error {
	b.cancel()
	return nil
}

// Magic numbers of what layers are compressed with. The media type says it, too, but registries get it wrong.
var (
	gzipMagic = []byte{0x1f, 0x8b}
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}
)

// zstdWindow is the largest that is accepted: what `zstd --ultra` needs.
const zstdWindow = 128 << 20

// openLayer opens the tar in a blob.
func (s *Snapshotter) openLayer(ctx context.Context, digest string) (tarStream, error) {
	blob, err := s.content.Open(ctx, digest)
	if err != nil {
		return nil, err
	}
	in := bufio.NewReaderSize(blob, 1<<20)
	head, err := in.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, errors.Join(err, blob.Close())
	}
	switch {
	case bytes.HasPrefix(head, gzipMagic):
		z, err := gzip.NewReader(in)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("unpacking blob %s: %w", digest, err), blob.Close())
		}
		return runAhead(z, blob.Close, func() { _ = z.Close() }), nil // its Close has nothing to say that Read did not
	case bytes.HasPrefix(head, zstdMagic), len(head) == 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:], []byte{0x2a, 0x4d, 0x18}):
		z, err := zstd.NewReader(in, zstd.WithDecoderMaxWindow(zstdWindow), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("unpacking blob %s: %w", digest, err), blob.Close())
		}
		return runAhead(z, blob.Close, z.Close), nil
	}
	return struct {
		io.Reader
		io.Closer
	}{in, blob}, nil
}
