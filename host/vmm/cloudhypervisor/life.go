package cloudhypervisor

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/cloister/cloister/host/process"
	"github.com/cloister/cloister/host/vmm"
)

const monitorName = "Cloud Hypervisor"

// What vmm.ExitError says of the end.
const (
	guestShutdown = "guest-shutdown"
	guestReset    = "a reset by the guest"
)

// eventLimit bounds one event; a usual one has two hundred bytes.
const eventLimit = 64 << 10

// readEvents follows the event pipe: JSON objects one after the other.
func (v *VM) readEvents(r io.Reader) {
	limited := &io.LimitedReader{R: r}
	d := json.NewDecoder(limited)
	for {
		limited.N = eventLimit
		var e struct {
			Source string `json:"source"`
			Event  string `json:"event"`
		}
		if err := d.Decode(&e); err != nil {
			break
		}
		v.event(e.Source, e.Event)
	}
	// What is no event any more is read away; the monitor would otherwise find a full pipe.
	_, _ = io.Copy(io.Discard, r)
}

func (v *VM) event(source, name string) {
	end := func(why string) {
		v.mu.Lock()
		defer v.mu.Unlock()
		if v.shutdown == "" {
			v.shutdown = why
		}
	}
	switch source + " " + name {
	case "vm shutdown":
		end(guestShutdown)
	case "vm rebooting":
		// A pod's VM starts once. The monitor would start the kernel again, in a sandbox that thinks it is the old one.
		end(guestReset)
		go v.monitor.Kill()
	}
}

// watch waits for the end of the monitor and clears everything away.
func (v *VM) watch() {
	<-v.monitor.Done()
	v.drain()
	v.mu.Lock()
	if !v.stopping.Load() {
		e := &vmm.ExitError{
			Name: v.cfg.Name, Monitor: monitorName, Reason: v.console.Fatal(), Shutdown: v.shutdown,
			Messages: v.monitor.Output.Lines(10), Console: v.console.Tail(consoleLines),
		}
		// The monitor reports the same event when the guest has powered off and when it could not run it any longer.
		if e.Shutdown == guestShutdown && slices.ContainsFunc(e.Messages, vcpuError) {
			e.Shutdown = "an error"
		}
		// A monitor that we have killed because of what the guest did has not failed.
		if v.monitor.Err() != nil && e.Shutdown != guestReset {
			e.Status = v.monitor.Err().Error()
		}
		v.err = e
	}
	v.mu.Unlock()
	v.release()
	close(v.exited)
}

// drain reads the pipes to their end. A process of the monitor that was left behind could keep them open; it does not hold us.
func (v *VM) drain() {
	for _, p := range v.pipes {
		_ = p.SetReadDeadline(time.Now().Add(quitTimeout))
	}
	v.readers.Wait()
}

// Exited is closed when the VM has ended and nothing of it is left.
func (v *VM) Exited() <-chan struct{} { return v.exited }

// Err says why the VM ended: nil while it runs and when Stop ended it, else an *vmm.ExitError.
func (v *VM) Err() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.err
}

// ConsoleTail returns the last n lines of the console.
func (v *VM) ConsoleTail(n int) []string { return v.console.Tail(n) }

// FatalReason is what the guest has given as the reason of its end, or "".
func (v *VM) FatalReason() string { return v.console.Fatal() }

// Messages are the last lines that the monitor itself printed.
func (v *VM) Messages(n int) []string { return v.monitor.Output.Lines(n) }

// PID is the process number of Cloud Hypervisor.
func (v *VM) PID() int { return v.monitor.PID() }

// Stop ends the VM and waits until nothing of it is left. Until ctx ends the guest may power off by itself, for which its power button
// is pressed; then the monitor quits, and in the end is killed.
func (v *VM) Stop(ctx context.Context) error {
	v.stopping.Store(true)
	if ctx.Err() == nil {
		// A refused button press is no failure: the next steps do not depend on it.
		_ = v.api.put(ctx, "vm.power-button", nil, nil)
	}
	select {
	case <-v.exited:
		return nil
	case <-ctx.Done():
	}
	qctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), quitTimeout)
	defer cancel()
	if v.api.put(qctx, "vmm.shutdown", nil, nil) == nil {
		select {
		case <-v.exited:
			return nil
		case <-qctx.Done():
		}
	}
	v.monitor.Kill()
	<-v.exited
	return nil
}

// CleanStale removes what a killed supervisor left of the VM that had this directory. The caller must know that the supervisor is gone.
// Normally no process is left, since the monitor dies with the supervisor.
func CleanStale(ctx context.Context, dir string) error {
	return process.CleanDir(ctx, dir, "cloud-hyperviso")
}

// vcpuError says whether a line of the monitor's log is that of a virtual CPU that could not go on.
func vcpuError(line string) bool {
	return strings.Contains(line, "<vcpu") && strings.Contains(line, "> ERROR:")
}

// broken says whether an error is that of a connection whose other end has gone.
func broken(err error) bool {
	var netErr *net.OpError
	return errors.As(err, &netErr) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, os.ErrClosed)
}
