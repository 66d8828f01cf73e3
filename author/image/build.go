package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
)

// Spec describes an image to build. The result depends on nothing else: same files, same digest.
type Spec struct {
	Dir   string            // a directory that becomes the image's root; may be empty
	Files map[string]string // path in the image -> file on this machine, over what Dir has
	// Libraries adds the shared libraries and the dynamic loader that the executables in Files need.
	Libraries bool

	Entrypoint []string
	Cmd        []string
	Env        []string
	WorkingDir string
	User       string
	Labels     map[string]string

	Architecture string // default amd64
	Compression  string // gzip (default), zstd or none
	Created      time.Time
}

// Build makes a single-layer OCI image. Files belong to root and have the time Created.
func Build(spec Spec) (v1.Image, error) {
	entries, err := spec.entries()
	if err != nil {
		return nil, fmt.Errorf("building image: %w", err)
	}
	if len(entries) == 0 {
		return nil, errors.New("building image: there are no files to put in")
	}
	l, err := newLayer(spec.Compression, func(w io.Writer) error { return writeTar(w, entries, spec.Created) })
	if err != nil {
		return nil, fmt.Errorf("building image: %w", err)
	}
	arch := spec.Architecture
	if arch == "" {
		arch = "amd64"
	}
	config, err := json.Marshal(v1.ConfigFile{
		Architecture: arch, OS: "linux", Created: v1.Time{Time: spec.Created.UTC()},
		RootFS:  v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{l.diffID}},
		History: []v1.History{{Created: v1.Time{Time: spec.Created.UTC()}, CreatedBy: "cloister image build"}},
		Config: v1.Config{Entrypoint: spec.Entrypoint, Cmd: spec.Cmd, Env: spec.Env, WorkingDir: spec.WorkingDir,
			User: spec.User, Labels: spec.Labels},
	})
	if err != nil {
		return nil, fmt.Errorf("building image: %w", err)
	}
	return assemble(config, types.OCIConfigJSON, []v1.Descriptor{l.descriptor()}, []partial.CompressedLayer{l}, nil)
}

// assemble makes an OCI image from a configuration and layers.
func assemble(config []byte, configType types.MediaType, descs []v1.Descriptor, layers []partial.CompressedLayer, annotations map[string]string) (v1.Image, error) {
	hash, size, err := v1.SHA256(bytes.NewReader(config))
	if err != nil {
		return nil, err
	}
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1,
		Config: v1.Descriptor{MediaType: configType, Size: size, Digest: hash}, Layers: descs, Annotations: annotations}
	raw := &rawImage{config: config, mediaType: types.OCIManifestSchema1, layers: map[v1.Hash]partial.CompressedLayer{}}
	if raw.manifest, err = json.Marshal(m); err != nil {
		return nil, err
	}
	for i, l := range layers {
		raw.layers[descs[i].Digest] = l
	}
	return partial.CompressedToImage(raw)
}

// entry is one file of the image.
type entry struct {
	name   string // without leading slash
	source string // on this machine; empty for a directory that only holds others
}

func (s Spec) entries() ([]entry, error) {
	files := map[string]string{}
	if s.Dir != "" {
		err := filepath.WalkDir(s.Dir, func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(s.Dir, p)
			if err == nil && rel != "." {
				files[rel] = p
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	add := func(name, source string) error {
		clean := strings.TrimPrefix(path.Clean("/"+name), "/")
		if clean == "" {
			return fmt.Errorf("%q is not a file name in the image", name)
		}
		files[clean] = source
		return nil
	}
	var executables []string
	for _, name := range slices.Sorted(maps.Keys(s.Files)) {
		real, err := filepath.EvalSymlinks(s.Files[name])
		if err != nil {
			return nil, err
		}
		if err := add(name, real); err != nil {
			return nil, err
		}
		executables = append(executables, real)
	}
	if s.Libraries {
		libs, err := libraries(executables)
		if err != nil {
			return nil, err
		}
		for name, source := range libs {
			if err := add(name, source); err != nil {
				return nil, err
			}
		}
	}
	for name := range maps.Clone(files) {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if _, ok := files[dir]; !ok {
				files[dir] = ""
			}
		}
	}
	var out []entry
	for _, name := range slices.Sorted(maps.Keys(files)) {
		out = append(out, entry{name: name, source: files[name]})
	}
	return out, nil
}

func writeTar(w io.Writer, entries []entry, mtime time.Time) error {
	if mtime.IsZero() {
		mtime = time.Unix(0, 0)
	}
	tw := tar.NewWriter(w)
	for _, e := range entries {
		if err := writeEntry(tw, e, mtime.Truncate(time.Second)); err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
	}
	return tw.Close()
}

func writeEntry(tw *tar.Writer, e entry, mtime time.Time) error {
	hdr := &tar.Header{Name: e.name, ModTime: mtime, Format: tar.FormatPAX}
	if e.source == "" {
		hdr.Typeflag, hdr.Mode, hdr.Name = tar.TypeDir, 0o755, e.name+"/"
		return tw.WriteHeader(hdr)
	}
	info, err := os.Lstat(e.source)
	if err != nil {
		return err
	}
	hdr.Mode = int64(info.Mode().Perm())
	for bit, value := range map[fs.FileMode]int64{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if info.Mode()&bit != 0 {
			hdr.Mode |= value
		}
	}
	switch info.Mode().Type() {
	case 0:
		f, err := os.Open(e.source)
		if err != nil {
			return err
		}
		defer f.Close()
		hdr.Typeflag, hdr.Size = tar.TypeReg, info.Size()
		if err := tw.WriteHeader(hdr); err != nil {
			return err
		}
		_, err = io.Copy(tw, f)
		return err
	case fs.ModeDir:
		hdr.Typeflag, hdr.Name = tar.TypeDir, e.name+"/"
		return tw.WriteHeader(hdr)
	case fs.ModeSymlink:
		hdr.Typeflag, hdr.Mode = tar.TypeSymlink, 0o777
		if hdr.Linkname, err = os.Readlink(e.source); err != nil {
			return err
		}
		return tw.WriteHeader(hdr)
	}
	return fmt.Errorf("a %v cannot be put into an image", info.Mode().Type())
}

// layerBlob is a finished layer in memory or in a file.
type layerBlob struct {
	digest    v1.Hash
	diffID    v1.Hash
	size      int64
	mediaType types.MediaType
	open      func() (io.ReadCloser, error)
}

func (l *layerBlob) Digest() (v1.Hash, error)            { return l.digest, nil }
func (l *layerBlob) DiffID() (v1.Hash, error)            { return l.diffID, nil }
func (l *layerBlob) Size() (int64, error)                { return l.size, nil }
func (l *layerBlob) MediaType() (types.MediaType, error) { return l.mediaType, nil }
func (l *layerBlob) Compressed() (io.ReadCloser, error)  { return l.open() }
func (l *layerBlob) descriptor() v1.Descriptor {
	return v1.Descriptor{MediaType: l.mediaType, Size: l.size, Digest: l.digest}
}

// newLayer compresses what write writes. The layer is kept in memory: images built here are small.
func newLayer(compression string, write func(io.Writer) error) (*layerBlob, error) {
	var buf bytes.Buffer
	sum := sha256.New()
	var z io.WriteCloser
	l := &layerBlob{}
	switch compression {
	case "", "gzip":
		l.mediaType = types.OCILayer
		z = gzip.NewWriter(&buf)
	case "zstd":
		l.mediaType = types.OCILayerZStd
		enc, err := zstd.NewWriter(&buf, zstd.WithEncoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		z = enc
	case "none":
		l.mediaType = types.OCIUncompressedLayer
		z = nopCloser{&buf}
	default:
		return nil, fmt.Errorf("compression %q is not gzip, zstd or none", compression)
	}
	if err := errors.Join(write(io.MultiWriter(z, sum)), z.Close()); err != nil {
		return nil, err
	}
	l.diffID = digestOf(sum)
	l.digest = v1.Hash{Algorithm: "sha256", Hex: fmt.Sprintf("%x", sha256.Sum256(buf.Bytes()))}
	l.size = int64(buf.Len())
	l.open = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil }
	return l, nil
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }
