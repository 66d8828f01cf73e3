package imagesource

import (
	"context"
	"errors"
	"fmt"
	"io"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// DefaultContainerd is the socket of a node's containerd, and KubernetesNamespace where it has the images of pods.
const (
	DefaultContainerd   = "/run/containerd/containerd.sock"
	KubernetesNamespace = "k8s.io"
)

// containerd reads the content store of a node.
type containerd struct {
	socket, namespace string
	conn              *grpc.ClientConn
	images            imagesapi.ImagesClient
	content           contentapi.ContentClient
}

func newContainerd(socket, namespace string) (*containerd, error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("connecting to containerd at %s: %w", socket, err)
	}
	return &containerd{socket, namespace, conn, imagesapi.NewImagesClient(conn), contentapi.NewContentClient(conn)}, nil
}

// String is for messages.
func (c *containerd) String() string { return "containerd at " + c.socket }

// Close implements store.
func (c *containerd) Close() error { return c.conn.Close() }

func (c *containerd) in(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "containerd-namespace", c.namespace)
}

func (c *containerd) resolve(ctx context.Context, image string) (handle, error) {
	ref, err := parseName(image)
	if err != nil {
		return handle{}, err
	}
	full := ref.Name()
	if host := ref.Context().RegistryStr(); host == name.DefaultRegistry {
		full = "docker.io" + full[len(host):]
	}
	answer, err := c.images.Get(c.in(ctx), &imagesapi.GetImageRequest{Name: full})
	if status.Code(err) == codes.NotFound {
		return handle{}, fmt.Errorf("%w in %s (namespace %s) as %s", ErrNotFound, c, c.namespace, full)
	}
	if err != nil {
		return handle{}, fmt.Errorf("asking %s: %w", c, err)
	}
	t := answer.GetImage().GetTarget()
	digest, err := v1.NewHash(t.GetDigest())
	if err != nil {
		return handle{}, fmt.Errorf("%s names the digest %q: %w", c, t.GetDigest(), err)
	}
	return handle{desc: v1.Descriptor{MediaType: types.MediaType(t.GetMediaType()), Digest: digest, Size: t.GetSize()}, open: c.open}, nil
}

func (c *containerd) open(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(c.in(ctx))
	stream, err := c.content.Read(ctx, &contentapi.ReadContentRequest{Digest: d.Digest.String()})
	if err != nil {
		cancel()
		return nil, fmt.Errorf("reading %s from %s: %w", d.Digest, c, err)
	}
	return &contentReader{stream: stream, cancel: cancel, what: d.Digest.String(), from: c}, nil
}

// contentReader is a blob as messages.
type contentReader struct {
	stream contentapi.Content_ReadClient
	cancel context.CancelFunc
	what   string
	from   *containerd
	left   []byte
}

func (r *contentReader) Read(p []byte) (int, error) {
	for len(r.left) == 0 {
		m, err := r.stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return 0, io.EOF
		case status.Code(err) == codes.NotFound:
			return 0, fmt.Errorf("%s does not have %s; it may have been discarded after unpacking (discard_unpacked_layers)", r.from, r.what)
		case err != nil:
			return 0, fmt.Errorf("reading %s from %s: %w", r.what, r.from, err)
		}
		r.left = m.GetData()
	}
	n := copy(p, r.left)
	r.left = r.left[n:]
	return n, nil
}

func (r *contentReader) Close() error {
	r.cancel()
	return nil
}
