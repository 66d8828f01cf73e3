package external

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/cloister/cloister/broker/plugin"
	"github.com/cloister/cloister/broker/store"
	wire "github.com/cloister/cloister/wire/plugin"
)

// Name selects the plugin.
const Name = "external"

// Plugin passes requests on.
type Plugin struct{ backends map[string]*remote }

type remote struct {
	conn    *grpc.ClientConn
	client  wire.KbsPluginClient
	timeout time.Duration
}

// New connects to every back end. Those that are not there yet are waited for, for 30 s.
func New(ctx context.Context, c Config) (*Plugin, error) {
	return connect(ctx, c, connectTimeout)
}

func connect(ctx context.Context, c Config, patience time.Duration) (*Plugin, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	p := &Plugin{backends: map[string]*remote{}}
	var (
		mu   sync.Mutex
		errs []error
		wg   sync.WaitGroup
	)
	for _, b := range c.Backends {
		wg.Go(func() {
			conn, err := open(ctx, b)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, fmt.Errorf("backend %s: %w", b.Name, err))
				return
			}
			p.backends[b.Name] = &remote{conn: conn, client: wire.NewKbsPluginClient(conn), timeout: b.timeout()}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// Close ends the connections.
func (p *Plugin) Close() error {
	var errs []error
	for _, b := range p.backends {
		errs = append(errs, b.conn.Close())
	}
	return errors.Join(errs...)
}

// Name is part of plugin.Plugin.
func (*Plugin) Name() string { return Name }

// route finds the back end of a request and the path it gets.
func (p *Plugin) route(r *plugin.Request) (*remote, []string, error) {
	if len(r.Path) == 0 {
		return nil, nil, fmt.Errorf("the path names no back end: %w", plugin.ErrRequest)
	}
	b, ok := p.backends[r.Path[0]]
	if !ok {
		return nil, nil, fmt.Errorf("there is no back end %.64q: %w", r.Path[0], store.ErrNotFound)
	}
	return b, r.Path[1:], nil
}

// NeedsAdmin is part of plugin.Plugin.
func (p *Plugin) NeedsAdmin(ctx context.Context, r *plugin.Request) (bool, error) {
	b, path, err := p.route(r)
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, b.timeout)
	defer cancel()
	answer, err := b.client.ValidateAuth(ctx, &wire.ValidateAuthRequest{Body: r.Body, Query: r.Query, Path: path, Method: r.Method})
	if err != nil {
		return false, failure(r, "ValidateAuth", err)
	}
	return answer.RequiresAdminAuth, nil
}

// Handle is part of plugin.Plugin.
func (p *Plugin) Handle(ctx context.Context, r *plugin.Request) (*plugin.Response, error) {
	b, path, err := p.route(r)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, b.timeout)
	defer cancel()
	answer, err := b.client.Handle(ctx, &wire.PluginRequest{Body: r.Body, Query: r.Query, Path: path, Method: r.Method})
	if err != nil {
		return nil, failure(r, "Handle", err)
	}
	if code := answer.StatusCode; code != 0 && (code < 200 || code > 299) {
		// The body may say why and may hold anything: it is not passed on.
		return nil, fmt.Errorf("back end %s answers with status %d, want 0 or 200 to 299", r.Path[0], code)
	}
	return &plugin.Response{Body: answer.Body}, nil
}

// NeedsEncryption is part of plugin.Plugin.
func (p *Plugin) NeedsEncryption(ctx context.Context, r *plugin.Request) (bool, error) {
	b, path, err := p.route(r)
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, b.timeout)
	defer cancel()
	answer, err := b.client.NeedsEncryption(ctx, &wire.NeedsEncryptionRequest{Body: r.Body, Query: r.Query, Path: path, Method: r.Method})
	if err != nil {
		return false, failure(r, "NeedsEncryption", err)
	}
	return answer.RequiresPayloadEncryption, nil
}

// failure names the back end, the call and the code of a failed call, but not its text.
func failure(r *plugin.Request, call string, err error) error {
	return fmt.Errorf("back end %s: %s fails with %s", r.Path[0], call, status.Code(err))
}
