// Package doctor finds out what a host can do: as a list of checks for a person, and as the choice of accelerator and TEE for a program.
//
// It decides by what is there, and never by trying something that could hang. The choice is made in one place and carries its
// reason, so that no part of Cloister falls back silently: what was asked for and is absent is an error.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// Status is the outcome of a check.
type Status string

// The outcomes, from good to bad. A warning limits Cloister; something missing stops it or a part of it.
const (
	OK      Status = "ok"
	Warn    Status = "warn"
	Missing Status = "missing"
)

// Check is one thing that was looked at.
type Check struct {
	Name   string `json:"name"`
	Status Status `json:"status"`
	Detail string `json:"detail"`
	// Hint says what helps, when something can be done.
	Hint string `json:"hint,omitempty"`
	// Required is set when pods cannot run without it.
	Required bool `json:"required"`
}

// Report is everything that was found.
type Report struct {
	Checks []Check `json:"checks"`
	// Accel is "kvm" or "tcg", with the reason for the choice.
	Accel       string `json:"accel"`
	AccelReason string `json:"accel_reason"`
	// TEE is what `auto` stands for on this host: "tpm", or "" when not even that is possible.
	TEE       string `json:"tee"`
	TEEReason string `json:"tee_reason"`
	// QEMU is the emulator's program file; the firmware files are those of the distribution. Empty when not found.
	QEMU         string `json:"qemu,omitempty"`
	FirmwareCode string `json:"firmware_code,omitempty"`
	FirmwareVars string `json:"firmware_vars,omitempty"`

	hardware map[string]Check // TEE name to its check
}

// Host is where the checks look. Its zero value with Home set is this machine; tests point it elsewhere.
type Host struct {
	// Root is put before /sys, /proc, /dev and /usr; empty is this machine.
	Root string
	// Home is the directory whose free space counts.
	Home string
	// LookPath finds programs; nil is exec.LookPath.
	LookPath func(string) (string, error)
	// Output runs a program and returns what it prints; nil runs it.
	Output func(ctx context.Context, program string, args ...string) (string, error)
	// ProbeKVM tries the KVM device; nil does it with the device below Root.
	ProbeKVM func(ctx context.Context, device string) error
}

// Probe does all checks.
func Probe(ctx context.Context, h Host) *Report {
	h.complete()
	r := &Report{hardware: map[string]Check{}}
	r.add(h.cpu())
	kvm, usable := h.kvm(ctx)
	r.add(kvm)
	r.Accel, r.AccelReason = "tcg", kvm.Detail+emulated
	if usable {
		r.Accel, r.AccelReason = "kvm", kvm.Detail
	}
	for _, p := range h.platforms() {
		r.hardware[p.tee] = p.check
		r.add(p.check)
	}
	r.add(h.vsock())
	qemu, path := h.qemu(ctx)
	r.QEMU = path
	r.add(qemu)
	fw, code, vars := h.firmware()
	r.FirmwareCode, r.FirmwareVars = code, vars
	r.add(fw)
	tpmReady := true
	for _, tool := range []string{"swtpm", "swtpm_setup", "swtpm_localca"} {
		c := h.tool(tool)
		tpmReady = tpmReady && c.Status == OK
		r.add(c)
	}
	r.add(h.memory())
	r.add(h.disk())
	r.chooseTEE(tpmReady)
	return r
}

// complete puts in what the zero value stands for.
func (h *Host) complete() {
	if h.LookPath == nil {
		h.LookPath = exec.LookPath
	}
	if h.Output == nil {
		h.Output = runProgram
	}
	if h.ProbeKVM == nil {
		h.ProbeKVM = probeKVM
	}
}

func (r *Report) add(c Check) { r.Checks = append(r.Checks, c) }

func (r *Report) chooseTEE(tpmReady bool) {
	var present []string
	for _, tee := range []string{"snp", "tdx", "se", "cca"} {
		if r.hardware[tee].Status == OK {
			present = append(present, r.hardware[tee].Name)
		}
	}
	switch {
	case !tpmReady:
		r.TEEReason = "no TEE: the software TPM is not installed"
	case len(present) > 0:
		r.TEE, r.TEEReason = "tpm", strings.Join(present,
			", ")+" is present, but this version starts measured VMs with a software TPM only"
	default:
		r.TEE, r.TEEReason = "tpm", "no TEE hardware; measured boot with a software TPM"
	}
	if r.TEE == "tpm" {
		r.TEEReason += " (proves what runs, does not hide memory from this host)"
	}
}

// TEEs and Accels are what SelectTEE and SelectAccel can be asked for, so that other words can be refused without a look at the host.
var (
	TEEs   = []string{"auto", "tpm", "snp", "tdx", "se", "cca"}
	Accels = []string{"auto", "kvm", "tcg"}
)

// SelectTEE answers which TEE to use when want was asked for ("auto" or "" takes what the host has). What is absent is an error.
func (r *Report) SelectTEE(want string) (string, error) {
	switch want {
	case "", "auto":
		if r.TEE == "" {
			return "", fmt.Errorf("choosing a TEE: %s", r.TEEReason)
		}
		return r.TEE, nil
	case "tpm":
		if r.TEE != "tpm" {
			return "", fmt.Errorf("TEE %q was asked for: %s", want, r.TEEReason)
		}
		return want, nil
	}
	c, known := r.hardware[want]
	if !known {
		return "", fmt.Errorf("TEE %q was asked for, expected one of %s", want, strings.Join(TEEs, ", "))
	}
	if c.Status != OK {
		return "", fmt.Errorf("TEE %q was asked for, but this host has none: %s", want, c.Detail)
	}
	return "", fmt.Errorf("TEE %q was asked for; the host has it, but this version cannot start such VMs", want)
}

// SelectAccel answers which accelerator to use when want was asked for ("auto" or "" takes the best that works).
func (r *Report) SelectAccel(want string) (string, error) {
	switch want {
	case "", "auto", r.Accel:
		return r.Accel, nil
	case "tcg":
		return want, nil
	case "kvm":
		return "", fmt.Errorf("accelerator kvm was asked for, but %s (hint: \"auto\" takes software emulation where there is no KVM, which is slow)",
			strings.TrimSuffix(r.AccelReason, emulated))
	}
	return "", fmt.Errorf("accelerator %q was asked for, expected one of %s", want, strings.Join(Accels, ", "))
}

// Err is nil when pods can run here; else it names everything required that is missing, with its hints.
func (r *Report) Err() error {
	var errs []error
	for _, c := range r.Checks {
		if c.Required && c.Status == Missing {
			e := fmt.Errorf("%s: %s", c.Name, c.Detail)
			if c.Hint != "" {
				e = fmt.Errorf("%w (hint: %s)", e, c.Hint)
			}
			errs = append(errs, e)
		}
	}
	if len(errs) > 0 {
		return fmt.Errorf("this host cannot run pods yet: %w", errors.Join(errs...))
	}
	return nil
}

func (h Host) path(p string) string { return filepath.Join("/", h.Root, p) }

// goarch is separate so that the checks read the same on every machine.
const goarch = runtime.GOARCH
