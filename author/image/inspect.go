package image

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	layerformat "github.com/cloister/cloister/layer/sealed"
)

const (
	annotationKeys       = "org.opencontainers.image.enc.keys."
	maxInspectSignatures = 64
)

// Info is what there is to know about an image without its keys.
type Info struct {
	Reference  string      `json:"reference"`
	Digest     string      `json:"digest"` // of the manifest or index that the reference names
	MediaType  string      `json:"media_type"`
	Index      bool        `json:"index"`
	Platforms  []Platform  `json:"platforms"`
	Signatures []Signature `json:"signatures"`
}

// Platform is one image of an index, or the only one.
type Platform struct {
	OS           string    `json:"os"`
	Architecture string    `json:"architecture"`
	Digest       string    `json:"digest"`
	ConfigDigest string    `json:"config_digest"`
	Config       v1.Config `json:"config"`
	Layers       []Layer   `json:"layers"`
}

// Encrypted says whether every layer is encrypted, and whether any is.
func (p Platform) Encrypted() (all, any bool) {
	all = len(p.Layers) > 0
	for _, l := range p.Layers {
		all, any = all && l.Encrypted, any || l.Encrypted
	}
	return all, any
}

// Layer is one layer of an image.
type Layer struct {
	Digest    string   `json:"digest"`
	DiffID    string   `json:"diff_id"`
	MediaType string   `json:"media_type"`
	Size      int64    `json:"size"`
	Encrypted bool     `json:"encrypted"`
	Sealed    bool     `json:"sealed,omitempty"`  // a sealed block layer, which is always encrypted
	Root      string   `json:"root,omitempty"`    // of a sealed layer: the root hash in its annotation, in hex
	KeyIDs    []string `json:"key_ids,omitempty"` // the keys that open it
}

// Signature is one cosign signature found beside the image. It has not been verified.
type Signature struct {
	Tag      string `json:"tag"`
	Digest   string `json:"digest"`   // what its payload says was signed
	Identity string `json:"identity"` // for which name
}

// Inspect describes the image at ref (a registry or oci:<dir>[:tag]).
func Inspect(ctx context.Context, ref string, opts Options) (*Info, error) {
	l, err := opts.locate(ref)
	if err != nil {
		return nil, err
	}
	a, err := opts.load(ctx, l)
	if err != nil {
		return nil, err
	}
	info := &Info{Reference: l.String(), Index: a.index != nil}
	digest, err := a.digest()
	if err != nil {
		return nil, fmt.Errorf("inspecting %s: %w", l, err)
	}
	info.Digest = digest.String()
	if a.index == nil {
		mt, err := a.image.MediaType()
		if err != nil {
			return nil, fmt.Errorf("inspecting %s: %w", l, err)
		}
		info.MediaType = string(mt)
		if err := info.add(a.image); err != nil {
			return nil, fmt.Errorf("inspecting %s: %w", l, err)
		}
	} else if err := info.addIndex(a.index); err != nil {
		return nil, fmt.Errorf("inspecting %s: %w", l, err)
	}
	if l.dir == "" {
		if info.Signatures, err = findSignatures(ctx, l, digest, opts); err != nil {
			return nil, fmt.Errorf("inspecting %s: %w", l, err)
		}
	}
	return info, nil
}

func (info *Info) addIndex(ix v1.ImageIndex) error {
	mt, err := ix.MediaType()
	if err != nil {
		return err
	}
	info.MediaType = string(mt)
	m, err := ix.IndexManifest()
	if err != nil {
		return err
	}
	for _, d := range m.Manifests {
		if !d.MediaType.IsImage() || d.Platform != nil && d.Platform.OS == "unknown" { // attestations
			continue
		}
		img, err := ix.Image(d.Digest)
		if err != nil {
			return err
		}
		if err := info.add(img); err != nil {
			return fmt.Errorf("%s: %w", d.Digest, err)
		}
	}
	return nil
}

func (info *Info) add(img v1.Image) error {
	m, err := img.Manifest()
	if err != nil {
		return err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return err
	}
	digest, err := img.Digest()
	if err != nil {
		return err
	}
	p := Platform{OS: config.OS, Architecture: config.Architecture, Digest: digest.String(),
		ConfigDigest: m.Config.Digest.String(), Config: config.Config}
	for i, d := range m.Layers {
		l := Layer{Digest: d.Digest.String(), MediaType: string(d.MediaType), Size: d.Size,
			Encrypted: strings.HasSuffix(string(d.MediaType), "+encrypted"), KeyIDs: keyIDs(d.Annotations)}
		if d.MediaType == layerformat.MediaType {
			l.Sealed, l.Encrypted = true, true
			l.Root = d.Annotations[layerformat.AnnotationRoot]
			if id := d.Annotations[layerformat.AnnotationKeyID]; id != "" {
				l.KeyIDs = append(l.KeyIDs, id)
			}
		}
		if i < len(config.RootFS.DiffIDs) {
			l.DiffID = config.RootFS.DiffIDs[i].String()
		}
		p.Layers = append(p.Layers, l)
	}
	info.Platforms = append(info.Platforms, p)
	return nil
}

// keyIDs reads the key ids out of a layer's annotation packets; other key kinds are named by their annotation.
func keyIDs(annotations map[string]string) []string {
	var out []string
	for key, value := range annotations {
		kind, ok := strings.CutPrefix(key, annotationKeys)
		if !ok {
			continue
		}
		if !strings.HasPrefix(kind, "provider.") {
			out = append(out, kind)
			continue
		}
		for packet := range strings.SplitSeq(value, ",") {
			var p struct {
				KID string `json:"kid"`
			}
			data, err := base64.StdEncoding.DecodeString(packet)
			if err == nil {
				err = json.Unmarshal(data, &p)
			}
			if err != nil || p.KID == "" {
				p.KID = "unreadable (" + kind + ")"
			}
			out = append(out, p.KID)
		}
	}
	return out
}

func findSignatures(ctx context.Context, l location, digest v1.Hash, opts Options) ([]Signature, error) {
	tag := l.ref.Context().Tag(signatureTag(digest))
	img, err := remote.Image(tag, opts.remote(ctx)...)
	if notFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("looking for signatures: %w", err)
	}
	m, err := img.Manifest()
	if err != nil {
		return nil, fmt.Errorf("reading signatures: %w", err)
	}
	var out []Signature
	for _, d := range m.Layers {
		if d.MediaType != cosignPayloadType || d.Size > 1<<20 || len(out) >= maxInspectSignatures {
			continue
		}
		blob, err := img.LayerByDigest(d.Digest)
		if err != nil {
			return nil, fmt.Errorf("reading signatures: %w", err)
		}
		s, err := readSignature(blob)
		if err != nil {
			return nil, fmt.Errorf("reading signature %s: %w", d.Digest, err)
		}
		s.Tag = tag.TagStr()
		out = append(out, s)
	}
	return out, nil
}

func readSignature(blob v1.Layer) (Signature, error) {
	r, err := blob.Compressed()
	if err != nil {
		return Signature{}, err
	}
	defer r.Close()
	var p struct {
		Critical struct {
			Identity struct {
				Reference string `json:"docker-reference"`
			} `json:"identity"`
			Image struct {
				Digest string `json:"docker-manifest-digest"`
			} `json:"image"`
		} `json:"critical"`
	}
	if err := json.NewDecoder(r).Decode(&p); err != nil {
		return Signature{}, err
	}
	return Signature{Digest: p.Critical.Image.Digest, Identity: p.Critical.Identity.Reference}, nil
}
