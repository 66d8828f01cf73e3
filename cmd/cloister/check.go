package main

import (
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cloister/cloister/host/doctor"
	"github.com/cloister/cloister/host/runtimeconfig"
	"github.com/cloister/cloister/host/sandbox"
	"github.com/cloister/cloister/host/share"
	"github.com/cloister/cloister/internal/paths"
	"github.com/cloister/cloister/wire/guestimage"
)

// checkCmd validates a node for its configuration; `doctor` tells what a host can do without one.
func checkCmd(a *app) *cobra.Command {
	var file, containerd string
	c := &cobra.Command{
		Use:   "check",
		Short: "Tell whether containerd can run pods with Cloister on this node",
		Long: "Checks this node for what the runtime's configuration needs, and prints what helps where something is missing.\n" +
			"Exit code 0 means that pods can run. Run it as root: some checks need it.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			e, err := loadRuntime(file, nil)
			conf := doctor.Check{Name: "configuration", Status: doctor.OK, Required: true, Detail: "built-in defaults"}
			config := runtimeconfig.Default()
			if err != nil {
				conf.Status, conf.Detail = doctor.Missing, strings.ReplaceAll(err.Error(), "\n", "; ")
				conf.Hint = "see `cloister config show`; the checks below are for the defaults"
			} else {
				config = e.Config
				if len(e.Files) > 0 {
					conf.Detail = strings.Join(e.Files, ", ")
				}
				if on := config.Insecure(); len(on) > 0 {
					conf.Status, conf.Hint = doctor.Warn, strings.Join(on, "; ")
				}
			}
			n := nodeOf(&config, containerd)
			first := []doctor.Check{conf}
			if config.VMM.Kind != "remote" {
				first = append(first, guestFiles(&config, &n))
			}
			r := doctor.ProbeNode(c.Context(), doctor.Host{}, n)
			r.Checks = append(first, r.Checks...)
			if a.json {
				if err := a.printJSON(r); err != nil {
					return err
				}
				return r.Err()
			}
			a.printChecks(r.Checks)
			return r.Err()
		},
	}
	runtimeFile(c, &file)
	c.Flags().StringVar(&containerd, "containerd-config", "", "look into FILE instead of /etc/containerd/config.toml")
	return c
}

// nodeOf is what a configuration needs of its node.
func nodeOf(c *runtimeconfig.Config, containerd string) doctor.Node {
	n := doctor.Node{
		KVM: c.VMM.Kind != "remote" && c.VMM.Accel == "kvm", TEE: c.Sandbox.TEE, ContainerdConfig: containerd, Files: map[string]string{},
		Hints: map[string]string{}, Dirs: map[string]int{"/run": 64, "/var/lib": 2048},
	}
	if c.VMM.Kind == "remote" {
		n.TEE = "" // that of the remote side
		n.Files["socket of the remote side"] = c.VMM.RemoteSocket
		return n
	}
	n.QEMU = c.VMM.Kind == "qemu" && c.VMM.Path == ""
	n.CloudHypervisor = c.VMM.Kind == "cloud-hypervisor" && c.VMM.Path == ""
	n.Network, n.Redirect = c.Network.Model != "none", c.Network.Model == "tc"
	n.Vhost = n.Network && c.Network.Vhost
	for what, file := range map[string]string{
		"VMM": c.VMM.Path, "kernel": c.Guest.Kernel, "initrd": c.Guest.Initrd, "image": c.Guest.Image, "firmware": c.Guest.Firmware,
		"firmware variables": c.Guest.FirmwareVars,
	} {
		if file != "" {
			n.Files[what] = filepath.Clean(file)
		}
	}
	if c.SharedFS() == runtimeconfig.SharedFSVirtiofs {
		n.Files["virtiofsd"] = c.Storage.Virtiofsd
		if program, err := share.Find(c.Storage.Virtiofsd); err == nil {
			n.Files["virtiofsd"] = program
		}
		n.Hints["virtiofsd"] = "install the package virtiofsd (in Debian 12 it is in qemu-system-common), or set storage.virtiofsd"
	}
	if c.Sandbox.Hugepages {
		n.Files["huge pages"] = "/dev/hugepages"
		n.Hints["huge pages"] = "mount -t hugetlbfs hugetlbfs /dev/hugepages, or set sandbox.hugepages = false"
	}
	n.SoftwareTPM = c.Sandbox.TEE == runtimeconfig.TEETPM
	return n
}

// guestFiles looks for what boots, as the runtime does it, and adds the files to those that the node must have.
func guestFiles(c *runtimeconfig.Config, n *doctor.Node) doctor.Check {
	check := doctor.Check{Name: "guest image", Status: doctor.OK, Required: true}
	f, err := sandbox.Files(c)
	if err != nil {
		check.Status = doctor.Missing
		check.Detail, check.Hint = splitHint(err.Error())
		return check
	}
	n.Files["kernel"] = f.Kernel
	if f.Initrd != "" {
		n.Files["initrd"] = f.Initrd
	}
	if n.SoftwareTPM {
		n.Files["firmware"], n.Files["firmware variables"] = f.Firmware, f.FirmwareVars
		for _, what := range []string{"firmware", "firmware variables"} {
			n.Hints[what] = "apt-get install ovmf, or set guest.firmware and guest.firmware_vars"
		}
	}
	dir := filepath.Dir(f.Kernel)
	check.Detail = dir
	m, err := guestimage.Load(dir)
	if err != nil {
		check.Detail = "files of its own: " + f.Kernel // no manifest, nothing to compare with
		return check
	}
	if err := m.Verify(dir); err != nil {
		check.Status, check.Detail, check.Hint = doctor.Missing, err.Error(), "copy the image again, all files of the folder"
		return check
	}
	if dirs, err := paths.Default(); err == nil && c.Guest.Kernel == "" {
		if own, err := filepath.EvalSymlinks(dirs.CurrentImage()); err == nil && own == dir {
			check.Status, check.Detail = doctor.Missing, "only in "+dir+", where containerd as a service does not look"
			check.Hint = "cloister guest build --to /usr/share/cloister/guest"
		}
	}
	return check
}

// splitHint takes "text (hint: what helps)" apart.
func splitHint(text string) (string, string) {
	before, after, found := strings.Cut(text, " (hint: ")
	if !found {
		return text, ""
	}
	return before, strings.TrimSuffix(after, ")")
}

// printChecks prints what was looked at, and what helps.
func (a *app) printChecks(checks []doctor.Check) {
	var rows [][]string
	for _, check := range checks {
		rows = append(rows, []string{string(check.Status), check.Name, check.Detail})
		if check.Hint != "" && check.Status != doctor.OK {
			rows = append(rows, []string{"", "", "hint: " + check.Hint})
		}
	}
	a.table("", rows)
}
