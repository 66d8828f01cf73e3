package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// modulesList names the kernel modules of the image in load order, one path per line, parameters after a space.
const modulesList = "/etc/cloister/modules"

// loadModules loads every module of the list. A driver may say that its hardware is absent; anything else that goes
// wrong is a broken image. An image without a list has everything built in.
func loadModules(log *slog.Logger, list string) error {
	text, err := os.ReadFile(list)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading the module list: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		path, params, _ := strings.Cut(strings.TrimSpace(line), " ")
		if path == "" || strings.HasPrefix(path, "#") {
			continue
		}
		switch err := loadModule(filepath.Join("/", path), params); {
		case errors.Is(err, unix.ENODEV):
			log.Debug("no hardware for module", "module", path)
		case err != nil:
			return err
		}
	}
	return nil
}

func loadModule(path, params string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("loading module: %w", err)
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), params, 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("loading module %s: %w", path, err)
	}
	return nil
}
