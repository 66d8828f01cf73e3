package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/cobra"

	"github.com/cloister/cloister/host/doctor"
)

// configContainerdCmd prints what a node's containerd needs to know.
func configContainerdCmd(a *app) *cobra.Command {
	var handlers []string
	var base, snapshotter string
	version, schema := "2", 0
	c := &cobra.Command{
		Use:   "containerd",
		Short: "Print a file for containerd's configuration with the runtime's handlers",
		Long: "Prints the runtime table for containerd, to be saved where its configuration's `imports` finds it.\n" +
			"Each --handler is NAME=FILE: the name that a RuntimeClass uses, and the runtime's configuration for it.\n\n" +
			"containerd 1.6 and 1.7 do not merge: a file that is imported replaces all that they know of the CRI plugin, runc too.\n" +
			"For them --merge FILE prints the plugin's whole table, that of FILE (/etc/containerd/config.toml) with the handlers added.\n\n" +
			"containerd 2.0 to 2.2 want the same `version` in all files: with others they forget the CRI settings of the older ones, and\n" +
			"say nothing. Where config.toml begins with `version = 2`, use --config-version 2.",
		Example: "  cloister config containerd > /etc/containerd/conf.d/cloister.toml\n" +
			"  cloister config containerd --for 1.7 --merge /etc/containerd/config.toml --handler cloister=/etc/cloister/runtime.toml --handler cloister-tpm=/etc/cloister/tpm.toml",
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			text, err := containerdConfig(version, schema, base, snapshotter, handlers)
			if err != nil {
				return err
			}
			_, err = a.stdout.Write(text)
			return err
		},
	}
	c.Flags().StringVar(&version, "for", version, "containerd's version: 1.6, 1.7 or 2, or all of it as 1.7.35")
	c.Flags().IntVar(&schema, "config-version", 0, "containerd 2: the version that config.toml begins with, 2 or 3 (default 3)")
	c.Flags().StringVar(&base, "merge", "", "containerd 1.6 and 1.7: print the CRI plugin's table of FILE with the handlers added")
	c.Flags().StringVar(&snapshotter, "snapshotter", "", "let pods of the handlers have block layers of cloister-snapshotter; =SOCKET if it is not "+defaultSnapshotterSocket)
	c.Flags().Lookup("snapshotter").NoOptDefVal = defaultSnapshotterSocket
	c.Flags().StringArrayVar(&handlers, "handler", []string{"cloister="}, "NAME=FILE, or NAME= for the default configuration; can be repeated")
	return c
}

// containerdRuntime is one entry of containerd's runtime table.
type containerdRuntime struct {
	RuntimeType string            `toml:"runtime_type"`
	Privileged  bool              `toml:"privileged_without_host_devices"`
	Annotations []string          `toml:"pod_annotations"`
	Snapshotter string            `toml:"snapshotter,omitempty"`
	Options     map[string]string `toml:"options,omitempty"`
}

// criPlugins are the names of the plugin with the runtimes by the version of containerd's configuration.
var criPlugins = map[int]string{2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}

// containerdSeries is 1.6, 1.7 or 2 for a version of containerd.
func containerdSeries(version string) (string, error) {
	for _, series := range []string{"1.6", "1.7", "2"} {
		if number := strings.TrimPrefix(version, "v"); number == series || strings.HasPrefix(number, series+".") {
			return series, nil
		}
	}
	return "", usageError{fmt.Errorf("containerd's version is %q, want 1.6, 1.7 or 2", version)}
}

// containerdConfig is a file for a version of containerd. schema is the version of its configuration; 0 is the newest that it knows.
func containerdConfig(version string, schema int, base, snapshotter string, handlers []string) ([]byte, error) {
	version, err := containerdSeries(version)
	if err != nil {
		return nil, err
	}
	newest := 3
	if version != "2" {
		newest = 2
	}
	if schema == 0 {
		schema = newest
	}
	plugin := criPlugins[schema]
	if plugin == "" || schema > newest {
		return nil, usageError{fmt.Errorf("containerd's configuration has version %d, want 2%s", schema, map[bool]string{true: " or 3"}[newest == 3])}
	}
	cri := map[string]any{}
	if base != "" {
		if version == "2" {
			return nil, usageError{errors.New("--merge is for containerd 1.6 and 1.7: newer ones merge by themselves")}
		}
		if cri, err = criTable(base, plugin); err != nil {
			return nil, err
		}
	}
	runtimes, err := addRuntimes(cri, base != "")
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", base, err)
	}
	var names []string
	for _, h := range handlers {
		name, file, _ := strings.Cut(h, "=")
		if !dnsName(name) {
			return nil, usageError{fmt.Errorf("the handler is named %q, want lower-case letters, digits, dots and dashes", name)}
		}
		r := containerdRuntime{RuntimeType: doctor.RuntimeType, Privileged: true, Annotations: []string{"io.katacontainers.*", "cloister.dev/*"}}
		if file != "" {
			if !filepath.IsAbs(file) {
				return nil, usageError{fmt.Errorf("the configuration of handler %s is %q, want an absolute path", name, file)}
			}
			r.Options = map[string]string{"ConfigPath": file}
		}
		if snapshotter != "" && version != "1.6" {
			r.Snapshotter = snapshotterName
		}
		runtimes[name] = r
		names = append(names, name)
	}
	plugins := map[string]any{plugin: cri}
	doc := map[string]any{"version": schema, "plugins": plugins}
	if snapshotter != "" {
		if err := addSnapshotter(doc, plugins, cri, version, snapshotter, names); err != nil {
			return nil, err
		}
	}
	text, err := toml.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("writing containerd's configuration: %w", err)
	}
	return text, nil
}

// maxContainerdConfig is more than a configuration of containerd needs.
const maxContainerdConfig = 4 << 20

// criTable reads the CRI plugin's table of containerd's configuration; an empty one when it has none.
func criTable(file, plugin string) (map[string]any, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("reading containerd's configuration: %w", err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxContainerdConfig+1))
	if err != nil {
		return nil, fmt.Errorf("reading containerd's configuration: %w", err)
	}
	if len(raw) > maxContainerdConfig {
		return nil, fmt.Errorf("reading containerd's configuration: %s has more than %d bytes", file, maxContainerdConfig)
	}
	var config struct {
		Version int                       `toml:"version"`
		Plugins map[string]map[string]any `toml:"plugins"`
	}
	if err := toml.Unmarshal(raw, &config); err != nil {
		return nil, fmt.Errorf("reading containerd's configuration: %s: %w", file, err)
	}
	if config.Version > 2 {
		return nil, hint(fmt.Errorf("reading containerd's configuration: %s has version %d, which containerd 1.6 and 1.7 do not know", file, config.Version),
			"for containerd 2 leave out --for and --merge")
	}
	if config.Version != 2 && len(config.Plugins) > 0 {
		return nil, hint(fmt.Errorf("reading containerd's configuration: %s has version %d, want 2", file, config.Version),
			"`containerd config migrate` prints it as a newer version")
	}
	if cri := config.Plugins[plugin]; cri != nil {
		return cri, nil
	}
	return map[string]any{}, nil
}

// addRuntimes returns the table of runtimes in the CRI plugin's, which is made when it is not there. In a table that stands for
// all that containerd knows, its default runtime is added.
func addRuntimes(cri map[string]any, whole bool) (map[string]any, error) {
	table := func(in map[string]any, name string) (map[string]any, error) {
		if in[name] == nil {
			in[name] = map[string]any{}
		}
		t, ok := in[name].(map[string]any)
		if !ok {
			return nil, fmt.Errorf("%s is not a table", name)
		}
		return t, nil
	}
	containerd, err := table(cri, "containerd")
	if err != nil {
		return nil, err
	}
	runtimes, err := table(containerd, "runtimes")
	if err != nil {
		return nil, err
	}
	name, named := containerd["default_runtime_name"].(string)
	if _, there := runtimes["runc"]; whole && !there && (!named || name == "runc") {
		runtimes["runc"] = map[string]any{"runtime_type": "io.containerd.runc.v2"}
	}
	return runtimes, nil
}
