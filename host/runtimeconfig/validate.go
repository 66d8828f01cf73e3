package runtimeconfig

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cloister/cloister/host/vmm"
)

// minScratchMiB leaves room for what an encrypted file system needs for itself.
const minScratchMiB = 64

// validate reports every fault that is between settings; at tells where a value came from.
func (c *Config) validate(at func(key string) string) error {
	var faults []error
	fault := func(key, format string, args ...any) {
		faults = append(faults, fmt.Errorf("%s (%s) %s", key, at(key), fmt.Sprintf(format, args...)))
	}
	if m := c.Sandbox.MaxVCPUs; m > 0 && c.Sandbox.VCPUs > float64(m) {
		fault("sandbox.vcpus", "is %g, want at most sandbox.max_vcpus, which is %d", c.Sandbox.VCPUs, m)
	}
	if m := c.Sandbox.MaxMemoryMiB; m > 0 && c.Sandbox.MemoryMiB > m {
		fault("sandbox.memory_mib", "is %d, want at most sandbox.max_memory_mib, which is %d", c.Sandbox.MemoryMiB, m)
	}
	if b := c.Sandbox.MemoryBlockMiB; b&(b-1) != 0 {
		fault("sandbox.memory_block_mib", "is %d, want a power of two", b)
	}
	if n := c.Storage.ScratchMiB; n > 0 && n < minScratchMiB {
		fault("storage.scratch_mib", "is %d, want 0 or at least %d", n, minScratchMiB)
	}
	if c.Guest.Image != "" && c.Guest.Initrd != "" {
		fault("guest.image", "is set beside guest.initrd (%s), want one of them", at("guest.initrd"))
	}
	if c.Guest.VerityParams != "" {
		if _, err := ParseVerity(c.Guest.VerityParams); err != nil {
			fault("guest.verity_params", "cannot be used: %v", err)
		}
		if c.Guest.Image == "" {
			fault("guest.verity_params", "is set without guest.image")
		}
	}
	if err := vmm.CheckCPUFeatures(c.VMM.CPUFeatures); err != nil {
		fault("vmm.cpu_features", "cannot be used: %v", err)
	}
	if (c.VMM.SNPIDBlock == "") != (c.VMM.SNPIDAuth == "") {
		fault("vmm.snp_id_block", "and vmm.snp_id_auth (%s): want both or neither", at("vmm.snp_id_auth"))
	}
	if c.Tracing.OTLPEndpoint != "" {
		t := c.exporter()
		if err := t.Validate(); err != nil {
			fault("tracing.otlp_endpoint", "cannot be used: %v", err)
		}
	}
	c.checkMachine(fault)
	c.checkMonitor(fault)
	if !c.Confidential() {
		return errors.Join(faults...)
	}
	for _, x := range []struct {
		key  string
		on   bool
		says string
	}{
		{"storage.shared_fs", c.SharedFS() != SharedFSNone, "shows the guest's files to the host: want \"none\""},
		{"storage.emptydir", c.EmptyDir() != EmptyDirSealed && c.EmptyDir() != EmptyDirGuest,
			"leaves the guest's data readable on the host: want \"block-encrypted\" or \"guest\""},
		{"sandbox.template", c.Sandbox.Template == TemplateOn, "lets guests begin as copies of another: want \"off\" or \"auto\""},
		{"guest.image", c.Guest.Image != "" && c.Guest.VerityParams == "" && c.VMM.Kind != "remote",
			"is a disk that the host can change and nothing measures: want guest.verity_params beside it"},
	} {
		if x.on {
			fault(x.key, "%s, because sandbox.tee is %q (%s)", x.says, c.Sandbox.TEE, at("sandbox.tee"))
		}
	}
	return errors.Join(faults...)
}

// faulter notes what is wrong with the value of a key.
type faulter func(key, format string, args ...any)

// checkMachine refuses a machine type that the monitor has not, or that is another one than the TEE needs.
func (c *Config) checkMachine(fault faulter) {
	m := c.VMM.MachineType
	switch {
	case m == "" || c.VMM.Kind == "remote":
		return
	case c.VMM.Kind != "qemu":
		fault("vmm.machine_type", "is %q, want none for vmm.kind %q", m, c.VMM.Kind)
	case m == vmm.MachineMicroVM && c.Confidential():
		fault("vmm.machine_type", "is microvm, which has no firmware to measure: want another one for sandbox.tee %q", c.Sandbox.TEE)
	default:
		if err := FitsTEE(m, c.Sandbox.TEE); err != nil {
			fault("vmm.machine_type", "%v", err)
		}
	}
}

// FitsTEE says what is wrong with a machine type of QEMU for a TEE, which may be TEEAuto.
func FitsTEE(machine, tee string) error {
	tees := map[string][]string{
		vmm.MachineQ35: {TEENone, TEETPM, "snp", "tdx"}, vmm.MachineMicroVM: {TEENone}, "virt": {"cca"}, "s390-ccw-virtio": {"se"},
	}
	fits, known := tees[machine]
	switch {
	case machine == "":
		return nil
	case !known:
		return fmt.Errorf("is %s, want one of q35, microvm, virt, s390-ccw-virtio", show(machine))
	case tee != TEEAuto && !slices.Contains(fits, tee):
		return fmt.Errorf("is %s, which is for sandbox.tee %q and not for %q", show(machine), fits, tee)
	}
	return nil
}

// checkMonitor refuses what would have no effect with the chosen monitor.
func (c *Config) checkMonitor(fault faulter) {
	remote := c.VMM.Kind == "remote"
	if remote && c.Network.Model != "none" {
		fault("network.model", "is %q, want \"none\" with vmm.kind \"remote\": the network is made by the remote side", c.Network.Model)
	}
	for _, x := range []struct {
		key string
		bad bool
	}{
		{"storage.shared_fs", remote && c.SharedFS() != SharedFSNone}, {"sandbox.hugepages", remote && c.Sandbox.Hugepages},
		{"sandbox.tee", remote && c.Sandbox.TEE == TEEAuto}, {"vmm.gpus", !remote && c.VMM.GPUs > 0},
		{"vmm.gpu_model", !remote && c.VMM.GPUModel != ""}, {"vmm.cpu_features", c.VMM.Kind != "qemu" && c.VMM.CPUFeatures != ""},
		{"sandbox.template", c.VMM.Kind != "qemu" && c.Sandbox.Template == TemplateOn}, {"cgroup.pin_vcpus", c.VMM.Kind != "qemu" && c.Cgroup.PinVCPUs},
	} {
		if x.bad {
			fault(x.key, "cannot be had with vmm.kind %q", c.VMM.Kind)
		}
	}
	switch {
	case c.Guest.FirmwareVars == "" || remote:
	case c.Guest.Firmware == "":
		fault("guest.firmware_vars", "is set without guest.firmware")
	case c.Confidential() && c.Sandbox.TEE != TEETPM:
		fault("guest.firmware_vars", "is set, want none: the firmware for sandbox.tee %q has no variables", c.Sandbox.TEE)
	}
}
