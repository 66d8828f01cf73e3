package broker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// listeners are the open addresses; those that the configuration lacks are nil.
type listeners struct{ kbs, rest, grpc net.Listener }

func (l *listeners) close() error {
	var errs []error
	for _, ln := range []net.Listener{l.kbs, l.rest, l.grpc} {
		if ln != nil {
			errs = append(errs, ln.Close())
		}
	}
	return errors.Join(errs...)
}

// listen opens all addresses, with TLS where there is a certificate.
func (b *Broker) listen(ctx context.Context) (*listeners, error) {
	l := &listeners{}
	for _, a := range []struct {
		address string
		into    *net.Listener
		proto   string
	}{
		{b.cfg.Server.Listen, &l.kbs, "http/1.1"},
		{b.cfg.AttestationAPI.RESTListen, &l.rest, "http/1.1"},
		{b.cfg.AttestationAPI.GRPCListen, &l.grpc, "h2"},
	} {
		if a.address == "" {
			continue
		}
		ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", a.address)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("listening on %s: %w", a.address, err), l.close())
		}
		*a.into = ln
		if b.cert == nil || a.proto == "h2" { // gRPC does its own TLS, to know whose certificate a call comes with
			continue
		}
		c, err := b.tlsConfig(a.proto)
		if err != nil {
			return nil, errors.Join(err, l.close())
		}
		*a.into = tls.NewListener(ln, c)
	}
	return l, nil
}

// serveHTTP answers requests until ctx ends, then lets those under way finish for at most grace.
func serveHTTP(ctx context.Context, h http.Handler, ln net.Listener, grace time.Duration, log *slog.Logger) error {
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: time.Minute, WriteTimeout: time.Minute, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 1 << 20,
		ErrorLog:       slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	if err := srv.Shutdown(end); err != nil {
		return errors.Join(fmt.Errorf("ending requests that are under way: %w", err), srv.Close())
	}
	return nil
}

// serveGRPC does the same for the gRPC side of the attestation API.
func (b *Broker) serveGRPC(ctx context.Context, ln net.Listener, grace time.Duration) error {
	options := []grpc.ServerOption{grpc.ConnectionTimeout(10 * time.Second), grpc.MaxConcurrentStreams(256)}
	if b.cert != nil {
		c, err := b.tlsConfig("h2")
		if err != nil {
			return err
		}
		options = append(options, grpc.Creds(credentials.NewTLS(c)))
	}
	srv := b.api.GRPC(options...)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	hard := time.AfterFunc(grace, srv.Stop)
	defer hard.Stop()
	srv.GracefulStop()
	return nil
}
