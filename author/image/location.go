// Package image makes container images fit for confidential pods on the author's desk: it builds small images from
// files, encrypts layers for a key that only attested guests get, signs them the way cosign does, and shows what an
// image is made of. Images live at a registry or in an OCI layout directory.
package image

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/match"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const (
	annotationRefName   = "org.opencontainers.image.ref.name"
	annotationImageName = "io.containerd.image.name" // the name in full, where containerd or docker wrote the layout
)

// Options say how to reach registries. The zero value uses HTTPS (or plain HTTP, for loopback addresses only) and the user's
// docker credentials.
type Options struct {
	PlainHTTP []string          // registries, with their ports, to which plain HTTP is allowed
	Keychain  authn.Keychain    // default: authn.DefaultKeychain
	Transport http.RoundTripper // default: remote.DefaultTransport
}

func (o Options) remote(ctx context.Context) []remote.Option {
	out := []remote.Option{remote.WithContext(ctx)}
	if o.Keychain != nil {
		out = append(out, remote.WithAuthFromKeychain(o.Keychain))
	} else {
		out = append(out, remote.WithAuthFromKeychain(authn.DefaultKeychain))
	}
	if o.Transport != nil {
		out = append(out, remote.WithTransport(o.Transport))
	}
	return out
}

func (o Options) parse(ref string) (name.Reference, error) {
	plain := strings.TrimPrefix(ref, "docker://")
	r, err := name.ParseReference(plain)
	if err == nil && slices.Contains(o.PlainHTTP, r.Context().RegistryStr()) {
		return name.ParseReference(plain, name.Insecure)
	}
	if err != nil {
		return nil, fmt.Errorf("image reference %q: %w", ref, err)
	}
	// The library would speak plain HTTP to private addresses and names that end in .localhost, too, where HTTPS is not answered.
	if host := r.Context().RegistryStr(); r.Context().Scheme() == "http" && !loopback(host) {
		return nil, fmt.Errorf("image reference %q: %w", ref, &PlainHTTPError{host})
	}
	return r, nil
}

// PlainHTTPError refuses a registry that could be spoken to in plain HTTP, which nobody has allowed.
type PlainHTTPError struct{ Host string }

func (e *PlainHTTPError) Error() string {
	return fmt.Sprintf("registry %s could be spoken to in plain HTTP, which nobody has allowed", e.Host)
}

// loopback says whether a registry, with or without a port, is on this machine.
func loopback(registry string) bool {
	host, _, err := net.SplitHostPort(registry)
	if err != nil {
		host = strings.Trim(registry, "[]")
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.Unmap().IsLoopback()
}

// location is where an image is: a reference at a registry, or oci:<directory>[:<tag>].
type location struct {
	dir, tag string // OCI layout
	ref      name.Reference
}

func (o Options) locate(s string) (location, error) {
	if rest, ok := strings.CutPrefix(s, "oci:"); ok {
		dir, tag := splitLayout(rest)
		if dir == "" {
			return location{}, fmt.Errorf("%q names no directory", s)
		}
		return location{dir: dir, tag: tag}, nil
	}
	ref, err := o.parse(s)
	return location{ref: ref}, err
}

// splitLayout takes a name off a directory. A name may have colons and slashes itself, as docker.io/library/app:1: the directory is then
// the one that holds a layout.
func splitLayout(s string) (dir, tag string) {
	for i := range len(s) + 1 {
		if i < len(s) && s[i] != ':' {
			continue
		}
		if _, err := os.Stat(filepath.Join(s[:i], "index.json")); err == nil && i > 0 {
			return s[:i], strings.TrimPrefix(s[i:], ":")
		}
	}
	if i := strings.LastIndexByte(s, ':'); i > strings.LastIndexByte(s, '/') {
		return s[:i], s[i+1:]
	}
	return s, ""
}

func (l location) String() string {
	if l.dir == "" {
		return l.ref.Name()
	}
	if l.tag == "" {
		return "oci:" + l.dir
	}
	return "oci:" + l.dir + ":" + l.tag
}

// artifact is what a location holds: exactly one of the two.
type artifact struct {
	image v1.Image
	index v1.ImageIndex
}

func (a artifact) digest() (v1.Hash, error) {
	if a.index != nil {
		return a.index.Digest()
	}
	return a.image.Digest()
}

// load opens the image or index at l.
func (o Options) load(ctx context.Context, l location) (artifact, error) {
	if l.dir == "" {
		desc, err := remote.Get(l.ref, o.remote(ctx)...)
		if err != nil {
			return artifact{}, fmt.Errorf("fetching %s: %w", l, err)
		}
		if desc.MediaType.IsIndex() {
			ix, err := desc.ImageIndex()
			return artifact{index: ix}, err
		}
		img, err := desc.Image()
		return artifact{image: img}, err
	}
	path, err := layout.FromPath(l.dir)
	if err != nil {
		return artifact{}, fmt.Errorf("opening %s: %w", l, err)
	}
	root, err := path.ImageIndex()
	if err != nil {
		return artifact{}, fmt.Errorf("opening %s: %w", l, err)
	}
	m, err := root.IndexManifest()
	if err != nil {
		return artifact{}, fmt.Errorf("opening %s: %w", l, err)
	}
	var found []v1.Descriptor
	var names []string
	for _, d := range m.Manifests {
		if l.tag == "" || d.Annotations[annotationRefName] == l.tag || d.Annotations[annotationImageName] == l.tag {
			found = append(found, d)
		}
		if name := d.Annotations[annotationRefName]; name != "" && len(names) < 10 {
			names = append(names, strconv.Quote(name))
		}
	}
	if len(found) != 1 {
		return artifact{}, fmt.Errorf("%s: %d images match, expected one; the layout has %d, of names %s", l, len(found), len(m.Manifests), strings.Join(names, ", "))
	}
	if found[0].MediaType.IsIndex() {
		ix, err := root.ImageIndex(found[0].Digest)
		return artifact{index: ix}, err
	}
	img, err := root.Image(found[0].Digest)
	return artifact{image: img}, err
}

// save writes an image or index to l.
func (o Options) save(ctx context.Context, l location, a artifact) error {
	var err error
	switch {
	case l.dir != "":
		err = saveLayout(l, a)
	case a.index != nil:
		err = remote.WriteIndex(l.ref, a.index, o.remote(ctx)...)
	default:
		err = remote.Write(l.ref, a.image, o.remote(ctx)...)
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", l, err)
	}
	return nil
}

func saveLayout(l location, a artifact) error {
	path, err := layout.FromPath(l.dir)
	if errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(l.dir), 0o755); err != nil {
			return err
		}
		path, err = layout.Write(l.dir, empty.Index)
	}
	if err != nil {
		return err
	}
	digest, err := a.digest()
	if err != nil {
		return err
	}
	matcher, opts := match.Digests(digest), []layout.Option{}
	if l.tag != "" {
		matcher = match.Name(l.tag)
		opts = append(opts, layout.WithAnnotations(map[string]string{annotationRefName: l.tag}))
	}
	if a.index != nil {
		return path.ReplaceIndex(a.index, matcher, opts...)
	}
	return path.ReplaceImage(a.image, matcher, opts...)
}

// Copy copies an image or index unchanged and returns its digest. It pushes what Build made and moves images between
// registries and OCI layouts.
func Copy(ctx context.Context, src, dst string, opts Options) (string, error) {
	return opts.transfer(ctx, src, dst, func(_ location, a artifact) (artifact, error) { return a, nil })
}

// transfer writes what change makes of src to dst and returns its digest.
func (o Options) transfer(ctx context.Context, src, dst string, change func(from location, a artifact) (artifact, error)) (string, error) {
	from, err := o.locate(src)
	if err != nil {
		return "", err
	}
	to, err := o.locate(dst)
	if err != nil {
		return "", err
	}
	a, err := o.load(ctx, from)
	if err != nil {
		return "", err
	}
	if a, err = change(from, a); err != nil {
		return "", err
	}
	if err := o.save(ctx, to, a); err != nil {
		return "", err
	}
	d, err := a.digest()
	return d.String(), err
}

// Push writes an image to a registry or OCI layout and returns its digest.
func Push(ctx context.Context, img v1.Image, dst string, opts Options) (string, error) {
	to, err := opts.locate(dst)
	if err != nil {
		return "", err
	}
	if err := opts.save(ctx, to, artifact{image: img}); err != nil {
		return "", err
	}
	d, err := img.Digest()
	return d.String(), err
}

// Digest resolves a reference to the digest of the manifest or index it names.
func Digest(ctx context.Context, ref string, opts Options) (string, error) {
	l, err := opts.locate(ref)
	if err != nil {
		return "", err
	}
	a, err := opts.load(ctx, l)
	if err != nil {
		return "", err
	}
	d, err := a.digest()
	return d.String(), err
}

// rawImage is an image made of a manifest and a configuration that are kept byte for byte.
type rawImage struct {
	manifest  []byte
	config    []byte
	mediaType types.MediaType
	layers    map[v1.Hash]partial.CompressedLayer
}

func (r *rawImage) RawConfigFile() ([]byte, error)      { return r.config, nil }
func (r *rawImage) RawManifest() ([]byte, error)        { return r.manifest, nil }
func (r *rawImage) MediaType() (types.MediaType, error) { return r.mediaType, nil }

func (r *rawImage) LayerByDigest(h v1.Hash) (partial.CompressedLayer, error) {
	l, ok := r.layers[h]
	if !ok {
		return nil, fmt.Errorf("image has no layer %s", h)
	}
	return l, nil
}
