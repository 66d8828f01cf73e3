package imagesource

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"github.com/cloister/cloister/internal/testregistry"
	"github.com/cloister/cloister/layer"
)

// blobLayer is a layer whose compressed bytes are given.
type blobLayer struct {
	blob, plain []byte
	media       types.MediaType
}

func (l *blobLayer) Digest() (v1.Hash, error) {
	h, _, err := v1.SHA256(bytes.NewReader(l.blob))
	return h, err
}
func (l *blobLayer) DiffID() (v1.Hash, error) {
	h, _, err := v1.SHA256(bytes.NewReader(l.plain))
	return h, err
}
func (l *blobLayer) Compressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.blob)), nil
}
func (l *blobLayer) Uncompressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.plain)), nil
}
func (l *blobLayer) Size() (int64, error)                { return int64(len(l.blob)), nil }
func (l *blobLayer) MediaType() (types.MediaType, error) { return l.media, nil }

// tarOf makes a tar of name, content pairs.
func tarOf(t testing.TB, pairs ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(pairs); i += 2 {
		h := &tar.Header{Name: pairs[i], Mode: 0o644, Size: int64(len(pairs[i+1])), Typeflag: tar.TypeReg}
		if strings.HasPrefix(pairs[i+1], "->") {
			h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, pairs[i+1][2:], 0
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := io.WriteString(w, pairs[i+1]); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zipped(t testing.TB, plain []byte) *blobLayer {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &blobLayer{b.Bytes(), plain, types.OCILayer}
}

func zstandard(t testing.TB, plain []byte) *blobLayer {
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &blobLayer{w.EncodeAll(plain, nil), plain, types.OCILayerZStd}
}

const (
	passwdOne = "root:x:0:0::/:/bin/sh\n"
	passwdTwo = "root:x:0:0::/:/bin/sh\nweb:x:7:8::/:/bin/sh\n"
)

// image is for one architecture, with a gzip, a zstd and a plain layer.
func image(t testing.TB, arch string, more ...v1.Layer) v1.Image {
	t.Helper()
	plain := tarOf(t, "app-"+arch, "x")
	layers := append([]v1.Layer{
		zipped(t, tarOf(t, "./etc/passwd", passwdOne, "etc/group", "root:x:0:\n", "bin/sh", strings.Repeat("sh", 5000))),
		zstandard(t, tarOf(t, "etc/passwd", passwdTwo, "etc/.wh.group", "")),
		&blobLayer{plain, plain, types.OCIUncompressedLayer},
	}, more...)
	img, err := mutate.AppendLayers(mutate.MediaType(empty.Image, types.OCIManifestSchema1), layers...)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", arch
	cfg.Config = v1.Config{User: "web", Entrypoint: []string{"/" + arch}, Env: []string{"A=B"}, StopSignal: "SIGINT", Volumes: map[string]struct{}{"/b": {}, "/a": {}}}
	if img, err = mutate.ConfigFile(img, cfg); err != nil {
		t.Fatal(err)
	}
	return img
}

func index(t testing.TB, images map[string]v1.Image) v1.ImageIndex {
	ix := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, arch := range []string{"amd64", "arm64"} {
		ix = mutate.AppendManifests(ix, mutate.IndexAddendum{Add: images[arch], Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	return ix
}

func registryOf(t testing.TB, o testregistry.Options) *testregistry.Registry {
	t.Helper()
	r, err := testregistry.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func push(t testing.TB, ref string, ix v1.ImageIndex, opts ...remote.Option) {
	t.Helper()
	to, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(to, ix, opts...); err != nil {
		t.Fatal(err)
	}
}

func get(t testing.TB, o Options, ref string, need Need) (*Image, error) {
	t.Helper()
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	return s.Image(t.Context(), ref, need)
}

var all = Need{Users: true, Roots: true}

// TestSources reads one image from everywhere and wants the same.
func TestSources(t *testing.T) {
	images := map[string]v1.Image{"amd64": image(t, "amd64"), "arm64": image(t, "arm64")}
	ix := index(t, images)
	r := registryOf(t, testregistry.Options{})
	ref := r.Addr() + "/team/app:1"
	push(t, ref, ix)
	want, err := get(t, Options{Registry: RegistryOptions{Insecure: []string{r.Addr()}}}, ref, all)
	if err != nil {
		t.Fatal(err)
	}
	digest, err := ix.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if want.Digest != digest.String() || want.Manifest == want.Digest || string(want.Passwd) != passwdTwo || want.Group != nil {
		t.Errorf("%+v", want)
	}
	if c := want.Config; c.User != "web" || c.StopSignal != "SIGINT" || !slices.Equal(c.Volumes, []string{"/a", "/b"}) || c.Entrypoint[0] != "/amd64" {
		t.Errorf("%+v", c)
	}
	for i, l := range want.Layers {
		plain, err := images["amd64"].Layers()
		if err != nil {
			t.Fatal(err)
		}
		content, err := plain[i].Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		built, err := layer.Build(t.Context(), content, nil, layer.Options{Descriptor: l.Digest})
		if err != nil || built.Root != l.Root || built.HashOffset != l.HashOffset || built.DiffID != l.DiffID {
			t.Errorf("layer %d: %+v, built %+v: %v", i, l, built, err)
		}
	}
	arm, err := get(t, Options{Architecture: "arm64", Registry: RegistryOptions{Insecure: []string{r.Addr()}}}, ref, Need{})
	if err != nil || arm.Config.Entrypoint[0] != "/arm64" || arm.Digest != want.Digest {
		t.Errorf("arm64: %+v, %v", arm, err)
	}
	if _, err := get(t, Options{Architecture: "riscv64", Registry: RegistryOptions{Insecure: []string{r.Addr()}}}, ref, Need{}); err == nil || !strings.Contains(err.Error(), "amd64, arm64") {
		t.Errorf("riscv64: %v", err)
	}

	dir := filepath.Join(t.TempDir(), "layout")
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := path.AppendIndex(ix, layout.WithAnnotations(map[string]string{annotationRef: "1"})); err != nil {
		t.Fatal(err)
	}
	ociArchive, dockerArchive := filepath.Join(t.TempDir(), "oci.tar"), filepath.Join(t.TempDir(), "docker.tar")
	pack(t, dir, ociArchive)
	tag, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(dockerArchive, tag, images["amd64"]); err != nil {
		t.Fatal(err)
	}
	for _, from := range [][]string{{"oci:" + dir}, {"archive:" + ociArchive}, {"oci:" + dir, "registry"}} {
		got, err := get(t, Options{From: from}, ref, all)
		if err != nil || !strings.Contains(got.Found, strings.SplitN(from[0], ":", 2)[1]) {
			t.Fatalf("%v: %+v, %v", from, got, err)
		}
		got.Found = ""
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%v: %v\n%+v\nwant\n%+v", from, err, got, want)
		}
		if _, err := get(t, Options{From: from[:1]}, r.Addr()+"/team/app:2", all); !errors.Is(err, ErrNotFound) || !strings.HasSuffix(err.Error(), `, which has "1"`) {
			t.Errorf("%v: %v", from, err)
		}
	}
	got, err := get(t, Options{From: []string{"archive:" + dockerArchive}}, ref, Need{Users: true})
	if err != nil || got.Digest != "" || string(got.Passwd) != passwdTwo {
		t.Errorf("docker archive: %+v, %v", got, err)
	}
}

// pack makes a tar of a directory.
func pack(t *testing.T, dir, file string) {
	t.Helper()
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(f)
	if err := errors.Join(w.AddFS(os.DirFS(dir)), w.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestCredentials takes them from docker's configuration, as a password and by a helper.
func TestCredentials(t *testing.T) {
	r := registryOf(t, testregistry.Options{User: "me", Password: "secret", Basic: true})
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	config := func(text string) {
		if err := os.WriteFile(filepath.Join(os.Getenv("DOCKER_CONFIG"), "config.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	basic := `{"auths":{"` + r.Addr() + `":{"auth":"` + base64.StdEncoding.EncodeToString([]byte("me:secret")) + `"}}}`
	config(basic)
	ref := r.Addr() + "/app:1"
	o := Options{Registry: RegistryOptions{Insecure: []string{r.Addr()}}}
	if _, err := get(t, o, ref, all); !errors.Is(err, ErrNotFound) {
		t.Errorf("with a password: %v", err)
	}
	bin := t.TempDir()
	helper := "#!/bin/sh\nread host\necho '{\"Username\":\"me\",\"Secret\":\"secret\"}'\n"
	if err := os.WriteFile(filepath.Join(bin, "docker-credential-mine"), []byte(helper), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	config(`{"credHelpers":{"` + r.Addr() + `":"mine"}}`)
	if _, err := get(t, o, ref, all); !errors.Is(err, ErrNotFound) {
		t.Errorf("with a helper: %v", err)
	}
	config(`{}`)
	if _, err := get(t, o, ref, all); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("without: %v", err)
	}
	var plain *PlainHTTPError
	if _, err := get(t, Options{}, ref, all); !errors.As(err, &plain) || plain.Host != r.Addr() {
		t.Errorf("plain HTTP: %v", err)
	}
}

// TestLies wants that a registry that changes a blob is found out.
func TestLies(t *testing.T) {
	r := registryOf(t, testregistry.Options{})
	img := image(t, "amd64")
	push(t, r.Addr()+"/app:1", index(t, map[string]v1.Image{"amd64": img, "arm64": img}))
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Registry: RegistryOptions{Insecure: []string{r.Addr()}}}
	for _, d := range append(slices.Clone(m.Layers), m.Config) {
		r.Tamper(d.Digest.String(), func(b []byte) []byte {
			b = slices.Clone(b)
			b[len(b)/2] ^= 1
			return b
		})
		if _, err := get(t, o, r.Addr()+"/app:1", Need{Users: true}); err == nil {
			t.Errorf("a changed %s is accepted", d.MediaType)
		}
		r.Tamper(d.Digest.String(), nil)
	}
}

func TestEncrypted(t *testing.T) {
	r := registryOf(t, testregistry.Options{})
	img := image(t, "amd64", &blobLayer{[]byte("secret"), []byte("plain"), "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"})
	push(t, r.Addr()+"/app:1", index(t, map[string]v1.Image{"amd64": img, "arm64": img}))
	o := Options{Registry: RegistryOptions{Insecure: []string{r.Addr()}}}
	if got, err := get(t, o, r.Addr()+"/app:1", Need{Users: true}); err != nil || len(got.Layers) != 4 {
		t.Errorf("%v", err)
	}
	if _, err := get(t, o, r.Addr()+"/app:1", all); err == nil || !strings.Contains(err.Error(), "encrypted") {
		t.Errorf("roots of an encrypted layer: %v", err)
	}
}

// TestSealed takes root and key of a sealed layer from its manifest.
func TestSealed(t *testing.T) {
	root := strings.Repeat("ab", 32)
	for _, tc := range []struct {
		root, key, version, offset string
		ok                         bool
	}{
		{root, "kbs:///default/image-key/a", "1", "8192", true}, {root, "https://x", "1", "8192", false}, {root[1:], "kbs:///a/b/c", "1", "8192", false},
		{root, "kbs:///a/b/c", "2", "8192", false}, {root, "kbs:///a/b/c", "1", "8193", false}, {root, "kbs:///a/b/c", "1", "", false},
		{root, "kbs:///a/b/c", "1", "-4096", false}, {root, "kbs:///a/b/c", "1", "08192", false},
	} {
		l, sealed, err := sealedLayer(v1.Descriptor{MediaType: "application/vnd.oci.image.layer.v1.erofs+sealed", Annotations: map[string]string{
			"dev.cloister.layer.roothash": tc.root, "dev.cloister.sealed.key-id": tc.key, "dev.cloister.sealed.version": tc.version,
			"dev.cloister.layer.hashoffset": tc.offset}})
		if !sealed || (err == nil) != tc.ok || tc.ok && (l.Root != tc.root || l.KeyID != tc.key || l.HashOffset != 8192) {
			t.Errorf("%+v: %+v, %v", tc, l, err)
		}
	}
}

// TestUsers has layers as they can be.
func TestUsers(t *testing.T) {
	for name, tc := range map[string]struct {
		tar  []byte
		want found
	}{
		"none":     {tarOf(t, "a", "b"), found{}},
		"file":     {tarOf(t, "/etc/passwd", "x"), found{kindFile, []byte("x")}},
		"last one": {tarOf(t, "etc/passwd", "x", "./etc/passwd", "y"), found{kindFile, []byte("y")}},
		"dots":     {tarOf(t, "../../etc/passwd", "x"), found{kindFile, []byte("x")}},
		"removed":  {tarOf(t, "etc/.wh.passwd", ""), found{Kind: kindGone}},
		"opaque":   {tarOf(t, "etc/passwd", "x", "etc/.wh..wh..opq", ""), found{kindFile, []byte("x")}},
		"hidden":   {tarOf(t, "etc", "->usr/etc"), found{Kind: kindGone}},
		"link":     {tarOf(t, "etc/passwd", "->/usr/lib/passwd"), found{Kind: kindGone}},
	} {
		f := &facts{}
		if err := f.users(bytes.NewReader(tc.tar)); err != nil || !reflect.DeepEqual(f.Passwd, tc.want) {
			t.Errorf("%s: %+v, %v", name, f.Passwd, err)
		}
	}
	if err := new(facts).users(bytes.NewReader(tarOf(t, "etc/passwd", strings.Repeat("x", maxUsers+1)))); err == nil {
		t.Error("a huge passwd is read")
	}
}

// TestBombs bounds what a small layer unpacks to.
func TestBombs(t *testing.T) {
	plain := tarOf(t, "zeros", strings.Repeat("\x00", 4<<20))
	for _, l := range []*blobLayer{zipped(t, plain), zstandard(t, plain)} {
		h, err := l.Digest()
		if err != nil {
			t.Fatal(err)
		}
		for _, roots := range []bool{false, true} {
			if _, err := scan(t.Context(), bytes.NewReader(l.blob), v1.Descriptor{Digest: h, Size: int64(len(l.blob))}, false, roots, "", 1<<20); err == nil {
				t.Error("a layer above the limit is read")
			}
		}
	}
}

// endless repeats a text for ever.
type endless struct {
	text string
	at   int
}

func (e *endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = e.text[e.at%len(e.text)]
		e.at++
	}
	return len(p), nil
}

// TestEndless: a registry that never ends a layer is left, also when nothing comes out of what it sends.
func TestEndless(t *testing.T) {
	h := v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("a", 64)}
	for name, text := range map[string]string{
		"skippable frames": "\x50\x2a\x4d\x18\x04\x00\x00\x00abcd", "empty members": string(zipped(t, nil).blob), "zeros": strings.Repeat("\x00", 512),
	} {
		for _, size := range []int64{0, -1, 1 << 20} {
			if _, err := scan(t.Context(), &endless{text: text}, v1.Descriptor{Digest: h, Size: size}, false, false, "", 1<<20); err == nil {
				t.Errorf("%s: a layer without end is read as one of %d bytes", name, size)
			}
		}
	}
}

// FuzzScan wants that no layer makes the scanner panic or disagree with the builder.
func FuzzScan(f *testing.F) {
	plain := tarOf(f, "etc/passwd", passwdOne, "etc/.wh.group", "")
	f.Add(plain)
	f.Add(zipped(f, plain).blob)
	f.Add(zstandard(f, plain).blob)
	f.Fuzz(func(t *testing.T, blob []byte) {
		h, _, err := v1.SHA256(bytes.NewReader(blob))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		d := v1.Descriptor{Digest: h, Size: int64(len(blob))}
		a, err1 := scan(ctx, bytes.NewReader(blob), d, false, false, "", 1<<20)
		b, err2 := scan(ctx, bytes.NewReader(blob), d, false, true, layer.Cloister, 1<<20)
		if err1 == nil && err2 == nil && (a.DiffID != b.DiffID || !reflect.DeepEqual(a.Passwd, b.Passwd)) {
			t.Errorf("%+v and %+v", a, b)
		}
	})
}

// TestNames: an image that is not there is answered with those that are, as far as a person reads them.
func TestNames(t *testing.T) {
	l := &localImages{docker: []dockerEntry{{RepoTags: []string{"b:1", "a:1"}}}, index: []v1.Descriptor{
		{Annotations: map[string]string{annotationRef: "latest", annotationImage: "docker.io/c:1"}}, {Annotations: map[string]string{annotationRef: "\x1b[2J" + strings.Repeat("x", 300)}},
		{Digest: v1.Hash{Algorithm: "sha256", Hex: "aa"}}}}
	want := `"\x1b[2J` + strings.Repeat("x", maxName-4) + `", "a:1", "b:1", "docker.io/c:1", "sha256:aa"`
	if got := l.names(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	for i := range 8 {
		l.docker = append(l.docker, dockerEntry{RepoTags: []string{fmt.Sprintf("d:%d", i)}})
	}
	if got := l.names(); strings.Count(got, ", ") != maxNames-1 || !strings.HasSuffix(got, " and 3 more") {
		t.Errorf("got %s", got)
	}
	if got := (&localImages{}).names(); got != "no images with a name" {
		t.Errorf("got %s", got)
	}
}
