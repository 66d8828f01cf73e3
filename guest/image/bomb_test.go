package image

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/cloister/cloister/internal/needs"
	"github.com/cloister/cloister/internal/testregistry"
)

// zeroLayer is a layer with one file of n zeros, made without holding it in memory.
func zeroLayer(t testing.TB, how string, n int64) testLayer {
	t.Helper()
	var buf bytes.Buffer
	var z io.WriteCloser = gzip.NewWriter(&buf)
	if how == "zstd" {
		enc, err := zstd.NewWriter(&buf, zstd.WithEncoderConcurrency(1))
		if err != nil {
			t.Fatal(err)
		}
		z = enc
	}
	sum := sha256.New()
	w := io.MultiWriter(z, sum)
	head := zeroHeader(t, n)
	block := make([]byte, 1<<20)
	write := func(p []byte) {
		if _, err := w.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	write(head)
	for left := n; left > 0; left -= int64(len(block)) {
		write(block[:min(left, int64(len(block)))])
	}
	write(make([]byte, 1024))
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return testLayer{blob: buf.Bytes(), mediaType: "application/vnd.oci.image.layer.v1.tar+" + how, diffID: "sha256:" + hex.EncodeToString(sum.Sum(nil))}
}

// zeroHeader is the tar header of a file of n bytes.
func zeroHeader(t testing.TB, n int64) []byte {
	head := makeTar(t, regular("zeros", ""))[:512]
	copy(head[124:136], octal12(n))
	copy(head[148:156], "        ")
	sum := 0
	for _, b := range head {
		sum += int(b)
	}
	copy(head[148:156], octal(sum)+"\x00 ")
	return head
}

func octal12(n int64) string {
	s := ""
	for range 11 {
		s = string(rune('0'+n%8)) + s
		n /= 8
	}
	return s + "\x00"
}

func TestDecompressionBombs(t *testing.T) {
	for _, tc := range []struct {
		name, how string
		limits    Limits
		encrypted bool
		want      string
	}{
		{"gzip, total size", "gzip", Limits{MaxBytes: 20 << 20}, false, "uncompressed size of the image exceeds the limit of 20971520"},
		{"zstd, ratio", "zstd", Limits{}, false, "compression ratio"},
		{"gzip, ratio", "gzip", Limits{MaxRatio: 100}, false, "compression ratio"},
		{"encrypted gzip, total size", "gzip", Limits{MaxBytes: 20 << 20}, true, "uncompressed size"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			reg := startRegistry(t, testregistry.Options{})
			l := zeroLayer(t, tc.how, 60<<20)
			if tc.encrypted {
				l = seal(t, l, testKID, testKEK, nil)
			}
			c, m := newClient(t, reg, Config{Limits: tc.limits}, &keyMap{keys: map[string][]byte{testKID: testKEK}})
			_, err := c.PullImage(testContext(t), pushImage(t, reg, "app", "v1", l), bundleDir(t))
			if err == nil {
				t.Fatal("accepted")
			}
			var le *LimitError
			if !errors.As(err, &le) {
				t.Errorf("not a LimitError: %v", err)
			}
			// The file's own size may be noticed before the stream's.
			if tc.limits.MaxBytes == 0 {
				wantError(t, err, tc.want)
			}
			wantError(t, err, "decompression bomb?")
			wantNothingLeft(t, c, m)
		})
	}
	t.Run("cumulative over layers", func(t *testing.T) {
		reg := startRegistry(t, testregistry.Options{})
		var layers []testLayer
		for i := range 4 {
			layers = append(layers, zeroLayer(t, "gzip", 8<<20+512*int64(i)))
		}
		c, m := newClient(t, reg, Config{Limits: Limits{MaxBytes: 20 << 20}}, nil)
		_, err := c.PullImage(testContext(t), pushImage(t, reg, "app", "v1", layers...), bundleDir(t))
		wantError(t, err, "exceeds the limit of 20971520")
		if len(m.mounts) != 0 {
			t.Error("something was mounted")
		}
	})
	t.Run("zstd window", func(t *testing.T) {
		var buf bytes.Buffer
		z, err := zstd.NewWriter(&buf, zstd.WithWindowSize(64<<20), zstd.WithSingleSegment(false))
		if err != nil {
			t.Fatal(err)
		}
		data := make([]byte, 20<<20)
		for i := range data {
			data[i] = byte(i * i >> 7)
		}
		z.Write(data)
		z.Close()
		r, err := decompress(&buf, "zstd")
		if err == nil {
			_, err = io.Copy(io.Discard, r)
		}
		wantError(t, err, "zstd", "window")
	})
	t.Run("compressed size alone", func(t *testing.T) {
		reg := startRegistry(t, testregistry.Options{})
		l := ociLayer(t, "gzip", regular("a", "b"))
		l.size = 1 << 60
		c, _ := newClient(t, reg, Config{}, nil)
		_, err := c.PullImage(testContext(t), pushImage(t, reg, "app", "v1", l), bundleDir(t))
		wantError(t, err, "compressed size of the image")
	})
}

// TestMemoryIsBounded pulls 300 MB of zeros (uncompressed, so that every stage sees every byte) from a generated
// blob and watches the heap.
func TestMemoryIsBounded(t *testing.T) {
	needs.Long(t, "reads 300 MB")
	const total, limit = 300 << 20, 64 << 20
	reg := startRegistry(t, testregistry.Options{})
	head := zeroHeader(t, total)
	body := func(w io.Writer) {
		w.Write(head)
		block := make([]byte, 1<<20)
		for range total >> 20 {
			if _, err := w.Write(block); err != nil {
				return
			}
		}
		w.Write(make([]byte, 1024))
	}
	sum := sha256.New()
	body(sum)
	digest := "sha256:" + hex.EncodeToString(sum.Sum(nil))
	l := testLayer{mediaType: "application/vnd.oci.image.layer.v1.tar", diffID: digest, digest: digest, size: total + 512 + 1024}
	reg.Handle("/blobs/"+digest, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", itoa(int(l.size)))
		body(w)
	})
	ref := pushManifestOnly(t, reg, "zeros", l)

	c, _ := newClient(t, reg, Config{}, nil)
	var peak atomic.Uint64
	stop, done := make(chan struct{}), make(chan struct{})
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	go func() {
		defer close(done)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				if m.HeapInuse > peak.Load() {
					peak.Store(m.HeapInuse)
				}
			}
		}
	}()
	_, err := c.PullImage(testContext(t), ref, bundleDir(t))
	close(stop)
	<-done
	if err != nil {
		t.Fatal(err)
	}
	if p := peak.Load(); p > before.HeapInuse+limit {
		t.Errorf("heap grew from %d to %d MiB", before.HeapInuse>>20, p>>20)
	} else {
		t.Logf("heap grew from %d to %d MiB", before.HeapInuse>>20, p>>20)
	}
	if err := os.RemoveAll(c.cfg.WorkDir); err != nil {
		t.Error(err)
	}
}

// pushManifestOnly serves a manifest whose layer the registry does not have itself.
func pushManifestOnly(t testing.TB, reg *testregistry.Registry, repo string, l testLayer) string {
	t.Helper()
	cfg := marshal(t, jsonMap{"os": "linux", "architecture": "amd64", "rootfs": jsonMap{"type": "layers", "diff_ids": []string{l.diffID}}})
	putBlob(t, reg, repo, cfg)
	m := marshal(t, jsonMap{"schemaVersion": 2, "mediaType": typeOCIManifest,
		"config": jsonMap{"mediaType": "application/vnd.oci.image.config.v1+json", "digest": sha256Digest(cfg).String(), "size": len(cfg)},
		"layers": []jsonMap{{"mediaType": l.mediaType, "digest": l.digest, "size": l.size, "annotations": l.annotations}}})
	d := sha256Digest(m).String()
	reg.Handle("/manifests/"+d, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", typeOCIManifest)
		w.Write(m)
	})
	return reg.Addr() + "/" + repo + "@" + d
}

// BenchmarkPull measures the pipeline: MB/s are of uncompressed content.
func BenchmarkPull(b *testing.B) {
	data := make([]byte, 32<<20) // somewhat compressible, like programs
	x := uint32(1)
	for i := range data {
		x = x*1664525 + 1013904223
		data[i] = byte(x>>24) & 0x3f
	}
	for _, how := range []string{"", "gzip", "zstd"} {
		for _, encrypted := range []bool{false, true} {
			name := "plain/" + how
			if encrypted {
				name = "encrypted/" + how
			}
			b.Run(name, func(b *testing.B) {
				reg := startRegistry(b, testregistry.Options{})
				l := ociLayer(b, how, regular("data", string(data)))
				if encrypted {
					l = seal(b, l, testKID, testKEK, nil)
				}
				ref := pushImage(b, reg, "app", "v1", l)
				keys := &keyMap{keys: map[string][]byte{testKID: testKEK}}
				b.SetBytes(int64(len(data)))
				for b.Loop() {
					c, _ := newClient(b, reg, Config{}, keys)
					bundle := bundleDir(b)
					if _, err := c.PullImage(testContext(b), ref, bundle); err != nil {
						b.Fatal(err)
					}
					if err := errors.Join(c.Release(bundle), c.Close()); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
