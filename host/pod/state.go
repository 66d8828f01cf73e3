package pod

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/cloister/cloister/internal/paths"
)

// Phase is where a pod is in its life.
type Phase string

// The phases of a pod.
const (
	Starting  Phase = "Starting"
	Running   Phase = "Running"
	Stopping  Phase = "Stopping"
	Succeeded Phase = "Succeeded"
	Failed    Phase = "Failed"
)

// State is what is known about a pod. It is a value: a snapshot does not change.
type State struct {
	Name       string           `json:"name"`
	Namespace  string           `json:"namespace,omitempty"`
	Phase      Phase            `json:"phase"`
	Supervisor int              `json:"supervisor"`
	Accel      string           `json:"accel"`
	TEE        string           `json:"tee,omitempty"`
	LogDir     string           `json:"log_dir"`
	Started    time.Time        `json:"started"`
	Ended      *time.Time       `json:"ended,omitempty"`
	ExitCode   *int             `json:"exit_code,omitempty"`
	Error      string           `json:"error,omitempty"`
	Containers []ContainerState `json:"containers"`
	Events     []Event          `json:"events"`
}

// The states of a container.
const (
	ContainerWaiting = "waiting"
	ContainerCreated = "created"
	ContainerRunning = "running"
	ContainerExited  = "exited"
)

// ContainerState is what is known about a container.
type ContainerState struct {
	Name     string     `json:"name"`
	ID       string     `json:"id"`
	Image    string     `json:"image"`
	Init     bool       `json:"init,omitempty"`
	State    string     `json:"state"`
	ExitCode *int       `json:"exit_code,omitempty"`
	Restarts int        `json:"restarts,omitempty"`
	Started  *time.Time `json:"started,omitempty"`
	Ended    *time.Time `json:"ended,omitempty"`
}

// Done says that the pod has ended.
func (s *State) Done() bool { return s.Phase == Succeeded || s.Phase == Failed }

const (
	stateFile = "state.json"
	planFile  = "plan.json"
	lockFile  = "lock"
	ctlSocket = "ctl.sock"
	vmDir     = "vm"

	stateLimit = 4 << 20
	// eventLimit bounds what a container that restarts for ever adds to the state.
	eventLimit = 200
)

// stateKeeper owns the state of a pod while it runs and writes every change to the given files.
type stateKeeper struct {
	mu    sync.Mutex
	state State
	dirs  []string
	err   error
}

// update changes the state. A write error is kept and reported at the end: it must not stop the pod.
func (k *stateKeeper) update(change func(*State)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	change(&k.state)
	if over := len(k.state.Events) - eventLimit; over > 0 {
		k.state.Events = append([]Event(nil), k.state.Events[over:]...)
	}
	for _, d := range k.dirs {
		if err := writeState(d, &k.state); err != nil {
			k.err = errors.Join(k.err, err)
		}
	}
}

func (k *stateKeeper) container(name string, change func(*ContainerState)) {
	k.update(func(s *State) {
		for i := range s.Containers {
			if s.Containers[i].Name == name {
				change(&s.Containers[i])
			}
		}
	})
}

// snapshot returns a copy that shares nothing that later changes.
func (k *stateKeeper) snapshot() State {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.state
	s.Containers = append([]ContainerState(nil), s.Containers...)
	s.Events = append([]Event(nil), s.Events...)
	return s
}

func writeState(dir string, s *State) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("writing the state of pod %s: %w", s.Name, err)
	}
	return paths.WriteFile(filepath.Join(dir, stateFile), append(b, '\n'), 0o600)
}

func readState(dir string) (State, error) {
	var s State
	b, err := readLimited(filepath.Join(dir, stateFile), stateLimit)
	if err != nil {
		return s, err
	}
	return s, parseState(b, &s)
}

func parseState(b []byte, s *State) error {
	if err := json.Unmarshal(b, s); err != nil {
		return fmt.Errorf("reading the state of a pod: %w", err)
	}
	if err := checkName(s.Name); err != nil {
		return fmt.Errorf("reading the state of a pod: %w", err)
	}
	return nil
}

func readLimited(name string, limit int64) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if info.Size() > limit {
		return nil, fmt.Errorf("%s has %d bytes, expected at most %d", name, info.Size(), limit)
	}
	return os.ReadFile(name)
}

// ErrNotFound is wrapped by the error about a pod that does not exist.
var ErrNotFound = errors.New("no such pod")

// ErrEnded is wrapped by the error about a pod that existed and has ended.
var ErrEnded = errors.New("the pod has ended")

// Lookup returns the state of one pod, running or ended.
func Lookup(dirs paths.Dirs, name string) (State, error) {
	if err := checkName(name); err != nil {
		return State{}, err
	}
	for _, base := range []string{dirs.Run, dirs.Pods()} {
		s, err := readState(filepath.Join(base, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil && base == dirs.Pods() {
			orphaned(dirs, &s)
		}
		return s, err
	}
	return State{}, fmt.Errorf("pod %s: %w", name, ErrNotFound)
}

// orphaned corrects the kept state of a pod whose run-time directory went without an end of the pod, as in a reboot: a pod
// that has not ended has such a directory.
func orphaned(dirs paths.Dirs, s *State) {
	if s.Done() {
		return
	}
	if _, err := os.Stat(filepath.Join(dirs.Run, s.Name)); !errors.Is(err, fs.ErrNotExist) {
		return
	}
	s.Phase, s.Error = Failed, "the host went down while the pod ran"
	for i := range s.Containers {
		if s.Containers[i].State == ContainerRunning {
			s.Containers[i].State = ContainerExited
		}
	}
}

// List returns all pods by name: the running ones and those that have ended and left their state.
func List(dirs paths.Dirs) ([]State, error) {
	out := []State{} // as JSON an empty list, not null
	seen := map[string]bool{}
	for _, base := range []string{dirs.Run, dirs.Pods()} {
		entries, err := os.ReadDir(base)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("listing pods: %w", err)
		}
		for _, e := range entries {
			if !e.IsDir() || checkName(e.Name()) != nil || seen[e.Name()] {
				continue
			}
			s, err := readState(filepath.Join(base, e.Name()))
			if errors.Is(err, fs.ErrNotExist) {
				continue // being made or being removed
			}
			if err != nil {
				return nil, err
			}
			if base == dirs.Pods() {
				orphaned(dirs, &s)
			}
			seen[e.Name()] = true
			out = append(out, s)
		}
	}
	return out, nil
}
