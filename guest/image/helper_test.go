package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/cloister/cloister/internal/needs"
	"github.com/cloister/cloister/internal/testregistry"
)

// keyMap is a KeyProvider with fixed answers.
type keyMap struct {
	mu      sync.Mutex
	keys    map[string][]byte
	fetched []string
}

var errDenied = errors.New(`resource default/key/1 refused: tpm.pcr09 = 3f9a is not one of the 2 registered values (policy default_cpu, request 7c1f)`)

func (k *keyMap) Resource(_ context.Context, uri string) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fetched = append(k.fetched, uri)
	if v, ok := k.keys[uri]; ok {
		return v, nil
	}
	return nil, errDenied
}

// copyMounter stands in for overlayfs: it remembers what it was asked for.
type copyMounter struct {
	mu     sync.Mutex
	mounts map[string][]string
}

func (m *copyMounter) Mount(lower []string, _, _, target string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mounts == nil {
		m.mounts = map[string][]string{}
	}
	m.mounts[target] = lower
	return nil
}

func (m *copyMounter) Unmount(target string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.mounts, target)
	return nil
}

func startRegistry(t testing.TB, opts testregistry.Options) *testregistry.Registry {
	t.Helper()
	r, err := testregistry.Start(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// insecureFor allows plain HTTP to a registry.
func insecureFor(addr string) *RegistryConfig {
	return &RegistryConfig{Registries: []RegistryRule{{Location: addr, Insecure: true}}}
}

const acceptAll = `{"default":[{"type":"insecureAcceptAnything"}]}`

func newClient(t testing.TB, reg *testregistry.Registry, cfg Config, keys KeyProvider) (*Client, *copyMounter) {
	t.Helper()
	m := &copyMounter{}
	if cfg.WorkDir == "" {
		cfg.WorkDir = t.TempDir()
	}
	if cfg.Mounter == nil {
		cfg.Mounter = m
	}
	if cfg.RegistryConfig == nil {
		cfg.RegistryConfig = insecureFor(reg.Addr())
	}
	cfg.Architecture = "amd64"
	c, err := New(cfg, keys)
	if err != nil {
		t.Fatal(err)
	}
	return c, m
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// file is an entry of a test layer.
type file struct {
	hdr  tar.Header
	data string
}

func regular(name, data string) file {
	return file{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, ModTime: time.Unix(1e9, 0)}, data}
}

func directory(name string) file {
	return file{tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755, ModTime: time.Unix(1e9, 0)}, ""}
}

func link(name, target string, typ byte) file {
	return file{tar.Header{Name: name, Linkname: target, Typeflag: typ, Mode: 0o777}, ""}
}

func makeTar(t testing.TB, files ...file) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, f := range files {
		h := f.hdr
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(f.data))
		}
		h.Uid, h.Gid = os.Geteuid(), os.Getegid()
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(tw, f.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func compress(t testing.TB, data []byte, how string) []byte {
	t.Helper()
	var buf bytes.Buffer
	var w io.WriteCloser
	switch how {
	case "":
		return data
	case "gzip":
		w = gzip.NewWriter(&buf)
	case "zstd":
		z, err := zstd.NewWriter(&buf, zstd.WithEncoderConcurrency(1))
		if err != nil {
			t.Fatal(err)
		}
		w = z
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// testLayer is a layer ready to push.
type testLayer struct {
	blob        []byte
	mediaType   string
	diffID      string
	annotations map[string]string
	size        int64  // in the descriptor, if not the blob's
	digest      string // in the descriptor, if not the blob's
}

func ociLayer(t testing.TB, how string, files ...file) testLayer {
	t.Helper()
	plain := makeTar(t, files...)
	mt := "application/vnd.oci.image.layer.v1.tar"
	if how != "" {
		mt += "+" + how
	}
	return testLayer{blob: compress(t, plain, how), mediaType: mt, diffID: sha256Digest(plain).String()}
}

type jsonMap = map[string]any

func put(t testing.TB, reg *testregistry.Registry, path, contentType string, body []byte) {
	t.Helper()
	method, url := http.MethodPut, "http://"+reg.Addr()+path
	if strings.Contains(path, "/blobs/") {
		method = http.MethodPost
	}
	req, err := http.NewRequest(method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		text, _ := io.ReadAll(resp.Body)
		t.Fatalf("%s %s: %s %s", method, path, resp.Status, text)
	}
}

func putBlob(t testing.TB, reg *testregistry.Registry, repo string, data []byte) {
	t.Helper()
	put(t, reg, "/v2/"+repo+"/blobs/uploads/?digest="+sha256Digest(data).String(), "application/octet-stream", data)
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// pushImage pushes an image and returns its reference by digest.
func pushImage(t testing.TB, reg *testregistry.Registry, repo, tag string, layers ...testLayer) string {
	t.Helper()
	return pushImageConfig(t, reg, repo, tag, jsonMap{}, layers...)
}

func pushImageConfig(t testing.TB, reg *testregistry.Registry, repo, tag string, config jsonMap, layers ...testLayer) string {
	t.Helper()
	var diffIDs []string
	var descs []jsonMap
	for _, l := range layers {
		putBlob(t, reg, repo, l.blob)
		size, digest := l.size, l.digest
		if size == 0 {
			size = int64(len(l.blob))
		}
		if digest == "" {
			digest = sha256Digest(l.blob).String()
		}
		diffIDs = append(diffIDs, l.diffID)
		d := jsonMap{"mediaType": l.mediaType, "digest": digest, "size": size}
		if l.annotations != nil {
			d["annotations"] = l.annotations
		}
		descs = append(descs, d)
	}
	doc := jsonMap{"os": "linux", "architecture": "amd64", "config": jsonMap{"Entrypoint": []string{"/app"}, "Env": []string{"A=b"}},
		"rootfs": jsonMap{"type": "layers", "diff_ids": diffIDs}}
	for k, v := range config {
		doc[k] = v
	}
	cfg := marshal(t, doc)
	putBlob(t, reg, repo, cfg)
	m := marshal(t, jsonMap{"schemaVersion": 2, "mediaType": typeOCIManifest,
		"config": jsonMap{"mediaType": "application/vnd.oci.image.config.v1+json", "digest": sha256Digest(cfg).String(), "size": len(cfg)},
		"layers": descs})
	put(t, reg, "/v2/"+repo+"/manifests/"+tag, typeOCIManifest, m)
	return reg.Addr() + "/" + repo + "@" + sha256Digest(m).String()
}

func bundleDir(t testing.TB) string { return filepath.Join(t.TempDir(), "bundle") }

func mustRead(t testing.TB, path ...string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// wantError checks that err is there and says all of the parts.
func wantError(t testing.TB, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, expected one about %q", parts)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error does not say %q: %v", p, err)
		}
	}
}

// wantNothingLeft checks that no layer, mount or scratch directory remains.
func wantNothingLeft(t testing.TB, c *Client, m *copyMounter) {
	t.Helper()
	c.store.mu.Lock()
	for id, l := range c.store.layers {
		if l.users != 0 {
			t.Errorf("layer %s still has %d users", id, l.users)
		}
	}
	known := len(c.store.layers)
	c.store.mu.Unlock()
	entries, err := os.ReadDir(c.store.dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != known {
		t.Errorf("%d layer directories for %d known layers", len(entries), known)
	}
	if m != nil && len(m.mounts) != 0 {
		t.Errorf("still mounted: %v", m.mounts)
	}
	if scratch, _ := os.ReadDir(filepath.Join(c.cfg.WorkDir, "overlay")); len(scratch) != 0 {
		t.Errorf("%d scratch directories left", len(scratch))
	}
}

func requireRoot(t testing.TB) {
	t.Helper()
	needs.Root(t, "owners and mounts")
}

func discardLogger() *slog.Logger { return slog.New(slog.DiscardHandler) }

func itoa(n int) string { return strconv.Itoa(n) }

func contextWithCancel(t testing.TB) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(testContext(t))
	t.Cleanup(cancel)
	return ctx, cancel
}
