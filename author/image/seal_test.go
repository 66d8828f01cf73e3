package image

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/cloister/cloister/layer"
	layerformat "github.com/cloister/cloister/layer/sealed"
	"github.com/cloister/cloister/layer/sealed/seal"
	"github.com/cloister/cloister/layer/verity"
)

func TestSeal(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	secret := bytes.Repeat([]byte("nobody but the guest reads this. "), 1000)
	if err := os.WriteFile(file, secret, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, compression := range []string{"gzip", "zstd", "none"} {
		img, err := Build(Spec{Files: map[string]string{"/file": file}, Entrypoint: []string{"/file"}, Compression: compression})
		if err != nil {
			t.Fatal(err)
		}
		src, dst := "oci:"+filepath.Join(dir, compression), "oci:"+filepath.Join(dir, compression+"-sealed")
		if _, err := Push(t.Context(), img, src, Options{}); err != nil {
			t.Fatal(err)
		}
		key := Key{KID: "kbs:///default/image-key/a", KEK: bytes.Repeat([]byte{7}, 32)}
		done, err := Seal(t.Context(), src, dst, key, EncryptOptions{TempDir: dir})
		if err != nil {
			t.Fatal(err)
		}
		info, err := Inspect(t.Context(), dst, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if l := info.Platforms[0].Layers[0]; !l.Sealed || !l.Encrypted || l.Root != done.Layers[0].Root || len(l.KeyIDs) != 1 || l.KeyIDs[0] != key.KID {
			t.Errorf("inspected: %+v", l)
		}
		to, err := Options{}.locate(dst)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Options{}.load(t.Context(), to)
		if err != nil {
			t.Fatal(err)
		}
		m, err := got.image.Manifest()
		if err != nil || len(m.Layers) != 1 || m.Layers[0].MediaType != layerformat.MediaType || len(done.Layers) != 1 {
			t.Fatalf("%+v, %v, %+v", m, err, done)
		}
		a := m.Layers[0].Annotations
		if a[layerformat.AnnotationKeyID] != key.KID || a[layerformat.AnnotationRoot] != done.Layers[0].Root || a[layerformat.AnnotationVersion] != "1" {
			t.Errorf("annotations: %v", a)
		}
		config, err := got.image.ConfigFile()
		if err != nil || config.Config.Entrypoint[0] != "/file" || len(config.RootFS.DiffIDs) != 1 {
			t.Fatalf("configuration: %+v, %v", config, err)
		}
		of := done.Layers[0]
		if want := layerformat.DiffID(m.Layers[0].Digest.String(), of.Root, of.HashOffset, key.KID); config.RootFS.DiffIDs[0].String() != want {
			t.Errorf("the diff ID is %s, want %s", config.RootFS.DiffIDs[0], want)
		}
		l, err := got.image.LayerByDigest(m.Layers[0].Digest)
		if err != nil {
			t.Fatal(err)
		}
		blob, err := l.Compressed()
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(blob)
		if err != nil || bytes.Contains(data, secret[:64]) {
			t.Fatalf("reading the blob: %v, or it is not encrypted", err)
		}
		root, err := verity.ParseRoot(done.Layers[0].Root)
		if err != nil {
			t.Fatal(err)
		}
		offset, err := strconv.ParseInt(a[layerformat.AnnotationHashOffset], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		r, err := seal.Open(context.Background(), bytes.NewReader(data), offset, root, key.KEK)
		if err != nil {
			t.Fatal(err)
		}
		opened, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		// What is in it is what a plain layer of the same tar is.
		layers, err := img.Layers()
		if err != nil {
			t.Fatal(err)
		}
		tar, err := layers[0].Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		plain, err := os.Create(filepath.Join(dir, "plain"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := layer.Build(t.Context(), tar, plain, layer.Options{}); err != nil {
			t.Fatal(err)
		}
		plain.Close()
		want, err := os.ReadFile(plain.Name())
		if err != nil || !bytes.Equal(opened, want[:offset]) {
			t.Errorf("%s: the layer in it is another one: %v", compression, err)
		}
		if _, err := Seal(t.Context(), dst, "oci:"+filepath.Join(dir, "again"), key, EncryptOptions{}); err == nil || !strings.Contains(err.Error(), "encrypted already") {
			t.Errorf("sealing twice: %v", err)
		}
	}
	for _, key := range []Key{{KID: "kbs:///default/image-key/a", KEK: make([]byte, 31)}, {KID: "file:///a", KEK: make([]byte, 32)}} {
		if _, err := Seal(t.Context(), "oci:"+filepath.Join(dir, "gzip"), "oci:"+filepath.Join(dir, "x"), key, EncryptOptions{}); err == nil {
			t.Errorf("key %s was accepted", key)
		}
	}
}
