package aci

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sync/errgroup"
)

// RootHash reads the tar of a layer to its end and gives the dm-verity root hash of the file system that Azure makes of it, in
// hexadecimal: package layer's Build with recipe hcsshim-ext4.
type RootHash func(ctx context.Context, tar io.Reader) (string, error)

// Registries are images in registries. Each layer is read once, as a stream; what it decompresses to is checked against the diff ID of
// the image's configuration, and that against the digests of the manifest. Its methods may be called at once.
type Registries struct {
	Root RootHash
	// PlainHTTP are the registries that are spoken to in plain HTTP ("host:port").
	PlainHTTP []string
	// Keychain has the credentials. Nil: those of the docker configuration.
	Keychain authn.Keychain
	// Transport is the HTTP transport; nil means the default one.
	Transport http.RoundTripper
	// MaxLayer bounds the decompressed size of one layer in bytes. 0: 128 GiB, which is what the guest takes.
	MaxLayer int64

	mu    sync.Mutex
	roots map[v1.Hash]string // of layers, by diff ID
}

// maxLayers is how many layers overlayfs can stack.
const maxLayers = 500

// Image implements Images.
func (r *Registries) Image(ctx context.Context, image string) (Image, error) {
	out, err := r.image(ctx, image)
	if err != nil {
		return Image{}, fmt.Errorf("reading image %s: %w", image, err)
	}
	return out, nil
}

func (r *Registries) image(ctx context.Context, image string) (Image, error) {
	ref, err := name.ParseReference(image)
	if err != nil {
		return Image{}, err
	}
	host := ref.Context().RegistryStr()
	if slices.Contains(r.PlainHTTP, host) {
		ref, err = name.ParseReference(image, name.Insecure)
	} else if ref.Context().Scheme() == "http" {
		err = fmt.Errorf("registry %s would be spoken to in plain HTTP, which nobody has allowed", host)
	}
	if err != nil {
		return Image{}, err
	}
	keys := r.Keychain
	if keys == nil {
		keys = authn.DefaultKeychain
	}
	opts := []remote.Option{remote.WithContext(ctx), remote.WithAuthFromKeychain(keys), remote.WithPlatform(v1.Platform{OS: "linux", Architecture: "amd64"})}
	if r.Transport != nil {
		opts = append(opts, remote.WithTransport(r.Transport))
	}
	img, err := remote.Image(ref, opts...)
	if err != nil {
		return Image{}, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return Image{}, fmt.Errorf("its configuration: %w", err)
	}
	if config.OS != "linux" || config.Architecture != "amd64" {
		return Image{}, fmt.Errorf("it is for %s/%s, want linux/amd64", config.OS, config.Architecture)
	}
	layers, err := img.Layers()
	if err != nil {
		return Image{}, fmt.Errorf("its layers: %w", err)
	}
	if n := len(layers); n == 0 || n > maxLayers || n != len(config.RootFS.DiffIDs) {
		return Image{}, fmt.Errorf("it has %d layers and %d diff IDs", n, len(config.RootFS.DiffIDs))
	}
	out := Image{
		Entrypoint: config.Config.Entrypoint, Cmd: config.Config.Cmd, Env: config.Config.Env, User: config.Config.User,
		WorkingDir: config.Config.WorkingDir, StopSignal: config.Config.StopSignal, Layers: make([]string, len(layers)),
	}
	all, ctx := errgroup.WithContext(ctx)
	all.SetLimit(2)
	for i, l := range layers {
		all.Go(func() error {
			var err error
			if out.Layers[i], err = r.layer(ctx, l, config.RootFS.DiffIDs[i]); err != nil {
				return fmt.Errorf("layer %d: %w", i, err)
			}
			return nil
		})
	}
	return out, all.Wait()
}

func (r *Registries) layer(ctx context.Context, l v1.Layer, diffID v1.Hash) (string, error) {
	r.mu.Lock()
	root, known := r.roots[diffID]
	r.mu.Unlock()
	if known {
		return root, nil
	}
	tar, err := l.Uncompressed()
	if err != nil {
		return "", err
	}
	defer tar.Close()
	limit := r.MaxLayer
	if limit <= 0 {
		limit = 128 << 30
	}
	bounded := &io.LimitedReader{R: tar, N: limit + 1}
	sum := sha256.New()
	in := io.TeeReader(bounded, sum)
	root, err = r.Root(ctx, in)
	if err == nil {
		_, err = io.Copy(io.Discard, in) // what follows the end of the archive counts, too
	}
	if bounded.N <= 0 {
		return "", fmt.Errorf("it decompresses to more than %d bytes", limit)
	}
	if err != nil {
		return "", err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); diffID.Algorithm != "sha256" || got != diffID.Hex {
		return "", fmt.Errorf("it decompresses to sha256:%s, want %s", got, diffID)
	}
	if len(root) != 2*sha256.Size {
		return "", errors.New("the root hash is no SHA-256")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.roots == nil {
		r.roots = map[v1.Hash]string{}
	}
	r.roots[diffID] = root
	return root, nil
}
