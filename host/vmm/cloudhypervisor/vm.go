// Package cloudhypervisor runs virtual machines with Cloud Hypervisor, through its REST API.
//
// The monitor gets the API's listening socket, the pipe of its events and the pipe of the guest's console as open files. Nothing has to
// be waited for: a first request waits in the socket until the monitor takes it, and the pipes end with the monitor.
//
// Streams to the guest go through hybrid vsock: a unix socket of the monitor, on which a line names the guest's port.
package cloudhypervisor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cloister/cloister/host/process"
	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/host/vmm/console"
)

const (
	quitTimeout = 3 * time.Second  // the monitor after it was told to quit
	pingTimeout = 30 * time.Second // the monitor from its start to its first answer
	// consoleLines is how much of the console an error shows.
	consoleLines = 20
	// minVersion is the first version whose disks have a declared format (newDisk says why that is needed).
	minVersion = 51
	// pathLimit is the longest path of a unix socket, without the zero byte at its end.
	pathLimit = 107
)

// File descriptors that the monitor inherits, in the order in which start passes them.
const (
	fdAPI = 3 + iota
	fdEvents
	fdConsole
)

// VM is a running virtual machine.
type VM struct {
	cfg     vmm.Config
	monitor *process.Child
	api     client
	vsock   string // path of the unix socket
	console *console.Console

	pipes    []*os.File // our ends
	readers  sync.WaitGroup
	stopping atomic.Bool
	exited   chan struct{}
	resize   sync.Mutex // one at a time: each starts from what the last one has left

	mu       sync.Mutex
	shutdown string // what the events said of the end
	err      error  // set before exited is closed
}

var _ vmm.Machine = (*VM)(nil)

// Start starts the VM. ctx bounds the start only; the VM lives until it ends by itself, is stopped, or this process ends.
func Start(ctx context.Context, cfg vmm.Config) (_ *VM, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if err := check(&cfg); err != nil {
		return nil, err
	}
	if cfg.Program == "" {
		if cfg.Program, err = exec.LookPath("cloud-hypervisor"); err != nil {
			return nil, fmt.Errorf("starting virtual machine %s: %w", cfg.Name, err)
		}
	}
	if err := os.Mkdir(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the directory of virtual machine %s: %w", cfg.Name, err)
	}
	v := &VM{
		cfg: cfg, exited: make(chan struct{}),
		api: client{filepath.Join(cfg.Dir, "api")}, vsock: filepath.Join(cfg.Dir, "vsock"),
	}
	if err := v.start(ctx); err != nil {
		err = v.explainStart(err)
		v.abandon()
		return nil, fmt.Errorf("starting virtual machine %s: %w", cfg.Name, err)
	}
	v.cfg.NICs, v.cfg.InitdataImage, v.cfg.Started = nil, nil, nil // done with
	go v.watch()
	return v, nil
}

func (v *VM) start(ctx context.Context) error {
	cfg := &v.cfg
	if len(v.vsock) > pathLimit {
		return fmt.Errorf("the path %s is too long for a unix socket, whose limit is %d bytes; hint: use a shorter run-time directory", v.vsock, pathLimit)
	}
	initdata, err := v.prepare()
	if err != nil {
		return err
	}
	files, err := v.channels()
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	if err != nil {
		return err
	}
	args := []string{
		"--api-socket", "fd=" + strconv.Itoa(fdAPI),
		"--event-monitor", "fd=" + strconv.Itoa(fdEvents),
	}
	if v.monitor, err = process.StartIn(cfg.NetNS, cfg.Program, args, process.Environment(cfg.Dir), files...); err != nil {
		return err
	}
	for _, f := range files {
		f.Close()
	}
	files = nil
	v.readers.Go(func() { v.readEvents(v.pipes[0]) })
	v.readers.Go(func() { v.console.CopyFrom(v.pipes[1]) })
	if cfg.Started != nil {
		if err := cfg.Started(v.monitor.PID()); err != nil {
			return err
		}
	}
	// A monitor that has ended does not leave its callers waiting.
	ctx, cancel := v.whileRunning(ctx)
	defer cancel()
	if err := v.greet(ctx); err != nil {
		return err
	}
	return v.boot(ctx, newConfig(cfg, v.vsock, initdata, "/dev/fd/"+strconv.Itoa(fdConsole)))
}

// prepare looks for the files of the start and makes the VM's private ones.
func (v *VM) prepare() (initdata string, err error) {
	for _, f := range []struct{ what, path string }{{"firmware", v.cfg.FirmwareCode}, {"kernel", v.cfg.Kernel}, {"initrd", v.cfg.Initrd}} {
		if f.path == "" {
			continue
		}
		if _, err := os.Stat(f.path); err != nil {
			return "", fmt.Errorf("looking for the %s of the guest: %w (hint: `cloister check` names all files that are missing)", f.what, err)
		}
	}
	if r := v.cfg.RootImage; r != "" {
		if _, err := os.Stat(r); err != nil {
			return "", fmt.Errorf("guest image: %w", err)
		}
	}
	for _, d := range v.cfg.ExtraDisks {
		if _, err := os.Stat(d.Path); err != nil {
			return "", fmt.Errorf("disk: %w", err)
		}
	}
	logName := v.cfg.ConsoleLog
	if logName == "" {
		logName = filepath.Join(v.cfg.Dir, "console.log")
	}
	log, err := os.OpenFile(logName, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return "", fmt.Errorf("opening the console log: %w", err)
	}
	v.console = console.New(log)
	if v.cfg.InitdataImage == nil {
		return "", nil
	}
	initdata = filepath.Join(v.cfg.Dir, "initdata.img")
	if err := os.WriteFile(initdata, v.cfg.InitdataImage, 0o600); err != nil {
		return "", fmt.Errorf("writing the initdata disk: %w", err)
	}
	return initdata, nil
}

// channels makes what the monitor inherits. Our ends of the pipes stay in v.
func (v *VM) channels() (theirs []*os.File, err error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: v.api.socket, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("making the API socket: %w", err)
	}
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	l.Close()
	if err != nil {
		return nil, fmt.Errorf("making the API socket: %w", err)
	}
	theirs = append(theirs, f)
	for _, what := range []string{"event", "console"} {
		r, w, err := os.Pipe()
		if err != nil {
			return theirs, fmt.Errorf("making the %s pipe: %w", what, err)
		}
		v.pipes, theirs = append(v.pipes, r), append(theirs, w)
	}
	return theirs, nil
}

// greet waits for the monitor's first answer and looks whether it is one that can do what is asked.
func (v *VM) greet(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	var ping pingAnswer
	if err := v.api.get(ctx, "vmm.ping", &ping); err != nil {
		return err
	}
	version := process.Printable(ping.Version)
	major, _, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	if n, err := strconv.Atoi(major); err != nil || n < minVersion {
		return fmt.Errorf("%s is version %.40q; hint: version v%d.0 or later is needed", v.cfg.Program, version, minVersion)
	}
	if v.cfg.TEE != nil && !slices.Contains(ping.Features, "tdx") {
		return fmt.Errorf("%s %.40s was built without TDX; hint: use a build with the feature tdx", v.cfg.Program, version)
	}
	return nil
}

// boot defines the VM, adds its network cards and lets it run.
func (v *VM) boot(ctx context.Context, vc vmConfig) error {
	if err := v.api.put(ctx, "vm.create", vc, nil); err != nil {
		return err
	}
	for _, n := range v.cfg.NICs {
		if err := v.api.put(ctx, "vm.add-net", newNIC(n), nil, n.Taps...); err != nil {
			return fmt.Errorf("network card %s: %w", n.ID, err)
		}
	}
	if v.cfg.TEE != nil {
		// The monitor passes over members that it does not know. A guest that is not protected, or not bound to its initdata, is
		// found out by its broker; here it is found out at once.
		var info vmInfo
		if err := v.api.get(ctx, "vm.info", &info); err != nil {
			return err
		}
		if !info.Config.Platform.TDX || info.Config.Payload.MRConfigID != vc.Payload.MRConfigID {
			return errors.New("this Cloud Hypervisor ignores TDX or MRCONFIGID; hint: use a build that has both, or vmm.kind \"qemu\"")
		}
	}
	return v.api.put(ctx, "vm.boot", nil, nil)
}

// whileRunning is a context that ends with the monitor, too.
func (v *VM) whileRunning(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		select {
		case <-v.monitor.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// explainStart replaces a broken channel by what the monitor printed when it ended at once.
func (v *VM) explainStart(err error) error {
	if v.monitor == nil {
		return err
	}
	var refused *apiError
	if errors.As(err, &refused) || !errors.Is(err, context.Canceled) && !broken(err) {
		return err
	}
	t := time.NewTimer(quitTimeout)
	defer t.Stop()
	select {
	case <-v.monitor.Done():
	case <-t.C:
		return err
	}
	e := &vmm.ExitError{Name: v.cfg.Name, Monitor: monitorName, Messages: v.monitor.Output.Lines(10)}
	if v.monitor.Err() != nil {
		e.Status = v.monitor.Err().Error()
	}
	return e
}

// abandon undoes a start that failed.
func (v *VM) abandon() {
	v.stopping.Store(true)
	if v.monitor != nil {
		v.monitor.Kill()
	}
	v.release()
}

// release closes our ends and removes the directory. The monitor has ended.
func (v *VM) release() {
	for _, p := range v.pipes {
		p.Close()
	}
	v.readers.Wait()
	if v.console != nil {
		v.console.Close()
	}
	_ = os.RemoveAll(v.cfg.Dir)
}
