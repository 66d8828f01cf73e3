package image

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// resolved is an image whose manifest and configuration are known and verified against each other.
type resolved struct {
	top      Digest  // what the reference names: a manifest or an index
	manifest Digest  // this platform's manifest
	list     *Digest // the index, if there is one
	layers   []layer
	config   *config

	configDesc descriptor
}

// pullFrom pulls from one source: manifest, policy, layers, root file system.
func (c *Client) pullFrom(ctx context.Context, s *settings, src source, bundlePath string) (string, error) {
	start := time.Now()
	cred := s.credentials.lookup(src.ref)
	if src.insecure && cred != (credential{}) {
		// Before the first request: whoever is on the way could ask for the login, on loopback as well.
		return "", fmt.Errorf("credentials are configured for %s, and the registry configuration makes it insecure: "+
			"they would be sent in the clear over plain HTTP, expected HTTPS or no credentials", src.ref.Name())
	}
	reg := newRegistry(c.transport, src.ref, src.insecure, cred, c.log)
	img, err := c.resolve(ctx, reg, src.ref)
	if err != nil {
		return "", err
	}
	// Before anything is fetched that the policy might refuse, and before anything already here is used again.
	if err := c.admit(ctx, s, reg, src.ref, img); err != nil {
		return "", err
	}
	if err := c.configure(ctx, reg, img); err != nil {
		return "", err
	}
	ids, dirs, reused, err := c.fetchLayers(ctx, reg, img)
	if err != nil {
		return "", err
	}
	if err := c.makeBundle(bundlePath, img, ids, dirs); err != nil {
		c.store.release(ids)
		return "", err
	}
	c.log.Info("image pulled", "image", src.ref.String(), "manifest", img.manifest.String(),
		"layers", len(img.layers), "reused", reused, "took", time.Since(start).Round(time.Millisecond))
	return img.manifest.String(), nil
}

// resolve fetches the manifest, through an index if the reference names one.
func (c *Client) resolve(ctx context.Context, reg *registry, ref Reference) (*resolved, error) {
	name := ref.Tag
	if ref.Pinned() {
		name = ref.Digest.String()
	}
	data, contentType, top, err := reg.manifest(ctx, name, ref.Digest)
	if err != nil {
		return nil, err
	}
	m, ix, err := parseManifest(data, contentType)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	img := &resolved{top: top, manifest: top}
	if ix != nil {
		desc, err := ix.choose(c.cfg.Architecture)
		if err != nil {
			return nil, err
		}
		data, contentType, img.manifest, err = reg.manifest(ctx, desc.Digest.String(), desc.Digest)
		if err != nil {
			return nil, err
		}
		if int64(len(data)) != desc.Size {
			return nil, fmt.Errorf("manifest %s has %d bytes, its index says %d", desc.Digest, len(data), desc.Size)
		}
		if m, ix, err = parseManifest(data, contentType); err != nil {
			return nil, fmt.Errorf("manifest %s: %w", desc.Digest, err)
		}
		if ix != nil {
			return nil, fmt.Errorf("%s: an index inside an index", desc.Digest)
		}
		img.list = &top
	}
	for i, d := range m.Layers {
		typ, err := parseLayerType(d.MediaType)
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i+1, err)
		}
		img.layers = append(img.layers, layer{number: i + 1, desc: d, typ: typ})
	}

	img.configDesc = m.Config
	return img, nil
}

// configure fetches the image configuration and gives the layers their diff_ids.
func (c *Client) configure(ctx context.Context, reg *registry, img *resolved) error {
	data, err := reg.blob(ctx, img.configDesc, maxConfigBytes)
	if err != nil {
		return fmt.Errorf("image configuration: %w", err)
	}
	if img.config, err = parseConfig(data, len(img.layers), c.cfg.Architecture); err != nil {
		return err
	}
	for i := range img.layers {
		img.layers[i].diffID = img.config.RootFS.DiffIDs[i]
	}
	return nil
}

// fetchLayers makes the image's layers present and counts one use of each. dirs are lowest first.
func (c *Client) fetchLayers(ctx context.Context, reg *registry, img *resolved) (ids, dirs []string, reused int, err error) {
	// The same layer can appear more than once in an image; it is fetched once.
	present := map[string]string{}
	var missing []layer
	var size int64
	for _, l := range img.layers {
		id := l.id()
		if _, seen := present[id]; seen {
			continue
		}
		dir, ok := c.store.use(id)
		present[id] = dir
		if ok {
			reused++
			ids = append(ids, id)
			continue
		}
		missing = append(missing, l)
		size += l.desc.Size // cannot overflow: the manifest's check has added up all layers
	}
	defer func() {
		if err != nil {
			c.store.release(ids)
			ids = nil
		}
	}()
	if len(missing) > 0 {
		use, err := c.limits(size)
		if err != nil {
			return ids, nil, 0, err
		}
		made, err := c.fetchAll(ctx, reg, missing, use)
		for id, dir := range made {
			present[id] = dir
			ids = append(ids, id)
		}
		if err != nil {
			return ids, nil, 0, err
		}
	}
	// overlayfs refuses the same directory twice; the upper occurrence decides.
	for i, l := range img.layers {
		id, again := l.id(), false
		for _, above := range img.layers[i+1:] {
			again = again || above.id() == id
		}
		if !again {
			dirs = append(dirs, present[id])
		}
	}
	return ids, dirs, reused, nil
}

// limits is what the image may use. When the compressed layers alone do not fit, layers without users make room.
func (c *Client) limits(compressed int64) (*usage, error) {
	l, err := c.cfg.Limits.withDefaults(c.store.dir)
	if err == nil && c.cfg.Limits.MaxBytes <= 0 && compressed > l.MaxBytes {
		if err := c.store.prune(); err != nil {
			return nil, fmt.Errorf("making room: %w", err)
		}
		l, err = c.cfg.Limits.withDefaults(c.store.dir)
	}
	if err != nil {
		return nil, err
	}
	if compressed > l.MaxBytes {
		return nil, &LimitError{What: fmt.Sprintf("compressed size of the image (%d bytes)", compressed), Limit: l.MaxBytes}
	}
	return &usage{limits: l}, nil
}

// fetchAll fetches layers, a few at a time. The first failure stops the others; all that finished are returned.
func (c *Client) fetchAll(ctx context.Context, reg *registry, layers []layer, use *usage) (map[string]string, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	keys := newKeyring(c.resources.keys)
	defer keys.close()
	slots := make(chan struct{}, c.cfg.MaxConcurrentLayers)
	made := map[string]string{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	var first error
	for _, l := range layers {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break
		}
		wg.Go(func() {
			defer func() { <-slots }()
			dir, err := c.store.add(ctx, l.id(), func(ctx context.Context, dir string) error {
				return l.fetch(ctx, reg, keys, use, dir)
			})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				made[l.id()] = dir
			} else if first == nil {
				first = fmt.Errorf("%v: %w", l, err)
				cancel(first)
			}
		})
	}
	wg.Wait()
	if first == nil && ctx.Err() != nil {
		first = ctx.Err()
	}
	return made, first
}
