package imagesource

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"reflect"
	"testing"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	ctypes "github.com/containerd/containerd/api/types"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// node is the part of containerd that has images, as far as it is asked here.
type node struct {
	imagesapi.UnimplementedImagesServer
	target *ctypes.Descriptor
}

func (n *node) Get(ctx context.Context, r *imagesapi.GetImageRequest) (*imagesapi.GetImageResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	if ns := md.Get("containerd-namespace"); r.GetName() != "docker.io/library/app:1" || len(ns) != 1 || ns[0] != "k8s.io" {
		return nil, status.Error(codes.NotFound, "no such image")
	}
	return &imagesapi.GetImageResponse{Image: &imagesapi.Image{Name: r.GetName(), Target: n.target}}, nil
}

// contents is its store of blobs.
type contents struct {
	contentapi.UnimplementedContentServer
	blobs map[string][]byte
}

func (n *contents) Read(r *contentapi.ReadContentRequest, to contentapi.Content_ReadServer) error {
	b, ok := n.blobs[r.GetDigest()]
	if !ok {
		return status.Error(codes.NotFound, "no such blob")
	}
	for len(b) > 0 {
		part := b[:min(len(b), 100)]
		if err := to.Send(&contentapi.ReadContentResponse{Data: part}); err != nil {
			return err
		}
		b = b[len(part):]
	}
	return nil
}

func TestContainerd(t *testing.T) {
	img := image(t, "amd64")
	n, c := &node{}, &contents{blobs: map[string][]byte{}}
	keep := func(b []byte, err error) string {
		if err != nil {
			t.Fatal(err)
		}
		h, _, err := v1.SHA256(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		c.blobs[h.String()] = b
		return h.String()
	}
	manifest, err := img.RawManifest()
	n.target = &ctypes.Descriptor{MediaType: "application/vnd.oci.image.manifest.v1+json", Digest: keep(manifest, err), Size: int64(len(manifest))}
	keep(img.RawConfigFile())
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		keep(blobOf(l))
	}
	socket := filepath.Join(t.TempDir(), "c.sock")
	var lc net.ListenConfig
	listener, err := lc.Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	imagesapi.RegisterImagesServer(server, n)
	contentapi.RegisterContentServer(server, c)
	go server.Serve(listener)
	t.Cleanup(server.Stop)

	o := Options{From: []string{"containerd:" + socket}}
	got, err := get(t, o, "app:1", all)
	if err != nil || got.Digest != n.target.GetDigest() || string(got.Passwd) != passwdTwo || got.Layers[0].Root == "" {
		t.Errorf("%+v, %v", got, err)
	}
	if again, err := get(t, o, "docker.io/library/app:1", all); err != nil || !reflect.DeepEqual(again.Layers, got.Layers) {
		t.Errorf("%+v, %v", again, err)
	}
	if _, err := get(t, o, "app:2", all); !errors.Is(err, ErrNotFound) {
		t.Errorf("another tag: %v", err)
	}
	if _, err := get(t, Options{From: []string{"containerd:" + socket + ",default"}}, "app:1", all); !errors.Is(err, ErrNotFound) {
		t.Errorf("another namespace: %v", err)
	}
	delete(c.blobs, got.Layers[1].Digest)
	if _, err := get(t, o, "app:1", all); err == nil {
		t.Error("a layer that is not there is read")
	}
}

func blobOf(l v1.Layer) ([]byte, error) {
	r, err := l.Compressed()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}
