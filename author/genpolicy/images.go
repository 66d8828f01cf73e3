package genpolicy

import (
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/cloister/cloister/author/imagesource"
	"github.com/cloister/cloister/author/kubernetes"
)

// digests are all that stand for the content of an image.
func digests(img *imagesource.Image) []string {
	out := []string{}
	for _, d := range []string{img.Digest, img.Manifest} {
		if d != "" && !slices.Contains(out, d) {
			out = append(out, d)
		}
	}
	return out
}

// checkSealed refuses an image that the guest cannot pull, once however many containers have it.
func (g *generator) checkSealed(path string, c *kubernetes.Container, img *imagesource.Image) {
	if g.s.HostLayers() || g.sealed[c.Image] {
		return
	}
	n := 0
	for _, l := range img.Layers {
		if l.KeyID != "" {
			n++
		}
	}
	if n == 0 {
		return
	}
	g.sealed[c.Image] = true
	g.fail(c.At, path+".image", "%d of the %d layers of %s are sealed: the host attaches such layers, and the guest cannot pull them; generate with --layers host",
		n, len(img.Layers), c.Image)
}

// imageRef binds a container to its image.
func (g *generator) imageRef(path string, c *kubernetes.Container, img *imagesource.Image) *imageRef {
	r := &imageRef{Reference: c.Image, Digest: img.Digest, Digests: digests(img), Names: []string{}}
	if img.Digest == "" && g.images[c.Image] != nil && !g.s.HostLayers() {
		g.fail(c.At, path+".image", "an archive of docker does not say by which digest the guest could pull %s; take it from a registry or an OCI archive", c.Image)
	}
	if img.Found != "" {
		g.warn(c.At, path+".image", "%s is taken from %s, which has an image with this tag and does not say of which name: look whether it is this one", c.Image, img.Found)
	}
	if strings.Contains(c.Image, "@") || img.Digest == "" {
		return r
	}
	switch g.o.Tags {
	case RefuseTags:
		g.fail(c.At, path+".image", "%s is named by tag, which can change; write %s", c.Image, c.Image+"@"+img.Digest)
	case AllowTags:
		r.ByTag = true
		r.Names = append(r.Names, c.Image)
		if ref, err := name.ParseReference(c.Image, name.WithDefaultRegistry("docker.io")); err == nil {
			full := strings.Replace(ref.Name(), "index.docker.io/", "docker.io/", 1)
			if full != c.Image {
				r.Names = append(r.Names, full)
			}
		}
		g.warn(c.At, path+".image", "%s is named by tag: the host chooses which image that is", c.Image)
	default:
		r.Reference = c.Image + "@" + img.Digest
		g.result.Pins = append(g.result.Pins, Pin{c, r.Reference})
	}
	return r
}
