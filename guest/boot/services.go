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
	run     func(context.Context) error
}

// hubPuller pulls through the hub, which measures what it pulls, and releases through the image client.
type hubPuller struct {
	*hub.Hub
	images *image.Client
}

func (p hubPuller) Release(bundle string) error { return p.images.Release(bundle) }

// startServices starts what the initdata configures. Nothing is fetched from the broker before it is needed, except
// the credentials that the initdata asks for.
func (m *machine) startServices(ctx context.Context) error {
	m.hub = &services{}
	if m.cfg.Components == ComponentsNone {
		return nil
	}
	var data Initdata
	if m.data != nil {
		data = *m.data
	}
	cfg, err := hub.ParseConfig(data.Data[partAttestation], data.Data[partDataHub])
	if err != nil {
		return err
	}
	var broker hub.Broker
	var tokens attest.TokenSource
	if kbs, ok := cfg.Broker(string(data.Text), m.log); ok {
		if m.prover == nil {
			return fmt.Errorf("the initdata names a broker, but this machine cannot attest: %w", m.noProof)
		}
		client, err := attest.NewKBSClient(kbs, m.prover)
		if err != nil {
			return fmt.Errorf("broker of the initdata: %w", err)
		}
		broker, tokens = client, client
	}
	events := cfg.AA.EventLog
	prover, err := attest.NewAgent(ctx, m.prover, tokens, events.Enable, attest.DefaultLogDir, events.InitPCR, m.log)
	if err != nil {
		return fmt.Errorf("starting the attestation agent: %w", err)
	}
	prover.Reason = m.noProof
	imageConfig := cfg.CDH.Image
	imageConfig.Logger = m.log
	images, err := image.New(imageConfig, hub.Resources{Broker: broker})
	if err != nil {
		return err
	}
	rest := hub.FeatureNone
	if m.cfg.Components >= ComponentsREST {
		if rest, err = hub.ParseFeature(m.cfg.RESTFeatures); err != nil {
			return err
		}
	}
	h, err := hub.New(cfg, hub.Options{Broker: broker, Images: images, Agent: prover, REST: rest, Version: m.version, Log: m.log})
	if err != nil {
		return err
	}
	if err := h.FetchCredentials(ctx); err != nil {
		return err
	}
	sockets, err := h.Listen()
	if err != nil {
		return err
	}
	m.hub = &services{images: hubPuller{h, images}, secrets: h, run: func(ctx context.Context) error { return h.Serve(ctx, sockets) }}
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
