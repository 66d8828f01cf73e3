// Package remotehypervisor is a small service of remote virtual machines for tests: what a cloud's adaptor does, with VMs of this
// machine. It gives each VM a unix socket that leads to the agent in the guest.
package remotehypervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/wire/agent"
	"github.com/cloister/cloister/wire/hypervisor"
	"github.com/cloister/cloister/wire/initdata"
)

// agentPort is where the guest's agent listens.
const agentPort = 1024

const (
	annotationMemory   = "io.katacontainers.config.hypervisor.default_memory"
	annotationVCPUs    = "io.katacontainers.config.hypervisor.default_vcpus"
	annotationInitdata = "io.katacontainers.config.hypervisor.cc_init_data"
)

// Options say what the service's VMs are.
type Options struct {
	// Dir is a directory of the service; a VM is in Dir/ID.
	Dir string
	// VM is what all VMs have in common. Name, Dir, NetNS, size and initdata come from the request.
	VM vmm.Config
	// Start starts a VM.
	Start func(ctx context.Context, cfg vmm.Config) (vmm.Machine, error)
	// Configure gives the guest the address of QEMU's user-mode network, as a cloud would by DHCP.
	Configure bool
	// Version is what the service answers; empty is "0.0.0".
	Version string
}

// Server serves hypervisor.Hypervisor.
type Server struct {
	opts  Options
	ttrpc *ttrpc.Server

	mu       sync.Mutex
	machines map[string]*machine
	requests []*hypervisor.CreateVMRequest
}

// machine is one VM and the socket of its agent.
type machine struct {
	cfg     vmm.Config
	agent   net.Listener
	bridges sync.WaitGroup

	mu sync.Mutex
	vm vmm.Machine // nil before StartVM
}

// Serve serves on a unix socket until Close.
func Serve(socket string, opts Options) (*Server, error) {
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	t, err := ttrpc.NewServer()
	if err != nil {
		l.Close()
		return nil, err
	}
	s := &Server{opts: opts, ttrpc: t, machines: map[string]*machine{}}
	hypervisor.RegisterHypervisorService(t, s)
	go func() { _ = t.Serve(context.Background(), l) }()
	return s, nil
}

// Close ends the service and its VMs.
func (s *Server) Close() error {
	err := s.ttrpc.Close()
	now, cancel := context.WithCancel(context.Background())
	cancel()
	s.mu.Lock()
	ids := slices.Collect(maps.Keys(s.machines))
	s.mu.Unlock()
	for _, id := range ids {
		err = errors.Join(err, s.stop(now, id))
	}
	return err
}

// Requests returns the CreateVM requests so far.
func (s *Server) Requests() []*hypervisor.CreateVMRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// Machine is the VM of a sandbox, nil before StartVM and after StopVM.
func (s *Server) Machine(id string) vmm.Machine {
	m := s.machine(id)
	if m == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.vm
}

func (s *Server) machine(id string) *machine {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.machines[id]
}

// Version is the protocol's version.
func (s *Server) Version(context.Context, *hypervisor.VersionRequest) (*hypervisor.VersionResponse, error) {
	if s.opts.Version != "" {
		return &hypervisor.VersionResponse{Version: s.opts.Version}, nil
	}
	return &hypervisor.VersionResponse{Version: "0.0.0"}, nil
}

// CreateVM prepares a VM and opens the socket of its agent.
func (s *Server) CreateVM(_ context.Context, req *hypervisor.CreateVMRequest) (*hypervisor.CreateVMResponse, error) {
	if req.Id == "" || filepath.Base(req.Id) != req.Id {
		return nil, status.Errorf(codes.InvalidArgument, "id %q", req.Id)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, req)
	if s.machines[req.Id] != nil {
		return nil, status.Errorf(codes.AlreadyExists, "virtual machine %s is there already", req.Id)
	}
	dir := filepath.Join(s.opts.Dir, req.Id)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	m := &machine{cfg: s.opts.VM}
	m.cfg.Name = req.Id
	m.cfg.Dir = filepath.Join(dir, "vm")
	m.cfg.ConsoleLog = filepath.Join(s.opts.Dir, req.Id+".console")
	if !m.cfg.UserNetwork {
		m.cfg.NetNS = req.NetworkNamespacePath
	}
	m.cfg.VCPUs = atLeast(req.Annotations[annotationVCPUs], m.cfg.VCPUs)
	m.cfg.MemoryMiB = atLeast(req.Annotations[annotationMemory], m.cfg.MemoryMiB)
	if text := req.Annotations[annotationInitdata]; text != "" {
		m.cfg.InitdataImage = initdata.EncodeDevice([]byte(text))
	}
	var err error
	if m.agent, err = net.Listen("unix", filepath.Join(dir, "agent")); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	s.machines[req.Id] = m
	return &hypervisor.CreateVMResponse{AgentSocketPath: m.agent.Addr().String()}, nil
}

// atLeast reads a decimal number, which counts if it is more than the given one.
func atLeast(text string, least int) int {
	n, err := strconv.Atoi(text)
	if err != nil || n > 1<<20 {
		return least
	}
	return max(n, least)
}

// StartVM boots a VM and waits for its agent.
func (s *Server) StartVM(ctx context.Context, req *hypervisor.StartVMRequest) (*hypervisor.StartVMResponse, error) {
	m := s.machine(req.Id)
	if m == nil {
		return nil, status.Errorf(codes.NotFound, "no virtual machine %s", req.Id)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.vm != nil {
		return nil, status.Errorf(codes.FailedPrecondition, "virtual machine %s runs already", req.Id)
	}
	vm, err := s.opts.Start(ctx, m.cfg)
	if err != nil {
		return nil, err
	}
	m.vm = vm
	if s.opts.Configure {
		if err := configure(ctx, vm); err != nil {
			return nil, fmt.Errorf("%w; console: %q", err, vm.ConsoleTail(10))
		}
	}
	m.bridges.Go(func() { m.serve(vm) })
	return &hypervisor.StartVMResponse{}, nil
}

// StopVM ends a VM and forgets it.
func (s *Server) StopVM(ctx context.Context, req *hypervisor.StopVMRequest) (*hypervisor.StopVMResponse, error) {
	if err := s.stop(ctx, req.Id); err != nil {
		return nil, err
	}
	return &hypervisor.StopVMResponse{}, nil
}

func (s *Server) stop(ctx context.Context, id string) error {
	s.mu.Lock()
	m := s.machines[id]
	delete(s.machines, id)
	s.mu.Unlock()
	if m == nil {
		return status.Errorf(codes.NotFound, "no virtual machine %s", id)
	}
	m.agent.Close()
	m.mu.Lock()
	defer m.mu.Unlock()
	var err error
	if m.vm != nil {
		grace, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		err = m.vm.Stop(grace)
	}
	m.bridges.Wait()
	return errors.Join(err, os.RemoveAll(filepath.Join(s.opts.Dir, id)))
}

// serve joins each connection of the socket with one to the agent.
func (m *machine) serve(vm vmm.Machine) {
	for {
		client, err := m.agent.Accept()
		if err != nil {
			return
		}
		guest, err := vm.Dial(context.Background(), agentPort)
		if err != nil {
			client.Close()
			continue
		}
		m.bridges.Go(func() {
			// An end of the VM ends both directions; a client that has gone does, too.
			defer context.AfterFunc(exit(vm), func() { client.Close(); guest.Close() })()
			done := make(chan struct{}, 2)
			copyTo := func(to, from net.Conn) { _, _ = io.Copy(to, from); done <- struct{}{} }
			go copyTo(client, guest)
			go copyTo(guest, client)
			<-done
			client.Close()
			guest.Close()
			<-done
		})
	}
}

// exit is a context that ends with a VM.
func exit(vm vmm.Machine) context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	go func() { <-vm.Exited(); cancel() }()
	return ctx
}

// configure waits for the agent and gives the guest its address.
func configure(ctx context.Context, vm vmm.Machine) error {
	conn, err := vm.Dial(ctx, agentPort)
	if err != nil {
		return fmt.Errorf("connecting to the agent: %w", err)
	}
	client := ttrpc.NewClient(conn)
	defer client.Close()
	if _, err := agent.NewHealthClient(client).Check(ctx, &agent.CheckRequest{}); err != nil {
		return fmt.Errorf("waiting for the guest: %w", err)
	}
	a := agent.NewAgentServiceClient(client)
	_, err = a.UpdateInterface(ctx, &agent.UpdateInterfaceRequest{Interface: &agent.Interface{
		Device: "eth0", Name: "eth0", Mtu: 1500, HwAddr: vmm.GuestMAC, Type: "veth",
		IPAddresses: []*agent.IPAddress{{Family: agent.IPFamily_v4, Address: "10.0.2.15", Mask: "24"}},
	}})
	if err != nil {
		return fmt.Errorf("configuring the network interface: %w", err)
	}
	if _, err = a.UpdateRoutes(ctx, &agent.UpdateRoutesRequest{Routes: &agent.Routes{
		Routes: []*agent.Route{{Gateway: "10.0.2.2", Device: "eth0"}},
	}}); err != nil {
		return fmt.Errorf("configuring the default route: %w", err)
	}
	return nil
}
