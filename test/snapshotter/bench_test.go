package snapshotter

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/cloister/cloister/test/containerd"
)

// BenchmarkUnpack is what `ctr images pull` takes for 4 layers of 50 MB that are downloaded already: made into block layers beside
// unpacked for overlayfs by the same containerd.
//
//	go test -run '^$' -bench Unpack -benchtime 5x ./test/snapshotter
func BenchmarkUnpack(b *testing.B) {
	for _, version := range containerd.Versions(b, containerd.V16, containerd.V2) {
		b.Run(version, func(b *testing.B) {
			n := start(b, version)
			var all []v1.Layer
			for i := range 4 {
				all = append(all, randomLayer(b, uint64(i)))
			}
			n.push(registryHost+"/bench/image:1", func(*v1.ConfigFile) {}, all...)
			ref := n.registry.Addr() + "/bench/image:1"
			ctr := func(args ...string) {
				b.Helper()
				if _, err := n.Ctr(n.call(), "", args...); err != nil {
					b.Fatal(err)
				}
			}
			for _, snapshotter := range []string{name, "overlayfs"} {
				b.Run(snapshotter, func(b *testing.B) {
					pull := []string{"images", "pull", "--plain-http", "--snapshotter", snapshotter}
					if containerd.Series(version) == containerd.V2 {
						pull = append(pull, "--local")
					}
					b.SetBytes(4 * 50 << 20)
					for b.Loop() {
						b.StopTimer()
						ctr("content", "fetch", "--plain-http", ref)
						b.StartTimer()
						ctr(append(pull, ref)...)
						b.StopTimer()
						ctr("images", "rm", "--sync", ref)
						b.StartTimer()
					}
				})
			}
		})
	}
}

// randomLayer has 500 files of 100 KiB that are compressed to two thirds.
func randomLayer(b *testing.B, seed uint64) v1.Layer {
	b.Helper()
	var text bytes.Buffer
	w := tar.NewWriter(&text)
	r := rand.New(rand.NewPCG(seed, 24))
	data := make([]byte, 100<<10)
	for i := range 512 {
		for j := range data {
			data[j] = byte(r.Uint32()) & 0x1f
		}
		if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("%d-%d", seed, i), Mode: 0o644, Size: int64(len(data))}); err != nil {
			b.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			b.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(text.Bytes())), nil })
	if err != nil {
		b.Fatal(err)
	}
	return l
}
