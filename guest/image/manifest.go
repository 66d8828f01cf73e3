package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
)

// Sizes of documents that are read into memory whole.
const (
	maxManifestBytes = 4 << 20
	maxConfigBytes   = 4 << 20
	maxLayers        = 256
	maxIndexEntries  = 1024
)

// Media types of manifests and indexes.
const (
	typeOCIManifest    = "application/vnd.oci.image.manifest.v1+json"
	typeOCIIndex       = "application/vnd.oci.image.index.v1+json"
	typeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	typeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// descriptor points at a blob or a manifest.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      Digest            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations"`
	Platform    *platform         `json:"platform"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	Variant      string `json:"variant"`
}

// manifest is one image: a configuration and its layers, lowest first.
type manifest struct {
	Config descriptor
	Layers []descriptor
}

// index lists the same image for several platforms.
type index struct {
	Manifests []descriptor
}

// document is the union of a manifest and an index, so that a text that is both can be refused.
type document struct {
	SchemaVersion int             `json:"schemaVersion"`
	MediaType     string          `json:"mediaType"`
	Config        *descriptor     `json:"config"`
	Layers        []descriptor    `json:"layers"`
	Manifests     []descriptor    `json:"manifests"`
	FSLayers      json.RawMessage `json:"fsLayers"`
}

// parseManifest reads a manifest or an index; exactly one of the results is not nil.
// contentType is the registry's opinion, used only to detect a contradiction.
func parseManifest(data []byte, contentType string) (*manifest, *index, error) {
	if len(data) > maxManifestBytes {
		return nil, nil, fmt.Errorf("manifest has %d bytes, the limit is %d", len(data), maxManifestBytes)
	}
	var doc document
	if err := decodeJSON(data, &doc, false); err != nil {
		return nil, nil, fmt.Errorf("manifest is not valid JSON: %w", err)
	}
	if doc.SchemaVersion != 2 || len(doc.FSLayers) > 0 {
		return nil, nil, fmt.Errorf("manifest has schema version %d, only 2 is supported", doc.SchemaVersion)
	}
	mediaType, _, _ := strings.Cut(contentType, ";")
	mediaType = strings.TrimSpace(mediaType)
	known := func(t string) bool {
		return t == typeOCIManifest || t == typeOCIIndex || t == typeDockerManifest || t == typeDockerList
	}
	if doc.MediaType != "" {
		if known(mediaType) && mediaType != doc.MediaType {
			return nil, nil, fmt.Errorf("registry says the manifest is %q, the manifest says %q", mediaType, truncate(doc.MediaType, 100))
		}
		mediaType = doc.MediaType
	}
	isIndex := doc.Config == nil && doc.Layers == nil
	if !isIndex && doc.Manifests != nil {
		return nil, nil, errors.New("manifest is ambiguous: it has both layers and manifests")
	}
	switch mediaType {
	case typeOCIManifest, typeDockerManifest:
		if isIndex || doc.Config == nil {
			return nil, nil, fmt.Errorf("manifest of type %s has no configuration", mediaType)
		}
	case typeOCIIndex, typeDockerList:
		if !isIndex {
			return nil, nil, fmt.Errorf("index of type %s has layers", mediaType)
		}
	default:
		if doc.MediaType != "" {
			return nil, nil, fmt.Errorf("unknown manifest media type %q", truncate(mediaType, 100))
		}
	}
	if isIndex {
		if len(doc.Manifests) > maxIndexEntries {
			return nil, nil, fmt.Errorf("index has %d entries, the limit is %d", len(doc.Manifests), maxIndexEntries)
		}
		return nil, &index{Manifests: doc.Manifests}, nil
	}
	m := &manifest{Layers: doc.Layers}
	if doc.Config != nil {
		m.Config = *doc.Config
	}
	return m, nil, m.check()
}

func (m *manifest) check() error {
	if len(m.Layers) == 0 {
		return errors.New("manifest has no layers")
	}
	if len(m.Layers) > maxLayers {
		return fmt.Errorf("manifest has %d layers, the limit is %d", len(m.Layers), maxLayers)
	}
	if m.Config.Digest.Algorithm == "" {
		return errors.New("manifest has no configuration digest")
	}
	if m.Config.Size < 0 || m.Config.Size > maxConfigBytes {
		return fmt.Errorf("image configuration has %d bytes, the limit is %d", m.Config.Size, maxConfigBytes)
	}
	var sum int64
	for i, l := range m.Layers {
		if l.Digest.Algorithm == "" || l.Size <= 0 {
			return fmt.Errorf("layer %d has no digest or size", i+1)
		}
		// A sum that wrapped around would be below every limit.
		if l.Size > math.MaxInt64-sum {
			return fmt.Errorf("layer %d has %d bytes, with the layers below it more than the limit of %d", i+1, l.Size, int64(math.MaxInt64))
		}
		sum += l.Size
		if _, err := parseLayerType(l.MediaType); err != nil {
			return fmt.Errorf("layer %d: %w", i+1, err)
		}
	}
	return nil
}

// choose picks the entry of an index for linux on the given architecture.
func (ix *index) choose(arch string) (descriptor, error) {
	var have []string
	for _, d := range ix.Manifests {
		if d.Platform == nil || d.Digest.Algorithm == "" {
			continue
		}
		if d.Platform.OS == "linux" && d.Platform.Architecture == arch &&
			(d.MediaType == typeOCIManifest || d.MediaType == typeDockerManifest) {
			return d, nil
		}
		if len(have) < 20 {
			have = append(have, truncate(d.Platform.OS+"/"+d.Platform.Architecture, 40))
		}
	}
	return descriptor{}, fmt.Errorf("image has no variant for linux/%s, only %q", arch, have)
}

// layerType is what a layer's media type says about its encoding.
type layerType struct {
	compression string // "", "gzip" or "zstd"
	encrypted   bool
}

func (t layerType) String() string {
	s := t.compression
	if s == "" {
		s = "plain"
	}
	if t.encrypted {
		s += ", encrypted"
	}
	return s
}

func parseLayerType(mediaType string) (layerType, error) {
	if mediaType == "application/vnd.docker.image.rootfs.diff.tar.gzip" ||
		mediaType == "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" {
		return layerType{compression: "gzip"}, nil
	}
	t, ok := strings.CutPrefix(mediaType, "application/vnd.oci.image.layer.v1.tar")
	if !ok {
		t, ok = strings.CutPrefix(mediaType, "application/vnd.oci.image.layer.nondistributable.v1.tar")
	}
	if ok {
		var lt layerType
		t, lt.encrypted = strings.CutSuffix(t, "+encrypted")
		switch t {
		case "":
			return lt, nil
		case "+gzip", "+zstd":
			lt.compression = t[1:]
			return lt, nil
		}
	}
	return layerType{}, fmt.Errorf("unhandled media type: %q", truncate(mediaType, 100))
}

// config is what the guest reads of an image configuration.
type config struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	Variant      string `json:"variant"`
	Author       string `json:"author"`
	Created      string `json:"created"`
	Config       struct {
		User         string              `json:"User"`
		Env          []string            `json:"Env"`
		Entrypoint   []string            `json:"Entrypoint"`
		Cmd          []string            `json:"Cmd"`
		WorkingDir   string              `json:"WorkingDir"`
		Labels       map[string]string   `json:"Labels"`
		Volumes      map[string]struct{} `json:"Volumes"`
		ExposedPorts map[string]struct{} `json:"ExposedPorts"`
		StopSignal   string              `json:"StopSignal"`
	} `json:"config"`
	RootFS struct {
		Type    string   `json:"type"`
		DiffIDs []Digest `json:"diff_ids"`
	} `json:"rootfs"`
}

func parseConfig(data []byte, layers int, arch string) (*config, error) {
	var c config
	if err := decodeJSON(data, &c, false); err != nil {
		return nil, fmt.Errorf("image configuration is not valid JSON: %w", err)
	}
	if c.OS != "linux" || c.Architecture != arch {
		return nil, fmt.Errorf("image is for %q/%q, this guest runs linux/%s", truncate(c.OS, 40), truncate(c.Architecture, 40), arch)
	}
	if c.RootFS.Type != "layers" {
		return nil, fmt.Errorf("image root file system type is %q, expected \"layers\"", truncate(c.RootFS.Type, 40))
	}
	if len(c.RootFS.DiffIDs) != layers {
		return nil, fmt.Errorf("image has %d layers but %d diff_ids", layers, len(c.RootFS.DiffIDs))
	}
	for i, d := range c.RootFS.DiffIDs {
		if d.Algorithm == "" {
			return nil, fmt.Errorf("diff_id %d is empty", i+1)
		}
	}
	return &c, nil
}
