// Package remote runs virtual machines elsewhere: a service on a unix socket (a cloud adaptor, for example) makes and deletes them, and
// gives a socket that leads to the agent of each. The protocol is that of package wire/hypervisor, one connection for each call.
//
// The service knows the network, the image and the disks; from here it gets the size, some annotations and the initdata. There is no
// console and no second channel: what needs other ports of the guest than the agent's does not work.
package remote

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cloister/cloister/host/process"
	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/wire/hypervisor"
)

const (
	// AgentPort is the only port of the guest that can be dialled.
	AgentPort = 1024

	// DefaultTimeout bounds a start: clouds need minutes. MinTimeout is the least that can be configured.
	DefaultTimeout = 10 * time.Minute
	MinTimeout     = time.Minute

	versionTimeout = 10 * time.Second
	stopTimeout    = time.Minute

	// protocolVersion is what services of today answer; the protocol has not got a first major version yet.
	protocolVersion = "0.0.0"
)

// Annotations of a CreateVM request, with the names that services know.
const (
	annotationName      = "io.kubernetes.cri.sandbox-name"
	annotationNamespace = "io.kubernetes.cri.sandbox-namespace"
	hypervisorPrefix    = "io.katacontainers.config.hypervisor."
)

// Config is what a remote VM needs beside vmm.Config, of which only VCPUs, MemoryMiB and NetNS are used.
type Config struct {
	// Socket is the path of the service's unix socket.
	Socket string
	// Timeout bounds CreateVM and StartVM together; 0 is DefaultTimeout.
	Timeout time.Duration
	// ID is the pod's sandbox, SandboxName and SandboxNamespace are the pod's names.
	ID, SandboxName, SandboxNamespace string
	// MachineType is the cloud's instance type, Image its image; empty leaves the choice to the service.
	MachineType, Image string
	// Initdata is the TOML text of the initdata document, "" without one.
	Initdata string
	GPUs     int
	GPUModel string
}

// VM is a virtual machine that the service has made.
type VM struct {
	socket string
	id     string
	agent  string // path of the agent's unix socket
	exited chan struct{}
	stop   sync.Mutex // one StopVM at a time; it guards the close of exited
}

var _ vmm.Machine = (*VM)(nil)

// Start asks the service for a VM and waits until it runs.
func Start(ctx context.Context, vm vmm.Config, cfg Config) (*VM, error) {
	if err := check(&vm, &cfg); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.Timeout)
	defer cancel()
	v := &VM{socket: cfg.Socket, id: cfg.ID, exited: make(chan struct{})}
	if err := v.start(ctx, &vm, &cfg); err != nil {
		return nil, fmt.Errorf("starting remote virtual machine %s: %w", cfg.ID, err)
	}
	return v, nil
}

// check refuses what cannot be done, and fills in defaults.
func check(vm *vmm.Config, cfg *Config) error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !filepath.IsAbs(cfg.Socket) {
		bad("socket %q is not an absolute path", cfg.Socket)
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.Timeout < MinTimeout {
		bad("timeout %v: expected %v or more", cfg.Timeout, MinTimeout)
	}
	if cfg.ID == "" || len(cfg.ID) > 128 {
		bad("sandbox %.200q: expected 1 to 128 characters", cfg.ID)
	}
	if vm.VCPUs < 1 || vm.MemoryMiB < 1 || cfg.GPUs < 0 {
		bad("%d virtual CPUs, %d MiB of memory, %d GPUs: expected more", vm.VCPUs, vm.MemoryMiB, cfg.GPUs)
	}
	if len(vm.NICs) > 0 || len(vm.ExtraDisks) > 0 || vm.Share != nil {
		bad("network cards, disks and shared directories: %w", errors.ErrUnsupported)
	}
	if vm.MaxVCPUs > vm.VCPUs || vm.MaxMemoryMiB > vm.MemoryMiB {
		bad("room for hot plug: %w", errors.ErrUnsupported)
	}
	if len(errs) > 0 {
		return fmt.Errorf("remote virtual machine: %w", errors.Join(errs...))
	}
	return nil
}

func (v *VM) start(ctx context.Context, vm *vmm.Config, cfg *Config) error {
	if err := v.greet(ctx); err != nil {
		return err
	}
	req := &hypervisor.CreateVMRequest{
		Id: cfg.ID,
		Annotations: map[string]string{
			annotationName:                         cfg.SandboxName,
			annotationNamespace:                    cfg.SandboxNamespace,
			hypervisorPrefix + "machine_type":      cfg.MachineType,
			hypervisorPrefix + "default_vcpus":     strconv.Itoa(vm.VCPUs),
			hypervisorPrefix + "default_memory":    strconv.Itoa(vm.MemoryMiB),
			hypervisorPrefix + "image":             cfg.Image,
			hypervisorPrefix + "cc_init_data":      cfg.Initdata,
			hypervisorPrefix + "default_gpus":      strconv.Itoa(cfg.GPUs),
			hypervisorPrefix + "default_gpu_model": cfg.GPUModel,
		},
		NetworkNamespacePath: vm.NetNS,
	}
	err := v.call(ctx, "CreateVM", func(s hypervisor.HypervisorService) error {
		resp, err := s.CreateVM(ctx, req)
		if err == nil {
			v.agent = resp.AgentSocketPath
		}
		return err
	})
	if err == nil && (!filepath.IsAbs(v.agent) || strings.ContainsRune(v.agent, 0)) {
		err = fmt.Errorf("CreateVM: the service gave %.200q for the agent's socket, expected an absolute path", process.Printable(v.agent))
	}
	if err == nil {
		err = v.call(ctx, "StartVM", func(s hypervisor.HypervisorService) error {
			_, err := s.StartVM(ctx, &hypervisor.StartVMRequest{Id: cfg.ID})
			return err
		})
	}
	if err == nil {
		return nil
	}
	// Also after a CreateVM that failed: the service may have begun, and a machine in a cloud costs until somebody deletes it.
	if serr := CleanStale(context.WithoutCancel(ctx), v.socket, v.id); serr != nil {
		err = errors.Join(err, fmt.Errorf("undoing that: %w", serr))
	}
	return err
}

// greet finds out early that nobody serves the socket, or somebody who speaks another version.
func (v *VM) greet(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	return v.call(ctx, "Version", func(s hypervisor.HypervisorService) error {
		resp, err := s.Version(ctx, &hypervisor.VersionRequest{Version: protocolVersion})
		if status.Code(err) == codes.Unimplemented {
			return nil
		}
		if err != nil {
			return err
		}
		if major, _, _ := strings.Cut(resp.Version, "."); major != "0" && major != "" {
			return fmt.Errorf("the service speaks version %.40q; hint: version 0 is supported", process.Printable(resp.Version))
		}
		return nil
	})
}

// call makes one call on a connection of its own.
func (v *VM) call(ctx context.Context, name string, f func(hypervisor.HypervisorService) error) error {
	return call(ctx, v.socket, name, f)
}

func call(ctx context.Context, socket, name string, f func(hypervisor.HypervisorService) error) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("%s: %w; hint: the service of remote virtual machines has to run and serve this socket", name, err)
	}
	client := ttrpc.NewClient(conn)
	defer client.Close()
	err = f(hypervisor.NewHypervisorClient(client))
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", name, ctx.Err())
	}
	if st, ok := status.FromError(err); ok {
		if st.Code() == codes.DeadlineExceeded { // the service knows the deadline, too, and can be first
			return fmt.Errorf("%s: %w", name, context.DeadlineExceeded)
		}
		text := []rune(process.Printable(st.Message()))
		return fmt.Errorf("%s: %s: %s", name, st.Code(), string(text[:min(len(text), 500)]))
	}
	return fmt.Errorf("%s: %w", name, err)
}

// CleanStale deletes the VM of a sandbox whose supervisor is gone. The service decides what it does with an unknown one.
func CleanStale(ctx context.Context, socket, id string) error {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	return call(ctx, socket, "StopVM", func(s hypervisor.HypervisorService) error {
		_, err := s.StopVM(ctx, &hypervisor.StopVMRequest{Id: id})
		if status.Code(err) == codes.NotFound {
			return nil
		}
		return err
	})
}

// Dial connects to the agent. Other ports of the guest are out of reach.
func (v *VM) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	if port != AgentPort {
		return nil, fmt.Errorf("guest port %d of a remote virtual machine: %w", port, errors.ErrUnsupported)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", v.agent)
	if err != nil {
		return nil, fmt.Errorf("connecting to the agent of remote virtual machine %s: %w", v.id, err)
	}
	return conn, nil
}

// Exited is closed when Stop has ended the VM. The protocol does not tell of a VM that ends by itself; its agent does not answer then.
func (v *VM) Exited() <-chan struct{} { return v.exited }

// Err is always nil; see Exited.
func (v *VM) Err() error { return nil }

// ConsoleTail is empty: the console is elsewhere.
func (v *VM) ConsoleTail(int) []string { return nil }

// FatalReason is empty: the console is elsewhere.
func (v *VM) FatalReason() string { return "" }

// PID is 0: no process here runs the VM.
func (v *VM) PID() int { return 0 }

// Stop has the VM deleted. It does so also when ctx has ended, and then waits for up to a minute. After an error the VM may still be
// there, and Stop can be called again.
func (v *VM) Stop(ctx context.Context) error {
	v.stop.Lock()
	defer v.stop.Unlock()
	select {
	case <-v.exited:
		return nil
	default:
	}
	if err := CleanStale(context.WithoutCancel(ctx), v.socket, v.id); err != nil {
		return fmt.Errorf("stopping remote virtual machine %s: %w", v.id, err)
	}
	close(v.exited)
	return nil
}

var errFixed = fmt.Errorf("a remote virtual machine cannot change while it runs: %w", errors.ErrUnsupported)

// AddDisk is not supported.
func (v *VM) AddDisk(context.Context, vmm.Disk) (vmm.Place, error) { return vmm.Place{}, errFixed }

// RemoveDisk is not supported.
func (v *VM) RemoveDisk(context.Context, string) error { return errFixed }

// AddNIC is not supported.
func (v *VM) AddNIC(context.Context, vmm.NIC) (vmm.Place, error) { return vmm.Place{}, errFixed }

// RemoveNIC is not supported.
func (v *VM) RemoveNIC(context.Context, string) error { return errFixed }

// Resize is not supported.
func (v *VM) Resize(context.Context, int, int) (int, int, error) { return 0, 0, errFixed }
