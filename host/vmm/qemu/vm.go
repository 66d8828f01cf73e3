package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"
	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/host/process"
	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/host/vmm/console"
)

// Bounds for what ends by itself unless something is wrong.
const (
	quitTimeout = 3 * time.Second  // QEMU after it was told to quit, swtpm after QEMU's end
	qmpTimeout  = 30 * time.Second // QEMU from its start to its greeting
	// consoleLines is how much of the console an error shows.
	consoleLines = 20
)

var _ vmm.Machine = (*VM)(nil)

// VM is a running virtual machine.
type VM struct {
	name    string
	dir     string
	qemu    *process.Child
	tpm     *process.Child // nil without a TPM
	qmp     *qmpClient
	mux     *yamux.Session // nil with vsock
	guard   *guarded       // below mux
	vsock   *vsockPort     // nil without
	console *console.Console

	cfg     vmm.Config
	noPlug  error           // why no device can be added, or nil
	noDisks error           // why no read-only disk can be added, or nil
	atStart map[string]bool // disks and cards that are there since the start
	plug    plugState

	moves       chan string // how the reading or writing of the machine's state goes
	conns       []io.Closer
	consoleDone chan struct{}
	stopping    atomic.Bool
	exited      chan struct{}

	mu       sync.Mutex
	shutdown string // reason of QEMU's SHUTDOWN event
	err      error  // set before exited is closed
}

// Start starts the VM. ctx bounds the start only; the VM lives until it ends by itself, is stopped, or this process ends.
//
// With Template it goes on where that one was saved, with its own copy of the memory; the guest runs then, with the clock and the state of
// the random number generator that it had: whoever starts it has to set both.
func Start(ctx context.Context, cfg vmm.Config) (*VM, error) { return startWith(ctx, cfg, nil) }

// startWith starts a VM whose memory is the given file, unless that is nil.
func startWith(ctx context.Context, cfg vmm.Config, memory *os.File) (_ *VM, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Program == "" {
		if cfg.Program, err = exec.LookPath(defaultProgram(&cfg)); err != nil {
			return nil, fmt.Errorf("starting virtual machine %s: %w", cfg.Name, err)
		}
	}
	if err := check(&cfg); err != nil {
		return nil, fmt.Errorf("VM configuration: %w", err)
	}
	if err := os.Mkdir(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the directory of virtual machine %s: %w", cfg.Name, err)
	}
	v := &VM{
		name: cfg.Name, dir: cfg.Dir, exited: make(chan struct{}), consoleDone: make(chan struct{}),
		noPlug: whyNoPlug(&cfg), noDisks: whyNoDisks(&cfg), atStart: coldDevices(&cfg), plug: plugState{resize: make(chan struct{}, 1)}, moves: make(chan string, 16),
	}
	if err := v.start(ctx, &cfg, memory); err != nil {
		v.abandon()
		return nil, fmt.Errorf("starting virtual machine %s: %w", cfg.Name, err)
	}
	return v, nil
}

func (v *VM) start(ctx context.Context, cfg *vmm.Config, memory *os.File) error {
	boot, err := prepareFiles(cfg)
	if err != nil {
		return err
	}
	began := *cfg // what QEMU starts with
	var from *template
	var copying *memoryCopy
	if cfg.Template != "" {
		if from, err = openTemplate(cfg); err != nil {
			return err
		}
		defer from.close()
		if memory, err = newMemory(cfg.MemoryMiB); err != nil {
			return err
		}
		defer memory.Close()
		if copying, err = copyTemplate(from, memory, cfg.MemoryCopier, cfg.Started); err != nil {
			return err
		}
		defer copying.end()
		began, boot.incoming = templateShape(cfg), true
		v.atStart = coldDevices(&began)
	}
	logName := cfg.ConsoleLog
	if logName == "" {
		logName = filepath.Join(cfg.Dir, "console.log")
	}
	log, err := os.OpenFile(logName, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("opening the console log: %w", err)
	}
	v.console = console.New(log)
	in := &inheritance{}
	defer in.close()
	ch, err := v.channels(cfg, boot, in)
	if err != nil {
		return err
	}
	if cfg.TPM != nil {
		qemuEnd, err := v.startTPM(ctx, cfg)
		if err != nil {
			return err
		}
		boot.tpm = in.own(qemuEnd)
	}
	if err := v.outside(ctx, &began, boot, in); err != nil {
		return err
	}
	if memory != nil {
		boot.memory = in.lend(memory)
	}
	// The guest waits where somebody has to look at the VM before it runs.
	boot.paused = cfg.Started != nil || cfg.TEE != nil || from != nil
	args, err := qemuArgs(&began, boot)
	if err != nil {
		return err
	}
	if v.qemu, err = process.StartIn(cfg.NetNS, cfg.Program, args, process.Environment(cfg.Dir), in.files...); err != nil {
		return err
	}
	in.close()
	v.keepConfig(cfg)
	go func() {
		defer close(v.consoleDone)
		v.console.CopyFrom(ch.console)
	}()
	if ch.agent != nil {
		v.guard = &guarded{Conn: ch.agent}
		if v.mux, err = newMux(v.guard); err != nil {
			return fmt.Errorf("opening the agent channel: %w", err)
		}
	}
	v.qmp = newQMP(ch.qmp, v.event)
	hctx, cancel := context.WithTimeout(ctx, qmpTimeout)
	defer cancel()
	if err := v.qmp.handshake(hctx); err != nil {
		return v.explainStart(err)
	}
	if boot.paused {
		if err := v.letRun(hctx, cfg, from, copying); err != nil {
			return err
		}
	}
	go v.watch()
	return nil
}

// letRun lets a paused guest run, once what was asked for it is there.
func (v *VM) letRun(ctx context.Context, cfg *vmm.Config, from *template, copying *memoryCopy) error {
	if cfg.TEE != nil {
		if err := v.confirmTEE(ctx, cfg.TEE.Kind); err != nil {
			return err
		}
	}
	if cfg.Started != nil {
		for _, p := range []*process.Child{v.qemu, v.tpm} {
			if p == nil {
				continue
			}
			if err := cfg.Started(p.PID()); err != nil {
				return fmt.Errorf("taking over process %d: %w", p.PID(), err)
			}
		}
	}
	if from != nil {
		if err := v.restore(ctx, cfg, from, copying); err != nil {
			return err
		}
	}
	if err := v.qmp.execute(ctx, "cont"); err != nil {
		return v.explainStart(err)
	}
	return nil
}

// keepConfig keeps what later requests need, and no open file or large content.
func (v *VM) keepConfig(cfg *vmm.Config) {
	v.cfg = *cfg
	v.cfg.InitdataImage, v.cfg.NICs, v.cfg.Started = nil, nil, nil
}

// startTPM starts the TPM and returns the end of its control channel that QEMU gets.
func (v *VM) startTPM(ctx context.Context, cfg *vmm.Config) (*os.File, error) {
	tmp := filepath.Join(cfg.Dir, "tpm")
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return nil, fmt.Errorf("making the TPM: %w", err)
	}
	state, err := manufactureTPM(ctx, tmp, cfg.Name, cfg.TPM.CADir)
	if err != nil {
		return nil, err
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("making the TPM's control channel: %w", err)
	}
	qemuEnd, tpmEnd := os.NewFile(uintptr(fds[0]), "tpm-qemu"), os.NewFile(uintptr(fds[1]), "tpm-swtpm")
	defer tpmEnd.Close()
	if v.tpm, err = startTPM(state, tmp, tpmEnd); err != nil {
		qemuEnd.Close()
		return nil, err
	}
	return qemuEnd, nil
}

// explainStart replaces a broken channel by what QEMU printed when it ended at once.
func (v *VM) explainStart(err error) error {
	ctx, cancel := context.WithTimeout(context.Background(), quitTimeout)
	defer cancel()
	if werr := v.qemu.Wait(ctx); errors.Is(werr, context.DeadlineExceeded) {
		return err
	}
	e := &vmm.ExitError{Name: v.name, Messages: v.qemu.Output.Lines(10)}
	if v.qemu.Err() != nil {
		e.Status = v.qemu.Err().Error()
	}
	if v.tpm != nil {
		select {
		case <-v.tpm.Done():
			e.Messages = append(e.Messages, v.tpm.Output.Lines(5)...)
		default:
		}
	}
	return e
}

func (v *VM) event(name string, data json.RawMessage) {
	if name == "DEVICE_DELETED" {
		v.plug.deleted(data)
	}
	if name == "MIGRATION" {
		var d struct {
			Status string `json:"status"`
		}
		if json.Unmarshal(data, &d) == nil {
			select {
			case v.moves <- d.Status:
			default: // nobody waits
			}
		}
	}
	if name != "SHUTDOWN" {
		return
	}
	var d struct {
		Reason string `json:"reason"`
	}
	if json.Unmarshal(data, &d) != nil {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.shutdown = d.Reason
}

// Dial opens a connection to a port of the guest. It does not wait for the guest: the first answer is the sign that it is there.
func (v *VM) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	conn, err := v.dial(ctx, port)
	if err != nil {
		select {
		case <-v.exited:
			if e := v.Err(); e != nil {
				return nil, e
			}
		default:
		}
		return nil, err
	}
	return conn, nil
}

func (v *VM) dial(ctx context.Context, port uint32) (net.Conn, error) {
	if v.vsock != nil {
		return v.vsock.dial(ctx, port, v.exited)
	}
	conn, err := dialStream(ctx, v.mux, port)
	if fault := v.guard.broken(); err != nil && fault != nil {
		return nil, fmt.Errorf("%w: %w", err, fault)
	}
	return conn, err
}

// Exited is closed when the VM has ended and nothing of it is left.
func (v *VM) Exited() <-chan struct{} { return v.exited }

// Err says why the VM ended: nil while it runs and when Stop ended it, else an *ExitError.
func (v *VM) Err() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.err
}

// ConsoleTail returns the last n lines of the console.
func (v *VM) ConsoleTail(n int) []string { return v.console.Tail(n) }

// FatalReason is what the guest has given as the reason of its end, or "".
func (v *VM) FatalReason() string { return v.console.Fatal() }

// PID is the process number of QEMU.
func (v *VM) PID() int { return v.qemu.PID() }
