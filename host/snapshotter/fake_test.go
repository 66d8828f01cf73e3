package snapshotter

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/cloister/cloister/layer"
)

// fakeContent is a content store in memory.
type fakeContent struct {
	mu        sync.Mutex
	blobs     map[string][]byte
	manifests []string
	opened    map[string]int
	gate      chan struct{} // when set, blobs of more than 100 bytes end after half until it is closed
}

func newContent() *fakeContent {
	return &fakeContent{blobs: map[string][]byte{}, opened: map[string]int{}}
}

func (f *fakeContent) put(data []byte) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	digest := sum(data)
	f.blobs[digest] = data
	return digest
}

func (f *fakeContent) get(digest string) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	data, ok := f.blobs[digest]
	if !ok {
		return nil, fmt.Errorf("blob %s: %w", digest, errdefs.ErrNotFound)
	}
	return data, nil
}

func (f *fakeContent) Size(_ context.Context, digest string) (int64, error) {
	data, err := f.get(digest)
	return int64(len(data)), err
}

func (f *fakeContent) Open(ctx context.Context, digest string) (io.ReadCloser, error) {
	data, err := f.get(digest)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	f.opened[digest]++
	gate := f.gate
	f.mu.Unlock()
	if gate == nil || len(data) <= 100 || bytes.HasPrefix(data, []byte("{")) {
		return io.NopCloser(bytes.NewReader(data)), nil
	}
	half := len(data) / 2
	return io.NopCloser(io.MultiReader(bytes.NewReader(data[:half]), waiter{ctx, gate}, bytes.NewReader(data[half:]))), nil
}

func (f *fakeContent) Manifests(context.Context) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.manifests), nil
}

func (f *fakeContent) times(digest string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.opened[digest]
}

// waiter is an empty reader that is at its end when the gate is.
type waiter struct {
	ctx  context.Context
	gate chan struct{}
}

func (w waiter) Read([]byte) (int, error) {
	select {
	case <-w.gate:
		return 0, io.EOF
	case <-w.ctx.Done():
		return 0, w.ctx.Err()
	}
}

func sum(data []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(data)) }

// testLayer is a layer of an image in a content store.
type testLayer struct {
	tar                 []byte
	blob, diffID, chain string
}

// tarOfSize makes the tar of a layer with one file of random bytes.
func tarOfSize(t testing.TB, seed uint64, size int) []byte {
	t.Helper()
	data := make([]byte, size)
	r := rand.New(rand.NewPCG(seed, 1))
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []tar.Header{{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: fmt.Sprintf("d/%d", seed), Mode: 0o644, Size: int64(size)}} {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// addImage puts an image into the store, each layer compressed in another way.
func (f *fakeContent) addImage(t testing.TB, tars ...[]byte) []testLayer {
	t.Helper()
	var layers []testLayer
	type descriptor struct {
		Digest string `json:"digest"`
	}
	var manifest struct {
		Config descriptor   `json:"config"`
		Layers []descriptor `json:"layers"`
	}
	var config struct {
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	chain := ""
	for i, data := range tars {
		l := testLayer{tar: data, diffID: sum(data)}
		chain = chainID(chain, l.diffID)
		l.chain, l.blob = chain, f.put(compress(t, i, data))
		layers = append(layers, l)
		manifest.Layers = append(manifest.Layers, descriptor{l.blob})
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, l.diffID)
	}
	text, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	manifest.Config.Digest = f.put(text)
	if text, err = json.Marshal(manifest); err != nil {
		t.Fatal(err)
	}
	digest := f.put(text)
	f.mu.Lock()
	f.manifests = append(f.manifests, digest)
	f.mu.Unlock()
	return layers
}

func compress(t testing.TB, how int, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	var w io.WriteCloser
	switch how % 3 {
	case 0:
		w = gzip.NewWriter(&b)
	case 1:
		z, err := zstd.NewWriter(&b)
		if err != nil {
			t.Fatal(err)
		}
		w = z
	case 2:
		return data
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// open opens a snapshotter in a directory.
func open(t testing.TB, root string, content contentStore, change func(*Config)) *Snapshotter {
	t.Helper()
	cfg := Default()
	cfg.Root, cfg.ReadAhead = root, false
	change(&cfg)
	s, err := New(t.Context(), cfg, slog.New(slog.NewTextHandler(t.Output(), nil)), content, layer.Build)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func asIs(*Config) {}

// number makes names as containerd does.
type number struct {
	mu sync.Mutex
	n  int
}

func (n *number) name(ns, plain string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.n++
	return fmt.Sprintf("%s/%d/%s", ns, n.n, plain)
}

// unpack does what containerd 1.6 does for one layer without labels, and returns the snapshot's name.
func unpack(ctx context.Context, s *Snapshotter, n *number, parent string, l testLayer, labels map[string]string) (string, error) {
	key := n.name("k8s.io", "extract-7-a_-= "+l.chain)
	if _, err := s.Prepare(ctx, key, parent, snapshots.WithLabels(labels)); err != nil {
		return "", err
	}
	name := n.name("k8s.io", l.chain)
	if err := s.Commit(ctx, name, key); err != nil {
		if rerr := s.Remove(ctx, key); rerr != nil {
			return "", rerr
		}
		return "", err
	}
	return name, nil
}

// unpackAll does so for all layers of an image and returns the snapshots' names.
func unpackAll(t testing.TB, s *Snapshotter, n *number, layers []testLayer) []string {
	t.Helper()
	parent := ""
	var names []string
	for _, l := range layers {
		name, err := unpack(t.Context(), s, n, parent, l, nil)
		if err != nil {
			t.Fatal(err)
		}
		parent = name
		names = append(names, name)
	}
	return names
}

// layerFile is the file of a committed snapshot.
func layerFile(t testing.TB, s *Snapshotter, name string) string {
	t.Helper()
	files := map[string]string{}
	names := map[string]string{}
	if err := s.ms.WithTransaction(t.Context(), false, func(ctx context.Context) (err error) {
		names, err = idMap(ctx)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for id, name := range names {
		files[name] = filepath.Join(s.dir(id), "layer.erofs")
	}
	if files[name] == "" {
		t.Fatalf("there is no snapshot %s", name)
	}
	return files[name]
}

// whole checks that a layer's file is what the author computes.
func whole(t testing.TB, file string, l testLayer) {
	t.Helper()
	want, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer want.Close()
	result, err := layer.Build(context.Background(), bytes.NewReader(l.tar), want, layer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	a, err := os.ReadFile(want.Name())
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a, b) {
		t.Errorf("%s has other bytes than the author's layer", file)
	}
	if got, err := read(filepath.Dir(file)); err != nil || got.Root != result.Root || got.DiffID != l.diffID || got.HashOffset != result.HashOffset {
		t.Errorf("beside %s there is %+v, %v; want %+v", file, got, err, result)
	}
}

// inStore are the names of the layers that are kept, and of what is not finished.
func inStore(t testing.TB, s *Snapshotter) (layers, unfinished []string) {
	t.Helper()
	for dir, to := range map[string]*[]string{layersDir: &layers, ingestDir: &unfinished} {
		entries, err := os.ReadDir(filepath.Join(s.cfg.Root, dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			*to = append(*to, e.Name())
		}
	}
	return layers, unfinished
}
