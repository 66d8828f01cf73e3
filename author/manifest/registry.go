package manifest

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// RegistryResolver resolves images from registries. Only manifests and
// configurations are fetched.
type RegistryResolver struct {
	// InsecureHosts are spoken to in plain HTTP ("host:port").
	InsecureHosts []string
	// GuestHosts gives the name of a registry inside the guest when it differs,
	// such as 127.0.0.1:5000 -> 10.0.2.2:5000.
	GuestHosts map[string]string
	// Auth gives credentials per registry host; nil entries and absent hosts are anonymous.
	Auth map[string]authn.Authenticator
	// Transport is the HTTP transport; nil means the default one.
	Transport http.RoundTripper
	// Architecture selects the manifest of an index. Default amd64.
	Architecture string
}

// PlainHTTPError refuses a registry that would be spoken to in plain HTTP and is not among the insecure hosts.
type PlainHTTPError struct{ Image, Host string }

func (e *PlainHTTPError) Error() string {
	return fmt.Sprintf("image %q: registry %s would be spoken to in plain HTTP, which nobody has allowed", e.Image, e.Host)
}

// maxConfigBytes bounds the configuration of an image.
const maxConfigBytes = 4 << 20

// Resolve implements ImageResolver. A tag becomes the digest that the registry
// names now; a reference with a digest keeps it.
func (r *RegistryResolver) Resolve(ctx context.Context, image string) (Image, error) {
	ref, err := r.parse(image)
	if err != nil {
		return Image{}, err
	}
	arch := r.Architecture
	if arch == "" {
		arch = "amd64"
	}
	opts := []remote.Option{
		remote.WithContext(ctx),
		remote.WithPlatform(v1.Platform{OS: "linux", Architecture: arch}),
	}
	if a := r.Auth[ref.Context().RegistryStr()]; a != nil {
		opts = append(opts, remote.WithAuth(a))
	}
	if r.Transport != nil {
		opts = append(opts, remote.WithTransport(r.Transport))
	}
	desc, err := remote.Get(ref, opts...)
	if err != nil {
		return Image{}, fmt.Errorf("resolving image %s: %w", image, err)
	}
	img, err := desc.Image()
	if err != nil {
		return Image{}, fmt.Errorf("resolving image %s for linux/%s: %w", image, arch, err)
	}
	man, err := img.Manifest()
	if err != nil {
		return Image{}, fmt.Errorf("resolving image %s: reading manifest: %w", image, err)
	}
	if man.Config.Size > maxConfigBytes {
		return Image{}, fmt.Errorf("resolving image %s: the configuration has %d bytes, the limit is %d", image, man.Config.Size, maxConfigBytes)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		return Image{}, fmt.Errorf("resolving image %s: reading configuration: %w", image, err)
	}
	if cfg.OS != "" && cfg.OS != "linux" {
		return Image{}, fmt.Errorf("image %s is for %s, expected linux", image, cfg.OS)
	}
	if cfg.Architecture != "" && cfg.Architecture != arch {
		return Image{}, fmt.Errorf("image %s is for %s, expected %s", image, cfg.Architecture, arch)
	}
	return Image{
		Ref: r.guestName(ref.Context()) + "@" + desc.Digest.String(),
		Config: ImageConfig{
			Entrypoint: cfg.Config.Entrypoint, Cmd: cfg.Config.Cmd, Env: cfg.Config.Env,
			User: cfg.Config.User, WorkingDir: cfg.Config.WorkingDir, StopSignal: cfg.Config.StopSignal,
		},
	}, nil
}

func (r *RegistryResolver) parse(image string) (name.Reference, error) {
	ref, err := name.ParseReference(image)
	if err != nil {
		return nil, fmt.Errorf("image reference %q: %w", image, err)
	}
	host := ref.Context().RegistryStr()
	for _, h := range r.InsecureHosts {
		if h == host {
			return name.ParseReference(image, name.Insecure)
		}
	}
	if ref.Context().Scheme() == "http" && !strings.HasPrefix(image, "http:") {
		// The library speaks plain HTTP to local addresses by itself; here that must be asked for.
		return nil, &PlainHTTPError{Image: image, Host: host}
	}
	return ref, nil
}

// guestName is the repository as the guest names it.
func (r *RegistryResolver) guestName(repo name.Repository) string {
	host := repo.RegistryStr()
	if g, ok := r.GuestHosts[host]; ok {
		host = g
	} else if host == name.DefaultRegistry {
		host = "docker.io"
	}
	return host + "/" + repo.RepositoryStr()
}
