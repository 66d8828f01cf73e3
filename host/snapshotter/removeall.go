package snapshotter

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/containerd/v2/core/snapshots"
)

//go:embed example.toml
var example []byte

// Example is a configuration that names every setting with its default.
func Example() []byte { return append([]byte(nil), example...) }

// rootNames are all that the snapshotter makes in its root.
var rootNames = []string{metadataFile, lockFile, snapshotsDir, layersDir, ingestDir}

// checkRoot refuses a directory that is used for something else: the snapshotter takes it for its own, down to its mode. An empty one will
// do, or one that is a file system's.
func checkRoot(root string) error {
	entries, err := os.ReadDir(root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking at the snapshotter's root: %w", err)
	}
	has := map[string]bool{}
	for _, e := range entries {
		has[e.Name()] = true
	}
	if has[metadataFile] && has[lockFile] && has[layersDir] { // the metadata is made last, and other snapshotters have it, too
		return nil
	}
	for _, e := range entries {
		if name := e.Name(); name != "lost+found" && (name == metadataFile || !slices.Contains(rootNames, name)) {
			return fmt.Errorf("%s is not a directory of cloister-snapshotter: it has %q\nhint: root names a directory that is for it alone", root, name)
		}
	}
	return nil
}

// RemoveAll removes what the snapshotter has in a root that has no snapshots any more, the root unless there is something else in it, and
// the socket. A root that is not there is none.
func RemoveAll(ctx context.Context, cfg Config, log *slog.Logger) error {
	if _, err := os.Stat(cfg.Root); errors.Is(err, fs.ErrNotExist) {
		log.Info("there is nothing to remove", "root", cfg.Root)
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
	if info, err := os.Lstat(cfg.Socket); err == nil && info.Mode()&os.ModeSocket == 0 {
		return fmt.Errorf("removing the snapshotter's socket: %s is no socket, and nothing was removed\nhint: the setting socket names another file", cfg.Socket)
	}
	for _, name := range rootNames {
		if err := os.RemoveAll(filepath.Join(cfg.Root, name)); err != nil {
			return fmt.Errorf("removing the snapshotter's root: %w", err)
		}
	}
	if err := os.Remove(cfg.Root); err != nil { // other files, or a mounted file system
		log.Warn("the root itself stays", "error", err)
	}
	if err := os.Remove(cfg.Socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the snapshotter's socket: %w", err)
	}
	return nil
}
