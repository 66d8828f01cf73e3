package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/host/runtimeconfig"
	"github.com/cloister/cloister/host/sandbox"
	"github.com/cloister/cloister/host/template"
	"github.com/cloister/cloister/host/vmm/qemu"
)

// prepareTemplate boots a sandbox, and makes the template for those that come.
func (b *boots) prepareTemplate(ctx context.Context, s *shims) error {
	ctx, cancel := context.WithTimeout(ctx, bootDeadline)
	defer cancel()
	vm, _, err := b.sandbox(ctx, s.config, nil)
	if err != nil {
		return fmt.Errorf("sandbox for the template: %w", err)
	}
	vm.Vsock = false
	key, err := qemu.TemplateKey(*vm)
	if err != nil {
		return err
	}
	store := template.New("")
	done, err := store.Begin(s.program, key, *vm)
	if err != nil {
		return err
	}
	select {
	case <-done:
	case <-ctx.Done():
		return fmt.Errorf("making a template: %w", ctx.Err())
	}
	if store.Find(key) == "" {
		return errors.New("the template was not made (hint: " + template.Root + "/*.failed says why)")
	}
	return nil
}

// templated makes a sandbox from the template in this process.
func (b *boots) templated(ctx context.Context, s *shims) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, bootDeadline)
	defer cancel()
	e, err := runtimeconfig.Load(runtimeconfig.Request{File: s.config, Getenv: func(string) string { return "" }})
	if err != nil {
		return 0, err
	}
	b.n++
	id := fmt.Sprintf("bench-%d-in-%d", os.Getpid(), b.n)
	spent := spentHere()
	began := time.Now()
	box, err := sandbox.Create(ctx, sandbox.Config{Namespace: shimNamespace, ID: id, Runtime: e, Spec: podOf(id), Self: s.program})
	if err != nil {
		return 0, err
	}
	took := time.Since(began)
	b.spent(spent, box.PID())
	started := box.FromTemplate()
	clean, end := context.WithTimeout(context.WithoutCancel(ctx), bootDeadline)
	defer end()
	err = box.Stop(clean)
	if !started {
		err = errors.Join(err, errors.New("it has booted"))
	}
	return took, err
}

// spentHere is the processor time of this process and of its children that have ended.
func spentHere() time.Duration {
	var own, children unix.Rusage
	_, _ = unix.Getrusage(unix.RUSAGE_SELF, &own), unix.Getrusage(unix.RUSAGE_CHILDREN, &children)
	return time.Duration(own.Utime.Nano() + own.Stime.Nano() + children.Utime.Nano() + children.Stime.Nano())
}

// spent notes the processor time since spentHere gave before, with that of a monitor that runs; 0 when it cannot be read.
func (b *boots) spent(before time.Duration, monitor int) {
	b.cpu = spentHere() - before
	vm, err := processTime(monitor)
	if err != nil {
		b.cpu = 0
		return
	}
	b.cpu += vm
}

// podOf is the specification of a pod without anything.
func podOf(id string) *specs.Spec {
	return &specs.Spec{Version: specs.Version, Process: &specs.Process{Args: []string{"/pause"}, Cwd: "/"},
		Annotations: map[string]string{annotationKind: "sandbox", annotationSandbox: id},
		Linux:       &specs.Linux{CgroupsPath: "/" + shimNamespace + "/" + id}}
}
