package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/cloister/cloister/host/agent"
	"github.com/cloister/cloister/host/cgroup"
	"github.com/cloister/cloister/host/doctor"
	"github.com/cloister/cloister/host/network"
	"github.com/cloister/cloister/host/runtimeconfig"
	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/host/vmm/cloudhypervisor"
	"github.com/cloister/cloister/host/vmm/qemu"
	"github.com/cloister/cloister/wire/initdata"
)

// TPMCA is where the certificate authority of the software TPMs lives; brokers that shall believe them get its root.
const TPMCA = "/var/lib/cloister/tpm-ca"

// sandboxedWord on the kernel command line starts a guest that trusts its host; it stops where it could prove something.
const sandboxedWord = "cloister.sandboxed"

// quickBoot are words for kernels whose command line nobody measures: no waiting for devices that virtual machines do not have, nor for
// self-tests, and no long grace periods while drivers load.
const quickBoot = "rcupdate.rcu_expedited=1 cryptomgr.notests no_timer_check i8042.noaux i8042.nopnp edd=off"

// chooseTEE decides "auto". What was asked for and is not there is an error, never something weaker.
func chooseTEE(h doctor.Host, want string) (string, error) {
	switch want {
	case runtimeconfig.TEENone, runtimeconfig.TEETPM:
		return want, nil
	}
	return doctor.HardwareTEE(h, want)
}

// vmConfig describes the VM.
func (s *Sandbox) vmConfig(ctx context.Context) (vmm.Config, error) {
	c := s.runtime
	f, err := Files(c)
	if err != nil {
		return vmm.Config{}, err
	}
	if err := runtimeconfig.FitsTEE(c.VMM.MachineType, s.tee); err != nil && c.VMM.Kind == "qemu" {
		return vmm.Config{}, fmt.Errorf("vmm.machine_type %w", err)
	}
	accel, err := doctor.Accelerator(ctx, s.cfg.Host, c.VMM.Accel)
	if err != nil {
		return vmm.Config{}, err
	}
	cfg := vmm.Config{
		Name: machineName(s.cfg.ID), Dir: filepath.Join(s.dir, vmDir), ConsoleLog: filepath.Join(s.dir, consoleFile),
		Kernel: f.Kernel, Initrd: f.Initrd, Cmdline: f.Cmdline, Hugepages: c.Sandbox.Hugepages, CPUFeatures: c.VMM.CPUFeatures,
		Machine: machineType(c.VMM.MachineType), Program: c.VMM.Path, Accel: accel, VCPUs: s.plan.VCPUs, MemoryMiB: s.plan.MemoryMiB,
		Vsock: c.VMM.Kind == "qemu" && exists("/dev/vhost-vsock"), Started: s.enterCgroup,
	}
	if c.Guest.Image != "" {
		cfg.RootImage = c.Guest.Image
	}
	cfg.NICs = s.nics()
	if s.tee == runtimeconfig.TEENone {
		if len(s.cfg.Runtime.Initdata) > 0 {
			return vmm.Config{}, errors.New("the pod brings initdata, with a policy that a sandbox without protection does not enforce (hint: " +
				"give the pod a runtime class for confidential pods, or take the annotation away)")
		}
		cfg.Cmdline = strings.ReplaceAll(cfg.Cmdline, "cloister.initdata=required", sandboxedWord)
		if !strings.Contains(cfg.Cmdline, sandboxedWord) {
			cfg.Cmdline = words(cfg.Cmdline, sandboxedWord)
		}
		cfg.Cmdline = words(quickBoot, cfg.Cmdline)
		cfg.Balloon = true
		cfg.FirmwareCode, cfg.FirmwareVars = c.Guest.Firmware, c.Guest.FirmwareVars // that of the guest image is for measuring it
		if s.share != nil {
			cfg.Share = &vmm.Share{Tag: shareTag, Socket: s.share.Socket()}
		}
		if !s.plan.Static {
			cfg.MaxVCPUs, cfg.MaxMemoryMiB = s.plan.MaxVCPUs, s.plan.MaxMemoryMiB
		}
		return cfg, nil
	}
	return cfg, s.confidential(&cfg, f)
}

// machineType is that of vmm.Config; those of other architectures come with their TEE.
func machineType(name string) string {
	if name == vmm.MachineMicroVM {
		return name
	}
	return ""
}

// words joins parts of a command line.
func words(parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(p string) bool { return p == "" }), " ")
}

// shareTag is the name of the shared directory in the guest, as the agent's protocol has it.
const shareTag = "kataShared"

// needInitdata refuses a confidential pod without.
func (s *Sandbox) needInitdata() error {
	if s.tee == runtimeconfig.TEENone || len(s.cfg.Runtime.Initdata) > 0 {
		return nil
	}
	return fmt.Errorf("the pod brings no initdata, which a %s sandbox needs: its policy is in there (hint: `cloister initdata new`, then the "+
		"annotation cloister.dev/initdata)", s.tee)
}

// confidential adds what proves the guest: initdata, and the TPM or TEE that vouches for it.
func (s *Sandbox) confidential(cfg *vmm.Config, f GuestFiles) error {
	if err := s.needInitdata(); err != nil {
		return err
	}
	_, digest, err := initdata.Digest(s.cfg.Runtime.Initdata)
	if err != nil {
		return fmt.Errorf("the pod's initdata: %w", err)
	}
	cfg.LateDisks = true // for the layers of images, which the guest verifies
	cfg.InitdataImage = initdata.EncodeDevice(s.cfg.Runtime.Initdata)
	cfg.FirmwareCode, cfg.FirmwareVars = f.Firmware, f.FirmwareVars
	if s.tee == runtimeconfig.TEETPM {
		cfg.TPM = &vmm.TPM{CADir: TPMCA}
		return nil
	}
	v := &s.runtime.VMM
	cfg.FirmwareVars = ""
	cfg.TEE = &vmm.TEE{
		Kind: s.tee, InitdataDigest: digest, SNPPolicy: uint64(v.SNPPolicy),
		SNPIDBlock: v.SNPIDBlock, SNPIDAuth: v.SNPIDAuth, TDXQuoteVsockPort: v.TDXQuotePort,
	}
	return nil
}

// machineName fits the names that monitors accept.
func machineName(id string) string {
	return "sandbox-" + strings.NewReplacer("_", "-", ".", "-").Replace(id[:min(len(id), 48)])
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// startVM starts the monitor.
func (s *Sandbox) startVM(ctx context.Context) error {
	start, err := s.monitor(ctx)
	if err != nil {
		return err
	}
	vm, err := start(ctx)
	if err != nil {
		return err
	}
	s.vm = vm
	go func() {
		<-s.vm.Exited()
		s.mu.Lock()
		stopping, dead := s.stopping, s.dead
		s.mu.Unlock()
		switch {
		case dead != nil:
			s.endErr = dead
		case !stopping:
			s.endErr = errors.Join(s.outOfMemory(), s.vm.Err())
		}
		close(s.ended)
	}()
	s.mu.Lock()
	s.state.VMM = s.vm.PID()
	s.mu.Unlock()
	s.pin(ctx)
	return s.writeState()
}

// outOfMemory is the error that says so when the host's kernel has killed processes of the sandbox.
func (s *Sandbox) outOfMemory() error {
	s.mu.Lock()
	group := s.group
	s.mu.Unlock()
	if group == nil {
		return nil
	}
	err := group.OOMReason()
	if e := (*cgroup.OOMError)(nil); errors.As(err, &e) {
		return e
	}
	return nil // the group's own files say nothing about the VM
}

// monitor is the list of monitors.
func (s *Sandbox) monitor(ctx context.Context) (func(context.Context) (vmm.Machine, error), error) {
	kind := s.runtime.VMM.Kind
	if kind == "remote" && s.cfg.StartVM == nil {
		return s.startRemote, nil
	}
	cfg, err := s.vmConfig(ctx)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.state.Accel = cfg.Accel
	s.mu.Unlock()
	closeTaps := func() {
		if s.net != nil {
			for _, i := range s.net.Interfaces() {
				i.CloseFiles()
			}
		}
	}
	start := s.cfg.StartVM
	if start == nil {
		switch kind {
		case "qemu":
			start = machine(qemu.Start)
		case "cloud-hypervisor":
			start = machine(cloudhypervisor.Start)
		default:
			return nil, fmt.Errorf("virtual machine monitor %q: want qemu, cloud-hypervisor or remote", kind)
		}
	}
	if s.templated, err = s.planTemplate(cfg); err != nil {
		s.log.Warn("no template can be used", "sandbox", s.cfg.ID, "error", err)
	}
	return func(ctx context.Context) (vmm.Machine, error) {
		defer closeTaps()
		if vm, err := s.restore(ctx, start, s.templated); vm != nil || err != nil {
			return vm, err
		}
		cfg.NICs = s.nics() // these may have been made anew, and so may the share
		if cfg.Share != nil {
			cfg.Share.Socket = s.share.Socket()
		}
		return start(ctx, cfg)
	}, nil
}

// starter starts a VM.
type starter = func(context.Context, vmm.Config) (vmm.Machine, error)

// machine is a monitor's start as a starter.
func machine[M vmm.Machine](start func(context.Context, vmm.Config) (M, error)) starter {
	return func(ctx context.Context, c vmm.Config) (vmm.Machine, error) {
		vm, err := start(ctx, c)
		if err != nil {
			return nil, err // not a nil pointer in an interface
		}
		return vm, nil
	}
}

// waitGuest connects to the agent and waits for its first answer.
func (s *Sandbox) waitGuest(ctx context.Context) error {
	if s.agent != nil {
		return nil // it has started from a template, and answered
	}
	ready, cancel := context.WithTimeout(ctx, s.runtime.Timeouts.Boot)
	defer cancel()
	late := func(err error) error {
		var e *agent.Error // the guest knows the deadline, too, and may be the first to say that it has passed
		passed := ready.Err() != nil || errors.As(err, &e) && e.Code == codes.DeadlineExceeded
		if err != nil && passed && ctx.Err() == nil {
			if r := s.vm.FatalReason(); r != "" {
				return fmt.Errorf("the guest is ending: %s", r)
			}
			return fmt.Errorf("the guest did not answer within %s (hint: a slow or busy host needs a longer timeouts.boot in the runtime's configuration); %s",
				s.runtime.Timeouts.Boot, s.console())
		}
		return err
	}
	err := s.firstAnswer(ready)
	if err == nil {
		s.ready = time.Now()
	}
	return late(err)
}

// gone is the reason of a broken connection: nearly always the end of the VM, which is seen a moment later.
func (s *Sandbox) gone() error {
	ctx, cancel := context.WithTimeout(s.background, goneTimeout)
	defer cancel()
	select {
	case <-s.vm.Exited():
		if err := errors.Join(s.outOfMemory(), s.vm.Err()); err != nil {
			return err
		}
		return errEnded
	case <-ctx.Done():
		if r := s.vm.FatalReason(); r != "" {
			return errors.New("the guest is ending: " + r)
		}
		return nil
	}
}

// errEnded is what calls get after the end of the sandbox.
var errEnded = errors.New("the sandbox has ended")

// configureNetwork tells the guest its interfaces, routes and neighbours.
func (s *Sandbox) configureNetwork(ctx context.Context) error {
	if s.net == nil {
		return nil
	}
	interfaces, routes, neighbors := s.net.Guest().Requests()
	for _, i := range interfaces {
		if err := s.call(ctx, "configuring interface "+i.GetInterface().GetName(), func(c context.Context) error {
			_, err := s.agent.UpdateInterface(c, i)
			return err
		}); err != nil {
			return err
		}
	}
	if routes != nil && len(routes.GetRoutes().GetRoutes()) > 0 {
		if err := s.call(ctx, "configuring the routes", func(c context.Context) error {
			_, err := s.agent.UpdateRoutes(c, routes)
			return err
		}); err != nil {
			return err
		}
	}
	if neighbors == nil || len(neighbors.GetNeighbors().GetARPNeighbors()) == 0 {
		return nil
	}
	return s.call(ctx, "configuring the neighbours", func(c context.Context) error {
		_, err := s.agent.AddARPNeighbors(c, neighbors)
		return err
	})
}

// nics are the cards that the VM starts with.
func (s *Sandbox) nics() []vmm.NIC {
	if s.net == nil {
		return nil
	}
	var all []vmm.NIC
	for _, i := range s.net.Interfaces() {
		all = append(all, nic(i))
	}
	return all
}

// nic is the card of an interface.
func nic(i *network.Interface) vmm.NIC {
	taps, vhosts := i.Files()
	return vmm.NIC{ID: i.Name, MAC: i.MAC, Taps: taps, Vhosts: vhosts, MTU: i.MTU}
}

// addNIC plugs the card of an interface that came later.
func (s *Sandbox) addNIC(ctx context.Context, i *network.Interface) error {
	defer i.CloseFiles()
	_, err := s.vm.AddNIC(ctx, nic(i))
	return err
}

// call asks the guest for something that does not wait for anything in the pod.
func (s *Sandbox) call(ctx context.Context, doing string, f func(context.Context) error) error {
	return s.agent.Call(ctx, s.runtime.Timeouts.Request, doing, f)
}
