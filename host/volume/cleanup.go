package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Cleanup removes what a Set whose process is gone has left: the files of scratch disks, the tables of layers, then the notes about them and dir. A directory
// that does not exist is no error.
func Cleanup(ctx context.Context, dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("volumes: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		if strings.HasSuffix(e.Name(), layerSuffix) && e.IsDir() {
			errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
			continue
		}
		if !strings.HasSuffix(e.Name(), scratchSuffix) || !e.Type().IsRegular() {
			errs = append(errs, fmt.Errorf("volumes: %s in %s is not ours", e.Name(), dir))
			continue
		}
		if err := cleanNote(filepath.Join(dir, e.Name())); err != nil {
			errs = append(errs, err)
		}
	}
	if errors.Join(errs...) == nil {
		if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func cleanNote(name string) error {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	text, err := io.ReadAll(io.LimitReader(f, 64<<10))
	f.Close()
	if err != nil {
		return err
	}
	var n scratchNote
	// A note that was cut by a crash is of a file that was not made yet.
	if json.Unmarshal(text, &n) == nil {
		if err := removeScratch(n); err != nil {
			return err
		}
	}
	return os.Remove(name)
}
