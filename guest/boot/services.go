package boot

import (
	"context"
	"encoding/json"
	"errors"
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

// startServices starts what the initdata configures. Nothing is fetched from the broker before it is needed, except
// credentials that the initdata asks for.
func (m *machine) startServices(ctx context.Context) error {
	m.hub = &services{}
	if m.cfg.Components == ComponentsNone {
		return nil
	}
	var data Initdata
	if m.data != nil {
		data = *m.data
	}
	aaConfig, err := hub.ParseAttestation([]byte(data.Data[partAttestation]))
	if err != nil {
		return err
	}
	cdhConfig, err := hub.ParseDataHub([]byte(data.Data[partDataHub]))
	if err != nil {
		return err
	}
	attester, why := m.attester()
	client, err := m.brokerClient(aaConfig, cdhConfig, attester, string(data.Text))
	if err != nil {
		return err
	}
	// A nil pointer in an interface is not nil, so that the interfaces are only set when there is a client.
	var tokens attest.TokenSource
	h := hub.New(cdhConfig, nil, m.log)
	if client != nil {
		tokens = client
		h = hub.New(cdhConfig, client, m.log)
	}
	prover, err := attest.NewAgent(ctx, attester, tokens, aaConfig.EventLog.Enable, attest.DefaultLogDir, aaConfig.EventLog.InitPCR, m.log)
	if err != nil {
		return fmt.Errorf("starting the attestation agent: %w", err)
	}
	prover.Reason = why
	imageConfig := cdhConfig.Image
	imageConfig.Logger = m.log
	images, err := image.New(imageConfig, h)
	if err != nil {
		return err
	}
	pull := &measuredPuller{Client: images, agent: prover}
	if err := h.FetchCredentials(ctx); err != nil {
		return err
	}
	at := hub.DefaultAddresses()
	if m.cfg.Components < ComponentsDataHub {
		at.DataHub = ""
	}
	if m.cfg.Components < ComponentsREST {
		at.REST = ""
	}
	server, err := h.Listen(at, hub.Parts{Agent: prover.Service(), Images: pull, Features: hub.Features(m.cfg.RESTFeatures), Version: m.version})
	if err != nil {
		return err
	}
	m.hub = &services{images: pull, secrets: h, run: server.Serve}
	return nil
}

// attester is the platform's, or nil with the reason why there is none.
func (m *machine) attester() (attest.Attester, error) {
	if m.tpm == nil {
		return nil, errors.New("this machine has no TPM and no other source of evidence")
	}
	return m.tpm, nil
}

// brokerClient makes the client of the broker that the initdata names, nil when it names none.
func (m *machine) brokerClient(a hub.AttestationConfig, d hub.DataHubConfig, attester attest.Attester, initdata string) (*attest.KBSClient, error) {
	cfg := attest.KBSConfig{URL: d.KBC.URL, RootPEM: d.KBC.Cert, InitData: initdata, Log: m.log}
	if k := a.TokenConfigs.KBS; k != nil {
		// aa.toml speaks of how to attest; cdh.toml may leave it to that.
		cfg.KeyAlg = k.KeyAlgorithm
		if cfg.URL == "" {
			cfg.URL, cfg.RootPEM = k.URL, k.Cert
		} else if cfg.URL != k.URL {
			return nil, fmt.Errorf("aa.toml names the broker %q and cdh.toml %q; one guest attests to one broker", k.URL, cfg.URL)
		}
	}
	if cfg.URL == "" {
		return nil, nil
	}
	if attester == nil {
		return nil, errors.New("the initdata names a broker, but this machine cannot attest: there is no TPM")
	}
	client, err := attest.NewKBSClient(cfg, attester)
	if err != nil {
		return nil, fmt.Errorf("broker of the initdata: %w", err)
	}
	return client, nil
}

// measuredPuller records each pulled image in the run-time measurement, when the initdata turns the event log on.
type measuredPuller struct {
	*image.Client
	agent *attest.Agent
}

// PullImage pulls and then measures; what cannot be measured is not used.
func (p *measuredPuller) PullImage(ctx context.Context, ref, bundle string) (string, error) {
	digest, err := p.Client.PullImage(ctx, ref, bundle)
	if err != nil || p.agent.EventLog == nil {
		return digest, err
	}
	content, err := json.Marshal(struct {
		Digest string `json:"digest"`
		Image  string `json:"image"`
	}{digest, ref})
	if err == nil {
		err = p.agent.Measure(ctx, "github.com/confidential-containers", "PullImage", string(content), nil)
	}
	if err != nil {
		return "", errors.Join(fmt.Errorf("measuring the pull of %s: %w", ref, err), p.Release(bundle))
	}
	return digest, nil
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
