// Package pod runs a launch plan: one supervisor process per pod starts the VM, drives the guest's agent through the life of the pod,
// keeps logs and state, and lets other processes of the same user reach the guest.
//
// A running pod has a directory below paths.Dirs.Run:
//
//	<name>/lock        held by the supervisor; who can take it knows that the supervisor is gone
//	<name>/plan.json   the plan, for exec
//	<name>/state.json  what is going on, replaced atomically
//	<name>/ctl.sock    see control.go
//	<name>/vm/         the VM's files
//
// When the pod ends, the directory goes. Its logs and its final state stay in the log directory, by default paths.Dirs.Pods()/<name>.
// A supervisor that was killed leaves no process, because they die with it; CleanStale takes away its directory and notes in
// the state how the pod ended.
package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"time"

	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/host/vmm/qemu"
	"github.com/cloister/cloister/internal/paths"
	"github.com/cloister/cloister/wire/launch"
)

// Defaults of Options.
const (
	DefaultVCPUs         = 1
	DefaultMemoryMiB     = 512
	DefaultGrace         = 10 * time.Second
	DefaultReadyTimeout  = 5 * time.Minute
	DefaultCreateTimeout = 20 * time.Minute
)

// Spec is what a supervisor needs to know; it can be written to a file for a detached one.
type Spec struct {
	Plan *launch.Plan `json:"plan"`
	// VM is the machine without Name, Dir, ConsoleLog, VCPUs and MemoryMiB, which come from the pod.
	VM vmm.Config `json:"vm"`
	// LogDir keeps logs and the final state; empty means paths.Dirs.Pods()/<name>.
	LogDir string `json:"log_dir,omitempty"`
	// TEE is what the pod is protected by, for the listing only.
	TEE string `json:"tee,omitempty"`
	// Grace is how long containers may take to end after SIGTERM.
	Grace time.Duration `json:"grace,omitempty"`
	// ReadyTimeout bounds the boot, CreateTimeout the creation of one container, which includes the pull of its image.
	ReadyTimeout  time.Duration `json:"ready_timeout,omitempty"`
	CreateTimeout time.Duration `json:"create_timeout,omitempty"`
}

// Options is a Spec with what only a live process can have.
type Options struct {
	Spec
	Dirs paths.Dirs
	// Stdout and Stderr get the containers' output; nil drops it. With several containers each line starts with the container's name.
	Stdout, Stderr io.Writer
	// Stdin is the input of the first container that is declared with stdin: true; nil is none. A reader that blocks is left behind when
	// the pod has ended.
	Stdin io.Reader
	// OnEvent is called for each step, one call at a time; it may be nil.
	OnEvent func(Event)
	Logger  *slog.Logger
	// StartVM replaces the virtual machine monitor; nil is qemu.Start.
	StartVM func(ctx context.Context, cfg vmm.Config) (Machine, error)
	// Clock times the restarts of containers; nil is the machine's.
	Clock Clock
}

// Machine is what the supervisor needs of a VM.
type Machine interface {
	Dial(ctx context.Context, port uint32) (net.Conn, error)
	Exited() <-chan struct{}
	Err() error
	Stop(ctx context.Context) error
	FatalReason() string
	ConsoleTail(n int) []string
}

// Steps of a pod's life, as they appear in events.
const (
	StepVMStart    = "vm-start"
	StepGuestReady = "guest-ready"
	StepNetwork    = "network"
	StepSandbox    = "sandbox"
	StepFiles      = "files"
	StepCreate     = "create"
	StepStart      = "start"
	StepRunning    = "running"
	StepExit       = "exit"
	StepRestart    = "restart"
	StepStop       = "stop"
	StepGone       = "gone"
)

// Event says that a step is done.
type Event struct {
	Time time.Time `json:"time"`
	Step string    `json:"step"`
	// Container is set for the steps of one container.
	Container string `json:"container,omitempty"`
	// Took is how long the step lasted.
	Took time.Duration `json:"took"`
	// ExitCode is set for StepExit.
	ExitCode *int `json:"exit_code,omitempty"`
	// Error is set when the step failed.
	Error string `json:"error,omitempty"`
}

// Result is how a pod ended.
type Result struct {
	// ExitCode is that of the first container, in the order of the plan, that did not end with 0.
	ExitCode int
	State    State
}

func (o *Options) complete() error {
	if o.Plan == nil {
		return errors.New("running a pod: no plan was given")
	}
	if err := checkName(o.Plan.Name); err != nil {
		return err
	}
	if err := o.Plan.Validate(); err != nil {
		return fmt.Errorf("running pod %s: %w", o.Plan.Name, err)
	}
	for i := range o.Plan.Containers {
		if err := checkName(o.Plan.Containers[i].Name); err != nil {
			return fmt.Errorf("running pod %s: %w", o.Plan.Name, err)
		}
	}
	if o.Stdin != nil && o.stdinTaker() == nil {
		return fmt.Errorf("running pod %s: there is input, but no container with stdin: true to take it", o.Plan.Name)
	}
	if o.LogDir == "" {
		o.LogDir = filepath.Join(o.Dirs.Pods(), o.Plan.Name)
	}
	setDefault(&o.Grace, DefaultGrace)
	setDefault(&o.ReadyTimeout, DefaultReadyTimeout)
	setDefault(&o.CreateTimeout, DefaultCreateTimeout)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Clock == nil {
		o.Clock = machineClock{}
	}
	if o.StartVM == nil {
		o.StartVM = func(ctx context.Context, cfg vmm.Config) (Machine, error) {
			vm, err := qemu.Start(ctx, cfg)
			if err != nil {
				return nil, err
			}
			return vm, nil
		}
	}
	return nil
}

// stdinTaker is the container that gets the pod's input.
func (o *Options) stdinTaker() *launch.Container {
	for i := range o.Plan.Containers {
		if c := &o.Plan.Containers[i]; c.Stdin && !c.Init {
			return c
		}
	}
	return nil
}

func setDefault(d *time.Duration, v time.Duration) {
	if *d <= 0 {
		*d = v
	}
}

// checkName accepts DNS labels and subdomains of up to 63 bytes: names become directories and part of socket names.
func checkName(name string) error {
	if name == "" || len(name) > 63 {
		return fmt.Errorf("pod or container name %q: expected 1 to 63 characters", name)
	}
	for i, r := range name {
		alnum := r >= 'a' && r <= 'z' || r >= '0' && r <= '9'
		if !alnum && (r != '-' && r != '.' || i == 0) {
			return fmt.Errorf("pod or container name %q: expected lower-case letters, digits, dots and dashes", name)
		}
	}
	return nil
}
