package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/cobra"

	"github.com/cloister/cloister/host/doctor"
)

// configContainerdCmd prints what a node's containerd needs to know.
func configContainerdCmd(a *app) *cobra.Command {
	var handlers []string
	version := "2"
	c := &cobra.Command{
		Use:   "containerd",
		Short: "Print a file for containerd's configuration with the runtime's handlers",
		Long: "Prints the runtime table for containerd, to be saved where its configuration's `imports` finds it.\n" +
			"Each --handler is NAME=FILE: the name that a RuntimeClass uses, and the runtime's configuration for it.",
		Example: "  cloister config containerd > /etc/containerd/conf.d/cloister.toml\n" +
			"  cloister config containerd --for 1.7 --handler cloister=/etc/cloister/runtime.toml --handler cloister-tpm=/etc/cloister/tpm.toml",
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			text, err := containerdConfig(version, handlers)
			if err != nil {
				return err
			}
			_, err = a.stdout.Write(text)
			return err
		},
	}
	c.Flags().StringVar(&version, "for", version, "containerd's version: 1.6, 1.7 or 2")
	c.Flags().StringArrayVar(&handlers, "handler", []string{"cloister="}, "NAME=FILE, or NAME= for the default configuration; can be repeated")
	return c
}

// containerdRuntime is one entry of containerd's runtime table.
type containerdRuntime struct {
	RuntimeType string            `toml:"runtime_type"`
	Privileged  bool              `toml:"privileged_without_host_devices"`
	Annotations []string          `toml:"pod_annotations"`
	Options     map[string]string `toml:"options,omitempty"`
}

func containerdConfig(version string, handlers []string) ([]byte, error) {
	schema, plugin := 3, "io.containerd.cri.v1.runtime"
	switch version {
	case "1.6", "1.7":
		schema, plugin = 2, "io.containerd.grpc.v1.cri"
	case "2":
	default:
		return nil, usageError{fmt.Errorf("containerd's version is %q, want 1.6, 1.7 or 2", version)}
	}
	runtimes := map[string]containerdRuntime{}
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
		runtimes[name] = r
	}
	text, err := toml.Marshal(map[string]any{
		"version": schema,
		"plugins": map[string]any{plugin: map[string]any{"containerd": map[string]any{"runtimes": runtimes}}},
	})
	if err != nil {
		return nil, fmt.Errorf("writing containerd's configuration: %w", err)
	}
	return text, nil
}
