package imagesource

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// RegistryOptions say how to reach registries.
type RegistryOptions struct {
	Insecure  []string          // hosts to speak plain HTTP with, as in references
	Keychain  authn.Keychain    // nil: docker's configuration and credential helpers
	Transport http.RoundTripper // nil: the default
}

// PlainHTTPError refuses a registry that would be spoken to in plain HTTP, which nobody has allowed.
type PlainHTTPError struct{ Host string }

func (e *PlainHTTPError) Error() string {
	return fmt.Sprintf("registry %s would be spoken to in plain HTTP, which nobody has allowed", e.Host)
}

// AccessError says that a registry wants other credentials, or any.
type AccessError struct {
	Host string
	Err  error
}

func (e *AccessError) Error() string {
	return fmt.Sprintf("registry %s refuses access: %v", e.Host, e.Err)
}

func (e *AccessError) Unwrap() error { return e.Err }

// registry is all registries there are.
type registry struct {
	insecure []string
	puller   *remote.Puller
}

func newRegistry(o RegistryOptions) (*registry, error) {
	if o.Keychain == nil {
		o.Keychain = authn.DefaultKeychain
	}
	opts := []remote.Option{remote.WithAuthFromKeychain(o.Keychain)}
	if o.Transport != nil {
		opts = append(opts, remote.WithTransport(o.Transport))
	}
	p, err := remote.NewPuller(opts...)
	if err != nil {
		return nil, fmt.Errorf("preparing for registries: %w", err)
	}
	return &registry{o.Insecure, p}, nil
}

// Close implements store. Connections end by themselves.
func (r *registry) Close() error { return nil }

func (r *registry) parse(image string) (name.Reference, error) {
	ref, err := parseName(image)
	if err != nil {
		return nil, err
	}
	host := ref.Context().RegistryStr()
	if slices.Contains(r.insecure, host) {
		return name.ParseReference(image, name.Insecure)
	}
	if ref.Context().Scheme() == "http" {
		// The library speaks plain HTTP to local addresses by itself; here that must be asked for.
		return nil, &PlainHTTPError{host}
	}
	return ref, nil
}

func (r *registry) resolve(ctx context.Context, image string) (handle, error) {
	ref, err := r.parse(image)
	if err != nil {
		return handle{}, err
	}
	desc, err := r.puller.Get(ctx, ref)
	if err != nil {
		return handle{}, refusal(ref, err)
	}
	repo := ref.Context()
	open := func(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
		if d.Digest == desc.Digest {
			return io.NopCloser(strings.NewReader(string(desc.Manifest))), nil
		}
		at := repo.Digest(d.Digest.String())
		if d.MediaType.IsIndex() || d.MediaType.IsImage() {
			m, err := r.puller.Get(ctx, at)
			if err != nil {
				return nil, refusal(ref, err)
			}
			return io.NopCloser(strings.NewReader(string(m.Manifest))), nil
		}
		l, err := r.puller.Layer(ctx, at)
		if err != nil {
			return nil, err
		}
		return l.Compressed()
	}
	return handle{desc: desc.Descriptor, open: open}, nil
}

// refusal tells apart why a registry gives nothing.
func refusal(ref name.Reference, err error) error {
	var t *transport.Error
	if !errors.As(err, &t) {
		return err
	}
	switch t.StatusCode {
	case http.StatusNotFound:
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	case http.StatusUnauthorized, http.StatusForbidden:
		return &AccessError{ref.Context().RegistryStr(), err}
	}
	return err
}
