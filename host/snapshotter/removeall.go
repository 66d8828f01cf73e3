package snapshotter

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"

	"github.com/containerd/containerd/v2/core/snapshots"
)

//go:embed example.toml
var example []byte

// Example is a configuration that names every setting with its default.
func Example() []byte { return append([]byte(nil), example...) }

// RemoveAll removes a root that has no snapshots any more, and the socket. A root that is not there is none.
func RemoveAll(ctx context.Context, cfg Config, log *slog.Logger) error {
	if _, err := os.Stat(cfg.Root); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	s, err := Open(ctx, cfg, log)
	if err != nil {
		return err
	}
	var left []string
	err = s.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		left = append(left, info.Name)
		return nil
	})
	if err := errors.Join(err, s.Close()); err != nil {
		return err
	}
	if len(left) > 0 {
		return fmt.Errorf("there are %d snapshots in %s, for example %s\nhint: remove the containers and images that use it, with containerd running: "+
			"`ctr -n NAMESPACE snapshots --snapshotter NAME ls` lists them", len(left), cfg.Root, left[0])
	}
	if err := os.RemoveAll(cfg.Root); err != nil {
		return fmt.Errorf("removing the snapshotter's root: %w", err)
	}
	if err := os.Remove(cfg.Socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the snapshotter's socket: %w", err)
	}
	return nil
}
