package qemu

import (
	"context"
	"os"
	"time"

	"github.com/cloister/cloister/host/vmm"
)

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

// Stop ends the VM and waits until nothing of it is left. Until ctx ends the guest may power off by itself, for which it gets the end of
// its agent channel and a press of the power button; then QEMU quits, and in the end is killed.
func (v *VM) Stop(ctx context.Context) error {
	v.stopping.Store(true)
	if v.mux != nil {
		v.mux.Close()
	}
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
