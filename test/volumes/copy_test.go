// Package volumes tests that what the host does with a pod's volumes is what the guest expects.
package volumes

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	guestagent "github.com/cloister/cloister/guest/agent"
	"github.com/cloister/cloister/host/runtimeconfig"
	"github.com/cloister/cloister/host/share"
	"github.com/cloister/cloister/host/volume"
	"github.com/cloister/cloister/internal/needs"
	"github.com/cloister/cloister/wire/agent"
)

const uid = "2f1c9a52-7b0e-4d1c-9a56-0c8f3f4f9d10"

// publish writes a ConfigMap as the kubelet does.
func publish(t *testing.T, dir, stamp, value string) {
	t.Helper()
	old, _ := os.Readlink(dir + "/..data")
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(os.MkdirAll(filepath.Join(dir, stamp), 0o755))
	check(os.WriteFile(filepath.Join(dir, stamp, "key"), []byte(value), 0o644))
	check(os.Symlink(stamp, dir+"/..data_tmp"))
	check(os.Rename(dir+"/..data_tmp", dir+"/..data"))
	if old == "" {
		check(os.Symlink("..data/key", dir+"/key"))
		return
	}
	check(os.RemoveAll(filepath.Join(dir, old)))
}

// TestConfigMapNeverMissing: a program in a confidential pod reads a ConfigMap all the time while it changes, and always finds one of its
// versions whole.
func TestConfigMapNeverMissing(t *testing.T) {
	needs.Root(t, "giving files to their owners")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	layout := guestagent.DefaultLayout()
	layout.Root = t.TempDir()
	guest := guestagent.New(guestagent.Config{Log: slog.New(slog.DiscardHandler), Layout: layout})
	inGuest := func(p string) string {
		return filepath.Join(layout.Root, "shared/containers", strings.TrimPrefix(p, share.GuestDir))
	}
	c := runtimeconfig.Default()
	c.Sandbox.TEE = "snp"
	set, err := volume.New(volume.Options{Dir: t.TempDir() + "/volumes", SandboxID: "s", Config: &c,
		CopyFile: func(ctx context.Context, r *agent.CopyFileRequest) error {
			r.Path = inGuest(r.GetPath())
			_, err := guest.CopyFile(ctx, r)
			return err
		}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := set.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	dir := t.TempDir() + "/pods/" + uid + "/volumes/kubernetes.io~configmap/cm"
	long := strings.Repeat("x", 1<<20) // more than one piece
	publish(t, dir, "..0", "0"+long)
	p, err := set.Container(ctx, volume.Request{ID: "c", Spec: &specs.Spec{
		Root: &specs.Root{}, Annotations: map[string]string{"io.kubernetes.cri.image-name": "i"},
		Mounts: []specs.Mount{{Destination: "/cm", Type: "bind", Source: dir, Options: []string{"rbind", "ro"}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(inGuest(p.Mounts[0].Source), "key")
	const versions = 20
	var newest atomic.Int64
	done := make(chan error, 1)
	go func() {
		for ctx.Err() == nil {
			b, err := os.ReadFile(file)
			if err != nil {
				done <- err
				return
			}
			number, ok := strings.CutSuffix(string(b), long)
			n := int64(-1)
			if _, err := fmt.Sscan(number, &n); err != nil || !ok {
				done <- fmt.Errorf("a file of %d bytes", len(b))
				return
			}
			newest.Store(n)
			if n == versions {
				done <- nil
				return
			}
		}
		done <- ctx.Err()
	}()
	for i := 1; i <= versions; i++ {
		publish(t, dir, fmt.Sprintf("..%d", i), fmt.Sprint(i)+long)
	}
	if err := <-done; err != nil {
		t.Errorf("after version %d: %v", newest.Load(), err)
	}
}
