package grpcdial

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

const (
	// MaxRequest bounds what is sent; the services of this project take no more.
	MaxRequest = 8 << 20
	// maxReply has room for the longest token.
	maxReply   = 8<<20 + 64<<10
	maxHeaders = 64 << 10

	firstDelay     = 100 * time.Millisecond
	maxDelay       = 5 * time.Second
	attempts       = 3
	keepaliveTime  = 30 * time.Second
	keepaliveLimit = 10 * time.Second
)

// Pool is some connections to one service. It is a grpc.ClientConnInterface, so generated clients work on it.
type Pool struct {
	cfg   Config
	conns []*grpc.ClientConn
	next  atomic.Uint64
}

// Open makes the connections. It does not wait for the service to be there: a call finds out.
func Open(c Config) (*Pool, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	u, err := url.Parse(c.Address)
	if err != nil {
		return nil, errors.New("address is not a URL")
	}
	creds := insecure.NewCredentials()
	if u.Scheme == "https" {
		conf, err := c.ClientTLS()
		if err != nil {
			return nil, err
		}
		creds = credentials.NewTLS(conf)
	}
	if c.AdminTokenFile != "" {
		if _, err := Secret(c.AdminTokenFile); err != nil {
			return nil, fmt.Errorf("admin_token_file: %w", err)
		}
	}
	p := &Pool{cfg: c}
	for range c.pool() {
		conn, err := grpc.NewClient("dns:///"+u.Host,
			grpc.WithTransportCredentials(creds),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxReply), grpc.MaxCallSendMsgSize(MaxRequest)),
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           backoff.Config{BaseDelay: firstDelay, Multiplier: 2, Jitter: 0.2, MaxDelay: maxDelay},
				MinConnectTimeout: maxDelay,
			}),
			grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveLimit}),
			grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"round_robin":{}}]}`),
			grpc.WithNoProxy(), grpc.WithDisableRetry(), grpc.WithDisableServiceConfig(), grpc.WithMaxHeaderListSize(maxHeaders),
		)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("connecting to %s: %w", c.Address, err), p.Close())
		}
		p.conns = append(p.conns, conn)
	}
	return p, nil
}

// Close ends the connections, and with them calls that are under way.
func (p *Pool) Close() error {
	var errs []error
	for _, c := range p.conns {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// Address is where the service is.
func (p *Pool) Address() string { return p.cfg.Address }

func (p *Pool) pick() *grpc.ClientConn { return p.conns[p.next.Add(1)%uint64(len(p.conns))] }

// Invoke is part of grpc.ClientConnInterface. A call that does not get through is repeated a few times within its deadline:
// everything these services do may be done twice. Errors are *CallError.
func (p *Pool) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	if m, ok := args.(proto.Message); ok {
		if n := proto.Size(m); n > MaxRequest {
			return &CallError{Address: p.cfg.Address, Code: codes.InvalidArgument,
				Text: fmt.Sprintf("the request has %d bytes, at most %d are sent", n, MaxRequest)}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, p.cfg.timeout())
	defer cancel()
	delay := firstDelay
	for n := 1; ; n++ {
		err := p.pick().Invoke(ctx, method, args, reply, opts...)
		if err == nil {
			return nil
		}
		if status.Code(err) != codes.Unavailable || n == attempts || !wait(ctx, delay) {
			return p.failure(err)
		}
		delay *= 4
	}
}

// NewStream is part of grpc.ClientConnInterface; the protocols have no streams.
func (p *Pool) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, &CallError{Address: p.cfg.Address, Code: codes.Unimplemented, Text: "streams are not used"}
}

// wait lets a time pass, or less when ctx ends: then it returns false.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// AsAdmin puts the administrator's token, when there is one, into the metadata of a call.
func (p *Pool) AsAdmin(ctx context.Context) (context.Context, error) {
	if p.cfg.AdminTokenFile == "" {
		return ctx, nil
	}
	token, err := Secret(p.cfg.AdminTokenFile)
	if err != nil {
		return nil, fmt.Errorf("admin_token_file: %w", err)
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token), nil
}

// Check asks the service whether it is there and well. A service without the health protocol that answers is.
func (p *Pool) Check(ctx context.Context) error {
	r, err := healthpb.NewHealthClient(p).Check(ctx, &healthpb.HealthCheckRequest{})
	if status.Code(err) == codes.Unimplemented {
		return nil
	}
	if err != nil {
		return err
	}
	if s := r.GetStatus(); s != healthpb.HealthCheckResponse_SERVING {
		return &CallError{Address: p.cfg.Address, Code: codes.Unavailable, Text: "it says of itself: " + s.String()}
	}
	return nil
}
