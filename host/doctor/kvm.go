package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Requests of the KVM device.
const (
	kvmGetAPIVersion = 0xae00
	kvmCreateVM      = 0xae01
	kvmAPIVersion    = 12
)

func (h Host) exists(p string) bool {
	_, err := os.Stat(h.path(p))
	return err == nil
}

func (h Host) read(p string) string {
	b, err := os.ReadFile(h.path(p))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// cpu looks for hardware virtualization.
func (h Host) cpu() Check {
	c := Check{Name: "CPU virtualization", Status: Warn, Hint: "enable virtualization in the firmware, or nested virtualization in the hypervisor"}
	var flags string
	for line := range strings.Lines(h.read("/proc/cpuinfo")) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "flags" {
			flags = " " + strings.TrimSpace(v) + " "
			break
		}
	}
	has := func(f string) bool { return strings.Contains(flags, " "+f+" ") }
	nested := ""
	if has("hypervisor") {
		nested = "; this machine is itself virtual"
	}
	switch {
	case goarch != "amd64":
		c.Status, c.Detail, c.Hint = Warn, "not examined on "+goarch, ""
	case has("vmx"):
		c.Status, c.Detail, c.Hint = OK, "Intel VT-x"+nested, ""
	case has("svm"):
		c.Status, c.Detail, c.Hint = OK, "AMD-V"+nested, ""
	default:
		c.Detail = "neither VT-x nor AMD-V is offered" + nested
	}
	return c
}

// kvm decides whether KVM can run a stock kernel.
func (h Host) kvm(ctx context.Context) (Check, bool) {
	c := Check{Name: "KVM", Status: Warn}
	if h.exists("/sys/module/kvm_pvm") {
		// Software-only KVM for guests that are built for it. The device answers, and a stock kernel then hangs.
		c.Detail = "the host's KVM is kvm_pvm, which cannot run stock kernels"
		c.Hint = "use a machine with hardware virtualization for speed; emulation works"
		return c, false
	}
	if !h.exists("/dev/kvm") {
		c.Detail, c.Hint = "there is no /dev/kvm", "load kvm_intel or kvm_amd, or use a machine with virtualization"
		return c, false
	}
	var backend string
	for _, m := range []string{"kvm_intel", "kvm_amd"} {
		if h.exists("/sys/module/" + m) {
			backend = m
		}
	}
	if backend == "" && goarch == "amd64" {
		c.Detail, c.Hint = "/dev/kvm exists, but neither kvm_intel nor kvm_amd is loaded", "load the module for this CPU"
		return c, false
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := h.ProbeKVM(ctx, h.path("/dev/kvm")); err != nil {
		c.Detail = err.Error()
		if errors.Is(err, fs.ErrPermission) {
			c.Hint = "add the user to the group kvm and log in again"
		}
		return c, false
	}
	c.Status, c.Detail = OK, strings.TrimSpace("KVM works "+backend)
	return c, true
}

// probeKVM asks the device for its version and makes an empty VM. A device that does not answer is left behind, not waited for.
func probeKVM(ctx context.Context, device string) error {
	done := make(chan error, 1)
	go func() { done <- tryKVM(device) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%s does not answer: %w", device, ctx.Err())
	}
}

func tryKVM(device string) error {
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return &fs.PathError{Op: "opening", Path: device, Err: err}
	}
	defer unix.Close(fd)
	version, err := unix.IoctlRetInt(fd, kvmGetAPIVersion)
	if err != nil {
		return fmt.Errorf("asking %s for its version: %w", device, err)
	}
	if version != kvmAPIVersion {
		return fmt.Errorf("%s has version %d, expected %d", device, version, kvmAPIVersion)
	}
	vm, err := unix.IoctlRetInt(fd, kvmCreateVM)
	if err != nil {
		return fmt.Errorf("making an empty VM with %s: %w", device, err)
	}
	unix.Close(vm)
	return nil
}

func (h Host) vsock() Check {
	c := Check{Name: "vhost-vsock", Status: OK, Detail: "/dev/vhost-vsock is there"}
	if !h.exists("/dev/vhost-vsock") {
		c.Status, c.Detail = Warn, "not there; the agent is reached by virtio-serial, which is as good for Cloister's own pods"
	}
	return c
}

type platform struct {
	tee   string
	check Check
}

// platforms looks for TEE hardware that this host could start VMs with.
func (h Host) platforms() []platform {
	yes := func(s string) bool { return s == "Y" || s == "1" }
	look := func(tee, name, arch string, found bool, good, bad string) platform {
		c := Check{Name: name, Status: Warn, Detail: bad}
		switch {
		case arch != goarch:
			c.Detail = "not on " + goarch
		case found:
			c.Status, c.Detail = OK, good
		}
		return platform{tee, c}
	}
	snp := h.exists("/dev/sev") && yes(h.read("/sys/module/kvm_amd/parameters/sev_snp"))
	tdx := yes(h.read("/sys/module/kvm_intel/parameters/tdx"))
	se := h.read("/sys/firmware/uv/prot_virt_host") == "1"
	cca := yes(h.read("/sys/module/kvm/parameters/rme")) || h.exists("/sys/module/arm_rmi")
	return []platform{
		look("snp", "AMD SEV-SNP", "amd64", snp, "/dev/sev and kvm_amd.sev_snp", "no /dev/sev, or kvm_amd.sev_snp is not on"),
		look("tdx", "Intel TDX", "amd64", tdx, "kvm_intel.tdx", "kvm_intel.tdx is not on"),
		look("se", "IBM Secure Execution", "s390x", se, "the ultravisor hosts protected VMs", "the ultravisor hosts no protected VMs"),
		look("cca", "Arm CCA", "arm64", cca, "the realm manager is present", "no realm manager was found"),
	}
}
