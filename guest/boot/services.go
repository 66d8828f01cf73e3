package boot

import (
	"context"

	"github.com/cloister/cloister/guest/agent"
)

// services are the guest's attestation and secret services.
type services struct {
	images  agent.ImagePuller
	secrets agent.Secrets
	run     func(context.Context) error
}

// startServices starts what the initdata configures.
func (m *machine) startServices(ctx context.Context) error {
	m.hub = &services{}
	return nil
}

func (s *services) configure(cfg *agent.Config) {
	cfg.Images, cfg.Secrets = s.images, s.secrets
}

func (s *services) wait(ctx context.Context) error {
	if s.run == nil {
		<-ctx.Done()
		return nil
	}
	return s.run(ctx)
}
