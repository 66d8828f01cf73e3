package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/cloister/cloister/guest/container"
	"github.com/cloister/cloister/wire/agent"
)

// sandbox is what the containers of the pod share.
type sandbox struct {
	id       string
	ready    bool              // containers may be made
	join     map[string]string // namespaces by type
	firstPid int               // init of the first container, whose pid namespace may be shared
	// firstEnd is closed when that init has ended.
	firstEnd <-chan struct{}
}

// sharedPid is the process whose pid namespace containers may share, 0 when there is none. A namespace ends with its
// init, and the number may then be that of any process, also of the guest.
func (s *sandbox) sharedPid() int {
	select {
	case <-s.firstEnd:
		s.firstPid, s.firstEnd = 0, nil
	default:
	}
	return s.firstPid
}

// Bounds of the resolver configuration.
const (
	maxDNSLines = 64
	maxDNSLine  = 4096
	maxHostname = 64
)

// CreateSandbox prepares what all containers share. It is called once.
func (a *Agent) CreateSandbox(ctx context.Context, req *agent.CreateSandboxRequest) (*emptypb.Empty, error) {
	if err := checkSandbox(req); err != nil {
		return nil, err
	}
	a.mu.Lock()
	if a.sandbox != nil {
		a.mu.Unlock()
		return nil, invalid("the sandbox %s exists already", a.sandbox.id)
	}
	sb := &sandbox{id: req.GetSandboxId(), join: map[string]string{}}
	a.sandbox = sb
	a.mu.Unlock()

	err := a.prepareSandbox(ctx, sb, req)
	if err != nil {
		a.mu.Lock()
		a.sandbox = nil
		a.mu.Unlock()
		return nil, fmt.Errorf("creating the sandbox: %w", err)
	}
	a.log.Info("sandbox created", "sandbox", sb.id, "hostname", req.GetHostname())
	return &emptypb.Empty{}, nil
}

func checkSandbox(req *agent.CreateSandboxRequest) error {
	if id := req.GetSandboxId(); id != "" {
		if err := container.ValidID(id); err != nil {
			return err
		}
	}
	if h := req.GetHostname(); len(h) > maxHostname || strings.ContainsAny(h, "\x00/\n ") {
		return invalid("hostname %q", h)
	}
	if p := req.GetGuestHookPath(); p != "" {
		return fmt.Errorf("guest hooks (%q): %w", p, errUnsupported)
	}
	if len(req.GetKernelModules()) > 0 {
		return fmt.Errorf("loading kernel modules on the host's request: %w", errUnsupported)
	}
	if len(req.GetDns()) > maxDNSLines {
		return invalid("%d lines of DNS configuration, at most %d are accepted", len(req.GetDns()), maxDNSLines)
	}
	for _, line := range req.GetDns() {
		if len(line) > maxDNSLine || strings.ContainsAny(strings.TrimSpace(line), "\x00\n\r") {
			return invalid("DNS configuration line %.80q", line)
		}
	}
	return nil
}

func (a *Agent) prepareSandbox(ctx context.Context, sb *sandbox, req *agent.CreateSandboxRequest) error {
	for _, dir := range []string{"sandbox", "shared/containers"} {
		if err := os.MkdirAll(filepath.Join(a.cfg.Layout.Root, dir), 0o755); err != nil {
			return err
		}
	}
	join, err := makeNamespaces(a.cfg.Layout.Namespaces, req.GetHostname())
	if err != nil {
		return err
	}
	if _, err := a.addStorages(ctx, "", req.GetStorages()); err != nil {
		return err
	}
	if err := a.writeDNS(req.GetDns()); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	sb.join, sb.ready = join, true
	return nil
}

// writeDNS makes the resolver configuration of the guest and, below the sandbox directory, of the containers.
func (a *Agent) writeDNS(lines []string) error {
	if len(lines) == 0 {
		return nil
	}
	var text strings.Builder
	for _, l := range lines {
		text.WriteString(strings.TrimSpace(l) + "\n")
	}
	for _, file := range []string{filepath.Join(a.cfg.Layout.Root, "sandbox/resolv.conf"), a.cfg.Layout.Resolv} {
		if err := os.WriteFile(file, []byte(text.String()), 0o644); err != nil {
			return fmt.Errorf("writing the resolver configuration: %w", err)
		}
	}
	return nil
}

// makeNamespaces makes the ipc and uts namespaces of the pod and keeps them alive as files in dir.
func makeNamespaces(dir, hostname string) (map[string]string, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the namespace directory: %w", err)
	}
	type made struct {
		paths map[string]string
		err   error
	}
	result := make(chan made, 1)
	go func() {
		// The thread lives in the new namespaces, so it must not be used again: it ends with this goroutine.
		runtime.LockOSThread()
		paths, err := unshareHere(dir, hostname)
		result <- made{paths, err}
	}()
	m := <-result
	return m.paths, m.err
}

func unshareHere(dir, hostname string) (map[string]string, error) {
	if err := unix.Unshare(unix.CLONE_NEWIPC | unix.CLONE_NEWUTS); err != nil {
		return nil, fmt.Errorf("making namespaces: %w", err)
	}
	if hostname != "" {
		if err := unix.Sethostname([]byte(hostname)); err != nil {
			return nil, fmt.Errorf("setting the hostname: %w", err)
		}
	}
	paths := map[string]string{}
	for _, ns := range []string{"ipc", "uts"} {
		file := filepath.Join(dir, ns)
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			return nil, fmt.Errorf("keeping the %s namespace: %w", ns, err)
		}
		source := fmt.Sprintf("/proc/self/task/%d/ns/%s", unix.Gettid(), ns)
		if err := unix.Mount(source, file, "", unix.MS_BIND, ""); err != nil {
			return nil, fmt.Errorf("keeping the %s namespace: %w", ns, err)
		}
		paths[ns] = file
	}
	return paths, nil
}

// DestroySandbox removes all containers and ends the service; the machine is switched off after the answer has left.
func (a *Agent) DestroySandbox(ctx context.Context, _ *agent.DestroySandboxRequest) (*emptypb.Empty, error) {
	err := a.removeAll(ctx)
	if err != nil {
		a.log.Warn("destroying the sandbox", "error", err)
	}
	a.destroy.Do(func() { close(a.destroyed) })
	return &emptypb.Empty{}, err
}

// removeAll deletes every container.
func (a *Agent) removeAll(ctx context.Context) error {
	a.mu.Lock()
	ids := make([]string, 0, len(a.containers))
	for id, e := range a.containers {
		if e.c != nil {
			ids = append(ids, id)
		}
	}
	a.mu.Unlock()
	var errs []error
	for _, id := range ids {
		if err := a.removeContainer(ctx, id); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// GetOOMEvent waits for the next container that ran out of memory.
func (a *Agent) GetOOMEvent(ctx context.Context, _ *agent.GetOOMEventRequest) (*agent.OOMEvent, error) {
	select {
	case id := <-a.oom:
		return &agent.OOMEvent{ContainerId: id}, nil
	case <-a.destroyed:
		return nil, errEnded
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// reportOOM queues an event; when nobody fetches them the newest are dropped.
func (a *Agent) reportOOM(id string) {
	a.log.Warn("container ran out of memory", "container", id)
	select {
	case a.oom <- id:
	default:
	}
}

// SetPolicy replaces the policy, if the present one allows that.
func (a *Agent) SetPolicy(ctx context.Context, req *agent.SetPolicyRequest) (*emptypb.Empty, error) {
	if err := a.cfg.Gate.SetPolicy(ctx, req.GetPolicy()); err != nil {
		return nil, err
	}
	a.log.Info("policy replaced")
	return &emptypb.Empty{}, nil
}

// LoadPolicyFragment adds a signed fragment to the policy, if the policy wants it.
func (a *Agent) LoadPolicyFragment(ctx context.Context, req *agent.LoadPolicyFragmentRequest) (*emptypb.Empty, error) {
	if err := a.cfg.Gate.LoadFragment(ctx, req.GetFragment(), time.Now()); err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}
