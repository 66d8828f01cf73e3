package doctor

import (
	"cmp"
	"context"
	"os"
	"slices"
	"strings"
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
	// CloudHypervisor is set when Cloud Hypervisor from PATH does. It has no emulation.
	CloudHypervisor bool
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
	r.Accel, r.AccelReason = "tcg", kvm.Detail+emulated
	if usable {
		r.Accel, r.AccelReason = "kvm", kvm.Detail
	}
	r.add(kvm.needed(n.KVM || n.CloudHypervisor))
	h.nodeTEE(r, n)
	if n.QEMU {
		c, path := h.qemu(ctx)
		r.QEMU = path
		r.add(c)
	}
	if n.CloudHypervisor {
		c := h.tool("cloud-hypervisor")
		c.Hint = "install version 51 or later, or name the program by vmm.path"
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
