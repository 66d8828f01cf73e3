package cri

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Names of the images that every daemon has.
const (
	BusyboxImage = "registry.cloister.test/busybox:1"
	ProgramImage = "registry.cloister.test/testprog:1"
)

// Container is a container of a pod.
type Container struct {
	ID     string
	Pod    *Pod
	Config *runtime.ContainerConfig
	t      testing.TB
}

// Shell is the configuration of a container that runs a script by busybox' shell.
func Shell(name, script string) *runtime.ContainerConfig {
	return &runtime.ContainerConfig{Metadata: &runtime.ContainerMetadata{Name: name}, Image: &runtime.ImageSpec{Image: BusyboxImage},
		Command: []string{"sh", "-c", script}, LogPath: name + "/0.log", Linux: linux()}
}

// Program is the configuration of a container that runs the test program.
func Program(name string, args ...string) *runtime.ContainerConfig {
	return &runtime.ContainerConfig{Metadata: &runtime.ContainerMetadata{Name: name}, Image: &runtime.ImageSpec{Image: ProgramImage},
		Args: args, LogPath: name + "/0.log", Linux: linux()}
}

func linux() *runtime.LinuxContainerConfig {
	return &runtime.LinuxContainerConfig{Resources: &runtime.LinuxContainerResources{}, SecurityContext: &runtime.LinuxContainerSecurityContext{
		NamespaceOptions: &runtime.NamespaceOption{Network: runtime.NamespaceMode_POD, Pid: runtime.NamespaceMode_CONTAINER, Ipc: runtime.NamespaceMode_POD},
		MaskedPaths:      []string{"/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"},
		ReadonlyPaths:    []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}}}
}

// Sleeper is the script of a container that stays until it is stopped, and then goes at once.
const Sleeper = `trap 'exit 0' TERM; while :; do sleep 1000 & wait; done`

// Create makes a container.
func (p *Pod) Create(t testing.TB, config *runtime.ContainerConfig) *Container {
	t.Helper()
	k, err := p.TryCreate(t, config)
	if err != nil {
		t.Fatalf("creating %s: %v", config.Metadata.Name, err)
	}
	return k
}

// TryCreate is Create with the error of CRI.
func (p *Pod) TryCreate(t testing.TB, config *runtime.ContainerConfig) (*Container, error) {
	if config.LogPath != "" {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(p.Config.LogDirectory, config.LogPath)), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	r, err := p.c.CreateContainer(call(t), &runtime.CreateContainerRequest{PodSandboxId: p.ID, Config: config, SandboxConfig: p.Config})
	if err != nil {
		return nil, err
	}
	p.ids = append(p.ids, r.ContainerId)
	return &Container{ID: r.ContainerId, Pod: p, Config: config, t: t}, nil
}

// Run makes a container and starts it.
func (p *Pod) RunContainer(t testing.TB, config *runtime.ContainerConfig) *Container {
	t.Helper()
	return p.Create(t, config).Start()
}

// Start starts it.
func (k *Container) Start() *Container {
	k.t.Helper()
	if err := k.TryStart(); err != nil {
		k.t.Fatalf("starting %s: %v", k.Config.Metadata.Name, err)
	}
	return k
}

// TryStart is Start with the error of CRI.
func (k *Container) TryStart() error {
	_, err := k.Pod.c.StartContainer(call(k.t), &runtime.StartContainerRequest{ContainerId: k.ID})
	return err
}

// Status is what CRI says of it.
func (k *Container) Status() *runtime.ContainerStatus {
	k.t.Helper()
	r, err := k.Pod.c.ContainerStatus(call(k.t), &runtime.ContainerStatusRequest{ContainerId: k.ID})
	if err != nil {
		k.t.Fatalf("status of %s: %v", k.Config.Metadata.Name, err)
	}
	return r.Status
}

// exitTimeout is how long a container may take to end that should do so by itself.
const exitTimeout = 3 * time.Minute

// Exit waits for the container's end and returns its last status.
func (k *Container) Exit() *runtime.ContainerStatus {
	k.t.Helper()
	var s *runtime.ContainerStatus
	wait(k.t, exitTimeout, k.Config.Metadata.Name+" ended", func() bool {
		s = k.Status()
		return s.State == runtime.ContainerState_CONTAINER_EXITED
	})
	return s
}

// ExpectExit waits for the end and compares the exit code.
func (k *Container) ExpectExit(code int32) *runtime.ContainerStatus {
	k.t.Helper()
	s := k.Exit()
	if s.ExitCode != code || s.State != runtime.ContainerState_CONTAINER_EXITED {
		k.t.Errorf("%s: state %s, exit code %d (%s %s), expected %d\n%s", k.Config.Metadata.Name, s.State, s.ExitCode, s.Reason, s.Message, code, k.Output())
	}
	return s
}

// Stop stops it with a time of grace in seconds.
func (k *Container) Stop(grace int64) {
	k.t.Helper()
	if _, err := k.Pod.c.StopContainer(call(k.t), &runtime.StopContainerRequest{ContainerId: k.ID, Timeout: grace}); err != nil {
		k.t.Errorf("stopping %s: %v", k.Config.Metadata.Name, err)
	}
}

// Remove removes it.
func (k *Container) Remove() {
	k.t.Helper()
	if _, err := k.Pod.c.RemoveContainer(call(k.t), &runtime.RemoveContainerRequest{ContainerId: k.ID}); err != nil {
		k.t.Errorf("removing %s: %v", k.Config.Metadata.Name, err)
	}
}

// ExecResult is what a command in a container did.
type ExecResult struct {
	Stdout, Stderr string
	Code           int32
}

// Exec runs a command in it by ExecSync.
func (k *Container) Exec(args ...string) ExecResult {
	k.t.Helper()
	r, err := k.TryExec(60, args...)
	if err != nil {
		k.t.Fatalf("exec %q in %s: %v", args, k.Config.Metadata.Name, err)
	}
	return r
}

// TryExec is Exec with a timeout in seconds and the error of CRI.
func (k *Container) TryExec(timeout int64, args ...string) (ExecResult, error) {
	r, err := k.Pod.c.ExecSync(call(k.t), &runtime.ExecSyncRequest{ContainerId: k.ID, Cmd: args, Timeout: timeout})
	if err != nil {
		return ExecResult{}, err
	}
	return ExecResult{string(r.Stdout), string(r.Stderr), r.ExitCode}, nil
}

// Sh runs a script and returns its output without the last line's end. It has to succeed.
func (k *Container) Sh(script string) string {
	k.t.Helper()
	r := k.Exec("sh", "-c", script)
	if r.Code != 0 {
		k.t.Errorf("%q in %s: exit code %d\n%s%s", script, k.Config.Metadata.Name, r.Code, r.Stdout, r.Stderr)
	}
	return strings.TrimSuffix(r.Stdout, "\n")
}

// ExpectSh compares the output of a script.
func (k *Container) ExpectSh(script, want string) {
	k.t.Helper()
	if got := k.Sh(script); got != want {
		k.t.Errorf("%s: %q gave %q, expected %q", k.Config.Metadata.Name, script, got, want)
	}
}

// LogLine is one line of a CRI log.
type LogLine struct {
	Time    time.Time
	Stream  string
	Partial bool
	Text    string
}

// LogFile is the path of its log.
func (k *Container) LogFile() string {
	return filepath.Join(k.Pod.Config.LogDirectory, k.Config.LogPath)
}

// Log reads its log. A line that is not one is an error.
func (k *Container) Log() []LogLine {
	k.t.Helper()
	lines, err := ReadLog(k.LogFile())
	if err != nil {
		k.t.Errorf("the log of %s: %v", k.Config.Metadata.Name, err)
	}
	return lines
}

// ReadLog reads a log as CRI writes it: time, stream, tags and text.
func ReadLog(name string) ([]LogLine, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var lines []LogLine
	all := strings.Split(string(data), "\n")
	for n, text := range all[:len(all)-1] { // what follows the last end of line is being written
		f := strings.SplitN(text, " ", 4)
		if len(f) != 4 {
			return lines, fmt.Errorf("line %d has no four fields: %.100q", n+1, text)
		}
		when, err := time.Parse(time.RFC3339Nano, f[0])
		if err != nil {
			return lines, fmt.Errorf("line %d: %w", n+1, err)
		}
		lines = append(lines, LogLine{when, f[1], f[2] == "P", f[3]})
	}
	return lines, nil
}

// Output is the text of its log, of both streams, with partial lines joined.
func (k *Container) Output() string {
	k.t.Helper()
	var b strings.Builder
	for _, l := range k.Log() {
		b.WriteString(l.Text)
		if !l.Partial {
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// Says waits until its log has the text.
func (k *Container) Says(text string) {
	k.t.Helper()
	if !wait(k.t, exitTimeout, k.Config.Metadata.Name+" said "+text, func() bool { return strings.Contains(k.Output(), text) }) {
		k.t.Logf("it said: %s", k.Output())
	}
}
