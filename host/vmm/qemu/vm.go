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

// VM is a running virtual machine.
type VM struct {
	name    string
	dir     string
	qemu    *process.Child
	tpm     *process.Child // nil without a TPM
	qmp     *qmpClient
	mux     *yamux.Session
	console *console.Console

	conns       []io.Closer
	consoleDone chan struct{}
	stopping    atomic.Bool
	exited      chan struct{}

	mu       sync.Mutex
	shutdown string // reason of QEMU's SHUTDOWN event
	err      error  // set before exited is closed
}

// Start starts the VM. ctx bounds the start only; the VM lives until it ends by itself, is stopped, or this process ends.
func Start(ctx context.Context, cfg vmm.Config) (_ *VM, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Program == "" {
		if cfg.Program, err = exec.LookPath("qemu-system-x86_64"); err != nil {
			return nil, fmt.Errorf("starting virtual machine %s: %w", cfg.Name, err)
		}
	}
	if err := os.Mkdir(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the directory of virtual machine %s: %w", cfg.Name, err)
	}
	v := &VM{name: cfg.Name, dir: cfg.Dir, exited: make(chan struct{}), consoleDone: make(chan struct{})}
	if err := v.start(ctx, &cfg); err != nil {
		v.abandon()
		return nil, fmt.Errorf("starting virtual machine %s: %w", cfg.Name, err)
	}
	return v, nil
}

func (v *VM) start(ctx context.Context, cfg *vmm.Config) error {
	vars, initdata, err := prepareFiles(cfg)
	if err != nil {
		return err
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

	// Our ends of the channels stay in v; the other ends are closed here once the children have them.
	var theirs []*os.File
	defer func() {
		for _, f := range theirs {
			f.Close()
		}
	}()
	channel := func(name string) (net.Conn, error) {
		conn, other, err := socketPair(name)
		if err != nil {
			return nil, err
		}
		v.conns = append(v.conns, conn)
		theirs = append(theirs, other)
		return conn, nil
	}
	qmpConn, err := channel("qmp")
	if err != nil {
		return err
	}
	consoleConn, err := channel("console")
	if err != nil {
		return err
	}
	agentConn, err := channel("agent")
	if err != nil {
		return err
	}
	files := theirs
	if cfg.TPM != nil {
		qemuEnd, err := v.startTPM(ctx, cfg)
		if err != nil {
			return err
		}
		theirs = append(theirs, qemuEnd)
		files = theirs
	}
	args, err := qemuArgs(cfg, vars, initdata)
	if err != nil {
		return err
	}
	if v.qemu, err = process.Start(cfg.Program, args, process.Environment(cfg.Dir), files...); err != nil {
		return err
	}
	for _, f := range theirs {
		f.Close()
	}
	theirs = nil
	go func() {
		defer close(v.consoleDone)
		v.console.CopyFrom(consoleConn)
	}()
	if v.mux, err = newMux(agentConn); err != nil {
		return fmt.Errorf("opening the agent channel: %w", err)
	}
	v.qmp = newQMP(qmpConn, v.event)
	hctx, cancel := context.WithTimeout(ctx, qmpTimeout)
	defer cancel()
	if err := v.qmp.handshake(hctx); err != nil {
		return v.explainStart(err)
	}
	go v.watch()
	return nil
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

// prepareFiles makes the VM's private files.
func prepareFiles(cfg *vmm.Config) (vars, initdata string, err error) {
	vars = filepath.Join(cfg.Dir, "vars.fd")
	b, err := os.ReadFile(cfg.FirmwareVars)
	if err != nil {
		return "", "", fmt.Errorf("reading the firmware variables: %w", err)
	}
	if err := os.WriteFile(vars, b, 0o600); err != nil {
		return "", "", fmt.Errorf("copying the firmware variables: %w", err)
	}
	for _, f := range []string{cfg.FirmwareCode, cfg.Kernel, cfg.Initrd} {
		if f == "" {
			continue
		}
		if _, err := os.Stat(f); err != nil {
			return "", "", fmt.Errorf("boot file: %w", err)
		}
	}
	if cfg.InitdataImage == nil {
		return vars, "", nil
	}
	initdata = filepath.Join(cfg.Dir, "initdata.img")
	if err := os.WriteFile(initdata, cfg.InitdataImage, 0o600); err != nil {
		return "", "", fmt.Errorf("writing the initdata disk: %w", err)
	}
	return vars, initdata, nil
}

// socketPair returns one connected end as a connection and the other as a file for a child.
func socketPair(name string) (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making channel %s: %w", name, err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name)
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("making channel %s: %w", name, err)
	}
	return conn, theirs, nil
}

func (v *VM) event(name string, data json.RawMessage) {
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

// watch waits for the end of QEMU and clears everything away.
func (v *VM) watch() {
	tpmLost := v.waitQEMU()
	<-v.qmp.done
	<-v.consoleDone
	v.mu.Lock()
	if !v.stopping.Load() {
		e := &vmm.ExitError{
			Name: v.name, Reason: v.console.Fatal(), Shutdown: v.shutdown,
			Messages: v.qemu.Output.Lines(10), Console: v.console.Tail(consoleLines),
		}
		if v.qemu.Err() != nil {
			e.Status = v.qemu.Err().Error()
		}
		if tpmLost {
			e.Reason = "the software TPM ended"
			if v.tpm.Err() != nil {
				e.Reason += " with " + v.tpm.Err().Error()
			}
			e.Messages = append(v.tpm.Output.Lines(5), e.Messages...)
		}
		v.err = e
	}
	v.mu.Unlock()
	v.release()
	close(v.exited)
}

// waitQEMU waits for the end of QEMU. When the TPM ends before it, QEMU is killed: a guest without its TPM can neither measure nor prove
// anything any more, and would only fail later and with a worse explanation.
func (v *VM) waitQEMU() (tpmLost bool) {
	var tpmDone <-chan struct{}
	if v.tpm != nil {
		tpmDone = v.tpm.Done()
	}
	select {
	case <-v.qemu.Done():
		return false
	case <-tpmDone:
	}
	// A QEMU that is ending takes the TPM along, and can be seen a moment later.
	t := time.NewTimer(quitTimeout)
	defer t.Stop()
	select {
	case <-v.qemu.Done():
		return false
	case <-t.C:
	}
	v.mu.Lock()
	ending := v.shutdown != "" || v.stopping.Load()
	v.mu.Unlock()
	if !ending {
		v.qemu.Kill()
	}
	<-v.qemu.Done()
	return !ending
}

// release ends the TPM, closes our ends and removes the directory. QEMU has ended.
func (v *VM) release() {
	if v.mux != nil {
		v.mux.Close()
	}
	if v.tpm != nil {
		ctx, cancel := context.WithTimeout(context.Background(), quitTimeout)
		_ = v.tpm.Wait(ctx) // it ends with QEMU's end of the channel, or is killed
		cancel()
	}
	for _, c := range v.conns {
		c.Close()
	}
	if v.console != nil {
		v.console.Close()
	}
	_ = os.RemoveAll(v.dir)
}

// abandon undoes a start that failed.
func (v *VM) abandon() {
	v.stopping.Store(true)
	if v.qemu != nil {
		v.qemu.Kill()
	}
	if v.tpm != nil {
		v.tpm.Kill()
	}
	v.release()
}

// Dial opens a connection to a port of the guest. It does not wait for the guest: the first answer is the sign that it is there.
func (v *VM) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	conn, err := dialStream(ctx, v.mux, port)
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

// Stop ends the VM and waits until nothing of it is left. Until ctx ends the guest may power off by itself, for which it gets the end of
// its agent channel and a press of the power button; then QEMU quits, and in the end is killed.
func (v *VM) Stop(ctx context.Context) error {
	v.stopping.Store(true)
	v.mux.Close()
	if ctx.Err() == nil {
		// A refused button press is no failure: the next steps do not depend on it.
		_ = v.qmp.execute(ctx, "system_powerdown")
	}
	select {
	case <-v.exited:
		return nil
	case <-ctx.Done():
	}
	qctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), quitTimeout)
	defer cancel()
	_ = v.qmp.execute(qctx, "quit")
	select {
	case <-v.exited:
		return nil
	case <-qctx.Done():
	}
	v.qemu.Kill()
	<-v.exited
	return nil
}
