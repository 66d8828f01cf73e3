package hub

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/ttrpc"
	"golang.org/x/sync/errgroup"
)

// Where the services are found when the configuration does not say otherwise.
const (
	DefaultAASocket  = "/run/confidential-containers/attestation-agent/attestation-agent.sock"
	DefaultCDHSocket = "/run/confidential-containers/cdh.sock"
	DefaultREST      = "127.0.0.1:8006"

	// PortREST is the port of DefaultREST.
	PortREST uint16 = 8006
)

const shutdownTimeout = 5 * time.Second

// Listeners are the open sockets of a hub.
type Listeners struct {
	AA, CDH net.Listener
	REST    net.Listener // nil when the REST API is off
}

// Listen opens the sockets that the configuration names. Callers that connect
// afterwards are served when Serve runs.
func (h *Hub) Listen() (*Listeners, error) {
	aaPath, err := socketPath(h.cfg.CDH.AA.Socket, DefaultAASocket)
	if err != nil {
		return nil, err
	}
	cdhPath, err := socketPath(h.cfg.CDH.Socket, DefaultCDHSocket)
	if err != nil {
		return nil, err
	}
	l := new(Listeners)
	if l.AA, err = listenUnix(aaPath); err != nil {
		return nil, fmt.Errorf("attestation agent: %w", err)
	}
	if l.CDH, err = listenUnix(cdhPath); err != nil {
		return nil, errors.Join(fmt.Errorf("data hub: %w", err), l.Close())
	}
	if h.rest != FeatureNone {
		if l.REST, err = net.Listen("tcp", DefaultREST); err != nil {
			return nil, errors.Join(fmt.Errorf("REST API: %w", err), l.Close())
		}
	}
	return l, nil
}

// Close closes what is open.
func (l *Listeners) Close() error {
	var errs []error
	for _, x := range []net.Listener{l.AA, l.CDH, l.REST} {
		if x != nil {
			errs = append(errs, x.Close())
		}
	}
	return errors.Join(errs...)
}

func listenUnix(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	// A socket left by an earlier run would refuse connections and the bind.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// Serve answers on the listeners until ctx ends, which is not an error, or one
// of them fails.
func (h *Hub) Serve(ctx context.Context, l *Listeners) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return serveTTRPC(ctx, l.AA, "attestation agent", h.agent.Register) })
	g.Go(func() error { return serveTTRPC(ctx, l.CDH, "data hub", h.Register) })
	if l.REST != nil {
		g.Go(func() error { return h.serveREST(ctx, l.REST) })
	}
	return g.Wait()
}

func serveTTRPC(ctx context.Context, l net.Listener, name string, register func(*ttrpc.Server)) error {
	s, err := ttrpc.NewServer()
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	register(s)
	stop := context.AfterFunc(ctx, func() {
		_ = s.Close() // Serve reports
		_ = l.Close() // in case Serve has not taken it yet
	})
	defer stop()
	if err := s.Serve(ctx, l); err != nil && !errors.Is(err, ttrpc.ErrServerClosed) && ctx.Err() == nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func (h *Hub) serveREST(ctx context.Context, l net.Listener) error {
	s := &http.Server{
		Handler:           h.Handler(),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      rpcTimeout + 10*time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(slog.NewTextHandler(io.Discard, nil), slog.LevelDebug),
	}
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		if s.Shutdown(bounded) != nil {
			_ = s.Close() // nothing left to wait for
		}
	})
	err := s.Serve(l)
	if !stop() {
		<-done
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("REST API: %w", err)
}
