package boot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/guest/agent"
	"github.com/cloister/cloister/guest/attest"
	"github.com/cloister/cloister/guest/container"
	"github.com/cloister/cloister/guest/device"
	"github.com/cloister/cloister/guest/forward"
	"github.com/cloister/cloister/guest/gate"
	"github.com/cloister/cloister/guest/hub"
	"github.com/cloister/cloister/guest/kmod"
	"github.com/cloister/cloister/guest/network"
	"github.com/cloister/cloister/guest/reap"
	"github.com/cloister/cloister/guest/uevent"
	"github.com/cloister/cloister/wire/initdata"
)

// machine is the guest while it comes up.
type machine struct {
	version string
	began   time.Time
	kernel  time.Duration // from the kernel's start to ours
	console io.Writer
	logs    *LogHub
	log     *slog.Logger
	cfg     Config
	events  *uevent.Events
	modules *kmod.Loader
	reaper  *reap.Reaper
	net     *network.Stack
	root    string          // of the files that show the platform; / outside of tests
	prover  attest.Attester // nil when there is none, for the reason noProof
	noProof error
	data    *Initdata // nil when none was announced
	gate    *gate.Engine
	hub     *services
	settled chan struct{} // closed when the first container runs
}

// Run is the life of PID 1: it brings the guest up, serves until the sandbox is destroyed, the host has gone or ctx
// ends, and switches the machine off. It never returns.
func Run(ctx context.Context, version string) {
	m := &machine{version: version, began: time.Now(), kernel: uptime(), console: os.Stderr, root: "/", settled: make(chan struct{})}
	if err := m.run(ctx); err != nil && ctx.Err() == nil {
		fatal(m.console, err)
	}
	powerOff()
}

func (m *machine) run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	if err := m.prepare(); err != nil {
		return err
	}
	m.reaper = reap.New(m.log)
	reaping := make(chan error, 1)
	// Statuses are collected to the very end, also while containers are stopped.
	go func() { reaping <- m.reaper.Serve(context.WithoutCancel(ctx)) }()

	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"modules", m.loadModules},
		{"network", m.openNetwork},
		{"platform", m.openPlatform},
		{"initdata", m.measure},
		{"policy", m.loadPolicy},
		{"services", m.startServices},
	} {
		start := time.Now()
		if err := step.do(ctx); err != nil {
			return err
		}
		m.log.Info("boot step done", "step", step.name, "took", time.Since(start).Round(time.Millisecond))
	}
	return m.serve(ctx)
}

// prepare makes the file systems and the log.
func (m *machine) prepare() error {
	unix.Umask(0o022)
	if err := reroot(); err != nil {
		return err
	}
	if err := mountAll(earlyMounts()); err != nil {
		return err
	}
	if err := deviceLinks(); err != nil {
		return err
	}
	console, err := openConsole()
	if err != nil {
		return err
	}
	m.console = console
	if err := os.Setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"); err != nil {
		return fmt.Errorf("setting PATH: %w", err)
	}
	text, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return fmt.Errorf("reading the kernel command line: %w", err)
	}
	if m.cfg, err = ParseCmdline(string(text)); err != nil {
		return err
	}
	m.logs = NewLogHub()
	m.log = slog.New(fanout{consoleHandler(m.console, m.cfg.LogLevel), m.logs.Handler(m.cfg.LogLevel)})
	if len(m.cfg.Ignored) > 0 {
		m.log.Warn("kernel command line keys without effect", "keys", m.cfg.Ignored)
	}
	// Files and sockets of many containers; the default is for one program.
	const files = 1 << 20
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: files, Max: files}); err != nil {
		return fmt.Errorf("raising the limit of open files: %w", err)
	}
	m.events, err = uevent.Open()
	return err
}

func (m *machine) loadModules(context.Context) error {
	if err := loadModules(m.log, modulesList); err != nil {
		return err
	}
	release, err := kmod.Release()
	if err != nil {
		return err
	}
	if m.modules, err = kmod.Open(filepath.Join("/lib/modules", release), m.log, m.withheld()...); err != nil {
		return err
	}
	m.modules.Postpone("virtio_rng", "virtio_balloon") // see settle
	if err := m.modules.Devices("/sys"); err != nil {
		return err
	}
	return mountAll(lateMounts())
}

// withheld are the drivers that only a trusted host may use: with them it takes memory away and gives it.
func (m *machine) withheld() []string {
	if m.cfg.Sandboxed {
		return nil
	}
	return []string{"virtio_balloon", "virtio_mem"}
}

func (m *machine) openNetwork(context.Context) error {
	var err error
	if m.net, err = network.Open(); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte("localhost")); err != nil {
		return fmt.Errorf("setting the hostname: %w", err)
	}
	return m.net.UpLoopback()
}

// openPlatform opens what proves what this guest is. Without initdata the guest has no secrets and may do without; a
// platform that this build cannot attest is never replaced by a weaker one.
func (m *machine) openPlatform(ctx context.Context) error {
	detect := func() (bool, error) {
		m.prover, m.noProof = attest.Detect(ctx, m.root)
		if errors.Is(m.noProof, fs.ErrNotExist) {
			return false, nil
		}
		return m.noProof == nil, m.noProof
	}
	if m.cfg.Sandboxed {
		m.noProof = errSandboxed
		return refuseProof(ctx, m.root)
	}
	if m.cfg.Initdata == InitdataNone {
		if _, err := detect(); err != nil || m.prover == nil {
			m.log.Info("no proof of this guest", "reason", m.noProof)
		}
		return nil
	}
	wait, cancel := context.WithTimeout(ctx, m.cfg.HotplugTimeout)
	defer cancel()
	err := m.events.WaitFor(wait, "the TPM that initdata is measured into", detect)
	if err != nil && errors.Is(m.noProof, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", err, m.noProof)
	}
	return err
}

// measure reads the initdata, measures it and only then interprets it.
func (m *machine) measure(ctx context.Context) error {
	if m.cfg.Sandboxed {
		return refuseInitdata("/sys", "/dev")
	}
	if m.cfg.Initdata == InitdataNone {
		m.log.Warn("the command line announces no initdata: the guest will refuse to run containers")
		return nil
	}
	var text []byte
	wait, cancel := context.WithTimeout(ctx, m.cfg.HotplugTimeout)
	defer cancel()
	err := m.events.WaitFor(wait, "a block device with initdata", func() (bool, error) {
		var err error
		text, err = readInitdata("/sys", "/dev")
		if errors.Is(err, initdata.ErrNoInitdata) {
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		return err
	}
	register, ok := m.prover.(pcrExtender)
	if !ok {
		return fmt.Errorf("measuring initdata: platform %s has no PCR", m.prover.TEE())
	}
	if m.data, err = measureInitdata(ctx, register, text); err != nil {
		return err
	}
	return m.data.store(InitdataDir)
}

func (m *machine) loadPolicy(context.Context) error {
	if m.cfg.Sandboxed {
		m.log.Warn("sandboxed mode: the host is trusted, every request is allowed and nothing about this guest can be proven")
		m.gate = gate.NewOpen(gate.Options{Logger: m.log})
		return nil
	}
	text, source := defaultPolicy, "built-in"
	if m.data != nil {
		if p, ok := m.data.Data[partPolicy]; ok {
			text, source = p, "initdata"
		}
	}
	var err error
	if m.gate, err = gate.New(text, gate.Options{Logger: m.log}); err != nil {
		return err
	}
	m.log.Info("policy loaded", "source", source)
	return nil
}

// errHostGone ends the guest when its channel does.
var errHostGone = errors.New("the host has closed the channel")

// serve answers the host until the end.
func (m *machine) serve(ctx context.Context) error {
	a := agent.New(m.agentConfig())
	on, wait, err := m.openChannels(ctx)
	if err != nil {
		return err
	}
	m.log.Info("guest ready", "version", m.version, "kernel", m.kernel.Round(time.Millisecond), "took", time.Since(m.began).Round(time.Millisecond))
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := a.Serve(ctx, on.agents); err != nil {
			return err
		}
		return errServed
	})
	g.Go(func() error { return m.logs.Serve(ctx, on.logs) })
	g.Go(func() error { return wait(ctx) })
	g.Go(func() error { return m.hub.wait(ctx) })
	g.Go(func() error { return m.followDevices(ctx) })
	g.Go(func() error { return m.settle(ctx) })
	g.Go(func() error { return forward.New(m.gate, m.log, hub.PortREST).Serve(ctx, on.forward) })
	switch err := g.Wait(); {
	case errors.Is(err, errServed), errors.Is(err, errHostGone), errors.Is(err, context.Canceled):
		m.log.Info("guest ends", "reason", err)
		return nil
	default:
		return err
	}
}

// followDevices loads the drivers of what is attached later.
func (m *machine) followDevices(ctx context.Context) error {
	err := m.events.WaitFor(ctx, "devices", func() (bool, error) {
		if err := m.modules.Devices("/sys"); err != nil {
			m.log.Warn("driver not loaded", "error", err)
		}
		return false, nil
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// settleAfter is the time between the first container and the work that nobody waits for.
const settleAfter = 5 * time.Second

// settle does what nobody waits for, so that it does not make the start of the pod longer.
func (m *machine) settle(ctx context.Context) error {
	select {
	case <-m.settled:
	case <-ctx.Done():
		return ctx.Err()
	}
	// The other containers of a pod usually come right after the first.
	select {
	case <-time.After(settleAfter):
	case <-ctx.Done():
		return ctx.Err()
	}
	m.modules.Postpone()
	if err := m.modules.Devices("/sys"); err != nil {
		m.log.Warn("driver not loaded", "error", err)
	}
	// Start-up garbage, mostly of the policy compiler, is given back once instead of kept for good.
	debug.FreeOSMemory()
	return nil
}

// uptime is the time since the kernel started.
func uptime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

// errServed ends the group when the agent has nothing more to do.
var errServed = errors.New("the sandbox has been destroyed")

func (m *machine) agentConfig() agent.Config {
	rc := container.DefaultConfig()
	rc.PipeSize = m.cfg.PipeSize
	cfg := agent.Config{
		Version: m.version, Gate: m.gate, Network: m.net, Log: m.log, Layout: agent.DefaultLayout(),
		Runtime:     container.NewRuntime(rc, m.reaper, m.log),
		PullTimeout: m.cfg.ImagePullTimeout, HubTimeout: m.cfg.HubTimeout, HotplugTimeout: m.cfg.HotplugTimeout,
		Reserved: reservedDevices("/sys"),
		Devices: &device.Finder{
			Sys: "/sys", Dev: "/dev", Timeout: m.cfg.HotplugTimeout, Load: m.modules.Load,
			Drivers: func() error { return m.modules.Devices("/sys") },
		},
		Settled: sync.OnceFunc(func() { close(m.settled) }), Modules: m.modules, WithoutIntegrity: !m.cfg.StorageIntegrity,
	}
	if m.cfg.Sandboxed {
		cfg.Features = append(cfg.Features, sandboxedFeature)
	}
	m.hub.configure(&cfg)
	return cfg
}
