package sandbox

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/cloister/cloister/host/agent"
	"github.com/cloister/cloister/host/runtimeconfig"
	"github.com/cloister/cloister/host/template"
	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/host/vmm/qemu"
	pb "github.com/cloister/cloister/wire/agent"
)

// seedSize is how many random bytes a guest from a template gets.
const seedSize = 64

// templated is what there is of a template for this sandbox.
type templated struct {
	store *template.Store
	key   string     // empty: there is none for this VM
	vm    vmm.Config // with which the template is made, and a VM starts from it
	made  <-chan struct{}
}

// planTemplate looks whether this VM can start from a template. Only a sandbox without protection can: see qemu.TemplateKey.
func (s *Sandbox) planTemplate(cfg vmm.Config) (templated, error) {
	c := s.runtime
	if s.tee != runtimeconfig.TEENone || c.VMM.Kind != "qemu" || !c.UseTemplate(cfg.Accel) || s.cfg.Self == "" || s.cfg.StartVM != nil {
		return templated{}, nil
	}
	t := templated{store: template.New(s.cfg.Templates), vm: cfg}
	t.vm.Vsock = false // the number of a guest's vsock would be in the template
	var err error
	if t.key, err = qemu.TemplateKey(t.vm); errors.Is(err, errors.ErrUnsupported) {
		return templated{}, nil
	}
	return t, err
}

// restore starts the VM from a template, and prepares its guest. nil without an error means that the VM has to boot: a template that is not
// there, or not good, is never the reason of a failure.
func (s *Sandbox) restore(ctx context.Context, start starter, t templated) (vmm.Machine, error) {
	dir := ""
	if t.key != "" {
		dir = t.store.Find(t.key)
	}
	if dir == "" {
		return nil, nil
	}
	err := s.step(ctx, "template", func(ctx context.Context) error {
		// It takes far less than a boot, also on a busy host; what takes this long is given up for one.
		ctx, cancel := context.WithTimeout(ctx, s.runtime.Timeouts.Boot/2)
		defer cancel()
		cfg := t.vm
		cfg.Template, cfg.MemoryCopier = dir, template.Copier(s.cfg.Self)
		if err := s.step(ctx, "template restored", func(ctx context.Context) (err error) {
			s.vm, err = start(ctx, cfg)
			return err
		}); err != nil {
			return err
		}
		if err := s.step(ctx, "first answer", s.firstAnswer); err != nil {
			return err
		}
		return s.step(ctx, "clock and random numbers", s.makeUnique)
	})
	if err == nil {
		s.ready, s.restored = time.Now(), true
		return s.vm, nil
	}
	// A guest that does not answer is the template's fault, and so is what the monitor says of it; a network card or a limit is the pod's.
	broken := (*qemu.TemplateError)(nil)
	faulty := (s.vm != nil || errors.As(err, &broken)) && s.outOfMemory() == nil
	if err := s.undoRestore(ctx); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, err
	}
	s.log.Warn("the virtual machine cannot start from its template, and boots", "sandbox", s.cfg.ID, "template", t.key, "error", err)
	if _, gone := os.Lstat(dir); !faulty || errors.Is(gone, fs.ErrNotExist) { // one that was removed meanwhile was not bad
		return nil, nil
	}
	if err := t.store.Failed(t.key, err); err != nil {
		s.log.Warn("removing a template that does not work", "sandbox", s.cfg.ID, "error", err)
	}
	return nil, nil
}

// FromTemplate says whether the VM has started from a template.
func (s *Sandbox) FromTemplate() bool { return s.restored }

// undoRestore ends what was started from a template, and makes anew what served the first VM and serves no other: the shared directory, whose
// server ends with it, and the back ends of its cards.
func (s *Sandbox) undoRestore(ctx context.Context) error {
	if s.agent != nil {
		s.agent.Close()
		s.agent = nil
	}
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), downTimeout)
	defer cancel()
	if s.vm != nil {
		now, cancel := context.WithCancel(clean)
		cancel()
		if err := s.vm.Stop(now); err != nil {
			return err
		}
		s.vm = nil
	}
	if s.net != nil {
		for _, i := range s.net.Interfaces() {
			if err := i.RenewVhosts(); err != nil {
				return err
			}
		}
	}
	if s.share == nil {
		return nil
	}
	if err := s.share.Close(clean); err != nil {
		return err
	}
	s.share = nil
	return s.startShare(ctx)
}

// makeUnique gives a guest that began as the copy of another what is its own. Nothing else is asked of it before.
func (s *Sandbox) makeUnique(ctx context.Context) error {
	seed := make([]byte, seedSize)
	if _, err := rand.Read(seed); err != nil {
		return err
	}
	if err := s.call(ctx, "giving the guest random numbers of its own", func(c context.Context) error {
		_, err := s.agent.ReseedRandomDev(c, &pb.ReseedRandomDevRequest{Data: seed})
		return err
	}); err != nil {
		return err
	}
	return s.call(ctx, "setting the guest's clock", func(c context.Context) error {
		now := time.Now()
		_, err := s.agent.SetGuestDateTime(c, &pb.SetGuestDateTimeRequest{Sec: now.Unix(), Usec: int64(now.Nanosecond() / 1000)})
		return err
	})
}

// firstAnswer connects to the agent and waits for it.
func (s *Sandbox) firstAnswer(ctx context.Context) error {
	conn, err := s.vm.Dial(ctx, agent.PortAgent)
	if err != nil {
		return fmt.Errorf("connecting to the guest's agent: %w", err)
	}
	s.agent = agent.New(conn, s.gone, s.interceptors()...)
	return s.agent.Call(ctx, 0, "waiting for the guest", func(c context.Context) error {
		_, err := s.agent.Health.Check(c, &pb.CheckRequest{})
		return err
	})
}

// Template is the key of the template that fits this sandbox, and when its making, which this sandbox may have begun, has ended. The key is
// empty where there can be none.
func (s *Sandbox) Template() (key string, made <-chan struct{}) {
	return s.templated.key, s.templated.made
}

// makeTemplate lets a template be made for the pods that come, when there is none.
func (s *Sandbox) makeTemplate() {
	t := &s.templated
	if t.key == "" {
		return
	}
	var err error
	if t.made, err = t.store.Begin(s.cfg.Self, t.key, t.vm); err != nil {
		s.log.Warn("no template of this sandbox's virtual machine is made", "sandbox", s.cfg.ID, "error", err)
	}
}
