package imagesource

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// files are the files of a layout directory or of an archive.
type files interface {
	open(name string) (io.ReadCloser, error)
	io.Closer
}

// directory is a folder. Names do not lead out of it.
type directory struct{ root *os.Root }

func (d directory) Close() error { return d.root.Close() }

func (d directory) open(name string) (io.ReadCloser, error) {
	f, err := d.root.Open(name)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, fmt.Errorf("%s is no file", name)
	}
	return f, nil
}

// archive is a tar file whose files are read where they are.
type archive struct {
	file  *os.File
	parts map[string]*io.SectionReader
}

// maxArchiveFiles bounds the table of an archive.
const maxArchiveFiles = 100_000

func openArchive(name string) (*archive, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	a := &archive{f, map[string]*io.SectionReader{}}
	// The tar reader may read no further than it tells, so that the place of a file is known.
	tr := tar.NewReader(f)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return a, nil
		}
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("reading archive %s: %w", name, err)
		}
		if h.Typeflag == tar.TypeSymlink || h.Typeflag == tar.TypeLink {
			// docker links layers that are the same
			target := path.Join(path.Dir(h.Name), h.Linkname)
			if h.Typeflag == tar.TypeLink {
				target = path.Clean(h.Linkname)
			}
			if p := a.parts[target]; p != nil {
				a.parts[path.Clean(h.Name)] = p
			}
			continue
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		at, err := f.Seek(0, io.SeekCurrent)
		if err != nil || len(a.parts) == maxArchiveFiles {
			f.Close()
			return nil, fmt.Errorf("reading archive %s: too many files, or %w", name, cmp.Or(err, fs.ErrInvalid))
		}
		a.parts[path.Clean(h.Name)] = io.NewSectionReader(f, at, h.Size)
	}
}

func (a *archive) Close() error { return a.file.Close() }

func (a *archive) open(name string) (io.ReadCloser, error) {
	p, ok := a.parts[name]
	if !ok {
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	return io.NopCloser(io.NewSectionReader(p, 0, p.Size())), nil
}

// localImages is an OCI layout, or an archive of docker.
type localImages struct {
	where  string
	files  files
	index  []v1.Descriptor
	docker []dockerEntry
}

func newLayout(where string) (*localImages, error) {
	l := &localImages{where: where}
	info, err := os.Stat(where)
	switch {
	case err != nil:
	case info.IsDir():
		var root *os.Root
		root, err = os.OpenRoot(where)
		l.files = directory{root}
	default:
		l.files, err = openArchive(where)
	}
	if err != nil {
		return nil, fmt.Errorf("opening images: %w", err)
	}
	if err := l.readIndex(); err != nil {
		return nil, fmt.Errorf("opening images in %s: %w", where, errors.Join(err, l.Close()))
	}
	return l, nil
}

func (l *localImages) readIndex() error {
	raw, err := readSmall(l.files, "index.json")
	if err == nil {
		ix, err := v1.ParseIndexManifest(bytes.NewReader(raw))
		if err != nil {
			return fmt.Errorf("index.json: %w", err)
		}
		l.index = ix.Manifests
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if raw, err = readSmall(l.files, "manifest.json"); err != nil {
		return errors.New("there is neither index.json (OCI) nor manifest.json (docker)")
	}
	if err := json.Unmarshal(raw, &l.docker); err != nil {
		return fmt.Errorf("manifest.json: %w", err)
	}
	return nil
}

func readSmall(f files, name string) ([]byte, error) {
	r, err := f.open(name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, maxManifest+1))
	if err == nil && len(data) > maxManifest {
		err = fmt.Errorf("%s has more than %d bytes", name, maxManifest)
	}
	return data, err
}

// Close implements store.
func (l *localImages) Close() error { return l.files.Close() }

// Names that tools give images in an index.
const (
	annotationRef   = "org.opencontainers.image.ref.name"
	annotationImage = "io.containerd.image.name"
)

func (l *localImages) resolve(_ context.Context, image string) (handle, error) {
	ref, err := parseName(image)
	if err != nil {
		return handle{}, err
	}
	for _, e := range l.docker {
		for _, tag := range e.RepoTags {
			if t, err := name.ParseReference(tag); err == nil && sameImage(t, ref) {
				return handle{docker: &dockerImage{e, l.files}}, nil
			}
		}
	}
	for _, d := range l.index {
		if named, byTag := named(d, ref); named {
			h := handle{desc: d, open: l.open}
			if byTag {
				h.found = l.where
			}
			return h, nil
		}
	}
	return handle{}, fmt.Errorf("%w in %s, which has %s", ErrNotFound, l.where, l.names())
}

// maxNames bounds the names in an error, and maxName the length of one: they are of a file that others may have made.
const (
	maxNames = 10
	maxName  = 200
)

// names lists what the images are called, for people.
func (l *localImages) names() string {
	var all []string
	for _, e := range l.docker {
		all = append(all, e.RepoTags...)
	}
	for _, d := range l.index {
		all = append(all, cmp.Or(d.Annotations[annotationImage], d.Annotations[annotationRef], d.Digest.String()))
	}
	if len(all) == 0 {
		return "no images with a name"
	}
	slices.Sort(all)
	all = slices.Compact(all)
	shown := all[:min(len(all), maxNames)]
	for i, n := range shown {
		shown[i] = strconv.QuoteToGraphic(n[:min(len(n), maxName)])
	}
	text := strings.Join(shown, ", ")
	if more := len(all) - len(shown); more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// sameImage compares references; one with tag and digest counts by its digest.
func sameImage(a, b name.Reference) bool { return a.Name() == b.Name() }

// named says whether a descriptor of an index is what a reference means: by digest, by the whole name, or by the tag
// alone, if that is all the index has.
func named(d v1.Descriptor, ref name.Reference) (named, byTag bool) {
	if digest, ok := ref.(name.Digest); ok {
		return d.Digest.String() == digest.DigestStr(), false
	}
	for _, key := range []string{annotationImage, annotationRef} {
		text := d.Annotations[key]
		if text == "" {
			continue
		}
		if strings.ContainsAny(text, "/:") {
			t, err := name.ParseReference(text)
			return err == nil && sameImage(t, ref), false
		}
		return text == ref.Identifier(), true
	}
	return false, false
}

func (l *localImages) open(_ context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	if d.Digest.Algorithm != "sha256" || strings.Trim(d.Digest.Hex, "0123456789abcdef") != "" {
		return nil, fmt.Errorf("digest %q is not of SHA-256", d.Digest)
	}
	return l.files.open("blobs/sha256/" + d.Digest.Hex)
}

// dockerEntry is one image of an archive of docker.
type dockerEntry struct {
	Config   string
	RepoTags []string
	Layers   []string
}

type dockerImage struct {
	dockerEntry
	files files
}

// load reads an image of docker's own format. It has no manifest, so no digest that a guest could pull by.
func (d *dockerImage) load(_ context.Context, _ handle, arch string) (*manifest, error) {
	raw, err := readSmall(d.files, path.Clean(d.Config))
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	m := &manifest{}
	if m.config, err = parseConfig(raw, arch); err != nil {
		return nil, err
	}
	if len(d.Layers) != len(m.config.RootFS.DiffIDs) || len(d.Layers) > maxLayers {
		return nil, fmt.Errorf("its configuration lists %d layers, the archive %d", len(m.config.RootFS.DiffIDs), len(d.Layers))
	}
	// Nothing names the blobs; what is known is the digest of each tar.
	for _, id := range m.config.RootFS.DiffIDs {
		m.layers = append(m.layers, v1.Descriptor{Digest: id, MediaType: "application/vnd.docker.image.rootfs.diff.tar"})
	}
	m.image = Image{Config: configOf(m.config)}
	return m, nil
}

func (d *dockerImage) open(i int) (io.ReadCloser, error) {
	return d.files.open(path.Clean(d.Layers[i]))
}
