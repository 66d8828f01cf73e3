// Package testregistry is an OCI registry in this process: for tests, which can make it lie, and for demonstrations,
// which need a registry and have none.
package testregistry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
)

// Options configure a Registry. The zero value is an open registry on a free loopback port, plain HTTP, in memory.
type Options struct {
	Addr string // default 127.0.0.1:0
	Dir  string // keep blobs in this directory instead of in memory
	TLS  bool   // serve HTTPS with a certificate made for this registry, see RootPEM

	// With User set, requests need a bearer token, which the registry's own token service gives for User and
	// Password; with Basic, they need the user and password themselves.
	User, Password string
	Basic          bool
}

// Registry is a running registry.
type Registry struct {
	opts     Options
	inner    http.Handler
	server   *http.Server
	listener net.Listener
	rootPEM  []byte

	mu       sync.Mutex
	tampers  map[string]func([]byte) []byte
	handlers map[string]http.HandlerFunc
	requests []string
}

// Start starts a registry. Close stops it.
func Start(opts Options) (*Registry, error) {
	if opts.Addr == "" {
		opts.Addr = "127.0.0.1:0"
	}
	blobs := ggcr.NewInMemoryBlobHandler()
	if opts.Dir != "" {
		blobs = ggcr.NewDiskBlobHandler(opts.Dir)
	}
	r := &Registry{opts: opts, tampers: map[string]func([]byte) []byte{}, handlers: map[string]http.HandlerFunc{},
		inner: ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)), ggcr.WithBlobHandler(blobs))}
	var lc net.ListenConfig
	var err error
	if r.listener, err = lc.Listen(context.Background(), "tcp", opts.Addr); err != nil {
		return nil, fmt.Errorf("starting registry: %w", err)
	}
	if opts.TLS {
		cert, rootPEM, err := selfSigned(r.listener.Addr())
		if err != nil {
			return nil, errors.Join(fmt.Errorf("starting registry: %w", err), r.listener.Close())
		}
		r.rootPEM = rootPEM
		r.listener = tls.NewListener(r.listener, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})
	}
	r.server = &http.Server{Handler: http.HandlerFunc(r.serve), ReadHeaderTimeout: 30 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}
	go r.server.Serve(r.listener) // ends with Close
	return r, nil
}

// Addr is the registry's host:port.
func (r *Registry) Addr() string { return r.listener.Addr().String() }

// RootPEM is the certificate to trust when TLS is on.
func (r *Registry) RootPEM() []byte { return r.rootPEM }

// Close stops the registry and closes its connections.
func (r *Registry) Close() error { return r.server.Close() }

// Tamper changes what the registry answers to GET requests whose path ends with suffix (a blob digest, or
// manifests/<tag>). change gets the true body and returns the one to send; nil ends the lie.
func (r *Registry) Tamper(suffix string, change func([]byte) []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if change == nil {
		delete(r.tampers, suffix)
		return
	}
	r.tampers[suffix] = change
}

// Handle answers GET requests whose path ends with suffix by h instead of by the registry.
func (r *Registry) Handle(suffix string, h http.HandlerFunc) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.handlers[suffix] = h
}

// Requests lists the GET and HEAD requests so far as "METHOD path", without those refused for lack of a token.
func (r *Registry) Requests() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.requests...)
}

func (r *Registry) serve(w http.ResponseWriter, req *http.Request) {
	if req.URL.Path == "/token" {
		r.token(w, req)
		return
	}
	if !r.authorised(req) {
		r.challenge(w, req)
		return
	}
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		r.inner.ServeHTTP(w, req)
		return
	}
	r.mu.Lock()
	r.requests = append(r.requests, req.Method+" "+req.URL.Path)
	var handler http.HandlerFunc
	var change func([]byte) []byte
	for suffix, h := range r.handlers {
		if strings.HasSuffix(req.URL.Path, suffix) {
			handler = h
		}
	}
	for suffix, c := range r.tampers {
		if strings.HasSuffix(req.URL.Path, suffix) {
			change = c
		}
	}
	r.mu.Unlock()
	switch {
	case req.Method == http.MethodGet && handler != nil:
		handler(w, req)
	case req.Method == http.MethodGet && change != nil:
		rec := &recorder{header: http.Header{}, status: http.StatusOK}
		r.inner.ServeHTTP(rec, req)
		body := rec.body
		if rec.status == http.StatusOK {
			body = change(body)
		}
		for k, v := range rec.header {
			w.Header()[k] = v
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		w.WriteHeader(rec.status)
		w.Write(body)
	default:
		r.inner.ServeHTTP(w, req)
	}
}

// recorder holds an answer back.
type recorder struct {
	header http.Header
	status int
	body   []byte
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) WriteHeader(status int)      { r.status = status }
func (r *recorder) Write(p []byte) (int, error) { r.body = append(r.body, p...); return len(p), nil }
