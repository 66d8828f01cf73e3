package doctor

import (
	"cmp"
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

// RuntimeType is how containerd's configuration names the runtime, Shim the program that it then looks for.
const (
	RuntimeType = "io.containerd.cloister.v2"
	Shim        = "containerd-shim-cloister-v2"
)

// Node is what the runtime's configuration wants of a node. Checks that it does not need are left out, or are no reason to fail.
type Node struct {
	// KVM is set when software emulation will not do.
	KVM bool
	// TEE is hardware that must be there: "snp", "tdx", "se" or "cca"; "auto" is any of them.
	TEE string
	// QEMU is set when QEMU from PATH runs the VMs.
	QEMU bool
	// Network is set when the host makes the interfaces of VMs: tap devices, and with Redirect rules between them and those of pods.
	Network, Redirect bool
	// Vhost is set when the host's kernel shall move packets.
	Vhost bool
	// SoftwareTPM is set when each VM has one: programs of swtpm.
	SoftwareTPM bool
	// Files must be there: what they are for, and where. Hints say what helps, by what the file is for.
	Files, Hints map[string]string
	// Dirs must have room: directory to MiB.
	Dirs map[string]int
	// ContainerdConfig is the file of containerd; empty is /etc/containerd/config.toml.
	ContainerdConfig string
	// ProbeRedirect tries redirection; nil does it in a network namespace that lasts as long as the try.
	ProbeRedirect func(ctx context.Context) error
}

// ProbeNode checks whether containerd can run pods with Cloister here.
func ProbeNode(ctx context.Context, h Host, n Node) *Report {
	h.complete()
	r := &Report{hardware: map[string]Check{}}
	r.add(h.cpu())
	kvm, usable := h.kvm(ctx)
	r.Accel, r.AccelReason = "tcg", kvm.Detail+"; software emulation is used"
	if usable {
		r.Accel, r.AccelReason = "kvm", kvm.Detail
	}
	r.add(kvm.needed(n.KVM))
	h.nodeTEE(r, n)
	if n.QEMU {
		c, path := h.qemu(ctx)
		r.QEMU = path
		r.add(c)
	}
	if n.SoftwareTPM {
		for _, program := range []string{"swtpm", "swtpm_setup", "swtpm_localca"} {
			r.add(h.tool(program))
		}
	}
	r.add(h.vsock())
	if n.Network {
		r.add(h.device("tun", "/dev/net/tun", "modprobe tun").needed(true))
	}
	if n.Vhost {
		r.add(h.device("vhost-net", "/dev/vhost-net", "modprobe vhost_net; or set network.vhost = false").needed(false))
	}
	proven := false
	if n.Redirect {
		c := n.redirect(ctx)
		proven = c.Status == OK
		r.add(c)
	}
	r.add(h.modules(n, proven))
	r.add(h.cgroups())
	for _, what := range sorted(n.Files) {
		c := Check{Name: what, Status: OK, Detail: n.Files[what], Required: true}
		if !h.exists(n.Files[what]) {
			c.Status, c.Detail, c.Hint = Missing, n.Files[what]+" is not there",
				cmp.Or(n.Hints[what], "install it, or name another file in the runtime's configuration")
		}
		r.add(c)
	}
	r.add(h.memory())
	for _, dir := range sorted(n.Dirs) {
		r.add(h.space("disk "+dir, h.path(dir), n.Dirs[dir], "make room: state and images of pods are kept there"))
	}
	daemon, version := h.containerd(ctx)
	r.add(daemon)
	r.add(h.handler(n.ContainerdConfig, version))
	r.add(h.shim())
	return r
}

// needed turns a warning into something that is missing.
func (c Check) needed(yes bool) Check {
	c.Required = yes
	if yes && c.Status != OK {
		c.Status = Missing
	}
	return c
}

func sorted[V any](m map[string]V) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func (h Host) nodeTEE(r *Report, n Node) {
	found := false
	for _, p := range h.platforms() {
		r.hardware[p.tee] = p.check
		found = found || p.check.Status == OK
		if n.TEE == p.tee || n.TEE == "auto" && p.check.Status == OK {
			c := p.check.needed(true)
			if c.Status != OK {
				c.Hint = "enable it in the firmware and the kernel, or set sandbox.tee to what the host has"
			}
			r.add(c)
		}
	}
	if n.TEE == "auto" && !found {
		r.add(Check{Name: "TEE hardware", Status: Missing, Detail: "this host has none", Required: true,
			Hint: "set sandbox.tee = \"none\" for isolation only"})
	}
}

func (h Host) device(name, file, hint string) Check {
	c := Check{Name: name, Status: OK, Detail: file + " is there"}
	if info, err := os.Stat(h.path(file)); err != nil {
		c.Status, c.Detail, c.Hint = Warn, "there is no "+file, hint
	} else if info.IsDir() {
		c.Status, c.Detail, c.Hint = Warn, file+" is a directory", hint
	}
	return c
}

// modules looks for the kernel's parts that a sandbox uses: loaded, built in, or at least there to be loaded.
// What has just been used needs no look.
func (h Host) modules(n Node, redirects bool) Check {
	c := Check{Name: "kernel modules", Status: OK, Detail: "all are there"}
	var want []string
	for _, m := range []struct {
		name   string
		needed bool
	}{
		{"vhost_vsock", !h.exists("/dev/vhost-vsock")}, {"tun", n.Network && !h.exists("/dev/net/tun")},
		{"vhost_net", n.Vhost && !h.exists("/dev/vhost-net")}, {"sch_ingress", n.Redirect && !redirects},
		{"cls_u32", n.Redirect && !redirects}, {"act_mirred", n.Redirect && !redirects},
	} {
		if m.needed {
			want = append(want, m.name)
		}
	}
	dir := "/lib/modules/" + h.read("/proc/sys/kernel/osrelease")
	var known strings.Builder
	for _, list := range []string{"/modules.builtin", "/modules.dep"} {
		known.WriteString(strings.ReplaceAll(h.read(dir+list), "-", "_") + "\n")
	}
	var missing []string
	for _, m := range want {
		if !h.exists("/sys/module/"+m) && !strings.Contains(known.String(), "/"+m+".ko") {
			missing = append(missing, m)
		}
	}
	if len(missing) > 0 {
		c.Status, c.Detail = Warn, "neither loaded nor in "+dir+": "+strings.Join(missing, ", ")
		c.Hint = "modprobe " + strings.Join(missing, " ") + "; a kernel may have them built in without saying so"
	}
	return c
}

// cgroups says how the host has its control groups.
func (h Host) cgroups() Check {
	c := Check{Name: "cgroups", Status: OK, Required: true}
	controllers := h.read("/sys/fs/cgroup/cgroup.controllers")
	has := func(name string) bool {
		if controllers != "" {
			return slices.Contains(strings.Fields(controllers), name)
		}
		return h.exists("/sys/fs/cgroup/" + name + "/cgroup.procs")
	}
	var missing []string
	for _, name := range []string{"cpu", "memory", "pids"} {
		if !has(name) {
			missing = append(missing, name)
		}
	}
	switch {
	case controllers != "":
		c.Detail = "version 2"
	case h.exists("/sys/fs/cgroup/unified/cgroup.procs"):
		c.Detail = "version 1, with an empty version 2 tree (hybrid)"
	default:
		c.Detail = "version 1"
	}
	if len(missing) > 0 {
		c.Status, c.Detail = Missing, c.Detail+", without "+strings.Join(missing, ", ")
		c.Hint = "mount the controllers, or boot with systemd.unified_cgroup_hierarchy=1"
	}
	return c
}

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
		if names := runtimes(conf, 0); len(names) > 0 && found.Name == "" {
			c.Detail = strings.Join(names, ", ") + " in " + files[i]
			if old := version == "1.6" || version == "1.7"; old && !hasDefaultRuntime(conf) {
				c.Detail += ", which has no table of the default runtime: containerd " + version + " does not serve the CRI with it"
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

// runtimes are the names of tables whose runtime_type is ours.
func runtimes(conf map[string]any, depth int) []string {
	const maxDepth = 16
	var out []string
	for _, key := range sorted(conf) {
		table, ok := conf[key].(map[string]any)
		if !ok || depth > maxDepth {
			continue
		}
		if table["runtime_type"] == RuntimeType {
			out = append(out, key)
		}
		out = append(out, runtimes(table, depth+1)...)
	}
	return out
}

func (h Host) shim() Check {
	c := Check{Name: "shim", Status: OK, Required: true}
	path, err := h.LookPath(Shim)
	if err != nil {
		c.Status, c.Detail, c.Hint = Missing, Shim+" is not in PATH", "install it beside containerd, where containerd's PATH finds it"
		return c
	}
	c.Detail = path
	return c
}
