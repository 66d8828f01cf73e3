package main

import (
	"context"
	"fmt"
	"maps"
	"os"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/cloister/cloister/host/doctor"
	"github.com/cloister/cloister/host/runtimeconfig"
	"github.com/cloister/cloister/host/sandbox"
	"github.com/cloister/cloister/host/sizing"
)

// configCmd is about the configuration of the container runtime on this node.
func configCmd(a *app) *cobra.Command {
	return group("config", "Show what the container runtime is configured to do",
		configShowCmd(a), configAnnotationsCmd(a), configRuntimeClassCmd(a), configContainerdCmd(a), configExampleCmd(a))
}

// runtimeFile is the flag that names the runtime's configuration.
func runtimeFile(c *cobra.Command, file *string) {
	c.Flags().StringVarP(file, "file", "f", "", "read FILE (ours, or a configuration.toml of Kata Containers) instead of looking for one")
}

func loadRuntime(file string, annotations map[string]string) (*runtimeconfig.Effective, error) {
	e, err := runtimeconfig.Load(runtimeconfig.Request{File: file, Getenv: os.Getenv})
	if err != nil {
		return nil, hint(err, "`cloister config example` is a file with every key")
	}
	return e.Annotated(annotations) // whose errors have hints of their own
}

// shown is what `config show` says to machines.
type shown struct {
	Files    []string                `json:"files"`
	Values   []runtimeconfig.Value   `json:"values"`
	Ignored  []runtimeconfig.Ignored `json:"ignored"`
	Insecure []string                `json:"insecure"`
	Size     *shownSize              `json:"size,omitempty"`
}

type shownSize struct {
	Request  sizing.Request  `json:"request"`
	Overhead sizing.Overhead `json:"overhead"`
	Formula  string          `json:"formula"`
	Plan     sizing.Plan     `json:"plan"`
}

func configShowCmd(a *app) *cobra.Command {
	var file, notes, pod string
	c := &cobra.Command{
		Use:   "show",
		Short: "Print every setting, its value, and where that came from",
		Long: "Prints every setting, its value, and where that came from. With --annotations or --pod the wishes of a pod are applied as\n" +
			"the runtime does it; with --pod the size of its virtual machine on this host is computed, too.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			annotations := map[string]string{}
			var request *sizing.Request
			if pod != "" {
				p, err := readPodSize(pod)
				if err != nil {
					return err
				}
				request = &p.request
				maps.Copy(annotations, p.annotations)
			}
			if notes != "" {
				more, err := readAnnotations(notes)
				if err != nil {
					return err
				}
				maps.Copy(annotations, more)
			}
			e, err := loadRuntime(file, annotations)
			if err != nil {
				return err
			}
			s := shown{Files: e.Files, Values: e.Values(), Ignored: e.Ignored, Insecure: e.Config.Insecure()}
			if request != nil {
				if s.Size, err = machineSize(c.Context(), &e.Config, *request); err != nil {
					return err
				}
			}
			if a.json {
				return a.printJSON(s)
			}
			a.printConfig(s)
			return nil
		},
	}
	runtimeFile(c, &file)
	c.Flags().StringVar(&notes, "annotations", "", "apply the annotations in FILE: names and values in YAML or JSON, or a pod manifest")
	c.Flags().StringVar(&pod, "pod", "", "apply the annotations of the pod in FILE, and compute the size of its virtual machine")
	return c
}

// machineSize computes the size of a sandbox on this host.
func machineSize(ctx context.Context, c *runtimeconfig.Config, r sizing.Request) (*shownSize, error) {
	o, err := sandbox.OverheadOn(ctx, doctor.Host{}, c, c.Sandbox.TEE)
	if err != nil {
		return nil, err
	}
	plan, err := sandbox.Size(c, o, r)
	if err != nil {
		return nil, err
	}
	return &shownSize{Request: r, Overhead: o, Formula: sizing.Formula, Plan: plan}, nil
}

func (a *app) printConfig(s shown) {
	var rows [][]string
	for _, v := range s.Values {
		items, isList := v.Value.([]string)
		if !isList {
			items = []string{fmt.Sprint(v.Value)}
		}
		if len(items) == 0 || items[0] == "" {
			items = []string{"-"}
		}
		rows = append(rows, []string{v.Key, printable(items[0]), printable(v.Source.String())})
		for _, item := range items[1:] {
			rows = append(rows, []string{"", printable(item)})
		}
	}
	a.table("SETTING|VALUE|FROM", rows)
	for _, i := range s.Ignored {
		fmt.Fprintf(a.stdout, "ignored: %s (%s): %s\n", printable(i.Key), printable(i.Source.String()), i.Reason)
	}
	for _, i := range s.Insecure {
		fmt.Fprintf(a.stdout, "insecure: %s\n", i)
	}
	if s.Size == nil {
		return
	}
	r, o, p := s.Size.Request, s.Size.Overhead, s.Size.Plan
	fmt.Fprintf(a.stdout, "\n%s\n", s.Size.Formula)
	a.table("", [][]string{
		{"limit", fmt.Sprintf("%d m of a processor, %d bytes", r.CPULimit, r.MemoryLimit)},
		{"request", fmt.Sprintf("%d m of a processor, %d bytes", r.CPURequest, r.MemoryRequest)},
		{"overhead", fmt.Sprintf("%d m of a processor, %d MiB + 1/63 of the memory%s (%s)", o.MilliCPU, o.FixedMiB, bounce(o), o.Source)},
		{"machine", fmt.Sprintf("%d vCPUs, %d MiB", p.VCPUs, p.MemoryMiB)},
		{"grows to", fmt.Sprintf("%d vCPUs, %d MiB, in blocks of %d MiB", p.MaxVCPUs, p.MaxMemoryMiB, p.BlockMiB)},
		{"on the host", fmt.Sprintf("at most %d MiB, %d of them for VMM and helpers", p.HostMemoryMiB, o.HostMiB)},
	})
}

func bounce(o sizing.Overhead) string {
	if o.BouncePercent == 0 {
		return ""
	}
	return fmt.Sprintf(" + bounce buffers of %d %%, %d to %d MiB", o.BouncePercent, o.BounceMinMiB, o.BounceMaxMiB)
}

func configAnnotationsCmd(a *app) *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "annotations",
		Short: "List the annotations that pods can set, and which are enabled",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			e, err := loadRuntime(file, nil)
			if err != nil {
				return err
			}
			all := e.Config.Supported()
			if a.json {
				return a.printJSON(all)
			}
			var rows [][]string
			for _, n := range all {
				enabled := "no"
				if n.Enabled {
					enabled = "yes"
				}
				rows = append(rows, []string{n.Name, n.Key, enabled})
			}
			a.table("ANNOTATION|SETTING|ENABLED", rows)
			return nil
		},
	}
	runtimeFile(c, &file)
	return c
}

func configExampleCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "example",
		Short: "Print an annotated file with every key at its default",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprint(a.stdout, runtimeconfig.Example())
			return err
		},
	}
}

func configRuntimeClassCmd(a *app) *cobra.Command {
	var file, name string
	c := &cobra.Command{
		Use:   "runtimeclass",
		Short: "Print the RuntimeClass of this configuration, with its overhead",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			e, err := loadRuntime(file, nil)
			if err != nil {
				return err
			}
			text, err := runtimeClass(c.Context(), &e.Config, name)
			if err != nil {
				return err
			}
			_, err = a.stdout.Write(text)
			return err
		},
	}
	runtimeFile(c, &file)
	c.Flags().StringVar(&name, "name", "", "name and handler; without it cloister, or cloister-TEE")
	return c
}

// runtimeClass is a manifest for the scheduler, which adds the overhead to what the containers of a pod ask for.
func runtimeClass(ctx context.Context, c *runtimeconfig.Config, name string) ([]byte, error) {
	o, err := sandbox.OverheadOn(ctx, doctor.Host{}, c, c.Sandbox.TEE)
	if err != nil {
		return nil, err
	}
	cpu, memory := o.PodFixed(c.Sandbox.MemoryMiB)
	if name == "" {
		name = "cloister"
		if c.Confidential() {
			name += "-" + c.Sandbox.TEE
		}
	}
	if !dnsName(name) {
		return nil, usageError{fmt.Errorf("the name is %q, want lower-case letters, digits, dots and dashes", name)}
	}
	type meta struct {
		Name string `yaml:"name"`
	}
	doc, err := yaml.Marshal(struct {
		APIVersion string `yaml:"apiVersion"`
		Kind       string `yaml:"kind"`
		Metadata   meta   `yaml:"metadata"`
		Handler    string `yaml:"handler"`
		Overhead   struct {
			PodFixed map[string]string `yaml:"podFixed"`
		} `yaml:"overhead"`
	}{"node.k8s.io/v1", "RuntimeClass", meta{name}, name, struct {
		PodFixed map[string]string `yaml:"podFixed"`
	}{map[string]string{"cpu": fmt.Sprintf("%dm", cpu), "memory": fmt.Sprintf("%dMi", memory)}}})
	if err != nil {
		return nil, err
	}
	note := fmt.Sprintf("# Overhead for VMs of %d MiB: %d MiB in the guest and %d for VMM and helpers.\n# %s\n",
		c.Sandbox.MemoryMiB, memory-o.HostMiB, o.HostMiB, o.Source)
	return append([]byte(note), doc...), nil
}

// dnsName accepts names of Kubernetes objects.
func dnsName(s string) bool {
	alnum := func(b byte) bool { return b >= 'a' && b <= 'z' || b >= '0' && b <= '9' }
	for i := range len(s) {
		if !alnum(s[i]) && s[i] != '-' && s[i] != '.' {
			return false
		}
	}
	return s != "" && len(s) <= 253 && alnum(s[0]) && alnum(s[len(s)-1])
}
