package imagesource

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"

	"github.com/cloister/cloister/layer"
)

// Options say where images come from.
type Options struct {
	// From are tried in this order: "registry", "oci:DIR", "archive:FILE" (OCI or docker), "containerd[:SOCKET[,NAMESPACE]]".
	// Empty: the registries.
	From     []string
	Registry RegistryOptions
	// Architecture of the guests, such as amd64, arm64, s390x or arm/v7. Default amd64.
	Architecture string
	// Recipe of roots. Default layer.Cloister.
	Recipe layer.Recipe
	// Cache is a folder for what was found in layers. Empty: nothing is kept.
	Cache string
	// Layers bounds how many layers are read at once. Default 4.
	Layers int
	// MaxLayer bounds a layer when decompressed, in bytes. Default layer.DefaultMaxSize.
	MaxLayer int64
	// Timeout bounds how long one image may take. Default an hour.
	Timeout time.Duration
}

// Images is a Source.
type Images struct {
	stores []store
	arch   string
	recipe layer.Recipe
	cache  *cache
	slots  chan struct{}
	max    int64
	time   time.Duration

	mu     sync.Mutex
	layers map[string]*pending // by digest: images share layers
}

// pending is a layer that is read, or has been.
type pending struct {
	done  chan struct{}
	facts *facts
	err   error
}

// CheckSource says whether a text has the form of one of Options.From. It looks at nothing else.
func CheckSource(from string) error {
	kind, rest, _ := strings.Cut(from, ":")
	if from == "registry" || (kind == "oci" || kind == "archive") && rest != "" || kind == "containerd" {
		return nil
	}
	return fmt.Errorf("image source %q is none of registry, oci:DIR, archive:FILE, containerd[:SOCKET[,NAMESPACE]]", from)
}

// New opens the places that images come from.
func New(o Options) (*Images, error) {
	s := &Images{arch: cmp.Or(o.Architecture, "amd64"), recipe: cmp.Or(o.Recipe, layer.Cloister), slots: make(chan struct{}, cmp.Or(o.Layers, 4)),
		max: cmp.Or(o.MaxLayer, layer.DefaultMaxSize), time: cmp.Or(o.Timeout, time.Hour), layers: map[string]*pending{}}
	from := o.From
	if len(from) == 0 {
		from = []string{"registry"}
	}
	for _, f := range from {
		if err := CheckSource(f); err != nil {
			return nil, errors.Join(err, s.Close())
		}
		kind, rest, _ := strings.Cut(f, ":")
		var st store
		var err error
		switch {
		case f == "registry":
			st, err = newRegistry(o.Registry)
		case kind == "oci" || kind == "archive":
			st, err = newLayout(rest)
		default:
			socket, namespace, _ := strings.Cut(rest, ",")
			st, err = newContainerd(cmp.Or(socket, DefaultContainerd), cmp.Or(namespace, KubernetesNamespace))
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("image source %s: %w", f, err), s.Close())
		}
		s.stores = append(s.stores, st)
	}
	if o.Cache != "" {
		var err error
		if s.cache, err = openCache(o.Cache); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	return s, nil
}

// Close gives back what the sources hold open.
func (s *Images) Close() error {
	var errs []error
	for _, st := range s.stores {
		errs = append(errs, st.Close())
	}
	return errors.Join(errs...)
}

// Image implements Source.
func (s *Images) Image(ctx context.Context, reference string, need Need) (*Image, error) {
	ctx, cancel := context.WithTimeout(ctx, s.time)
	defer cancel()
	var missing []error
	for _, st := range s.stores {
		h, err := st.resolve(ctx, reference)
		if errors.Is(err, ErrNotFound) {
			missing = append(missing, err)
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", reference, err)
		}
		img, err := s.read(ctx, h, need)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", reference, err)
		}
		img.Reference, img.Found = reference, h.found
		return img, nil
	}
	return nil, fmt.Errorf("image %s: %w", reference, errors.Join(missing...))
}

// parseName reads the name of an image.
func parseName(image string) (name.Reference, error) {
	ref, err := name.ParseReference(image)
	if err != nil { // the library's words are about its own rules
		return nil, errors.New("that is no name of an image: want HOST/PATH:TAG or HOST/PATH@DIGEST, in lower case but for the tag")
	}
	return ref, nil
}

func (s *Images) read(ctx context.Context, h handle, need Need) (*Image, error) {
	m, err := h.load(ctx, s.arch)
	if err != nil {
		return nil, err
	}
	img := m.image
	all := make([]*facts, len(m.layers))
	group, ctx := errgroup.WithContext(ctx)
	for i, d := range m.layers {
		l, sealed, err := sealedLayer(d)
		if err != nil {
			return nil, err
		}
		l.Digest, l.DiffID = d.Digest.String(), m.config.RootFS.DiffIDs[i].String()
		img.Layers = append(img.Layers, l)
		switch {
		case sealed: // like an encrypted one, with a root
		case !need.Users && !need.Roots:
		case encrypted(d) && need.Roots:
			return nil, fmt.Errorf("layer %s is encrypted; its root is that of the sealed layer, which only its owner makes", d.Digest)
		case encrypted(d): // neither we nor the node can look into it
		default:
			group.Go(func() (err error) {
				open := func(ctx context.Context) (io.ReadCloser, error) { return h.open(ctx, d) }
				if h.docker != nil {
					open = func(context.Context) (io.ReadCloser, error) { return h.docker.open(i) }
				}
				if all[i], err = s.layer(ctx, d, h.docker != nil, need.Roots, open); err != nil {
					return fmt.Errorf("layer %s: %w", d.Digest, err)
				}
				if want := m.config.RootFS.DiffIDs[i].String(); all[i].DiffID != want {
					return fmt.Errorf("layer %s unpacks to %s, and the configuration says %s", d.Digest, all[i].DiffID, want)
				}
				return nil
			})
		}
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	for i, f := range all {
		if f == nil {
			continue
		}
		img.Layers[i].Root, img.Layers[i].HashOffset = f.Root, f.HashOffset
		img.Passwd, img.Group = f.Passwd.over(img.Passwd), f.Group.over(img.Group)
	}
	return &img, nil
}

// over lays a layer's file over what is below.
func (f found) over(below []byte) []byte {
	switch f.Kind {
	case kindFile:
		return f.Content
	case kindGone:
		return nil
	}
	return below
}

// layer reads a layer once, however many images have it.
func (s *Images) layer(ctx context.Context, d v1.Descriptor, unpacked, roots bool, open func(context.Context) (io.ReadCloser, error)) (*facts, error) {
	digest, recipe := d.Digest.String(), ""
	if roots {
		recipe = string(s.recipe)
	}
	p, mine := s.claim(digest + recipe)
	for !mine {
		select {
		case <-p.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if p.err == nil || !errors.Is(p.err, context.Canceled) {
			return p.facts, p.err
		}
		p, mine = s.claim(digest + recipe) // another image's trouble ended it
	}
	p.facts, p.err = s.readLayer(ctx, d, unpacked, recipe, open)
	if p.err != nil { // another image may have it in another store
		s.mu.Lock()
		delete(s.layers, digest+recipe)
		s.mu.Unlock()
	}
	close(p.done)
	return p.facts, p.err
}

// claim finds a layer that is read, or begins one; then it is the caller's to finish.
func (s *Images) claim(key string) (p *pending, mine bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.layers[key]; p != nil {
		return p, false
	}
	p = &pending{done: make(chan struct{})}
	s.layers[key] = p
	return p, true
}

func (s *Images) readLayer(ctx context.Context, d v1.Descriptor, unpacked bool, recipe string, open func(context.Context) (io.ReadCloser, error)) (*facts, error) {
	// The containerd recipe's result depends on a program, which can change.
	cached := s.cache != nil && recipe != string(layer.Containerd)
	if cached {
		if f := s.cache.get(d.Digest.String(), recipe); f != nil {
			return f, nil
		}
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	r, err := open(ctx)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	f, err := scan(ctx, r, d, unpacked, recipe != "", layer.Recipe(recipe), s.max)
	if err != nil {
		return nil, err
	}
	if cached {
		if err := s.cache.put(d.Digest.String(), recipe, f); err != nil {
			return nil, fmt.Errorf("keeping it in the cache: %w", err)
		}
	}
	return f, nil
}

func configOf(c *v1.ConfigFile) Config {
	x := c.Config
	return Config{User: x.User, Env: x.Env, Entrypoint: x.Entrypoint, Cmd: x.Cmd, WorkingDir: x.WorkingDir, StopSignal: x.StopSignal,
		Volumes: slices.Sorted(maps.Keys(x.Volumes))}
}
