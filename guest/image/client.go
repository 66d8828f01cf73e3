package image

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"sync"
)

// KeyProvider fetches secrets by URI (kbs:///..., kbs+plugin:///...). Its errors are shown to the user: they say
// why a broker refused.
type KeyProvider interface {
	Resource(ctx context.Context, uri string) ([]byte, error)
}

// Config is the [image] table of the data hub's configuration, and what the guest adds to it.
// URIs are kbs:///..., kbs+plugin:///..., file:///... or a bare path; where both a URI and an inline text are given,
// the URI counts (for the registry configuration, the inline table).
type Config struct {
	WorkDir             string `toml:"work_dir"`
	MaxConcurrentLayers int    `toml:"max_concurrent_layer_downloads_per_image"`

	SecurityPolicyURI string `toml:"image_security_policy_uri"`
	SecurityPolicy    string `toml:"image_security_policy"`
	SigstoreConfigURI string `toml:"sigstore_config_uri"`
	SigstoreConfig    string `toml:"sigstore_config"`
	CredentialsURI    string `toml:"authenticated_registry_credentials_uri"`
	RegistryConfigURI string `toml:"registry_configuration_uri"`

	RegistryConfig *RegistryConfig `toml:"registry_config"`
	Proxy          ProxyConfig     `toml:"image_pull_proxy"`
	ExtraRoots     []string        `toml:"extra_root_certificates"`
	Limits         Limits          `toml:"limits"`

	Architecture string            `toml:"-"` // default: this machine's
	Logger       *slog.Logger      `toml:"-"` // default: none
	Mounter      Mounter           `toml:"-"` // default: Overlay
	Transport    http.RoundTripper `toml:"-"` // default: from Proxy and ExtraRoots
}

const (
	defaultWorkDir    = "/run/kata-containers/image"
	defaultConcurrent = 3
	maxConcurrent     = 16
)

// Client pulls images. Pulls run one after the other; a pull's layers run beside each other.
type Client struct {
	cfg       Config
	log       *slog.Logger
	mounter   Mounter
	transport http.RoundTripper
	store     *store
	resources *resources

	pulling chan struct{} // holds a token while a pull runs

	mu      sync.Mutex
	bundles map[string]*bundle
}

// New makes a client and the work directory. Nothing is fetched before the first pull.
func New(cfg Config, keys KeyProvider) (*Client, error) {
	if cfg.WorkDir == "" {
		cfg.WorkDir = defaultWorkDir
	}
	if cfg.MaxConcurrentLayers <= 0 {
		cfg.MaxConcurrentLayers = defaultConcurrent
	}
	cfg.MaxConcurrentLayers = min(cfg.MaxConcurrentLayers, maxConcurrent)
	if cfg.Architecture == "" {
		cfg.Architecture = runtime.GOARCH
	}
	c := &Client{cfg: cfg, log: cfg.Logger, mounter: cfg.Mounter, transport: cfg.Transport,
		resources: newResources(keys), pulling: make(chan struct{}, 1), bundles: map[string]*bundle{}}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if c.mounter == nil {
		c.mounter = Overlay{}
	}
	if cfg.RegistryConfig != nil {
		if err := cfg.RegistryConfig.validate(); err != nil {
			return nil, fmt.Errorf("image client: %w", err)
		}
	}
	if c.transport == nil {
		t, err := newTransport(cfg.Proxy, cfg.ExtraRoots)
		if err != nil {
			return nil, fmt.Errorf("image client: %w", err)
		}
		c.transport = t
	}
	if err := os.MkdirAll(cfg.WorkDir, 0o700); err != nil {
		return nil, fmt.Errorf("image client: %w", err)
	}
	var err error
	if c.store, err = newStore(cfg.WorkDir); err != nil {
		return nil, fmt.Errorf("image client: %w", err)
	}
	return c, nil
}

// PullImage pulls the image, checks it against the policy and mounts its root file system at <bundlePath>/rootfs,
// with the image's defaults for the process in <bundlePath>/config.json. It returns the digest of the image's
// manifest (of this platform's manifest, for an index). After an error nothing is mounted.
func (c *Client) PullImage(ctx context.Context, ref, bundlePath string) (manifestDigest string, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("pulling image %s: %w", truncate(ref, 300), err)
			c.log.Warn("image refused or not pulled", "image", truncate(ref, 300), "error", err)
		}
	}()
	parsed, err := ParseReference(ref)
	if err != nil {
		return "", err
	}
	select {
	case c.pulling <- struct{}{}:
		defer func() { <-c.pulling }()
	case <-ctx.Done():
		return "", ctx.Err()
	}
	bundlePath = filepath.Clean(bundlePath)
	if c.hasBundle(bundlePath) {
		return "", fmt.Errorf("%s already has a root file system", bundlePath)
	}
	settings, err := c.settings(ctx)
	if err != nil {
		return "", err
	}
	sources, err := settings.registries.sources(parsed)
	if err != nil {
		return "", err
	}
	var errs []error
	for _, src := range sources {
		d, err := c.pullFrom(ctx, settings, src, bundlePath)
		if err == nil {
			return d, nil
		}
		if ctx.Err() != nil || len(sources) == 1 {
			return "", err
		}
		errs = append(errs, fmt.Errorf("from %s: %w", src.ref.Name(), err))
	}
	return "", fmt.Errorf("failed from all mirror, mapping and original locations: %w", errors.Join(errs...))
}

// settings are what a pull needs of the resources named in the configuration.
type settings struct {
	policy      *policy // nil: none configured
	registries  *RegistryConfig
	credentials credentials
	sigstore    *sigstoreConfig
}

// settings fetches what the configuration names by URI. What was fetched once is kept; a failure is tried again with
// the next pull. Whatever is configured and cannot be had fails the pull.
func (c *Client) settings(ctx context.Context) (*settings, error) {
	s := &settings{registries: c.cfg.RegistryConfig}
	text, err := c.resources.text(ctx, c.cfg.SecurityPolicyURI, c.cfg.SecurityPolicy)
	if err != nil {
		return nil, fmt.Errorf("image security policy: %w", err)
	}
	if text != nil {
		if s.policy, err = parsePolicy(text); err != nil {
			return nil, fmt.Errorf("image security policy: %w", err)
		}
	}
	if text, err = c.resources.text(ctx, c.cfg.CredentialsURI, ""); err != nil {
		return nil, fmt.Errorf("registry credentials: %w", err)
	} else if text != nil {
		if s.credentials, err = parseCredentials(text); err != nil {
			return nil, fmt.Errorf("registry credentials: %w", err)
		}
	}
	if s.registries == nil {
		if text, err = c.resources.text(ctx, c.cfg.RegistryConfigURI, ""); err != nil {
			return nil, fmt.Errorf("registry configuration: %w", err)
		} else if text != nil {
			if s.registries, err = parseRegistryConfig(text); err != nil {
				return nil, err
			}
		}
	}
	if text, err = c.resources.text(ctx, c.cfg.SigstoreConfigURI, c.cfg.SigstoreConfig); err != nil {
		return nil, fmt.Errorf("sigstore configuration: %w", err)
	} else if text != nil {
		if s.sigstore, err = parseSigstoreConfig(text); err != nil {
			return nil, err
		}
	}
	return s, nil
}
