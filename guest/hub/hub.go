package hub

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/cloister/cloister/wire/kbs"
)

// broker fetches resources; guest/attest's KBS client is one.
type broker interface {
	Resource(ctx context.Context, uri kbs.ResourceURI) ([]byte, error)
}

// Hub opens secrets.
type Hub struct {
	cfg    DataHubConfig
	broker broker
	log    *slog.Logger
}

// ErrNoBroker means that the initdata names no broker, so that there are no secrets.
var ErrNoBroker = errors.New("the initdata configures no key broker (kbc in cdh.toml)")

// New makes a hub. A nil broker is one without secrets.
func New(cfg DataHubConfig, b broker, log *slog.Logger) *Hub {
	if cfg.SkipSealedVerification {
		log.Warn("INSECURE: signatures of sealed secrets are not verified", "switch", "skip_sealed_secret_verification")
	}
	return &Hub{cfg: cfg, broker: b, log: log}
}

// Resource fetches the resource that a URI names. The error says why the broker refused.
func (h *Hub) Resource(ctx context.Context, uri string) ([]byte, error) {
	u, err := kbs.ParseResourceURI(uri)
	if err != nil {
		return nil, err
	}
	if h.broker == nil {
		return nil, fmt.Errorf("getting %s: %w", u, ErrNoBroker)
	}
	b, err := h.broker.Resource(ctx, u)
	if err != nil {
		return nil, fmt.Errorf("getting %s: %w", u, err)
	}
	return b, nil
}

// FetchCredentials writes the configured credentials to their files. Any failure is an error: the author wanted them.
func (h *Hub) FetchCredentials(ctx context.Context) error {
	for _, c := range h.cfg.Credentials {
		b, err := h.Resource(ctx, c.ResourceURI)
		if err != nil {
			return fmt.Errorf("credential %s: %w", c.Path, err)
		}
		if err := os.MkdirAll(filepath.Dir(c.Path), 0o700); err != nil {
			return fmt.Errorf("credential %s: %w", c.Path, err)
		}
		if err := os.WriteFile(c.Path, b, 0o600); err != nil {
			return fmt.Errorf("credential %s: %w", c.Path, err)
		}
	}
	return nil
}
