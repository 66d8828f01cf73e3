package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/ttrpc"

	"github.com/cloister/cloister/guest/container"
	"github.com/cloister/cloister/guest/device"
	"github.com/cloister/cloister/guest/network"
	"github.com/cloister/cloister/wire/agent"
)

// ImagePuller puts an image's root file system at bundle/rootfs.
type ImagePuller interface {
	PullImage(ctx context.Context, ref, bundle string) (digest string, err error)
	// Release undoes PullImage.
	Release(bundle string) error
}

// Secrets opens sealed secrets.
type Secrets interface {
	UnsealSecret(ctx context.Context, sealed []byte) ([]byte, error)
}

// Keys fetches keys from the broker by their URI.
type Keys interface {
	Resource(ctx context.Context, uri string) ([]byte, error)
}

// Modules loads kernel modules by name; one that the image does not have is built into the kernel.
type Modules interface {
	Load(names ...string) error
}

// Layout places the sandbox's files. The host knows the directories below Root by name.
type Layout struct {
	Root       string // containers, volumes and files of the pod
	Namespaces string // persistent namespaces of the sandbox
	Resolv     string // the guest's own resolver configuration
	Pause      string // program that keeps a sandbox container alive
}

// DefaultLayout is the layout of the guest image.
func DefaultLayout() Layout {
	return Layout{Root: "/run/kata-containers", Namespaces: "/run/cloister/ns", Resolv: "/etc/resolv.conf", Pause: "/init"}
}

// Config is what an agent works with. Images, Secrets and Keys may be nil when the guest has no data hub.
type Config struct {
	Version string
	// Features are shown to the host beside the agent's own.
	Features    []string
	Gate        Gate
	Images      ImagePuller
	Secrets     Secrets
	Keys        Keys // of sealed layers
	Runtime     *container.Runtime
	Network     *network.Stack
	Log         *slog.Logger
	Layout      Layout
	PullTimeout time.Duration
	HubTimeout  time.Duration
	// HotplugTimeout bounds the wait for a network interface.
	HotplugTimeout time.Duration
	// Devices finds what the host attaches.
	Devices *device.Finder
	// Modules loads file systems.
	Modules Modules
	// Settled is called whenever a container has been started; nil is nothing to call.
	Settled func()
	// WithoutIntegrity leaves encrypted disks without authentication codes.
	WithoutIntegrity bool
	// Reserved tells which character devices belong to the guest alone.
	Reserved func(major, minor int64) bool
}

// oomBacklog bounds reports nobody has fetched; older ones are the useful ones.
const oomBacklog = 64

// Agent is the service of one sandbox.
type Agent struct {
	cfg Config
	log *slog.Logger

	destroyed chan struct{} // closed by DestroySandbox
	destroy   sync.Once
	oom       chan string

	copying sync.Mutex   // held while a file is copied
	layers  atomic.Int64 // counts the devices of layers, whose names differ

	mu         sync.Mutex
	sandbox    *sandbox
	containers map[string]*entry
	storages   map[string]*storage
}

// entry is a container, or the reservation of its id while it is being made.
type entry struct {
	c        *container.Container // nil while being made
	signaled bool                 // its first process, by the host
	noted    chan struct{}        // closed when the policy knows of its end, or cannot be told
	notedErr error                // why it cannot; to be read then
	oci      *agent.Spec
	storages []string
}

// New returns an agent. Nothing is touched before the first request.
func New(cfg Config) *Agent {
	return &Agent{
		cfg: cfg, log: cfg.Log, destroyed: make(chan struct{}), oom: make(chan string, oomBacklog),
		containers: map[string]*entry{}, storages: map[string]*storage{},
	}
}

var _ agent.AgentServiceService = (*Agent)(nil)

// Destroyed is closed when the host has ended the sandbox.
func (a *Agent) Destroyed() <-chan struct{} { return a.destroyed }

// replyTimeout bounds how long answers may take to leave when the server ends.
const replyTimeout = 5 * time.Second

// clientGrace bounds how long clients may take to leave after their last answer.
const clientGrace = time.Second

// Serve answers requests on l until ctx ends, the sandbox is destroyed (both nil) or the listener fails. Answers that
// are under way are sent first.
func (a *Agent) Serve(ctx context.Context, l net.Listener) error {
	srv, err := newServer(a.cfg.Gate, a.log, a, health{version: a.cfg.Version})
	if err != nil {
		return err
	}
	served := make(chan error, 1)
	calls := newAnswers(l)
	go func() { served <- srv.Serve(ctx, calls) }()
	select {
	case err := <-served:
		if errors.Is(err, ttrpc.ErrServerClosed) || errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("serving the agent API: %w", err)
	case <-a.destroyed:
	case <-ctx.Done():
	}
	// The context of the caller may be over; replies get their own time.
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), replyTimeout)
	defer cancel()
	calls.last(end, clientGrace)
	if err := srv.Shutdown(end); err != nil {
		a.log.Debug("closing agent connections", "error", err)
		_ = srv.Close()
	}
	<-served
	return nil
}

// newServer is the only place where services are put behind the gate.
func newServer(gate Gate, log *slog.Logger, svc agent.AgentServiceService, h agent.HealthService) (*ttrpc.Server, error) {
	srv, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(gated(gate, log)))
	if err != nil {
		return nil, fmt.Errorf("making the agent server: %w", err)
	}
	agent.RegisterAgentServiceService(srv, svc)
	agent.RegisterHealthService(srv, h)
	return srv, nil
}

// container finds a container by id.
func (a *Agent) container(id string) (*container.Container, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if e, ok := a.containers[id]; ok && e.c != nil {
		return e.c, nil
	}
	return nil, errNoContainer
}

// process finds a process of a container.
func (a *Agent) process(containerID, execID string) (*container.Process, error) {
	c, err := a.container(containerID)
	if err != nil {
		return nil, err
	}
	return c.Process(execID)
}

// health answers whether the guest is up; that it answers is the answer.
type health struct{ version string }

// protocolVersion is what agents of this protocol report.
const protocolVersion = "0.0.1"

func (health) Check(context.Context, *agent.CheckRequest) (*agent.HealthCheckResponse, error) {
	return &agent.HealthCheckResponse{Status: agent.HealthCheckResponse_SERVING}, nil
}

func (h health) Version(context.Context, *agent.CheckRequest) (*agent.VersionCheckResponse, error) {
	return &agent.VersionCheckResponse{GrpcVersion: protocolVersion, AgentVersion: h.version}, nil
}
