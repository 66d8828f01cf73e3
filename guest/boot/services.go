package boot

import (
	"context"
	"fmt"

	"github.com/cloister/cloister/guest/agent"
	"github.com/cloister/cloister/guest/attest"
	"github.com/cloister/cloister/guest/hub"
	"github.com/cloister/cloister/guest/image"
)

// services are the guest's attestation and secret services.
type services struct {
	images  agent.ImagePuller
	secrets agent.Secrets
	keys    agent.Keys
	run     func(context.Context) error
}

// hubPuller pulls through the hub, which measures what it pulls, and releases through the image client.
type hubPuller struct {
	*hub.Hub
	images *image.Client
	load   func(modules ...string) error
}

// PullImage pulls. What mounts layers over each other is loaded with the first image.
func (p hubPuller) PullImage(ctx context.Context, ref, bundle string) (string, error) {
	if err := p.load("overlay"); err != nil {
		return "", err
	}
	return p.Hub.PullImage(ctx, ref, bundle)
}

func (p hubPuller) Release(bundle string) error { return p.images.Release(bundle) }

// startServices starts what the initdata configures. Nothing is fetched from the broker before it is needed, except
// the credentials that the initdata asks for.
func (m *machine) startServices(ctx context.Context) error {
	m.hub = &services{}
	if m.cfg.Components == ComponentsNone {
		return nil
	}
	if m.cfg.Sandboxed {
		// Without initdata they hold nothing that could be wrong, and a pod may never ask for them.
		m.hub = m.laterServices()
		return nil
	}
	var err error
	m.hub, err = m.makeServices(ctx)
	return err
}

// pending are services that start while the guest answers already. Who needs them waits.
type pending struct {
	ready chan struct{}
	s     *services // after ready
	err   error
}

func (m *machine) laterServices() *services {
	p := &pending{ready: make(chan struct{})}
	return &services{images: p, secrets: p, run: func(ctx context.Context) error {
		p.s, p.err = m.makeServices(ctx)
		close(p.ready)
		if p.err != nil {
			return p.err
		}
		return p.s.run(ctx)
	}}
}

func (p *pending) wait(ctx context.Context) error {
	select {
	case <-p.ready:
		return p.err
	case <-ctx.Done():
		return fmt.Errorf("waiting for the data hub: %w", ctx.Err())
	}
}

func (p *pending) PullImage(ctx context.Context, ref, bundle string) (string, error) {
	if err := p.wait(ctx); err != nil {
		return "", err
	}
	return p.s.images.PullImage(ctx, ref, bundle)
}

func (p *pending) Release(bundle string) error {
	if err := p.wait(context.Background()); err != nil {
		return err
	}
	return p.s.images.Release(bundle)
}

func (p *pending) UnsealSecret(ctx context.Context, sealed []byte) ([]byte, error) {
	if err := p.wait(ctx); err != nil {
		return nil, err
	}
	return p.s.secrets.UnsealSecret(ctx, sealed)
}

func (m *machine) makeServices(ctx context.Context) (*services, error) {
	var data Initdata
	if m.data != nil {
		data = *m.data
	}
	cfg, err := hub.ParseConfig(data.Data[partAttestation], data.Data[partDataHub])
	if err != nil {
		return nil, err
	}
	var broker hub.Broker
	var tokens attest.TokenSource
	if kbs, ok := cfg.Broker(string(data.Text), m.log); ok {
		if m.prover == nil {
			return nil, fmt.Errorf("the initdata names a broker, but this machine cannot attest: %w", m.noProof)
		}
		client, err := attest.NewKBSClient(kbs, m.prover)
		if err != nil {
			return nil, fmt.Errorf("broker of the initdata: %w", err)
		}
		broker, tokens = client, client
	}
	events := cfg.AA.EventLog
	prover, err := attest.NewAgent(ctx, m.prover, tokens, events.Enable, attest.DefaultLogDir, events.InitPCR, m.log)
	if err != nil {
		return nil, fmt.Errorf("starting the attestation agent: %w", err)
	}
	prover.Reason = m.noProof
	imageConfig := cfg.CDH.Image
	imageConfig.Logger = m.log
	images, err := image.New(imageConfig, hub.Resources{Broker: broker})
	if err != nil {
		return nil, err
	}
	rest := hub.FeatureNone
	if m.cfg.Components >= ComponentsREST {
		if rest, err = hub.ParseFeature(m.cfg.RESTFeatures); err != nil {
			return nil, err
		}
	}
	h, err := hub.New(cfg, hub.Options{Broker: broker, Images: images, Agent: prover, REST: rest, Version: m.version, Log: m.log})
	if err != nil {
		return nil, err
	}
	if err := h.FetchCredentials(ctx); err != nil {
		return nil, err
	}
	sockets, err := h.Listen()
	if err != nil {
		return nil, err
	}
	keys := hub.Resources{Broker: broker}
	return &services{images: hubPuller{h, images, m.modules.Load}, secrets: h, keys: keys, run: func(ctx context.Context) error { return h.Serve(ctx, sockets) }}, nil
}

func (s *services) configure(cfg *agent.Config) {
	cfg.Images, cfg.Secrets, cfg.Keys = s.images, s.secrets, s.keys
}

func (s *services) wait(ctx context.Context) error {
	if s.run == nil {
		<-ctx.Done()
		return nil
	}
	return s.run(ctx)
}
