package snapshotter

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	_ "github.com/containerd/containerd/v2/pkg/testutil" // has the flag -test.root, which the suite reads

	"github.com/cloister/cloister/host/snapshotter"
	"github.com/cloister/cloister/internal/needs"
)

// TestContainerdSuite is what containerd asks of each snapshotter. Under the name overlayfs it does not rename directories of lower
// layers, which overlayfs does not do here as there.
func TestContainerdSuite(t *testing.T) {
	needs.Root(t, "mounts")
	testsuite.SnapshotterSuite(t, "overlayfs", func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		cfg := snapshotter.Default()
		cfg.Root, cfg.Containerd = filepath.Join(root, "root"), filepath.Join(root, "none.sock")
		s, err := snapshotter.Open(ctx, cfg, slog.New(slog.DiscardHandler))
		if err != nil {
			return nil, nil, err
		}
		return s, func() error { return errors.Join(s.Unmount(), s.Close()) }, nil
	})
}
