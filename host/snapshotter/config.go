package snapshotter

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/cloister/cloister/layer"
)

// How the layers of a root are handed out; see host/blockmount.
const (
	MountsOverlay = "overlay" // mounted on the host, for any containerd and any runtime
	MountsEROFS   = "erofs"   // containerd's EROFS form, for containerd 2.2 and later
)

// Recipes: how a layer's bytes are made.
const (
	RecipeCloister   = string(layer.Cloister)
	RecipeContainerd = string(layer.Containerd)
)

// Config is what the snapshotter is told. The zero value is not usable, Default is.
type Config struct {
	Root        string `toml:"root"`          // directory of everything that is kept
	Socket      string `toml:"socket"`        // unix socket that containerd speaks to
	Containerd  string `toml:"containerd"`    // unix socket of containerd, whose content store has the layers' blobs
	Recipe      string `toml:"recipe"`        // RecipeCloister or RecipeContainerd
	Mounts      string `toml:"mounts"`        // MountsOverlay or MountsEROFS
	Conversions int    `toml:"conversions"`   // layers converted at the same time; 0 is one for each processor, at most defaultConversions
	MaxLayerGiB int64  `toml:"max_layer_gib"` // largest layer, unpacked
	ReadAhead   bool   `toml:"read_ahead"`    // convert the other layers of an image while the first is asked for
}

// Default is the configuration of a node where nothing is said.
func Default() Config {
	return Config{
		Root: "/var/lib/cloister/snapshotter", Socket: "/run/cloister/snapshotter.sock", Containerd: "/run/containerd/containerd.sock",
		Recipe: RecipeCloister, Mounts: MountsOverlay, MaxLayerGiB: layer.DefaultMaxSize >> 30, ReadAhead: true,
	}
}

// Validate reports all faults at once.
func (c Config) Validate() error {
	var errs []error
	for name, path := range map[string]string{"root": c.Root, "socket": c.Socket, "containerd": c.Containerd} {
		if !filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/" {
			errs = append(errs, fmt.Errorf("%s is %q, want a clean absolute path", name, path))
		}
	}
	if bytes.ContainsAny([]byte(c.Root), ":,\\\"{} \n") {
		errs = append(errs, fmt.Errorf("root is %q, want none of : , \\ \" { } and no blanks: it is part of mount options", c.Root))
	}
	if len(c.Socket) > 107 {
		errs = append(errs, fmt.Errorf("socket has %d bytes, the kernel takes 107", len(c.Socket)))
	}
	if c.Recipe != RecipeCloister && c.Recipe != RecipeContainerd {
		errs = append(errs, fmt.Errorf("recipe is %q, want %q or %q", c.Recipe, RecipeCloister, RecipeContainerd))
	}
	if c.Mounts != MountsOverlay && c.Mounts != MountsEROFS {
		errs = append(errs, fmt.Errorf("mounts is %q, want %q or %q", c.Mounts, MountsOverlay, MountsEROFS))
	}
	if c.Conversions < 0 || c.Conversions > 256 {
		errs = append(errs, fmt.Errorf("conversions is %d, want 0 to 256", c.Conversions))
	}
	if c.MaxLayerGiB < 1 || c.MaxLayerGiB > 4096 {
		errs = append(errs, fmt.Errorf("max_layer_gib is %d, want 1 to 4096", c.MaxLayerGiB))
	}
	return errors.Join(errs...)
}

// maxConfig is more than a configuration needs.
const maxConfig = 1 << 20

// Load reads a TOML file over the defaults. Keys that are not known are an error with their line.
func Load(file string) (Config, error) {
	c := Default()
	info, err := os.Stat(file)
	if err != nil {
		return c, fmt.Errorf("reading the snapshotter's configuration: %w", err)
	}
	if info.Size() > maxConfig {
		return c, fmt.Errorf("reading the snapshotter's configuration: %s has more than %d bytes", file, maxConfig)
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return c, fmt.Errorf("reading the snapshotter's configuration: %w", err)
	}
	if err := toml.NewDecoder(bytes.NewReader(raw)).DisallowUnknownFields().Decode(&c); err != nil {
		var strict *toml.StrictMissingError
		if errors.As(err, &strict) && len(strict.Errors) > 0 {
			row, _ := strict.Errors[0].Position()
			return c, fmt.Errorf("reading the snapshotter's configuration: %s:%d: unknown key %q", file, row, strings.Join(strict.Errors[0].Key(), "."))
		}
		return c, fmt.Errorf("reading the snapshotter's configuration: %s: %w", file, err)
	}
	if err := c.Validate(); err != nil {
		return c, fmt.Errorf("reading the snapshotter's configuration: %s: %w", file, err)
	}
	return c, nil
}

// defaultConversions bounds what nobody has asked for: each conversion takes memory that the image decides on.
const defaultConversions = 4

func (c Config) conversions() int {
	if c.Conversions > 0 {
		return c.Conversions
	}
	return min(runtime.NumCPU(), defaultConversions)
}
