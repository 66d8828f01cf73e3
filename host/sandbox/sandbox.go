package sandbox

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cloister/cloister/host/agent"
	"github.com/cloister/cloister/host/cgroup"
	"github.com/cloister/cloister/host/cri"
	"github.com/cloister/cloister/host/doctor"
	"github.com/cloister/cloister/host/manage"
	"github.com/cloister/cloister/host/network"
	"github.com/cloister/cloister/host/portforward"
	"github.com/cloister/cloister/host/runtimeconfig"
	"github.com/cloister/cloister/host/share"
	"github.com/cloister/cloister/host/sizing"
	"github.com/cloister/cloister/host/trace"
	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/host/volume"
)

// Config says which sandbox to make.
type Config struct {
	// Root is the folder of all sandboxes; empty is Root.
	Root          string
	Namespace, ID string
	// Spec is that of the pod's first container, or of the only one.
	Spec *specs.Spec
	// NetNS replaces the network namespace of Spec; it comes with the sandbox service.
	NetNS string
	// DNS replaces the resolver configuration that Spec mounts; it comes with the sandbox service, too.
	DNS     []string
	Runtime *runtimeconfig.Effective
	// Version is that of this program, for traces.
	Version string
	Logger  *slog.Logger
	// Host is where the accelerator and TEE hardware are looked for; the zero value is this machine. Tests give others.
	Host doctor.Host
	// StartVM replaces the monitor that the configuration names; tests use it.
	StartVM func(ctx context.Context, cfg vmm.Config) (vmm.Machine, error)
	// Self is this program, when its main function calls template.Command; empty is a sandbox without templates. Templates is where they
	// are; empty is template.Root.
	Self, Templates string
	// OOM is called when a container has run out of memory.
	OOM func(containerID string)
}

// Sandbox is a pod that runs. Its methods may be called at the same time.
type Sandbox struct {
	cfg     Config
	dir     string
	lock    *os.File // the directory, locked
	log     *slog.Logger
	runtime *runtimeconfig.Config
	tee     string // what protects the VM, once "auto" has been decided
	plan    sizing.Plan

	group   *cgroup.Group
	net     *network.Network
	share   *share.Share
	volumes *volume.Set
	vm      vmm.Machine
	// templated is the template that the VM could have started from.
	templated templated
	restored  bool // it has
	agent     *agent.Client
	forward   *portforward.Forwarder // nil without
	trace     *trace.Recorder
	record    *agent.Recorder // nil without
	manage    *manage.Server  // nil without
	// durations are how long the guest takes to answer, for the metrics.
	durations manage.Durations
	ready     time.Time // when the guest gave its first answer
	// keepsOutput is what the guest says about itself; it is the guest's loss when that is not true.
	keepsOutput bool
	// imageVolumes is, too: whether it makes the directories that images declare as volumes.
	imageVolumes bool

	// background ends what runs beside the calls: watchers and long polls.
	background context.Context
	stop       context.CancelFunc
	workers    sync.WaitGroup
	ended      chan struct{} // closed when the VM has ended, for whatever reason
	endErr     error         // why, valid once ended is closed

	mu         sync.Mutex
	state      State
	containers map[string]*container
	vcpus      int
	memoryMiB  int
	stopping   bool
	dead       error // why the VM was ended without being asked

	// failure is why the sandbox did not start, failureLines what the monitor said then.
	failure      error
	failureLines []string

	pinning sync.Mutex // guards pinned
	pinned  bool       // each virtual CPU has a CPU of its own

	growing sync.Mutex // one growth at a time

	teardown sync.Mutex // one removal at a time; it guards what follows
	down     bool       // everything was tried once
	removed  bool       // nothing is left
}

// container is what is remembered of a container of the guest.
type container struct {
	name string // that of the pod's manifest, else the id
	need sizing.Request
	cpus string                   // its CPU set on the host
	caps *specs.LinuxCapabilities // of its first process
}

// Create makes the sandbox and returns when its guest is ready for containers. When it fails nothing of it is left.
func Create(ctx context.Context, cfg Config) (_ *Sandbox, err error) {
	if cfg.Root == "" {
		cfg.Root = Root
	}
	dir, err := Dir(cfg.Root, cfg.Namespace, cfg.ID)
	if err != nil {
		return nil, err
	}
	s := &Sandbox{
		cfg: cfg, dir: dir, log: cfg.Logger, runtime: &cfg.Runtime.Config, containers: map[string]*container{}, ended: make(chan struct{}),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.background, s.stop = context.WithCancel(context.WithoutCancel(ctx))
	if err := s.makeDir(ctx); err != nil {
		s.stop()
		return nil, fmt.Errorf("creating sandbox %s: %w", cfg.ID, err)
	}
	defer func() {
		if err == nil {
			return
		}
		err = fmt.Errorf("creating sandbox %s: %w", cfg.ID, err)
		s.failed(err)
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), downTimeout)
		defer cancel()
		if derr := s.Stop(clean); derr != nil {
			s.log.Error("removing a sandbox that could not be created", "sandbox", cfg.ID, "error", derr)
		}
	}()
	if err := s.startTrace(ctx); err != nil {
		return nil, err
	}
	ctx, done := s.trace.Step(ctx, "sandbox")
	defer func() { done(err) }()
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"size", s.size},
		{"cgroup", s.planCgroup},
		{"network", s.attachNetwork},
		{"share", s.startShare},
		{"vm", s.startVM},
		{"guest", s.waitGuest},
		{"guest network", s.configureNetwork},
		{"guest sandbox", s.createInGuest},
	} {
		if err := s.step(ctx, step.name, step.do); err != nil {
			return nil, err
		}
	}
	s.watch()
	return s, nil
}

// downTimeout bounds the removal of a sandbox.
const downTimeout = 30 * time.Second

// step runs one part of the start and says how long it took.
func (s *Sandbox) step(ctx context.Context, name string, do func(context.Context) error) error {
	ctx, end := trace.Step(ctx, name)
	err := do(ctx)
	end(err)
	return err
}

// startTrace records the steps from here on, for `cloister trace` and, where the configuration has one, for a collector.
func (s *Sandbox) startTrace(ctx context.Context) error {
	exporter, err := s.runtime.TraceExporter(s.cfg.Version, s.log)
	if err != nil {
		return err
	}
	file := ""
	if s.runtime.Tracing.Steps {
		file = filepath.Join(s.dir, trace.FileName)
	}
	s.trace = trace.New(trace.Config{
		File: file, Name: s.state.PodName, Namespace: s.state.PodNamespace, ID: s.cfg.ID,
		Attrs:    []trace.Attr{trace.String("tee", s.runtime.Sandbox.TEE), trace.String("vmm", s.runtime.VMM.Kind)},
		Exporter: exporter, Traceparent: trace.Incoming(ctx),
	})
	return nil
}

// makeDir takes the sandbox's directory. One that is there was left by a shim that is gone: containerd has one sandbox of an ID at a time.
func (s *Sandbox) makeDir(ctx context.Context) (err error) {
	if err := Cleanup(ctx, s.dir); err != nil {
		return err
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("making its directory: %w", err)
	}
	if s.lock, err = lockDir(s.dir); err != nil {
		return fmt.Errorf("taking its directory: %w", err)
	}
	defer func() {
		if err != nil {
			os.RemoveAll(s.dir)
			_ = os.Remove(filepath.Dir(s.dir)) // when it is empty
			s.lock.Close()
		}
	}()
	if err := os.Mkdir(filepath.Join(s.dir, volumeDir), 0o700); err != nil {
		return fmt.Errorf("making its directory: %w", err)
	}
	a := cri.Annotations(s.cfg.Spec.Annotations)
	s.state = State{
		Namespace: s.cfg.Namespace, ID: s.cfg.ID, PodName: a.PodName(), PodNamespace: a.PodNamespace(), TEE: s.runtime.Sandbox.TEE,
		Monitor: s.runtime.VMM.Kind, Shim: os.Getpid(), Started: time.Now().UTC(),
	}
	return s.writeState()
}

// size decides how large the VM is, once it is known what protects it.
func (s *Sandbox) size(ctx context.Context) error {
	var err error
	if s.tee = s.runtime.Sandbox.TEE; s.runtime.VMM.Kind == "remote" {
		// The hardware is elsewhere.
	} else if s.tee, err = chooseTEE(s.cfg.Host, s.tee); err != nil {
		return err
	}
	request, err := s.request()
	if err != nil {
		return err
	}
	o, err := OverheadOn(ctx, s.cfg.Host, s.runtime, s.tee)
	if err != nil {
		return err
	}
	if s.plan, err = Size(s.runtime, o, request); err != nil {
		return err
	}
	s.vcpus, s.memoryMiB = s.plan.VCPUs, s.plan.MemoryMiB
	s.state.TEE, s.state.VCPUs, s.state.MemoryMiB = s.tee, s.vcpus, s.memoryMiB
	return nil
}

// OverheadOn is what a sandbox with this configuration needs on a host besides its containers.
func OverheadOn(ctx context.Context, h doctor.Host, c *runtimeconfig.Config, tee string) (sizing.Overhead, error) {
	o, err := sizing.OverheadOf(tee)
	if err != nil {
		return sizing.Overhead{}, err
	}
	o = o.Replace(c.Sandbox.OverheadVCPUs, c.Sandbox.OverheadMemoryMiB)
	// Nothing else emulates, and the hardware of TEEs needs KVM: without it their start is an error.
	if c.VMM.Kind != "qemu" || c.VMM.Accel == vmm.AccelKVM || tee != runtimeconfig.TEENone && tee != runtimeconfig.TEETPM {
		return o, nil
	}
	accel, err := doctor.Accelerator(ctx, h, c.VMM.Accel)
	if err != nil {
		return sizing.Overhead{}, err
	}
	if accel == vmm.AccelTCG {
		o = o.Emulated(vmm.TranslatedMiB)
	}
	return o, nil
}

// Size computes the size of a sandbox with this configuration and overhead on this host.
func Size(c *runtimeconfig.Config, o sizing.Overhead, r sizing.Request) (sizing.Plan, error) {
	host, err := sizing.ThisHost()
	if err != nil {
		return sizing.Plan{}, err
	}
	return sizing.Compute(sizing.Input{
		Request: r, DefaultVCPUs: c.Sandbox.VCPUs, DefaultMemoryMiB: c.Sandbox.MemoryMiB, MaxVCPUs: c.Sandbox.MaxVCPUs,
		MaxMemoryMiB: c.Sandbox.MaxMemoryMiB, Overhead: o, Static: c.Static(), BlockMiB: c.Sandbox.MemoryBlockMiB, Host: host,
	})
}

// request is what is known of the pod's size when it starts.
func (s *Sandbox) request() (sizing.Request, error) {
	if cri.Annotations(s.cfg.Spec.Annotations).Kind() == cri.KindSandbox {
		return sizing.FromAnnotations(s.cfg.Spec.Annotations)
	}
	return specRequest(s.cfg.Spec)
}

// attachNetwork joins the pod's interfaces with taps.
func (s *Sandbox) attachNetwork(ctx context.Context) error {
	if s.runtime.Network.Model == "none" || s.runtime.VMM.Kind == "remote" {
		return nil
	}
	netns, err := s.netns()
	if err != nil || netns == "" {
		return err
	}
	s.net, err = network.Attach(ctx, s.networkConfig(netns))
	return err
}

func (s *Sandbox) networkConfig(netns string) network.Config {
	n := &s.runtime.Network
	return network.Config{
		NetNS: netns, StateFile: filepath.Join(s.dir, networkFile), Model: networkModel(n.Model), Queues: min(n.Queues, s.plan.VCPUs),
		WithoutVhost: !n.Vhost, RxBitsPerSecond: n.RxBitsPerSecond, TxBitsPerSecond: n.TxBitsPerSecond,
	}
}

func networkModel(name string) network.Model {
	if name == "macvtap" {
		return network.ModelMacvtap
	}
	return network.ModelTC
}

// netns is the pod's network namespace; "" is a pod without a network. That of the host is refused: a VM has no part in it.
func (s *Sandbox) netns() (string, error) {
	if s.cfg.NetNS != "" {
		return s.cfg.NetNS, nil
	}
	path, own := networkNamespace(s.cfg.Spec)
	if !own {
		return "", network.ErrHostNetwork
	}
	return path, nil
}

// startShare starts the file server of the shared directory, where the sandbox may have one.
func (s *Sandbox) startShare(ctx context.Context) error {
	var err error
	if s.runtime.SharedFS() == runtimeconfig.SharedFSVirtiofs {
		s.share, err = share.Start(ctx, s.shareConfig())
	}
	return err
}

func (s *Sandbox) shareConfig() share.Config {
	st := &s.runtime.Storage
	return share.Config{
		Dir: filepath.Join(s.dir, shareDir), Program: st.Virtiofsd, Args: st.VirtiofsdArgs, Cache: st.VirtiofsCache, Started: s.enterCgroup,
	}
}

// Ended is closed when the VM has ended; Err says why, nil when it was stopped.
func (s *Sandbox) Ended() <-chan struct{} { return s.ended }

// Err is valid once Ended is closed.
func (s *Sandbox) Err() error { return s.endErr }

// PID is the process number of the monitor, which stands for the pod's processes on the host; 0 when the VM runs elsewhere.
func (s *Sandbox) PID() int { return s.vm.PID() }

// Dir is the sandbox's directory.
func (s *Sandbox) Dir() string { return s.dir }

// console is the end of the guest's console as a paragraph of an error.
func (s *Sandbox) console() string {
	lines := s.vm.ConsoleTail(20)
	if len(lines) == 0 {
		return "its console is empty"
	}
	return "end of its console:\n  " + strings.Join(lines, "\n  ")
}
