package remote

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/wire/hypervisor"
)

// service is a service of remote VMs that has no VMs.
type service struct {
	version, agent              string
	create, start, stop, unmade error // what the calls fail with
	hang                        string
	hangs                       func() // called when that call hangs

	mu      sync.Mutex
	calls   []string
	created *hypervisor.CreateVMRequest
}

func (s *service) did(ctx context.Context, call string) error {
	s.mu.Lock()
	s.calls = append(s.calls, call)
	s.mu.Unlock()
	if strings.HasPrefix(call, s.hang) && s.hang != "" {
		s.hangs()
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

func (s *service) Version(ctx context.Context, r *hypervisor.VersionRequest) (*hypervisor.VersionResponse, error) {
	if err := s.did(ctx, "Version "+r.Version); err != nil {
		return nil, err
	}
	return &hypervisor.VersionResponse{Version: s.version}, s.unmade
}

func (s *service) CreateVM(ctx context.Context, r *hypervisor.CreateVMRequest) (*hypervisor.CreateVMResponse, error) {
	if err := s.did(ctx, "CreateVM "+r.Id); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.created = r
	return &hypervisor.CreateVMResponse{AgentSocketPath: s.agent}, s.create
}

func (s *service) StartVM(ctx context.Context, r *hypervisor.StartVMRequest) (*hypervisor.StartVMResponse, error) {
	if err := s.did(ctx, "StartVM "+r.Id); err != nil {
		return nil, err
	}
	return &hypervisor.StartVMResponse{}, s.start
}

func (s *service) StopVM(ctx context.Context, r *hypervisor.StopVMRequest) (*hypervisor.StopVMResponse, error) {
	if err := s.did(ctx, "StopVM "+r.Id); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return &hypervisor.StopVMResponse{}, s.stop
}

func (s *service) last() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[len(s.calls)-1]
}

func (s *service) stopsWith(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stop = err
}

func (s *service) expect(t *testing.T, want ...string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !reflect.DeepEqual(s.calls, want) {
		t.Errorf("calls %q, expected %q", s.calls, want)
	}
}

// serve serves s and returns configurations for it.
func serve(t *testing.T, s *service) (vmm.Config, Config) {
	t.Helper()
	dir := t.TempDir()
	socket := filepath.Join(dir, "hypervisor.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	hypervisor.RegisterHypervisorService(srv, s)
	go func() { _ = srv.Serve(context.Background(), l) }()
	t.Cleanup(func() { srv.Close() })
	if s.agent == "" {
		s.agent = filepath.Join(dir, "agent.sock")
	}
	return vmm.Config{VCPUs: 2, MemoryMiB: 1024, NetNS: "/run/netns/pod"},
		Config{Socket: socket, ID: "abc", SandboxName: "web", SandboxNamespace: "default", MachineType: "small", Image: "img",
			Initdata: "version = \"0.1.0\"\n", GPUs: 1, GPUModel: "h100"}
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestLife(t *testing.T) {
	s, ctx := &service{version: "0.0.0"}, testContext(t)
	vm, cfg := serve(t, s)
	v, err := Start(ctx, vm, cfg)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"io.kubernetes.cri.sandbox-name":                        "web",
		"io.kubernetes.cri.sandbox-namespace":                   "default",
		"io.katacontainers.config.hypervisor.machine_type":      "small",
		"io.katacontainers.config.hypervisor.default_vcpus":     "2",
		"io.katacontainers.config.hypervisor.default_memory":    "1024",
		"io.katacontainers.config.hypervisor.image":             "img",
		"io.katacontainers.config.hypervisor.cc_init_data":      "version = \"0.1.0\"\n",
		"io.katacontainers.config.hypervisor.default_gpus":      "1",
		"io.katacontainers.config.hypervisor.default_gpu_model": "h100",
	}
	if !reflect.DeepEqual(s.created.Annotations, want) || s.created.NetworkNamespacePath != "/run/netns/pod" {
		t.Errorf("sent %v", s.created)
	}
	l, err := net.Listen("unix", s.agent)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := v.Dial(ctx, AgentPort)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if _, err := v.Dial(ctx, 1025); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("another port: %v", err)
	}
	if _, err := v.AddDisk(ctx, vmm.Disk{}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a disk: %v", err)
	}
	now, cancel := context.WithCancel(ctx)
	cancel()
	for range 2 {
		if err := v.Stop(now); err != nil {
			t.Fatal(err)
		}
	}
	<-v.Exited()
	s.expect(t, "Version 0.0.0", "CreateVM abc", "StartVM abc", "StopVM abc")
}

func TestStartFailures(t *testing.T) {
	tests := []struct {
		name    string
		service service
		want    string
		stopped bool
	}{
		{"newer", service{version: "1.2"}, "version 0 is supported", false},
		{"no version", service{unmade: status.Error(codes.Unimplemented, "x"), start: errors.New("quota")}, "quota", true},
		{"no room", service{create: status.Error(codes.ResourceExhausted, "no room\x1b[2J")}, "CreateVM: ResourceExhausted: no room", true},
		{"no path", service{agent: "agent.sock"}, "expected an absolute path", true},
		{"long text", service{start: errors.New(strings.Repeat("x", 1<<20))}, "StartVM: Unknown: xxx", true},
		{"no start", service{start: errors.New("quota"), stop: errors.New("cloud is down")}, "cloud is down", true},
	}
	for i := range tests {
		tt := &tests[i]
		t.Run(tt.name, func(t *testing.T) {
			vm, cfg := serve(t, &tt.service)
			_, err := Start(testContext(t), vm, cfg)
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.ContainsRune(err.Error(), '\x1b') || len(err.Error()) > 2000 {
				t.Errorf("%v", err)
			}
			if last := tt.service.last(); (last == "StopVM abc") != tt.stopped {
				t.Errorf("the last call is %s", last)
			}
		})
	}
}

func TestStopIsTriedAgain(t *testing.T) {
	s, ctx := &service{}, testContext(t)
	vm, cfg := serve(t, s)
	v, err := Start(ctx, vm, cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.stopsWith(errors.New("cloud is down"))
	if err := v.Stop(ctx); err == nil || !strings.Contains(err.Error(), "cloud is down") {
		t.Errorf("got %v", err)
	}
	select {
	case <-v.Exited():
		t.Error("a VM that could not be stopped counts as ended")
	default:
	}
	s.stopsWith(status.Error(codes.NotFound, "unknown"))
	if err := v.Stop(ctx); err != nil {
		t.Error(err)
	}
	<-v.Exited()
}

func TestHangs(t *testing.T) {
	for _, name := range []string{"Version", "CreateVM", "StartVM"} {
		ctx, cancel := context.WithCancel(testContext(t))
		defer cancel()
		s := &service{hang: name, hangs: cancel}
		vm, cfg := serve(t, s)
		if _, err := Start(ctx, vm, cfg); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
		if last := s.last(); name != "Version" && last != "StopVM abc" {
			t.Errorf("%s: the last call is %s", name, last)
		}
	}
}

func TestRefused(t *testing.T) {
	tests := map[string]func(*vmm.Config, *Config){
		"not an absolute path": func(_ *vmm.Config, c *Config) { c.Socket = "x" },
		"expected 1m0s":        func(_ *vmm.Config, c *Config) { c.Timeout = time.Second },
		"1 to 128":             func(_ *vmm.Config, c *Config) { c.ID = "" },
		"0 virtual CPUs":       func(v *vmm.Config, _ *Config) { v.VCPUs = 0 },
		"shared directories":   func(v *vmm.Config, _ *Config) { v.Share = &vmm.Share{} },
		"hot plug":             func(v *vmm.Config, _ *Config) { v.MaxVCPUs = 8 },
		"serve this socket":    func(_ *vmm.Config, c *Config) { c.Socket += "x" },
	}
	for want, edit := range tests {
		vm, cfg := serve(t, &service{})
		edit(&vm, &cfg)
		if _, err := Start(testContext(t), vm, cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}
