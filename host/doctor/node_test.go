package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/cloister/cloister/internal/needs"
)

const runtimeTable = "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.cloister]\n" +
	"runtime_type = \"io.containerd.cloister.v2\"\n"

const runcTable = "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n"

// node is a machine on which everything is there.
func node(t *testing.T, files map[string]string) (Host, Node) {
	t.Helper()
	base := map[string]string{
		"/dev/kvm": "", "/sys/module/kvm_intel/x": "", "/dev/net/tun": "", "/dev/vhost-net": "", "/dev/vhost-vsock": "",
		"/sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids\n", "/proc/sys/kernel/osrelease": "6.1.0\n",
		"/lib/modules/6.1.0/modules.dep":     "kernel/net/sched/act_mirred.ko.xz:\nkernel/net/sched/cls_u32.ko:\n",
		"/lib/modules/6.1.0/modules.builtin": "kernel/net/sched/sch_ingress.ko\n",
		"/etc/containerd/config.toml":        "imports = [\"conf.d/*.toml\"]\n[plugins]\n", "/etc/containerd/conf.d/c.toml": runtimeTable + runcTable,
		"/opt/virtiofsd": "", "/var/lib/x": "",
	}
	for name, text := range files {
		base[name] = text
	}
	h := host(t, nil, base)
	output := h.Output
	h.Output = func(ctx context.Context, program string, args ...string) (string, error) {
		if strings.HasSuffix(program, "containerd") {
			return "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u1", nil
		}
		return output(ctx, program, args...)
	}
	return h, Node{KVM: true, QEMU: true, Network: true, Redirect: true, Vhost: true, Files: map[string]string{"virtiofsd": "/opt/virtiofsd"},
		Dirs: map[string]int{"/var/lib": 1}, ProbeRedirect: func(context.Context) error { return nil }}
}

func TestNodeIsReady(t *testing.T) {
	h, n := node(t, nil)
	r := ProbeNode(t.Context(), h, n)
	if err := r.Err(); err != nil {
		t.Error(err)
	}
	for _, c := range r.Checks {
		if c.Status != OK {
			t.Errorf("%s is %s: %s", c.Name, c.Status, c.Detail)
		}
		if c.Hint != "" {
			t.Errorf("%s is fine, and has a hint: %s", c.Name, c.Hint)
		}
	}
}

// TestNodeFaults: everything that can be missing is said, stops pods or not, and has something that helps.
func TestNodeFaults(t *testing.T) {
	for _, tc := range []struct {
		name, says string
		status     Status
		edit       func(*Host, *Node)
		files      map[string]string
	}{
		{"KVM", "permission", Missing, func(h *Host, _ *Node) {
			h.ProbeKVM = func(context.Context, string) error { return fs.ErrPermission }
		}, nil},
		{"KVM", "permission", Warn, func(h *Host, n *Node) {
			n.KVM, h.ProbeKVM = false, func(context.Context, string) error { return fs.ErrPermission }
		}, nil},
		{"AMD SEV-SNP", "no /dev/sev", Missing, func(_ *Host, n *Node) { n.TEE = "snp" }, nil},
		{"TEE hardware", "has none", Missing, func(_ *Host, n *Node) { n.TEE = "auto" }, nil},
		{"tc redirect", "no filter", Missing, func(_ *Host, n *Node) {
			n.ProbeRedirect = func(context.Context) error { return errors.New("no filter") }
		}, nil},
		{"tc redirect", "not examined", Warn, func(_ *Host, n *Node) {
			n.ProbeRedirect = func(context.Context) error { return fmt.Errorf("x: %w", fs.ErrPermission) }
		}, nil},
		{"kernel modules", "sch_ingress, cls_u32, act_mirred", Warn, func(_ *Host, n *Node) {
			n.ProbeRedirect = func(context.Context) error { return fs.ErrPermission }
		}, map[string]string{"/lib/modules/6.1.0/modules.dep": "x", "/lib/modules/6.1.0/modules.builtin": ""}},
		{"cgroups", "version 2, without memory, pids", Missing, nil, map[string]string{"/sys/fs/cgroup/cgroup.controllers": "cpu"}},
		{"cgroups", "version 1, without", Missing, nil, map[string]string{"/sys/fs/cgroup/cgroup.controllers": ""}},
		{"virtiofsd", "/nowhere is not there", Missing, func(_ *Host, n *Node) { n.Files["virtiofsd"] = "/nowhere" }, nil},
		{"disk /var/lib", "MiB free", Warn, func(_ *Host, n *Node) { n.Dirs["/var/lib"] = 1 << 40 }, nil},
		{"containerd", "expected 1.6", Missing, func(h *Host, _ *Node) {
			h.Output = func(context.Context, string, ...string) (string, error) { return "containerd x v1.5.9 abc", nil }
		}, nil},
		{"containerd runtime", "have no runtime of type", Missing, nil, map[string]string{"/etc/containerd/conf.d/c.toml": "x = 1"}},
		{"containerd runtime", "no table of the default runtime", Missing, nil, map[string]string{"/etc/containerd/conf.d/c.toml": runtimeTable}},
		{"containerd runtime", "containerd 2.1 loses the CRI settings", Missing, func(h *Host, _ *Node) {
			h.Output = func(context.Context, string, ...string) (string, error) { return "containerd x v2.1.9 abc", nil }
		}, map[string]string{"/etc/containerd/config.toml": "version = 2\nimports = [\"conf.d/*.toml\"]\n", "/etc/containerd/conf.d/c.toml": "version = 3\n" + runtimeTable}},
		{"containerd runtime", "c.toml names /etc/typo.toml for cloister, which is not there", Missing, nil, map[string]string{"/etc/containerd/conf.d/c.toml": runcTable +
			runtimeTable + "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.cloister.options]\nConfigPath = \"/etc/typo.toml\"\n"}},
		{"cloud-hypervisor", "not installed", Missing, func(h *Host, n *Node) {
			look := h.LookPath
			n.CloudHypervisor, h.LookPath = true, func(name string) (string, error) {
				if name == "cloud-hypervisor" {
					return "", fs.ErrNotExist
				}
				return look(name)
			}
		}, nil},
		{"swtpm_setup", "not installed", Missing, func(h *Host, n *Node) {
			look := h.LookPath
			n.SoftwareTPM, h.LookPath = true, func(name string) (string, error) {
				if name == "swtpm_setup" {
					return "", fs.ErrNotExist
				}
				return look(name)
			}
		}, nil},
		{"containerd runtime", "reading /etc/containerd/config.toml", Missing, nil, map[string]string{"/etc/containerd/config.toml": "["}},
		{"containerd runtime", "there is no /etc/c.toml", Missing, func(_ *Host, n *Node) { n.ContainerdConfig = "/etc/c.toml" }, nil},
		{"shim", "not in PATH", Missing, func(h *Host, _ *Node) { h.LookPath = func(string) (string, error) { return "", fs.ErrNotExist } }, nil},
		{"tun", "there is no /dev/net/tun", Missing, func(h *Host, _ *Node) { h.Root += "/none" }, nil},
	} {
		t.Run(tc.name+" "+tc.says, func(t *testing.T) {
			h, n := node(t, tc.files)
			if tc.edit != nil {
				tc.edit(&h, &n)
			}
			r := ProbeNode(t.Context(), h, n)
			c := find(t, r, tc.name)
			if c.Status != tc.status || !strings.Contains(c.Detail, tc.says) || c.Hint == "" {
				t.Errorf("%+v, want %s with %q and a hint", c, tc.status, tc.says)
			}
			if err := r.Err(); (err != nil) != (tc.status == Missing) {
				t.Errorf("the verdict is %v", err)
			}
		})
	}
}

// TestHintKeepsHandlers: who prints the table anew as the hint says has the same handlers again.
func TestHintKeepsHandlers(t *testing.T) {
	h, n := node(t, map[string]string{"/etc/containerd/conf.d/c.toml": runtimeTable +
		"[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.cloister.options]\nConfigPath = \"/var/lib/x\"\n"})
	if c := find(t, ProbeNode(t.Context(), h, n), "containerd runtime"); !strings.Contains(c.Hint, "config.toml --handler cloister=/var/lib/x > ") {
		t.Error(c.Hint)
	}
}

func TestImportsThatImportThemselves(t *testing.T) {
	h, n := node(t, map[string]string{"/etc/containerd/config.toml": "imports = [\"/etc/containerd/*.toml\", 3, \"[\"]\n",
		"/etc/containerd/x.toml": "imports = [\"/etc/containerd/*.toml\"]"})
	if c := find(t, ProbeNode(t.Context(), h, n), "containerd runtime"); c.Status != Missing {
		t.Errorf("%+v", c)
	}
}

func TestContainerdVersions(t *testing.T) {
	for out, want := range map[string][2]int{
		"containerd github.com/containerd/containerd v1.7.24 88bf19b2": {1, 7}, "containerd github.com/containerd/containerd/v2 v2.2.0 x": {2, 2},
		"containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+b1": {1, 6}, "": {}, "containerd unknown": {},
	} {
		if _, major, minor := containerdVersion(out); major != want[0] || minor != want[1] {
			t.Errorf("%q is %d.%d, want %v", out, major, minor, want)
		}
	}
}

// TestRedirectHere tries it with the kernel of this machine, twice: the first try must leave nothing.
func TestRedirectHere(t *testing.T) {
	for range 2 {
		if err := tryRedirect(t.Context()); errors.Is(err, fs.ErrPermission) {
			needs.Missing(t, "root, for network namespaces: %v", err)
		} else if err != nil {
			needs.Missing(t, "redirection in this kernel: %v", err)
		}
	}
}
