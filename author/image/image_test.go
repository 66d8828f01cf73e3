package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/cloister/cloister/internal/needs"
	"github.com/cloister/cloister/internal/testregistry"
	"github.com/cloister/cloister/wire/imagecrypt"
)

func start(t *testing.T) (context.Context, *testregistry.Registry) {
	t.Helper()
	r, err := testregistry.Start(testregistry.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx, r
}

func testDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range map[string]string{"etc/motd": "hello", "bin/run": "#!/bin/sh\n"} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("run", filepath.Join(dir, "bin/alias")); err != nil {
		t.Fatal(err)
	}
	return dir
}

func layerNames(t *testing.T, img v1.Image) []string {
	t.Helper()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	r, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var out []string
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 {
			t.Errorf("%s belongs to %d:%d", h.Name, h.Uid, h.Gid)
		}
		out = append(out, h.Name)
	}
}

func TestBuildIsDeterministic(t *testing.T) {
	for _, compression := range []string{"gzip", "zstd", "none"} {
		spec := Spec{Dir: testDir(t), Entrypoint: []string{"/bin/run"}, Env: []string{"A=b"}, Compression: compression}
		one, err := Build(spec)
		if err != nil {
			t.Fatal(err)
		}
		spec.Dir = testDir(t) // another directory with the same content, made later
		two, err := Build(spec)
		if err != nil {
			t.Fatal(err)
		}
		d1, err1 := one.Digest()
		d2, err2 := two.Digest()
		if err := errors.Join(err1, err2); err != nil || d1 != d2 {
			t.Errorf("%s: %v and %v (%v)", compression, d1, d2, err)
		}
		if compression == "zstd" {
			continue // the library's reader knows gzip only where it guesses
		}
		want := []string{"bin/", "bin/alias", "bin/run", "etc/", "etc/motd"}
		if got := layerNames(t, one); !slices.Equal(got, want) {
			t.Errorf("%s: entries %q", compression, got)
		}
	}
}

func TestBuildRefuses(t *testing.T) {
	if _, err := Build(Spec{}); err == nil {
		t.Error("an empty image was built")
	}
	if _, err := Build(Spec{Dir: testDir(t), Compression: "rar"}); err == nil {
		t.Error("unknown compression accepted")
	}
	if _, err := Build(Spec{Files: map[string]string{"/x": "/does/not/exist"}}); err == nil {
		t.Error("a missing file was accepted")
	}
}

// TestBuildWithLibraries takes a program of this machine with what it needs.
func TestBuildWithLibraries(t *testing.T) {
	sh := needs.Program(t, "sh")
	img, err := Build(Spec{Files: map[string]string{"/bin/sh": sh}, Libraries: true, Entrypoint: []string{"/bin/sh"}})
	if err != nil {
		t.Fatal(err)
	}
	names := strings.Join(layerNames(t, img), " ")
	real, err := filepath.EvalSymlinks(sh)
	if err != nil {
		t.Fatal(err)
	}
	_, needed, err := dependencies(real)
	if err != nil {
		t.Fatal(err)
	}
	for _, lib := range needed {
		if !strings.Contains(names, lib) {
			t.Errorf("%s is missing in %s", lib, names)
		}
	}
}

func TestEncryptAndInspect(t *testing.T) {
	ctx, reg := start(t)
	img, err := Build(Spec{Dir: testDir(t), Entrypoint: []string{"/bin/run"}})
	if err != nil {
		t.Fatal(err)
	}
	src, dst := reg.Addr()+"/plain:v1", reg.Addr()+"/encrypted:v1"
	if _, err := Push(ctx, img, src, Options{}); err != nil {
		t.Fatal(err)
	}
	keys := []Key{{KID: "kbs:///default/image-kek/a", KEK: bytes.Repeat([]byte{1}, 32)}, {KID: "kbs:///default/image-kek/b", KEK: bytes.Repeat([]byte{2}, 32)}}
	layout := "oci:" + filepath.Join(t.TempDir(), "layout") + ":v1"
	if _, err := Copy(ctx, src, layout, Options{}); err != nil {
		t.Fatal(err)
	}
	for _, route := range [][2]string{{src, dst}, {src, layout + "-enc"}, {layout, reg.Addr() + "/from-layout:v1"}} {
		result, err := Encrypt(ctx, route[0], route[1], keys, EncryptOptions{TempDir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		info, err := Inspect(ctx, route[1], Options{})
		if err != nil {
			t.Fatal(err)
		}
		if info.Digest != result.Digest || result.Layers != 1 || len(info.Platforms) != 1 {
			t.Errorf("%s: %+v, %+v", route[1], result, info)
		}
		p := info.Platforms[0]
		if all, _ := p.Encrypted(); !all || !slices.Equal(p.KeyIDs(), []string{keys[0].KID, keys[1].KID}) || p.Config.Entrypoint[0] != "/bin/run" {
			t.Errorf("%s: %+v", route[1], p)
		}
		loc, err := Options{}.locate(route[1])
		if err != nil {
			t.Fatal(err)
		}
		a, err := Options{}.load(ctx, loc)
		if err != nil {
			t.Fatal(err)
		}
		checkEncrypted(t, img, a.image, keys)
	}
	if _, err := Encrypt(ctx, dst, reg.Addr()+"/twice:v1", keys, EncryptOptions{}); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("encrypting twice: %v", err)
	}
	for _, bad := range [][]Key{nil, {{KID: "kbs:///a/b/c", KEK: make([]byte, 16)}}, {{KID: "a/b/c", KEK: make([]byte, 32)}}} {
		if _, err := Encrypt(ctx, src, dst, bad, EncryptOptions{}); err == nil {
			t.Errorf("keys %v accepted", bad)
		}
	}
}

// checkEncrypted opens every layer with every key and compares with the original.
func checkEncrypted(t *testing.T, plain, enc v1.Image, keys []Key) {
	t.Helper()
	c1, err1 := plain.RawConfigFile()
	c2, err2 := enc.RawConfigFile()
	if err := errors.Join(err1, err2); err != nil || !bytes.Equal(c1, c2) {
		t.Fatalf("the configuration changed (%v)", err)
	}
	m, err := enc.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	plainLayers, err := plain.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for i, d := range m.Layers {
		l, err := enc.LayerByDigest(d.Digest)
		if err != nil {
			t.Fatal(err)
		}
		r, err := l.Compressed()
		if err != nil {
			t.Fatal(err)
		}
		cipher, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		want, err := plainLayers[i].Compressed()
		if err != nil {
			t.Fatal(err)
		}
		wantBytes, err := io.ReadAll(want)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(cipher, wantBytes) {
			t.Error("the layer is not encrypted")
		}
		packets, err := imagecrypt.DecodePackets(d.Annotations[imagecrypt.AnnotationKeys])
		if err != nil {
			t.Fatal(err)
		}
		pub, err := imagecrypt.DecodePublicOptions(d.Annotations[imagecrypt.AnnotationPublicOptions])
		if err != nil {
			t.Fatal(err)
		}
		for k, p := range packets {
			priv, err := imagecrypt.UnwrapPLBCO(p, keys[k].KEK)
			if err != nil {
				t.Fatal(err)
			}
			dec, err := imagecrypt.NewDecryptReader(bytes.NewReader(cipher), priv, pub)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(dec); err != nil || !bytes.Equal(got, wantBytes) {
				t.Errorf("packet %d does not open the layer (%v)", k, err)
			}
		}
	}
}

func TestEncryptIndex(t *testing.T) {
	ctx, reg := start(t)
	var ix v1.ImageIndex = empty.Index
	for _, arch := range []string{"amd64", "arm64"} {
		img, err := random.Image(1000, 2)
		if err != nil {
			t.Fatal(err)
		}
		ix = mutate.AppendManifests(ix, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	src := reg.Addr() + "/multi:v1"
	loc, err := Options{}.locate(src)
	if err != nil {
		t.Fatal(err)
	}
	if err := (Options{}).save(ctx, loc, artifact{index: ix}); err != nil {
		t.Fatal(err)
	}
	key := Key{KID: "kbs:///default/image-kek/a", KEK: make([]byte, 32)}
	result, err := Encrypt(ctx, src, reg.Addr()+"/multi:enc", []Key{key}, EncryptOptions{})
	if err != nil {
		t.Fatal(err)
	}
	info, err := Inspect(ctx, reg.Addr()+"/multi:enc", Options{})
	if err != nil || !info.Index || len(info.Platforms) != 2 || result.Layers != 4 {
		t.Fatalf("%v %+v %+v", err, result, info)
	}
	for _, p := range info.Platforms {
		if all, _ := p.Encrypted(); !all || !strings.HasPrefix(p.Layers[0].MediaType, "application/vnd.oci.image.layer.v1.tar") {
			t.Errorf("%+v", p)
		}
	}
}

func TestSign(t *testing.T) {
	ctx, reg := start(t)
	img, err := random.Image(100, 1)
	if err != nil {
		t.Fatal(err)
	}
	ref := reg.Addr() + "/team/app:v1"
	digest, err := Push(ctx, mutate.MediaType(img, types.OCIManifestSchema1), ref, Options{})
	if err != nil {
		t.Fatal(err)
	}
	var publics []*ecdsa.PublicKey
	for range 2 { // a second signature keeps the first
		private, public, err := GenerateKeyPair()
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(public)
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		publics = append(publics, key.(*ecdsa.PublicKey))
		signed, err := Sign(ctx, ref, private, SignOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if signed.Digest != digest || signed.Signature != reg.Addr()+"/team/app:"+strings.Replace(digest, ":", "-", 1)+".sig" {
			t.Errorf("%+v", signed)
		}
	}
	tag, err := Options{}.parse(reg.Addr() + "/team/app:" + strings.Replace(digest, ":", "-", 1) + ".sig")
	if err != nil {
		t.Fatal(err)
	}
	sig, err := remote.Image(tag)
	if err != nil {
		t.Fatal(err)
	}
	m, err := sig.Manifest()
	if err != nil || len(m.Layers) != 2 {
		t.Fatalf("%v, %d signatures", err, len(m.Layers))
	}
	for i, d := range m.Layers {
		l, err := sig.LayerByDigest(d.Digest)
		if err != nil {
			t.Fatal(err)
		}
		r, err := l.Compressed()
		if err != nil {
			t.Fatal(err)
		}
		payload, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := base64.StdEncoding.DecodeString(d.Annotations["dev.cosignproject.cosign/signature"])
		sum := sha256.Sum256(payload)
		if err != nil || !ecdsa.VerifyASN1(publics[i], sum[:], raw) {
			t.Errorf("signature %d does not verify (%v)", i, err)
		}
		want := `{"critical":{"identity":{"docker-reference":"` + reg.Addr() + `/team/app"},"image":{"docker-manifest-digest":"` + digest + `"},"type":"cosign container image signature"},"optional":null}`
		if string(payload) != want {
			t.Errorf("payload %s", payload)
		}
	}
	info, err := Inspect(ctx, ref, Options{})
	if err != nil || len(info.Signatures) != 2 || info.Signatures[0].Digest != digest {
		t.Errorf("%v %+v", err, info)
	}
	if _, err := json.Marshal(info); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"", "junk", "-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED SIGSTORE PRIVATE KEY-----\n",
		"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"} {
		if _, err := Sign(ctx, ref, []byte(bad), SignOptions{}); err == nil {
			t.Errorf("key %q accepted", bad)
		}
	}
	if _, err := Sign(ctx, reg.Addr()+"/none:v1", nil, SignOptions{}); err == nil {
		t.Error("signed what is not there")
	}
}

// TestSignComputesTheDigest signs at a registry that claims another digest than that of the manifest it gives.
func TestSignComputesTheDigest(t *testing.T) {
	ctx, reg := start(t)
	img, err := random.Image(100, 1)
	if err != nil {
		t.Fatal(err)
	}
	ref := reg.Addr() + "/team/app:v1"
	digest, err := Push(ctx, img, ref, Options{})
	if err != nil {
		t.Fatal(err)
	}
	private, _, err := GenerateKeyPair()
	if err != nil {
		t.Fatal(err)
	}
	claim := "sha256:" + strings.Repeat("0", 64)
	opts := SignOptions{Options: Options{Transport: headClaims{claim}}}
	_, err = Sign(ctx, ref, private, opts)
	if err == nil || !strings.Contains(err.Error(), claim) || !strings.Contains(err.Error(), digest) {
		t.Errorf("got %v, expected both digests", err)
	}
	if info, err := Inspect(ctx, ref, Options{}); err != nil || len(info.Signatures) != 0 {
		t.Errorf("signatures %v, %v, expected none", info.Signatures, err)
	}
}

// headClaims has every HEAD of a manifest answer with a digest.
type headClaims struct{ digest string }

func (h headClaims) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err == nil && r.Method == http.MethodHead && strings.HasSuffix(r.URL.Path, "/manifests/v1") {
		resp.Header.Set("Docker-Content-Digest", h.digest)
	}
	return resp, err
}

func TestLocationRefuses(t *testing.T) {
	for _, bad := range []string{"", "oci:", "UPPER CASE", "a@sha256:x"} {
		if l, err := (Options{}).locate(bad); err == nil {
			t.Errorf("%q is %v", bad, l)
		}
	}
}

// TestSplitLayout: names in layouts are often those of registries, in full.
func TestSplitLayout(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, dir := range []string{"there", "with:colon"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "index.json"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for s, want := range map[string][2]string{
		"there": {"there", ""}, "there:1": {"there", "1"}, "there:docker.io/library/app:1": {"there", "docker.io/library/app:1"},
		"with:colon": {"with:colon", ""}, "with:colon:1": {"with:colon", "1"}, "./there:a:b": {"./there", "a:b"},
		"new": {"new", ""}, "new:1": {"new", "1"}, "a:b/new": {"a:b/new", ""}, "a:b/new:1": {"a:b/new", "1"}, "": {"", ""}, ":1": {"", "1"},
	} {
		if dir, tag := splitLayout(s); dir != want[0] || tag != want[1] {
			t.Errorf("%q is %q and %q, want %q", s, dir, tag, want)
		}
	}
}

func TestGzipIsGzip(t *testing.T) {
	l, err := newLayer("gzip", func(w io.Writer) error { _, err := w.Write([]byte("x")); return err })
	if err != nil {
		t.Fatal(err)
	}
	r, err := l.open()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := gzip.NewReader(r); err != nil {
		t.Error(err)
	}
}
