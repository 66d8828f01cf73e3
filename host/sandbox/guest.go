package sandbox

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"github.com/cloister/cloister/host/agent"
	"github.com/cloister/cloister/host/health"
	"github.com/cloister/cloister/host/manage"
	"github.com/cloister/cloister/host/network"
	"github.com/cloister/cloister/host/portforward"
	"github.com/cloister/cloister/host/volume"
	pb "github.com/cloister/cloister/wire/agent"
)

// Bounds of what is waited for around the end of a guest.
const (
	goneTimeout    = 10 * time.Second      // from a broken connection to the end of the VM
	destroyTimeout = 5 * time.Second       // the guest's own end
	shareGrace     = 2 * time.Second       // from the end of virtiofsd to that of the monitor that it belongs to
	maxGuestLine   = 16 << 10              // one line of the guest's log
	guestLogPace   = 1 << 20               // bytes a second that are read of it: a guest may write without end
	oomPace        = 50 * time.Millisecond // between two events of containers without memory
)

// createInGuest makes what the containers share.
func (s *Sandbox) createInGuest(ctx context.Context) error {
	var err error
	s.volumes, err = volume.New(volume.Options{
		Dir: filepath.Join(s.dir, volumeDir), SandboxID: s.cfg.ID, Config: s.runtime, Share: s.share, Disks: s.vm, Logger: s.log,
		ScratchSize: s.scratchSize(),
		CopyFile: func(ctx context.Context, r *pb.CopyFileRequest) error {
			return s.call(ctx, "copying "+r.GetPath(), func(c context.Context) error {
				_, err := s.agent.CopyFile(c, r)
				return err
			})
		},
	})
	if err != nil {
		return err
	}
	storages, err := s.volumes.Sandbox(s.cfg.Spec)
	if err != nil {
		return err
	}
	hostname := s.cfg.Spec.Hostname
	if hostname == "" {
		hostname = s.cfg.ID[:min(len(s.cfg.ID), 12)]
	}
	if policy := s.cfg.Runtime.Policy; len(policy) > 0 {
		if err := s.call(ctx, "setting the pod's policy", func(c context.Context) error {
			_, err := s.agent.SetPolicy(c, &pb.SetPolicyRequest{Policy: string(policy)})
			return err
		}); err != nil {
			return err
		}
	}
	for i, raw := range s.cfg.Runtime.Fragments {
		if err := s.call(ctx, fmt.Sprintf("handing over the pod's policy fragment %d", i+1), func(c context.Context) error {
			_, err := s.agent.LoadPolicyFragment(c, &pb.LoadPolicyFragmentRequest{Fragment: raw})
			return err
		}); err != nil {
			return err
		}
	}
	dns := s.cfg.DNS
	if len(dns) == 0 {
		if dns, err = network.DNS(&pb.Spec{Mounts: guestMounts(s.cfg.Spec.Mounts)}); err != nil {
			return err
		}
	}
	if err := s.call(ctx, "creating the sandbox in the guest", func(c context.Context) error {
		_, err := s.agent.CreateSandbox(c, &pb.CreateSandboxRequest{
			Hostname: hostname, Dns: dns, Storages: storages, SandboxId: s.cfg.ID,
		})
		return err
	}); err != nil {
		return err
	}
	return s.askDetails(ctx)
}

// askDetails learns what the agent can do. A policy may forbid to ask: then it is taken for one that can do the least.
func (s *Sandbox) askDetails(ctx context.Context) error {
	err := s.call(ctx, "asking what the guest can do", func(c context.Context) error {
		r, err := s.agent.GetGuestDetails(c, &pb.GuestDetailsRequest{MemBlockSize: true})
		features := r.GetAgentDetails().GetExtraFeatures()
		s.keepsOutput = slices.Contains(features, pb.FeatureOutputKept)
		s.imageVolumes = slices.Contains(features, pb.FeatureImageVolumes)
		return err
	})
	if e := (*agent.Error)(nil); errors.As(err, &e) {
		s.log.Debug("the guest does not say what it can do", "sandbox", s.cfg.ID, "error", err)
		return nil
	}
	return err
}

// KeepsOutput says whether the output of a process can still be read after its end was waited for.
func (s *Sandbox) KeepsOutput() bool { return s.keepsOutput }

// watch starts what runs beside the calls until the sandbox ends.
func (s *Sandbox) watch() {
	s.makeTemplate()
	s.workers.Go(s.watchOOM)
	s.workers.Go(s.collectLog)
	s.workers.Go(s.watchHealth)
	if s.share != nil {
		s.workers.Go(s.watchShare)
	}
	s.forwardPorts()
	s.openManagement()
	if s.net != nil {
		s.workers.Go(s.watchNetwork)
	}
}

// watchOOM waits for containers that run out of memory. A policy may forbid to ask: then their end alone tells.
func (s *Sandbox) watchOOM() {
	pace := time.NewTicker(oomPace)
	defer pace.Stop()
	for {
		e, err := s.agent.GetOOMEvent(s.background, &pb.GetOOMEventRequest{})
		if err != nil {
			s.log.Debug("waiting for containers that run out of memory", "sandbox", s.cfg.ID, "error", err)
			return
		}
		s.mu.Lock()
		_, known := s.containers[e.GetContainerId()]
		s.mu.Unlock()
		if known && s.cfg.OOM != nil { // the guest may name what it likes
			s.cfg.OOM(e.GetContainerId())
		}
		select { // one that invents events shall not keep the host busy
		case <-pace.C:
		case <-s.background.Done():
			return
		}
	}
}

// collectLog reads the guest's log: for the times of its boot, and for those who look for faults all of it.
func (s *Sandbox) collectLog() {
	conn, err := s.vm.Dial(s.background, agent.PortLog)
	if err != nil {
		if !errors.Is(err, errors.ErrUnsupported) {
			s.log.Debug("connecting to the guest's log", "sandbox", s.cfg.ID, "error", err)
		}
		return
	}
	defer conn.Close()
	stop := context.AfterFunc(s.background, func() { conn.Close() })
	defer stop()
	boot := s.trace.GuestLog(s.ready)
	if s.restored {
		boot = io.Discard // what it says is about the boot of the template
	}
	r := bufio.NewReaderSize(conn, maxGuestLine)
	pace := rate.NewLimiter(guestLogPace, guestLogPace)
	for {
		line, err := r.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return // it ends with the guest
		}
		if pace.WaitN(s.background, len(line)) != nil {
			return
		}
		_, _ = boot.Write(line)
		if !s.log.Enabled(s.background, slog.LevelDebug) {
			continue
		}
		var m struct {
			Msg string `json:"msg"`
		}
		if json.Unmarshal(line, &m) == nil {
			s.log.Debug("guest: "+agent.Clean(m.Msg), "sandbox", s.cfg.ID, "line", agent.Clean(string(line)))
		}
	}
}

// watchNetwork follows changes of the pod's network: some engines configure it after the sandbox was made.
func (s *Sandbox) watchNetwork() {
	err := s.net.Watch(s.background, func(change network.Change, err error) error {
		if err != nil {
			s.log.Warn("looking at the pod's network", "sandbox", s.cfg.ID, "error", err)
			return nil
		}
		if err := s.networkChanged(s.background, change); err != nil {
			s.log.Warn("following a change of the pod's network", "sandbox", s.cfg.ID, "error", err)
		}
		return nil
	})
	if err != nil && s.background.Err() == nil {
		s.log.Warn("watching the pod's network", "sandbox", s.cfg.ID, "error", err)
	}
}

// destroyInGuest lets the guest unmount its volumes and say goodbye; one that does not answer loses that chance.
func (s *Sandbox) destroyInGuest(ctx context.Context) {
	if s.agent == nil {
		return
	}
	dctx, cancel := context.WithTimeout(ctx, destroyTimeout)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := s.agent.DestroySandbox(dctx, &pb.DestroySandboxRequest{})
		done <- err
	}()
	select {
	case err := <-done:
		s.log.Debug("destroying the sandbox in the guest", "sandbox", s.cfg.ID, "error", err)
	case <-s.vm.Exited():
	case <-dctx.Done():
	}
}

// unknown is the error for a container that is not there.
func unknown(id string) error { return fmt.Errorf("container %s is not in this sandbox", id) }

func (s *Sandbox) healthConfig() health.Config {
	limit := s.runtime.Timeouts.HealthCheck
	return health.Config{
		Check:   func(ctx context.Context) error { return health.Agent(s.agent.Health)(ctx) },
		Timeout: limit, Interval: min(health.DefaultInterval, limit/3), // asked often enough to answer in time
	}
}

// watchHealth ends the VM of a guest that gives no answer any more: nothing else would tell that its pod is dead.
func (s *Sandbox) watchHealth() {
	m, err := health.New(s.healthConfig())
	if err != nil {
		s.log.Warn("watching the guest's health", "sandbox", s.cfg.ID, "error", err)
		return
	}
	err = m.Run(s.background)
	if err == nil || s.background.Err() != nil {
		return
	}
	s.End(err)
}

// watchShare ends the VM when its file server has ended before it: whatever in the pod touches a file of the host would wait for ever, while
// the guest's agent answers as if nothing were wrong.
func (s *Sandbox) watchShare() {
	select {
	case <-s.share.Done():
	case <-s.background.Done():
		return
	}
	// With the monitor it ends, too, and may be seen first.
	grace := time.NewTimer(shareGrace)
	defer grace.Stop()
	select {
	case <-s.vm.Exited():
		return
	case <-s.background.Done():
		return
	case <-grace.C:
	}
	err := s.share.Err()
	if err == nil {
		err = errors.New("virtiofsd ended")
	}
	s.End(fmt.Errorf("the shared directory is gone: %w", errors.Join(s.outOfMemory(), err)))
}

// End ends the VM for a reason that nobody has asked for; Err will say it. What was made on the host stays until Stop.
func (s *Sandbox) End(reason error) {
	s.mu.Lock()
	s.dead = reason
	s.mu.Unlock()
	s.log.Error("ending the virtual machine", "sandbox", s.cfg.ID, "reason", reason, "console", s.vm.ConsoleTail(20))
	now, cancel := context.WithCancel(s.background)
	cancel()
	if err := s.vm.Stop(now); err != nil {
		s.log.Error("ending the virtual machine", "sandbox", s.cfg.ID, "error", err)
	}
}

// forwardPorts lets connections to localhost in the pod's network namespace reach the pod. Without it the pod runs all the same.
func (s *Sandbox) forwardPorts() {
	netns, err := s.netns()
	if s.net == nil || err != nil || netns == "" {
		return
	}
	s.forward, err = portforward.Start(s.background, portforward.Config{NetNS: netns, Dial: s.vm.Dial, Logger: s.log})
	if err != nil {
		s.log.Warn("this pod has no port-forward", "sandbox", s.cfg.ID, "error", err)
	}
}

// openManagement opens the sandbox's own socket. The pod does not need it.
func (s *Sandbox) openManagement() {
	var err error
	s.manage, err = manage.Start(s.background, s.manageConfig())
	if err != nil {
		s.log.Warn("this sandbox has no management socket", "sandbox", s.cfg.ID, "error", err)
	}
}

func (s *Sandbox) manageConfig() manage.Config {
	return manage.Config{
		Dir: s.dir, Link: manageLink(s.dir), Agent: func() manage.Agent { return s.agent }, Processes: s.processes, Volume: s.guestVolume, Durations: &s.durations,
		Timeout: s.runtime.Timeouts.Request, Profiles: s.runtime.Debug.Profiles, Logger: s.log,
	}
}

// processes are those of the sandbox on the host.
func (s *Sandbox) processes() []manage.Process {
	list := []manage.Process{{Role: "hypervisor", PID: s.vm.PID()}}
	if s.share != nil {
		list = append(list, manage.Process{Role: "virtiofsd", PID: s.share.PID()})
	}
	return list
}

// guestVolume is where the guest has a volume of the host.
func (s *Sandbox) guestVolume(path string) (string, error) {
	if guest, ok := s.volumes.GuestPath(path); ok {
		return guest, nil
	}
	return "", fmt.Errorf("volume %s: %w", path, fs.ErrNotExist)
}
