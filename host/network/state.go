package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrInUse means that the state file is there already: another sandbox has it, or one that crashed was not cleaned up.
var ErrInUse = errors.New("a network state file is there already (hint: clean up the sandbox that left it)")

const (
	stateVersion = 1
	stateLimit   = 1 << 20
)

// state is what has to be removed; it is written before anything is made.
type state struct {
	Version   int      `json:"version"`
	NetNS     string   `json:"netns"`
	Namespace identity `json:"namespace"`
	// Next is the number of the next tap.
	Next  int      `json:"next"`
	Links []record `json:"links"`
}

// record is one interface of the pod and what was made for it.
type record struct {
	Index int    `json:"index"`
	Name  string `json:"name"`
	MAC   string `json:"mac"`
	Tap   string `json:"tap"`
	Model Model  `json:"model"`
	// QueueLen is the interface's transmit queue length, which the kernel changes when a queueing discipline is added.
	QueueLen int `json:"queue_len"`
	// OwnQdisc says that the interface had no ingress qdisc before.
	OwnQdisc bool `json:"own_qdisc,omitempty"`
	// Limit says that what the interface sends is limited.
	Limit bool `json:"limit,omitempty"`
}

// save replaces the file in one step. No fsync: what it describes does not outlive the kernel either.
func (s *state) save(path string) error {
	b, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("writing the network state: %w", err)
	}
	temp := path + ".new"
	if err := os.WriteFile(temp, b, 0o600); err != nil {
		return fmt.Errorf("writing the network state: %w", err)
	}
	if err := os.Rename(temp, path); err != nil {
		return fmt.Errorf("writing the network state: %w", err)
	}
	return nil
}

func loadState(path string) (*state, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("reading the network state: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, stateLimit+1))
	if err != nil {
		return nil, fmt.Errorf("reading the network state: %w", err)
	}
	s, err := parseState(b)
	if err != nil {
		return nil, fmt.Errorf("network state %s: %w", path, err)
	}
	return s, nil
}

// parseState checks that a state names only what this package can have made.
func parseState(b []byte) (*state, error) {
	if len(b) > stateLimit {
		return nil, fmt.Errorf("more than %d bytes", stateLimit)
	}
	var s state
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, err
	}
	if s.Version != stateVersion {
		return nil, fmt.Errorf("version %d, expected %d", s.Version, stateVersion)
	}
	if !filepath.IsAbs(s.NetNS) {
		return nil, fmt.Errorf("network namespace %q: expected an absolute path", s.NetNS)
	}
	for _, r := range s.Links {
		if !isOurName(r.Tap) || r.Index < 1 || r.QueueLen < 0 || checkName(r.Name) != nil || r.Model != ModelTC && r.Model != ModelMacvtap {
			return nil, fmt.Errorf("an entry for link %d (%q, tap %q, model %q) that cannot be ours", r.Index, r.Name, r.Tap, r.Model)
		}
	}
	return &s, nil
}

// Cleanup removes everything that a sandbox made which is not there any more, and its state file. It may be called at any time and
// again, also when there is no state or the namespace is gone. The machine must have been ended before.
func Cleanup(ctx context.Context, stateFile string) error {
	s, err := loadState(stateFile)
	if errors.Is(err, fs.ErrNotExist) {
		return removeState(stateFile)
	} else if err != nil {
		return err
	}
	ns, err := OpenNamespace(s.NetNS)
	if errors.Is(err, ErrGone) {
		return removeState(stateFile) // with the namespace went what was in it
	} else if err != nil {
		return fmt.Errorf("cleaning up a pod's network: %w", err)
	}
	defer ns.Close()
	if ns.id != s.Namespace {
		return removeState(stateFile) // the path is that of another pod by now
	}
	if err := undo(ctx, ns, s.Links); err != nil {
		return fmt.Errorf("cleaning up a pod's network: %w", err)
	}
	return removeState(stateFile)
}

func removeState(path string) error {
	for _, p := range []string{path + ".new", path} {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing the network state: %w", err)
		}
	}
	return nil
}

// undo removes what was made for these links, as far as it is there, and goes on when something cannot be removed.
func undo(ctx context.Context, ns *Namespace, links []record) error {
	return ns.Do(func() error {
		var errs []error
		for _, r := range links {
			errs = append(errs, r.undo(ctx))
		}
		return errors.Join(errs...)
	})
}

func (r record) undo(ctx context.Context) error {
	var errs []error
	link, err := netlink.LinkByIndex(r.Index)
	switch {
	case isNotFound(err):
	case err != nil:
		errs = append(errs, fmt.Errorf("looking up %s: %w", r.Name, err))
	case link.Attrs().Name == r.Name || link.Attrs().HardwareAddr.String() == r.MAC:
		// Either may have been changed since; another link with this number would have neither.
		if r.Model == ModelTC {
			errs = append(errs, removeRedirect(ctx, link, r.OwnQdisc))
		}
		if r.Limit {
			errs = append(errs, removeLimit(ctx, link))
		}
		if (r.OwnQdisc || r.Limit) && link.Attrs().TxQLen != r.QueueLen {
			if err := netlink.LinkSetTxQLen(link, r.QueueLen); err != nil {
				errs = append(errs, fmt.Errorf("setting the queue length of %s back: %w", r.Name, err))
			}
		}
	}
	tap, err := netlink.LinkByName(r.Tap)
	switch kind := ""; {
	case isNotFound(err):
	case err != nil:
		errs = append(errs, fmt.Errorf("looking up %s: %w", r.Tap, err))
	default:
		if kind = tap.Type(); kind != "tuntap" && kind != "macvtap" {
			break // not ours, whatever its name
		}
		if err := netlink.LinkDel(tap); err != nil && !isNotFound(err) && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("removing %s: %w", r.Tap, err))
		}
	}
	return errors.Join(errs...)
}

func isNotFound(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound)
}
