package containerd

import (
	"fmt"
	"sort"
	"strings"
)

// Options say what Start starts.
type Options struct {
	Version  string            // V16, V2 or a release such as 2.1.9
	Runtimes []Runtime         // beside runc
	IPv6     bool              // pods get an IPv6 address too
	Mirrors  map[string]string // registry host of image names: URL that is asked instead, http or https
	Env      []string          // more environment for containerd and, through it, for shims
	Path     []string          // folders where containerd looks for shims before those of PATH
	DropIn   string            // lines of configuration, such as the runtime table that an installation adds
	Pause    string            // name of the pause image, default PauseImage
	Main     string            // tables that are added to the main configuration, such as those of proxy plugins

	Snapshotter string // that of CRI; empty is containerd's default

	MayLeave bool // what is left at the end is told and is no error: for runtimes of others that the test kills
}

// Runtime is one runtime handler of the CRI plugin. The fields are those of containerd's configuration.
type Runtime struct {
	Handler     string   // the name that a pod asks for
	Type        string   // io.containerd.X.v2
	Path        string   // the shim's binary, absolute
	ConfigPath  string   // the runtime's own configuration file; empty is the runtime's default
	Annotations []string // patterns of pod annotations that are passed on
	Snapshotter string   // empty is containerd's default
	Sandboxer   string   // "shim" or "podsandbox", for version 2 only; empty is containerd's default
}

// PauseImage is the name of the image for sandbox containers when Options.Pause is empty. Whoever starts a daemon imports it.
const PauseImage = "registry.cloister.test/pause:1"

const cri = `plugins."io.containerd.grpc.v1.cri"`

// drop-ins of version 2 are merged key by key; versions 1.6 and 1.7 replace the whole section of a plugin by that of the last file that
// has one, so that there all of it has to be in one file. All read configurations of version 2.
func (d *Daemon) dropIns() map[string]string {
	base := d.criBase()
	files := map[string]string{}
	merged := Series(d.opts.Version) == V2
	for _, r := range d.opts.Runtimes {
		if merged {
			files["50-"+r.Handler+".toml"] = "version = 2\n" + r.toml(V2)
		} else {
			base += r.toml(d.opts.Version)
		}
	}
	if d.opts.DropIn != "" && merged {
		files["60-added.toml"] = d.opts.DropIn
	} else if d.opts.DropIn != "" {
		base += tables(d.opts.DropIn, func(name string) bool { return strings.Contains(name, "runtimes.") })
		files["60-added.toml"] = "version = 2\n" + tables(d.opts.DropIn, func(name string) bool { return !strings.Contains(name, "grpc.v1.cri") })
	}
	files["10-cri.toml"] = base
	return files
}

// tables are some tables of a configuration, as somebody copies them into a file that has others.
func tables(config string, want func(name string) bool) string {
	var b strings.Builder
	keep := false
	for _, line := range strings.SplitAfter(config, "\n") {
		if strings.HasPrefix(line, "[") {
			keep = want(line)
		}
		if keep {
			b.WriteString(line)
		}
	}
	return b.String()
}

func (d *Daemon) mainConfig() string {
	nri := "" // a socket of its own; version 1.6 has none
	if Series(d.opts.Version) != V16 {
		nri = fmt.Sprintf("[plugins.\"io.containerd.nri.v1.nri\"]\n  disable = false\n  socket_path = %q\n  plugin_path = %q\n  plugin_config_path = %q\n",
			d.NRI(), d.path("nri/plugins"), d.path("nri/conf.d"))
	}
	return fmt.Sprintf(`version = 2
root = %q
state = %q
imports = [%q]
[grpc]
  address = %q
[plugins."io.containerd.internal.v1.opt"]
  path = %q
%s`, d.path("root"), d.path("state"), d.path("conf.d/*.toml"), d.Address, d.path("opt"), d.opts.Main) + nri
}

func (d *Daemon) criBase() string {
	snapshotter := ""
	if d.opts.Snapshotter != "" {
		snapshotter = fmt.Sprintf("  snapshotter = %q\n", d.opts.Snapshotter)
	}
	return fmt.Sprintf(`version = 2
[%[1]s]
  sandbox_image = %[2]q
  netns_mounts_under_state_dir = true
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  enable_unprivileged_ports = true
  enable_unprivileged_icmp = true
[%[1]s.cni]
  bin_dir = %[3]q
  conf_dir = %[4]q
[%[1]s.registry]
  config_path = %[5]q
[%[1]s.containerd]
  default_runtime_name = "runc"
%[6]s[%[1]s.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
`, cri, d.opts.Pause, cniPlugins, d.path("cni"), d.path("certs.d"), snapshotter)
}

func (r Runtime) toml(version string) string {
	var b strings.Builder
	line := func(key, value string) {
		if value != "" {
			fmt.Fprintf(&b, "  %s = %q\n", key, value)
		}
	}
	fmt.Fprintf(&b, "[%s.containerd.runtimes.%s]\n", cri, r.Handler)
	line("runtime_type", r.Type)
	line("runtime_path", r.Path)
	if Series(version) == V2 {
		line("sandboxer", r.Sandboxer)
	}
	line("snapshotter", r.Snapshotter)
	b.WriteString("  privileged_without_host_devices = true\n")
	if len(r.Annotations) > 0 {
		fmt.Fprintf(&b, "  pod_annotations = [%s]\n  container_annotations = [%[1]s]\n", quoted(r.Annotations))
	}
	if r.ConfigPath != "" {
		fmt.Fprintf(&b, "[%s.containerd.runtimes.%s.options]\n  ConfigPath = %q\n", cri, r.Handler, r.ConfigPath)
	}
	return b.String()
}

func quoted(words []string) string {
	q := make([]string, len(words))
	for i, w := range words {
		q[i] = fmt.Sprintf("%q", w)
	}
	return strings.Join(q, ", ")
}

// hosts are the mirrors as files of certs.d: path below it and content.
func (o Options) hosts() map[string]string {
	files := map[string]string{}
	names := make([]string, 0, len(o.Mirrors))
	for name := range o.Mirrors {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		files[name+"/hosts.toml"] = fmt.Sprintf("server = %q\n[host.%[1]q]\n  capabilities = [\"pull\", \"resolve\"]\n", o.Mirrors[name])
	}
	return files
}
