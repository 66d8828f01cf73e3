// Package kmod loads the kernel modules of the guest image when something needs them: a file system that is to be
// mounted, or a device that is there. The kernel's own way, a program called modprobe, does not exist in the image.
package kmod

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Loader knows the modules of the image. It is safe for concurrent use.
type Loader struct {
	dir     string              // of the module files
	deps    map[string][]string // files to load for a module name, in order
	aliases []alias
	never   []string
	log     *slog.Logger
	insert  func(file, params string) error

	mu    sync.Mutex
	later []string        // modules
	done  map[string]bool // files
	seen  map[string]bool // modaliases
}

// alias says which module drives the devices of a pattern.
type alias struct{ pattern, module string }

// Open reads the index of the modules in dir, normally /lib/modules/RELEASE: modules.dep and modules.alias as the image
// builder has written them. A directory without them has no modules: everything is built in. Modules named in never
// are not loaded for a device; where they are built in, their devices are taken from them.
func Open(dir string, log *slog.Logger, never ...string) (*Loader, error) {
	l := &Loader{dir: dir, never: never, log: log, insert: insert, deps: map[string][]string{}, done: map[string]bool{}, seen: map[string]bool{}}
	deps, err := lines(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return nil, err
	}
	for _, line := range deps {
		file, needs, _ := strings.Cut(line, ":")
		order := strings.Fields(needs)
		slices.Reverse(order) // the file has the nearest first
		l.deps[name(file)] = append(order, file)
	}
	aliases, err := lines(filepath.Join(dir, "modules.alias"))
	if err != nil {
		return nil, err
	}
	for _, line := range aliases {
		f := strings.Fields(line)
		if len(f) == 3 && f[0] == "alias" && !slices.Contains(never, f[2]) {
			l.aliases = append(l.aliases, alias{f[1], f[2]})
		}
	}
	return l, nil
}

// Release is the name of the running kernel.
func Release() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", fmt.Errorf("asking for the kernel's name: %w", err)
	}
	return unix.ByteSliceToString(u.Release[:]), nil
}

func lines(file string) ([]string, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the modules of the image: %w", err)
	}
	return slices.DeleteFunc(strings.Split(string(text), "\n"), func(s string) bool { return s == "" || s[0] == '#' }), nil
}

func name(file string) string {
	return strings.ReplaceAll(strings.TrimSuffix(path.Base(file), ".ko"), "-", "_")
}

// Load loads modules with what they need. One that the image does not have is built into the kernel, or what needs it
// will say that it is missing.
func (l *Loader) Load(names ...string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.load(names)
}

func (l *Loader) load(names []string) error {
	for _, n := range names {
		for _, file := range l.deps[n] {
			if l.done[file] {
				continue
			}
			err := l.insert(filepath.Join(l.dir, file), "")
			if errors.Is(err, unix.ENODEV) {
				l.log.Debug("no hardware for module", "module", file)
			} else if err != nil {
				return err
			}
			l.done[file] = true
		}
	}
	return nil
}

// Postpone leaves devices of some modules without driver until it is called again without them.
func (l *Loader) Postpone(names ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.later = names
}

// Devices loads the drivers of all devices below sys, normally /sys, that have none yet. A driver may bring further
// devices, so it looks again until there is nothing new.
func (l *Loader) Devices(sys string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		found := false
		for _, bus := range []string{"virtio", "scsi", "platform", "acpi"} {
			files, err := filepath.Glob(filepath.Join(sys, "bus", bus, "devices/*/modalias"))
			if err != nil {
				return err
			}
			for _, file := range files {
				text, err := os.ReadFile(file)
				id := strings.TrimSpace(string(text))
				if err != nil || l.seen[id] {
					continue
				}
				names := l.match(id)
				if slices.ContainsFunc(names, func(n string) bool { return slices.Contains(l.later, n) }) {
					continue
				}
				l.seen[id] = true
				found = found || len(names) > 0
				if err := l.load(names); err != nil {
					return fmt.Errorf("loading a driver for %.80q: %w", id, err)
				}
			}
		}
		if !found {
			return l.unbind(sys)
		}
	}
}

// unbind takes their devices from the drivers that are never to be used.
func (l *Loader) unbind(sys string) error {
	for _, driver := range l.never {
		dir := filepath.Join(sys, "bus/virtio/drivers", driver)
		devices, err := filepath.Glob(filepath.Join(dir, "virtio*"))
		if err != nil {
			return err
		}
		for _, d := range devices {
			err := os.WriteFile(filepath.Join(dir, "unbind"), []byte(filepath.Base(d)), 0)
			if err != nil && !errors.Is(err, unix.ENODEV) { // it has gone
				return fmt.Errorf("taking %s from the driver %s: %w", filepath.Base(d), driver, err)
			}
			l.log.Info("device without driver", "device", filepath.Base(d), "driver", driver)
		}
	}
	return nil
}

func (l *Loader) match(id string) []string {
	var names []string
	for _, a := range l.aliases {
		if ok, err := path.Match(a.pattern, id); err == nil && ok {
			names = append(names, a.module)
		}
	}
	return names
}

// insert gives a module file to the kernel.
func insert(file, params string) error {
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("loading module: %w", err)
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), params, 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("loading module %s: %w", file, err)
	}
	return nil
}
