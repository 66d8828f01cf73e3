// Package hub is the Confidential Data Hub of the guest: it hands out what the
// broker released, and nothing else. It fetches resources, opens sealed
// secrets, unwraps image keys and pulls images, for the agent through Go calls
// and for others in the guest over ttrpc; containers reach resources, tokens
// and evidence over HTTP on the loopback interface.
//
// Causes of failures go to the guest's log. Over an API a caller gets a brief
// text, and the broker's explanation where it was the broker who refused.
package hub

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/cloister/cloister/guest/attest"
	"github.com/cloister/cloister/wire/kbs"
)

// rpcTimeout bounds one request to the hub, as upstream's callers do.
const rpcTimeout = 50 * time.Second

// Broker fetches resources; *attest.KBSClient is one.
type Broker interface {
	Resource(ctx context.Context, uri kbs.ResourceURI) ([]byte, error)
}

// ImagePuller pulls an image and mounts it below bundlePath.
type ImagePuller interface {
	PullImage(ctx context.Context, ref, bundlePath string) (digest string, err error)
}

// ErrNoBroker means that the initdata names no broker, so there are no secrets.
var ErrNoBroker = errors.New("no key broker is configured in the initdata (kbc.url in cdh.toml)")

// Resources fetches resources by the text of their URI.
type Resources struct {
	// Broker is nil when none is configured.
	Broker Broker
}

// Resource fetches kbs:///<path> or kbs+<plugin>:///<path>.
func (r Resources) Resource(ctx context.Context, uri string) ([]byte, error) {
	u, err := kbs.ParseResourceURI(uri)
	if err != nil {
		return nil, err
	}
	if r.Broker == nil {
		return nil, fmt.Errorf("fetching %s: %w", u, ErrNoBroker)
	}
	return r.Broker.Resource(ctx, u)
}

// Options is what a Hub works with.
type Options struct {
	// Broker is nil when the initdata names none.
	Broker Broker
	// Images is nil when images are not pulled in this guest.
	Images ImagePuller
	// Agent is the Attestation Agent.
	Agent *attest.Agent
	// REST says what containers may ask for; the zero value serves no REST API.
	REST Feature
	// Version is shown by the REST API.
	Version string
	Log     *slog.Logger
}

// Hub is the Confidential Data Hub. It is safe for concurrent use.
type Hub struct {
	Resources

	cfg     Config
	images  ImagePuller
	agent   *attest.Agent
	rest    Feature
	version string
	log     *slog.Logger

	pullMu sync.Mutex
	pulls  map[string]bool // contents of the events already measured
}

// New makes a hub. Nothing is fetched or served yet.
func New(cfg *Config, o Options) (*Hub, error) {
	if o.Agent == nil {
		return nil, errors.New("data hub: no attestation agent")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.CDH.SkipVerification {
		o.Log.Warn("insecure: sealed secrets are opened without checking who sealed them (skip_sealed_secret_verification)")
	}
	return &Hub{
		Resources: Resources{o.Broker}, cfg: *cfg, images: o.Images, agent: o.Agent,
		rest: o.REST, version: o.Version, log: o.Log,
	}, nil
}

// FetchCredentials writes the configured credentials to their files.
func (h *Hub) FetchCredentials(ctx context.Context) error {
	return h.fetchCredentials(ctx, "/")
}

// fetchCredentials is FetchCredentials below another root, for tests.
func (h *Hub) fetchCredentials(ctx context.Context, root string) error {
	for _, c := range h.cfg.CDH.Credentials {
		b, err := h.Resource(ctx, c.URI)
		if err != nil {
			return fmt.Errorf("credential %s: %w", c.Path, err)
		}
		file := filepath.Join(root, c.Path)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			return fmt.Errorf("credential %s: %w", c.Path, err)
		}
		if err := os.WriteFile(file, b, 0o600); err != nil {
			return fmt.Errorf("credential %s: %w", c.Path, err)
		}
	}
	return nil
}

// PullImage pulls an image and measures that it was pulled, once: a container
// that restarts for months must not fill the log. Where events are
// not recorded there is nothing to measure; a measurement that fails fails the
// pull.
func (h *Hub) PullImage(ctx context.Context, ref, bundlePath string) (string, error) {
	if h.images == nil {
		return "", errors.New("pulling images is not configured in this guest")
	}
	digest, err := h.images.PullImage(ctx, ref, bundlePath)
	if err != nil {
		return "", err
	}
	content, err := kbs.Canonical(map[string]string{"image": ref, "digest": digest})
	if err != nil {
		return "", fmt.Errorf("measuring the pull of %s: %w", ref, err)
	}
	if err := h.measurePull(ctx, string(content)); err != nil {
		return "", fmt.Errorf("measuring the pull of %s: %w", ref, err)
	}
	return digest, nil
}

func (h *Hub) measurePull(ctx context.Context, content string) error {
	h.pullMu.Lock()
	defer h.pullMu.Unlock()
	if h.pulls[content] {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err := h.agent.Measure(ctx, attest.Domain, "PullImage", content, nil)
	if errors.Is(err, attest.ErrEventsOff) || errors.Is(err, attest.ErrNoRegisters) {
		return nil
	}
	if err != nil {
		return err
	}
	if h.pulls == nil {
		h.pulls = map[string]bool{}
	}
	h.pulls[content] = true
	return nil
}

// brief is the text of an error for a caller over an API: what failed, and the
// broker's words when there are any.
func brief(what string, err error) string {
	var info *kbs.ErrorInformation
	if errors.As(err, &info) {
		return what + ": " + info.Error()
	}
	return what
}
