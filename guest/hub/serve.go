package hub

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/ttrpc"
	"golang.org/x/sync/errgroup"

	"github.com/cloister/cloister/wire/aa"
	"github.com/cloister/cloister/wire/cdh"
	"github.com/cloister/cloister/wire/keyprovider"
)

// Addresses are where the services listen.
type Addresses struct {
	AttestationAgent string // unix socket
	DataHub          string // unix socket
	REST             string // host:port
}

// DefaultAddresses are the ones that others in a guest expect (guest-api.md section 1).
func DefaultAddresses() Addresses {
	return Addresses{
		AttestationAgent: "/run/confidential-containers/attestation-agent/attestation-agent.sock",
		DataHub:          "/run/confidential-containers/cdh.sock",
		REST:             "127.0.0.1:8006",
	}
}

// Parts are what the hub serves besides itself.
type Parts struct {
	Agent    aa.AttestationAgentServiceService
	Images   puller
	Features Features
	Version  string
}

// Server is a hub whose sockets are open.
type Server struct {
	agent, hub *ttrpc.Server
	rest       *http.Server
	agentL     net.Listener
	hubL       net.Listener
	restL      net.Listener
}

// Listen opens the sockets. A client that connects before Serve waits.
func (h *Hub) Listen(a Addresses, p Parts) (_ *Server, err error) {
	s := &Server{}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	// An empty address is a service that is not wanted.
	if a.AttestationAgent != "" {
		if s.agentL, err = listenUnix(a.AttestationAgent); err != nil {
			return nil, err
		}
	}
	if a.DataHub != "" {
		if s.hubL, err = listenUnix(a.DataHub); err != nil {
			return nil, err
		}
	}
	if a.REST != "" {
		if s.restL, err = net.Listen("tcp", a.REST); err != nil {
			return nil, fmt.Errorf("listening for the REST API: %w", err)
		}
	}
	if s.agent, err = ttrpc.NewServer(); err != nil {
		return nil, fmt.Errorf("making the attestation agent's server: %w", err)
	}
	if s.hub, err = ttrpc.NewServer(); err != nil {
		return nil, fmt.Errorf("making the data hub's server: %w", err)
	}
	aa.RegisterAttestationAgentServiceService(s.agent, p.Agent)
	svc := &service{hub: h, images: p.Images}
	cdh.RegisterSealedSecretServiceService(s.hub, svc)
	cdh.RegisterGetResourceServiceService(s.hub, svc)
	cdh.RegisterSecureMountServiceService(s.hub, svc)
	cdh.RegisterImagePullServiceService(s.hub, svc)
	keyprovider.RegisterKeyProviderServiceService(s.hub, svc)
	s.rest = &http.Server{
		Handler:           newREST(h, p),
		ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 64 << 10,
	}
	return s, nil
}

func listenUnix(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("making the folder of %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("removing a stale socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", path, err)
	}
	return l, nil
}

// Serve answers until ctx ends.
func (s *Server) Serve(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	if s.agentL != nil {
		g.Go(func() error { return unlessClosed(s.agent.Serve(ctx, s.agentL), ttrpc.ErrServerClosed) })
	}
	if s.hubL != nil {
		g.Go(func() error { return unlessClosed(s.hub.Serve(ctx, s.hubL), ttrpc.ErrServerClosed) })
	}
	if s.restL != nil {
		g.Go(func() error { return unlessClosed(s.rest.Serve(s.restL), http.ErrServerClosed) })
	}
	g.Go(func() error {
		<-ctx.Done()
		s.close()
		return nil
	})
	return g.Wait()
}

func unlessClosed(err, closed error) error {
	if errors.Is(err, closed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (s *Server) close() {
	if s.agent != nil {
		s.agent.Close()
	}
	if s.hub != nil {
		s.hub.Close()
	}
	if s.rest != nil {
		s.rest.Close()
	}
	for _, l := range []net.Listener{s.agentL, s.hubL, s.restL} {
		if l != nil {
			l.Close()
		}
	}
}
