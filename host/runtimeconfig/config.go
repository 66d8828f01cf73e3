// Package runtimeconfig is the configuration of the container runtime on a node: one TOML file with drop-ins, then the annotations of a
// pod.
//
// Every setting is one entry of the list in settings.go, which says what it is called in our file, in a configuration.toml of Kata
// Containers, and as an annotation, and what values it takes. Nothing else decides, so that the three cannot drift apart. The life of a
// configuration:
//
//  1. Load finds the file (lookup.go), reads it with its drop-ins as keys with positions (file.go), and applies them in order;
//  2. a file that has Kata's tables is read by their names, and every key of it that has no meaning here is listed as ignored (kata.go);
//  3. the annotations of a pod are applied, as far as the configuration lets pods use them (annotation.go);
//  4. the Effective result says of every value where it came from.
//
// The pod's author is not trusted: an annotation can only do what the configuration enables, within the bounds of the setting. For
// confidential sandboxes everything that would show the guest's data to the host is an error, not a warning.
package runtimeconfig

import (
	_ "embed"
	"log/slog"
	"time"
)

//go:embed example.toml
var example string

// Example is an annotated configuration with every key at its default.
func Example() string { return example }

// Config is the whole configuration. Which key stands for which field, and its bounds, is in settings.go; example.toml explains them.
type Config struct {
	Sandbox     Sandbox
	Guest       Guest
	VMM         VMM
	Network     Network
	Storage     Storage
	Timeouts    Timeouts
	Cgroup      Cgroup
	Logging     Logging
	Tracing     Tracing
	Debug       Debug
	Annotations Annotations
}

// The values of Sandbox.TEE that are not the name of hardware.
const (
	TEENone = "none" // isolation only
	TEEAuto = "auto" // the host's hardware; none is an error
	TEETPM  = "tpm"  // measured boot with a software TPM: proves, does not hide
)

// Sandbox is the kind and the size of the virtual machine.
type Sandbox struct {
	TEE string
	// VCPUs and MemoryMiB are the size of a pod that says nothing about itself; Max are bounds, 0 is what the host has.
	VCPUs        float64
	MaxVCPUs     int
	MemoryMiB    int
	MaxMemoryMiB int
	// OverheadVCPUs and OverheadMemoryMiB replace the measured overhead (package sizing) unless 0.
	OverheadVCPUs     float64
	OverheadMemoryMiB int
	// MemoryBlockMiB is the unit in which memory is plugged.
	MemoryBlockMiB int
	// StaticSizing plugs nothing later. Confidential sandboxes never do.
	StaticSizing bool
	Hugepages    bool
	// Template is one of the Template constants.
	Template string
}

// Whether sandboxes start from templates.
const (
	TemplateAuto = "auto"
	TemplateOn   = "on"
	TemplateOff  = "off"
)

// Whether containers' seccomp profiles reach the guest.
const (
	SeccompAuto = "auto"
	SeccompOn   = "on"
	SeccompOff  = "off"
)

// Guest is what boots. Empty files are those of `cloister guest build`.
type Guest struct {
	Kernel, Initrd, Image  string
	Firmware, FirmwareVars string
	KernelParams           string
	VerityParams           string
	Seccomp                string // one of the Seccomp constants
}

// VMM is the virtual machine monitor.
type VMM struct {
	Kind  string
	Path  string
	Accel string
	// MachineType is QEMU's; empty is the one that fits the TEE. With a remote monitor it is the name of a size of the other side's.
	MachineType  string
	CPUFeatures  string
	RemoteSocket string
	GPUs         int
	GPUModel     string
	SNPPolicy    int
	SNPIDBlock   string
	SNPIDAuth    string
	TDXQuotePort int
}

// Network is how the pod's network reaches the guest.
type Network struct {
	Model  string
	Queues int
	Vhost  bool
	// RxBitsPerSecond and TxBitsPerSecond are limits; 0 is none.
	RxBitsPerSecond, TxBitsPerSecond int
}

// The values of Storage that depend on the TEE.
const (
	StorageAuto      = "auto"
	SharedFSNone     = "none"
	SharedFSVirtiofs = "virtiofs"
	EmptyDirShared   = "shared"
	EmptyDirPlain    = "block-plain"
	EmptyDirSealed   = "block-encrypted"
	EmptyDirGuest    = "guest" // a directory in its memory
)

// Storage is how files and volumes reach the guest.
type Storage struct {
	SharedFS      string
	Virtiofsd     string
	VirtiofsdArgs []string
	VirtiofsCache string
	EmptyDir      string
	GuestPull     bool
	// ScratchMiB is the size of the disk for what each container of a confidential sandbox writes over its image, when the image's layers
	// are attached; 0 is none, but memory of the guest.
	ScratchMiB int
}

// Timeouts bound what is waited for.
type Timeouts struct {
	Boot, CreateContainer, Request, HealthCheck, Hub, GuestProcess, Remote time.Duration
}

// Cgroup is where the processes of a sandbox run on the host.
type Cgroup struct {
	// PinVCPUs gives each virtual CPU a CPU of the host, when the pod's CPU set has as many.
	PinVCPUs bool
}

// Logging is how much is said.
type Logging struct {
	Level, GuestLevel string
}

// Tracing is what is recorded of how sandboxes come up (package trace).
type Tracing struct {
	// Steps keeps a file with the steps of each sandbox.
	Steps bool
	// OTLPEndpoint is the collector of OpenTelemetry spans; empty sends none.
	OTLPEndpoint, OTLPCertificates, OTLPHeadersFile string
	OTLPInsecureHTTP                                bool
	// Ratio is the part of sandboxes whose spans are sent.
	Ratio float64
}

// Debug is what helps to find faults.
type Debug struct {
	KeepFailed     bool
	Profiles       bool
	RecordRequests bool
}

// Annotations says what pods may set for themselves.
type Annotations struct {
	Enabled                                             []string
	ValidGuestPaths, ValidVMMPaths, ValidVirtiofsdPaths []string
}

// Default is the configuration of a node without a file.
func Default() Config {
	return Config{
		Sandbox: Sandbox{TEE: TEENone, VCPUs: 1, MemoryMiB: 512, MemoryBlockMiB: 128, Template: TemplateAuto},
		Guest:   Guest{Seccomp: SeccompAuto},
		VMM: VMM{Kind: "qemu", Accel: "auto", RemoteSocket: "/run/peerpod/hypervisor.sock",
			SNPPolicy: 0x30000},
		Network: Network{Model: "tc", Queues: 1, Vhost: true},
		Storage: Storage{SharedFS: StorageAuto, Virtiofsd: "/usr/libexec/virtiofsd",
			VirtiofsdArgs: []string{"--thread-pool-size=1", "--announce-submounts"},
			VirtiofsCache: "auto", EmptyDir: StorageAuto, ScratchMiB: 10 << 10},
		Timeouts: Timeouts{Boot: 45 * time.Second, CreateContainer: time.Minute, Request: time.Minute, HealthCheck: 90 * time.Second,
			Hub: 50 * time.Second, GuestProcess: 6 * time.Second, Remote: 10 * time.Minute},
		Logging: Logging{Level: "info", GuestLevel: "info"},
		Tracing: Tracing{Steps: true, Ratio: 1},
		Annotations: Annotations{Enabled: []string{"sandbox.vcpus", "sandbox.max_vcpus", "sandbox.memory_mib",
			"timeouts.create_container", keyInitdata, keyPolicy, keyFragments}},
	}
}

// Confidential says whether the guest's data are kept from the host, or a rehearsal of it is asked for.
func (c *Config) Confidential() bool { return c.Sandbox.TEE != TEENone }

// Seccomp says whether the guest gets the containers' seccomp profiles, after "auto" has been decided. The guest of a confidential or remote
// sandbox has a policy, and those of upstream's tool refuse profiles, which a host could use to change what a program does.
func (c *Config) Seccomp() bool {
	if c.Guest.Seccomp == SeccompAuto {
		return !c.Confidential() && c.VMM.Kind != "remote"
	}
	return c.Guest.Seccomp == SeccompOn
}

// UseTemplate says whether a sandbox starts from a template where it can, with this accelerator, after "auto" has been decided: under
// emulation, where it was measured. A confidential one never does.
func (c *Config) UseTemplate(accel string) bool {
	if c.Confidential() {
		return false
	}
	return c.Sandbox.Template == TemplateOn || c.Sandbox.Template == TemplateAuto && accel == "tcg"
}

// SharedFS is the shared file system after "auto" has been decided.
func (c *Config) SharedFS() string {
	switch {
	case c.Storage.SharedFS != StorageAuto:
		return c.Storage.SharedFS
	case c.Confidential() || c.VMM.Kind == "remote":
		return SharedFSNone
	}
	return SharedFSVirtiofs
}

// EmptyDir is how emptyDir volumes, but those of medium Memory, are kept after "auto" has been decided.
func (c *Config) EmptyDir() string {
	switch {
	case c.Storage.EmptyDir != StorageAuto:
		return c.Storage.EmptyDir
	case c.Confidential() || c.SharedFS() == SharedFSNone:
		return EmptyDirSealed
	}
	return EmptyDirShared
}

// Static says whether the sandbox keeps the size it starts with.
func (c *Config) Static() bool {
	return c.Sandbox.StaticSizing || c.Confidential() || c.VMM.Kind == "remote"
}

// Level is how much the runtime itself logs.
func (c *Config) Level() slog.Level {
	return map[string]slog.Level{"error": slog.LevelError, "warn": slog.LevelWarn, "debug": slog.LevelDebug}[c.Logging.Level]
}

// Insecure lists what is on and should not be in production.
func (c *Config) Insecure() []string {
	var on []string
	if c.Tracing.OTLPInsecureHTTP {
		on = append(on, "tracing.otlp_insecure_http: traces travel in the clear")
	}
	if c.Debug.RecordRequests {
		on = append(on, "debug.record_requests: the node keeps what its pods are given, values of variables too")
	}
	return on
}
