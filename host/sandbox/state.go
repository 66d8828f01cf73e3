package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/host/cgroup"
	"github.com/cloister/cloister/host/manage"
	"github.com/cloister/cloister/host/network"
	"github.com/cloister/cloister/host/share"
	"github.com/cloister/cloister/host/vmm/cloudhypervisor"
	"github.com/cloister/cloister/host/vmm/qemu"
	"github.com/cloister/cloister/host/volume"
	"github.com/cloister/cloister/internal/paths"
)

// Root is where sandboxes have their directories.
const Root = "/run/cloister/sandboxes"

// Names in a sandbox's directory.
const (
	stateFile   = "state.json"
	networkFile = "network.json"
	vmDir       = "vm"
	shareDir    = "share"
	volumeDir   = "volumes"
	consoleFile = "console.log"
)

// State is what the directory says of a sandbox.
type State struct {
	Namespace string `json:"namespace"`
	ID        string `json:"id"`
	// PodName and PodNamespace are Kubernetes', or "".
	PodName      string        `json:"pod_name,omitempty"`
	PodNamespace string        `json:"pod_namespace,omitempty"`
	TEE          string        `json:"tee"`
	Monitor      string        `json:"monitor"`
	Accel        string        `json:"accel,omitempty"`
	VCPUs        int           `json:"vcpus"`
	MemoryMiB    int           `json:"memory_mib"`
	Shim         int           `json:"shim"`
	VMM          int           `json:"vmm,omitempty"`
	Started      time.Time     `json:"started"`
	Cgroup       *cgroup.State `json:"cgroup,omitempty"`
	// RemoteSocket is where a remote hypervisor is asked to end the VM.
	RemoteSocket string `json:"remote_socket,omitempty"`
}

// names of sandboxes become directories: containerd's identifiers.
var safeID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)

// CheckID says what is wrong with a name of a sandbox, a container or a process: containerd's are plain, and they become names of directories.
func CheckID(id string) error {
	if !safeID.MatchString(id) || strings.Contains(id, "..") {
		return fmt.Errorf("%.100q is no name: want up to 128 letters, digits, dots, dashes and underscores", id)
	}
	return nil
}

// Dir is the directory of a sandbox below root.
func Dir(root, namespace, id string) (string, error) {
	for _, s := range []string{namespace, id} {
		if err := CheckID(s); err != nil {
			return "", fmt.Errorf("naming a sandbox: %w", err)
		}
	}
	return filepath.Join(root, namespace, id), nil
}

// manageLink is where tools made for Kata look for the management socket of a sandbox; "" is nowhere, for those outside of Root.
func manageLink(dir string) string {
	if filepath.Dir(filepath.Dir(dir)) != Root {
		return ""
	}
	return "/run/kata/" + filepath.Base(dir) + "/shim-monitor.sock"
}

// ReadState reads what a sandbox's directory says.
func ReadState(dir string) (*State, error) {
	f, err := os.Open(filepath.Join(dir, stateFile))
	if err != nil {
		return nil, fmt.Errorf("reading the sandbox's state: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("reading the sandbox's state: %w", err)
	}
	var s State
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, fmt.Errorf("reading the sandbox's state: %w", err)
	}
	return &s, nil
}

func (s *Sandbox) writeState() error {
	s.mu.Lock()
	text, err := json.Marshal(&s.state)
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("writing the sandbox's state: %w", err)
	}
	return paths.WriteFile(filepath.Join(s.dir, stateFile), text, 0o600)
}

// Cleanup removes what a sandbox has left whose shim is gone. It can be called again, and for a sandbox that never was. What cannot be
// removed is reported, and stays with the directory, so that the next call tries again. A sandbox that somebody serves is ErrInUse.
func Cleanup(ctx context.Context, dir string) error {
	lock, err := lockDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cleaning up sandbox %s: %w", filepath.Base(dir), err)
	}
	defer lock.Close()
	return cleanup(ctx, dir)
}

// ErrInUse means that another process serves the sandbox.
var ErrInUse = errors.New("another shim serves a sandbox of this name (hint: does a second containerd run on this node, with the same namespace?)")

// lockDir takes a sandbox's directory for this process, until the result is closed or the process ends. Children do not inherit it.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = ErrInUse
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// cleanup is Cleanup for who has the directory.
func cleanup(ctx context.Context, dir string) error {
	state, err := ReadState(dir)
	if err != nil {
		state = &State{} // it was killed before it had written: then nothing was made that the state would name
	}
	var errs []error
	add := func(what string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
		}
	}
	if state.Monitor != "qemu" {
		add("virtual machine", cloudhypervisor.CleanStale(ctx, filepath.Join(dir, vmDir)))
	}
	if state.Monitor != "cloud-hypervisor" {
		add("virtual machine", qemu.CleanStale(ctx, filepath.Join(dir, vmDir)))
	}
	if state.RemoteSocket != "" {
		add("virtual machine", stopRemote(ctx, state.RemoteSocket, state.ID))
	}
	add("volumes", volume.Cleanup(ctx, filepath.Join(dir, volumeDir)))
	add("shared directory", share.Cleanup(ctx, filepath.Join(dir, shareDir)))
	if _, err := os.Lstat(filepath.Join(dir, networkFile)); err == nil {
		add("network", network.Cleanup(ctx, filepath.Join(dir, networkFile)))
	}
	add("management socket", manage.Cleanup(dir, manageLink(dir)))
	if state.Cgroup != nil {
		g, err := cgroup.Open(*state.Cgroup)
		if err == nil {
			err = g.Destroy(ctx)
		}
		add("control group", err)
	}
	if len(errs) == 0 {
		add("directory", removeDir(dir))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("cleaning up sandbox %s: %w", filepath.Base(dir), err)
	}
	_ = os.Remove(filepath.Dir(dir)) // the namespace's directory goes with its last sandbox
	return nil
}

// removeDir removes the directory, unless something is still mounted below it: those files may be the user's.
func removeDir(dir string) error {
	mounted, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return fmt.Errorf("looking for mounts: %w", err)
	}
	if len(mounted) > 0 {
		return fmt.Errorf("%s is still mounted", mounted[0].Mountpoint)
	}
	return os.RemoveAll(dir)
}
