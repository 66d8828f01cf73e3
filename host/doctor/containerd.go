package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// minContainerd is the oldest version that says how large a pod is when its sandbox is made.
var minContainerd = [2]int{1, 6}

// containerd also returns the version, as 1.7 or 2.1.
func (h Host) containerd(ctx context.Context) (Check, string) {
	c := Check{Name: "containerd", Status: OK, Required: true}
	path, err := h.LookPath("containerd")
	if err != nil {
		c.Status, c.Detail, c.Hint = Missing, "not installed", "apt-get install containerd"
		return c, ""
	}
	out, err := h.Output(ctx, path, "--version")
	if err != nil {
		c.Status, c.Detail = Missing, fmt.Sprintf("%s --version: %v", path, err)
		return c, ""
	}
	version, major, minor := containerdVersion(out)
	if major < minContainerd[0] || major == minContainerd[0] && minor < minContainerd[1] {
		c.Status, c.Hint = Missing, "install a newer containerd"
		c.Detail = fmt.Sprintf("version %q of %s, expected %d.%d or later", version, path, minContainerd[0], minContainerd[1])
		return c, ""
	}
	c.Detail = version + ", " + path
	return c, fmt.Sprintf("%d.%d", major, minor)
}

// containerdVersion reads "containerd github.com/containerd/containerd v1.6.20 COMMIT"; major is 0 when there is no version.
func containerdVersion(out string) (version string, major, minor int) {
	for _, word := range strings.Fields(out) {
		number := strings.TrimPrefix(word, "v")
		number, _, _ = strings.Cut(number, "~") // Debian's
		if n, err := fmt.Sscanf(number, "%d.%d", &major, &minor); err == nil && n == 2 {
			return word, major, minor
		}
	}
	return "", 0, 0
}

// Bounds of containerd's configuration.
const (
	maxContainerdConfig  = 4 << 20
	maxContainerdImports = 64
)

// oneSchema are the versions of containerd that want the same version in all files of their configuration.
var oneSchema = []string{"2.0", "2.1", "2.2"}

// handler looks for our runtime in containerd's configuration and the files that it imports.
func (h Host) handler(file, version string) Check {
	if file == "" {
		file = "/etc/containerd/config.toml"
	}
	c := Check{Name: "containerd runtime", Required: true, Status: Missing,
		Hint: "cloister config containerd > /etc/containerd/conf.d/cloister.toml, with imports = [\"/etc/containerd/conf.d/*.toml\"] in " + file}
	if version == "1.6" || version == "1.7" {
		c.Hint = strings.Replace(c.Hint, "containerd >", "containerd --for "+version+" --merge "+file+" >", 1)
	}
	files := []string{file}
	var found Check
	schemas := map[int64]string{} // a file of each version of the configuration
	for i := 0; i < len(files) && i < maxContainerdImports; i++ {
		conf, err := h.readTOML(files[i])
		if err != nil {
			if i == 0 && errors.Is(err, fs.ErrNotExist) {
				c.Detail = "there is no " + file
				return c
			}
			c.Detail, c.Hint = err.Error(), "repair the file"
			return c
		}
		schema, _ := conf["version"].(int64)
		if schema < 2 {
			schema = 3 // these are brought to the newest version as they are read
		}
		if schemas[schema] == "" {
			schemas[schema] = files[i]
		}
		if list := runtimes(conf, 0); len(list) > 0 && found.Name == "" {
			var names []string
			for _, r := range list {
				names = append(names, r.String())
			}
			c.Detail = strings.Join(names, ", ") + " in " + files[i]
			if j := slices.IndexFunc(list, func(r runtimeEntry) bool { return r.config != "" && !h.exists(r.config) }); j >= 0 {
				c.Detail = fmt.Sprintf("%s names %s for %s, which is not there", files[i], list[j].config, list[j].name)
				c.Hint = "write that file, or print the runtimes again with another: `cloister config containerd --handler " + list[j].name + "=FILE`"
				return c
			}
			if old := version == "1.6" || version == "1.7"; old && !hasDefaultRuntime(conf) {
				c.Detail += ", which has no table of the default runtime: containerd " + version + " does not serve the CRI with it"
				var again string
				for _, r := range list {
					again += " --handler " + r.name + "=" + r.config
				}
				c.Hint = strings.Replace(c.Hint, " > ", again+" > ", 1)
				return c
			}
			found = c
			found.Status, found.Hint = OK, ""
		}
		imports, _ := conf["imports"].([]any)
		for _, item := range imports {
			glob, ok := item.(string)
			if !ok {
				continue
			}
			if !filepath.IsAbs(glob) {
				glob = filepath.Join(filepath.Dir(files[i]), glob)
			}
			imported, _ := filepath.Glob(h.path(glob))
			for _, f := range imported {
				if f = "/" + strings.TrimPrefix(strings.TrimPrefix(f, h.path("/")), "/"); !slices.Contains(files, f) {
					files = append(files, f)
				}
			}
		}
	}
	if found.Name == "" {
		c.Detail = file + " and what it imports have no runtime of type " + RuntimeType
		return c
	}
	if slices.Contains(oneSchema, version) && len(schemas) > 1 {
		found.Status = Missing
		found.Detail = fmt.Sprintf("%s has version 2 and %s version 3: containerd %s loses the CRI settings of one of them", schemas[2], schemas[3], version)
		found.Hint = "`cloister config containerd --config-version 2` prints the runtimes in the older version, `containerd config migrate` " + file + " in the newer one"
	}
	return found
}

// hasDefaultRuntime tells whether a table of the CRI plugin that has runtimes has the default one, too. containerd up to 1.7 takes such
// a table instead of its own defaults.
func hasDefaultRuntime(conf map[string]any) bool {
	at := conf
	for _, name := range []string{"plugins", "io.containerd.grpc.v1.cri", "containerd"} {
		at, _ = at[name].(map[string]any)
	}
	name, named := at["default_runtime_name"].(string)
	if !named {
		name = "runc"
	}
	runtimes, _ := at["runtimes"].(map[string]any)
	_, there := runtimes[name]
	return there
}

func (h Host) readTOML(file string) (map[string]any, error) {
	info, err := os.Stat(h.path(file))
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxContainerdConfig {
		return nil, fmt.Errorf("%s is not a file of at most %d bytes", file, maxContainerdConfig)
	}
	raw, err := os.ReadFile(h.path(file))
	if err != nil {
		return nil, err
	}
	var conf map[string]any
	if err := toml.Unmarshal(raw, &conf); err != nil {
		return nil, fmt.Errorf("reading %s: %w", file, err)
	}
	return conf, nil
}

// runtimeEntry is one runtime handler of containerd that is ours.
type runtimeEntry struct{ name, config string } // config is empty when the usual places are looked at

func (r runtimeEntry) String() string {
	if r.config == "" {
		return r.name
	}
	return r.name + " (" + r.config + ")"
}

// runtimes are the tables whose runtime_type is ours.
func runtimes(conf map[string]any, depth int) []runtimeEntry {
	const maxDepth = 16
	var out []runtimeEntry
	for _, key := range sorted(conf) {
		table, ok := conf[key].(map[string]any)
		if !ok || depth > maxDepth {
			continue
		}
		if table["runtime_type"] == RuntimeType {
			options, _ := table["options"].(map[string]any)
			config, _ := options["ConfigPath"].(string)
			out = append(out, runtimeEntry{key, config})
		}
		out = append(out, runtimes(table, depth+1)...)
	}
	return out
}
