package snapshotter

import (
	"context"
	"fmt"
	"slices"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// namedImage is an image of containerd's.
type namedImage struct{ Namespace, Name, Target string }

// imageStore is what is needed of containerd to know which images have a layer.
type imageStore interface {
	contentStore
	Images(ctx context.Context) ([]namedImage, error)
}

// askTime bounds what is asked of containerd about damaged layers.
const askTime = 30 * time.Second

// maxIndexDepth is of an index in an index.
const maxIndexDepth = 4

// users finds the images with layers of the diff IDs that are wanted: by diff ID, as namespace and name. Images that cannot be read, of
// which content may be missing, are left out.
func users(ctx context.Context, from imageStore, wanted map[string]bool) (map[string][]string, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	images, err := from.Images(ctx)
	if err != nil {
		return nil, err
	}
	out := map[string][]string{}
	for _, img := range images {
		left := maxManifests
		for _, diffID := range diffIDs(namespaces.WithNamespace(ctx, img.Namespace), from, img.Target, maxIndexDepth, &left) {
			name := img.Namespace + " " + img.Name
			if wanted[diffID] && !slices.Contains(out[diffID], name) {
				out[diffID] = append(out[diffID], name)
			}
		}
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("reading containerd's images: %w", context.Cause(ctx))
		}
	}
	return out, nil
}

// diffIDs are those of all platforms of an image that are there. left is how many more manifests may be read.
func diffIDs(ctx context.Context, from contentStore, digest string, depth int, left *int) (found []string) {
	if *left--; depth == 0 || *left < 0 || !digestForm.MatchString(digest) {
		return nil
	}
	type descriptor struct {
		Digest string `json:"digest"`
	}
	var manifest struct {
		Config    *descriptor  `json:"config"`
		Manifests []descriptor `json:"manifests"`
	}
	if readJSON(ctx, from, digest, maxManifest, &manifest) != nil {
		return nil // of another platform, mostly
	}
	for _, m := range manifest.Manifests {
		found = append(found, diffIDs(ctx, from, m.Digest, depth-1, left)...)
	}
	var config struct {
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if manifest.Config != nil && digestForm.MatchString(manifest.Config.Digest) && readJSON(ctx, from, manifest.Config.Digest, maxImageConfig, &config) == nil {
		found = append(found, config.RootFS.DiffIDs...)
	}
	return found
}

// grpcImages are containerd's images.
type grpcImages struct {
	grpcContent
	spaces namespacesapi.NamespacesClient
	images imagesapi.ImagesClient
	conn   *grpc.ClientConn
}

// dialImages prepares to ask containerd, which may not run.
func dialImages(socket string) (*grpcImages, error) {
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		return nil, fmt.Errorf("connecting to containerd: %w", err)
	}
	return &grpcImages{grpcContent{contentapi.NewContentClient(conn)}, namespacesapi.NewNamespacesClient(conn), imagesapi.NewImagesClient(conn), conn}, nil
}

func (g *grpcImages) Images(ctx context.Context) ([]namedImage, error) {
	spaces, err := g.spaces.List(ctx, &namespacesapi.ListNamespacesRequest{})
	if err != nil {
		return nil, fmt.Errorf("asking containerd for its namespaces: %w", errgrpc.ToNative(err))
	}
	var out []namedImage
	for _, space := range spaces.GetNamespaces() {
		list, err := g.images.List(namespaces.WithNamespace(ctx, space.GetName()), &imagesapi.ListImagesRequest{})
		if err != nil {
			return nil, fmt.Errorf("asking containerd for the images of %s: %w", space.GetName(), errgrpc.ToNative(err))
		}
		for _, img := range list.GetImages() {
			out = append(out, namedImage{space.GetName(), img.GetName(), img.GetTarget().GetDigest()})
		}
	}
	return out, nil
}
