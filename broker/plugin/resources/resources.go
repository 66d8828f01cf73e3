// Package resources is the plugin that serves secrets (kbs-protocol.md section 6.1) from one of several back ends.
//
// Beyond upstream: GET ?version=N reads one version, GET ?versions tells the numbers, times and sizes of all of them, and
// POST ?rotate=SIZE lets the broker make a new random secret. They need a back end that can do it. The query is there for
// the resource policy to decide about, as it always is.
package resources

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/cloister/cloister/broker/plugin"
	"github.com/cloister/cloister/broker/resource"
	"github.com/cloister/cloister/broker/resource/aws"
	"github.com/cloister/cloister/broker/resource/azure"
	"github.com/cloister/cloister/broker/resource/directory"
	"github.com/cloister/cloister/broker/resource/gcp"
	"github.com/cloister/cloister/broker/resource/mapping"
	"github.com/cloister/cloister/broker/resource/pkcs11"
	"github.com/cloister/cloister/broker/resource/vault"
	"github.com/cloister/cloister/broker/span"
)

// Name selects the plugin.
const Name = "resource"

// Backend keeps secrets. A missing one is an error that wraps store.ErrNotFound.
type Backend interface {
	Get(ctx context.Context, p resource.Path) ([]byte, error)
	Put(ctx context.Context, p resource.Path, secret []byte) error
	Delete(ctx context.Context, p resource.Path) error
}

// versioned is a Backend that knows versions; 0 is the newest.
type versioned interface {
	GetVersion(ctx context.Context, p resource.Path, number uint64) ([]byte, resource.Version, error)
	Versions(ctx context.Context, p resource.Path) ([]resource.Version, error)
}

// writer is a Backend that tells the version it made.
type writer interface {
	PutVersion(ctx context.Context, p resource.Path, secret []byte) (resource.Version, error)
	Rotate(ctx context.Context, p resource.Path, size int) (resource.Version, error)
}

type lister interface {
	List(ctx context.Context, prefix, after string, limit int) ([]resource.Info, error)
}

type counter interface {
	Count(ctx context.Context) (int, error)
}

// ErrUnsupported is returned for what the back end in use cannot do.
var ErrUnsupported = fmt.Errorf("the back end in use for resources cannot do this: %w", plugin.ErrRequest)

// The back ends of Config.
const (
	Embedded  = "embedded"
	Vault     = "vault"
	Directory = "directory"
	AWS       = "aws"
	Azure     = "azure"
	GCP       = "gcp"
	PKCS11    = "pkcs11"
)

// Config selects a back end; of the tables only that of the one in use counts.
type Config struct {
	Backend   string           `toml:"backend"`
	Embedded  resource.Config  `toml:"embedded"`
	Vault     vault.Config     `toml:"vault"`
	Directory directory.Config `toml:"directory"`
	AWS       aws.Config       `toml:"aws"`
	Azure     azure.Config     `toml:"azure"`
	GCP       gcp.Config       `toml:"gcp"`
	PKCS11    pkcs11.Config    `toml:"pkcs11"`
}

// DefaultConfig is the embedded store.
func DefaultConfig() Config { return Config{Backend: Embedded, Embedded: resource.DefaultConfig()} }

// Validate reports every fault of the back end in use.
func (c Config) Validate() error {
	var err error
	switch c.Backend {
	case Embedded:
		err = c.Embedded.Validate()
	case Vault:
		err = c.Vault.Validate()
	case Directory:
		err = c.Directory.Validate()
	case AWS:
		err = c.AWS.Validate()
	case Azure:
		err = c.Azure.Validate()
	case GCP:
		err = c.GCP.Validate()
	case PKCS11:
		if err = c.PKCS11.Validate(); err == nil && c.PKCS11.Module == "" {
			err = errors.New("module is empty")
		}
	default:
		return fmt.Errorf("backend is %.32q, want %s, %s, %s, %s, %s, %s or %s", c.Backend, Embedded, Vault, Directory, AWS, Azure, GCP, PKCS11)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", c.Backend, err)
	}
	return nil
}

// Insecure lists the insecure switches that are on.
func (c Config) Insecure() []string {
	switch c.Backend {
	case Vault:
		return c.Vault.Insecure()
	case AWS:
		return c.AWS.Insecure()
	case Azure:
		return c.Azure.Insecure()
	case GCP:
		return c.GCP.Insecure()
	}
	return nil
}

// Open makes the back end of a configuration; embedded makes the embedded store when it is the one.
func Open(ctx context.Context, c Config, log *slog.Logger, embedded func(resource.Config) (*resource.Store, error)) (Backend, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	switch c.Backend {
	case Vault:
		b, err := vault.New(c.Vault)
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		return b, b.Check(ctx)
	case Directory:
		return directory.New(c.Directory)
	case AWS:
		return aws.New(c.AWS, time.Now)
	case Azure:
		return azure.New(c.Azure, time.Now)
	case GCP:
		return gcp.New(c.GCP, time.Now)
	case PKCS11:
		return pkcs11.New(ctx, c.PKCS11, log)
	}
	return embedded(c.Embedded)
}

// Plugin serves a Backend.
type Plugin struct{ backend Backend }

// Close lets go of the back end.
func (p *Plugin) Close() error {
	if c, ok := p.backend.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// New makes a Plugin.
func New(b Backend) *Plugin { return &Plugin{b} }

// Name is part of plugin.Plugin.
func (*Plugin) Name() string { return Name }

const (
	queryVersion  = "version"
	queryVersions = "versions"
	queryRotate   = "rotate"
)

// NeedsAdmin is part of plugin.Plugin. It refuses bad paths before anybody is asked anything.
func (*Plugin) NeedsAdmin(_ context.Context, r *plugin.Request) (bool, error) {
	if _, err := resource.ParsePath(r.Path); err != nil {
		return false, err
	}
	switch r.Method {
	case http.MethodGet:
		_, err := wantedVersion(r)
		return false, err
	case http.MethodPost, http.MethodDelete:
		return true, nil
	}
	return false, fmt.Errorf("%.16s is not a thing to do with a resource, GET, POST and DELETE are: %w", r.Method, plugin.ErrRequest)
}

// NeedsEncryption is part of plugin.Plugin.
func (*Plugin) NeedsEncryption(context.Context, *plugin.Request) (bool, error) { return true, nil }

// wantedVersion is 0 for the newest.
func wantedVersion(r *plugin.Request) (uint64, error) {
	text, ok := r.Query[queryVersion]
	if !ok {
		return 0, nil
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("version is %.32q, want a number from 1: %w", text, plugin.ErrRequest)
	}
	return n, nil
}

// Handle is part of plugin.Plugin.
func (p *Plugin) Handle(ctx context.Context, r *plugin.Request) (*plugin.Response, error) {
	path, err := resource.ParsePath(r.Path)
	if err != nil {
		return nil, err
	}
	switch r.Method {
	case http.MethodGet:
		return stored(ctx, "get", func(ctx context.Context) (*plugin.Response, error) { return p.get(ctx, r, path) })
	case http.MethodPost:
		return stored(ctx, "put", func(ctx context.Context) (*plugin.Response, error) { return p.post(ctx, r, path) })
	case http.MethodDelete:
		return stored(ctx, "delete", func(ctx context.Context) (*plugin.Response, error) {
			return &plugin.Response{}, p.backend.Delete(ctx, path)
		})
	}
	return nil, fmt.Errorf("method %.16s: %w", r.Method, plugin.ErrRequest)
}

// stored marks the time at the back end in a trace.
func stored(ctx context.Context, operation string, do func(context.Context) (*plugin.Response, error)) (*plugin.Response, error) {
	ctx, end := span.Start(ctx, span.Store, span.Operation(operation))
	r, err := do(ctx)
	end(err)
	return r, err
}

func (p *Plugin) get(ctx context.Context, r *plugin.Request, path resource.Path) (*plugin.Response, error) {
	number, err := wantedVersion(r)
	if err != nil {
		return nil, err
	}
	b, versions := p.backend.(versioned)
	_, metadata := r.Query[queryVersions]
	if !versions {
		if metadata || number != 0 {
			return nil, ErrUnsupported
		}
		secret, err := p.backend.Get(ctx, path)
		return &plugin.Response{Body: secret}, err
	}
	if !metadata {
		secret, v, err := b.GetVersion(ctx, path, number)
		return &plugin.Response{Body: secret, Version: v.Number}, err
	}
	list, err := b.Versions(ctx, path)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(resource.Info{Path: path.String(), Versions: list})
	return &plugin.Response{Body: body}, err
}

func (p *Plugin) post(ctx context.Context, r *plugin.Request, path resource.Path) (*plugin.Response, error) {
	b, versions := p.backend.(writer)
	text, rotate := r.Query[queryRotate]
	if !rotate {
		if !versions {
			return &plugin.Response{}, p.backend.Put(ctx, path, r.Body)
		}
		v, err := b.PutVersion(ctx, path, r.Body)
		return &plugin.Response{Version: v.Number}, err
	}
	if !versions {
		return nil, ErrUnsupported
	}
	size := 0
	if text != "" {
		var err error
		if size, err = strconv.Atoi(text); err != nil || size < 1 || size > resource.MaxSize {
			return nil, fmt.Errorf("rotate is %.32q, want a number of bytes from 1 to %d, or nothing for that of today: %w",
				text, resource.MaxSize, plugin.ErrRequest)
		}
	}
	if len(r.Body) > 0 {
		return nil, fmt.Errorf("rotate takes no body, this one has %d bytes: %w", len(r.Body), plugin.ErrRequest)
	}
	v, err := b.Rotate(ctx, path, size)
	if errors.Is(err, resource.ErrNoSize) {
		return nil, fmt.Errorf("%w: %w", err, plugin.ErrRequest)
	}
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(v)
	return &plugin.Response{Body: body, Version: v.Number}, err
}

// List tells names and versions for an administrator; see resource.Store.List.
func (p *Plugin) List(ctx context.Context, prefix, after string, limit int) ([]resource.Info, error) {
	if b, ok := p.backend.(lister); ok {
		list, err := b.List(ctx, prefix, after, limit)
		return list, unsupported(err)
	}
	return nil, ErrUnsupported
}

// Put stores a secret for an administrator who was admitted elsewhere.
func (p *Plugin) Put(ctx context.Context, path resource.Path, secret []byte) error {
	return p.backend.Put(ctx, path, secret)
}

// Delete removes a secret for an administrator who was admitted elsewhere.
func (p *Plugin) Delete(ctx context.Context, path resource.Path) error {
	return p.backend.Delete(ctx, path)
}

// Count tells how many resources there are, or returns an error that wraps ErrUnsupported.
func (p *Plugin) Count(ctx context.Context) (int, error) {
	if b, ok := p.backend.(counter); ok {
		n, err := b.Count(ctx)
		return n, unsupported(err)
	}
	return 0, ErrUnsupported
}

// unsupported says it in this package's words when a back end cannot do something the way it is configured.
func unsupported(err error) error {
	if errors.Is(err, mapping.ErrUnsupported) {
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	return err
}

// Unsupported reports whether an error means that the back end in use cannot do something.
func Unsupported(err error) bool { return errors.Is(err, ErrUnsupported) }
