package external

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/cloister/cloister/broker/resource"
	"github.com/cloister/cloister/internal/smallfile"
)

const (
	// maxMessage has room for a secret of the greatest size.
	maxMessage = resource.MaxSize + 64<<10

	firstDelay     = 100 * time.Millisecond
	maxDelay       = 5 * time.Second
	connectTimeout = 30 * time.Second
)

// open connects to a back end and waits until it is there, trying again at growing intervals until ctx ends.
func open(ctx context.Context, b Backend) (*grpc.ClientConn, error) {
	u, err := url.Parse(b.Endpoint)
	if err != nil {
		return nil, errors.New("endpoint is not a URL")
	}
	creds := insecure.NewCredentials()
	if u.Scheme == "https" {
		if creds, err = transport(b.CACertPath); err != nil {
			return nil, err
		}
	}
	conn, err := grpc.NewClient("dns:///"+u.Host,
		grpc.WithTransportCredentials(creds),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: firstDelay, Multiplier: 2, Jitter: 0.2, MaxDelay: maxDelay},
			MinConnectTimeout: maxDelay,
		}),
		grpc.WithNoProxy(), grpc.WithDisableRetry(), grpc.WithDisableServiceConfig(),
		grpc.WithIdleTimeout(0), grpc.WithMaxHeaderListSize(64<<10),
	)
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", b.Endpoint, err)
	}
	for conn.Connect(); ; {
		state := conn.GetState()
		if state == connectivity.Ready {
			return conn, nil
		}
		if state == connectivity.Idle {
			conn.Connect()
		}
		if !conn.WaitForStateChange(ctx, state) {
			return nil, errors.Join(fmt.Errorf("connecting to %s: it did not answer in time, the connection is %s", b.Endpoint, state), conn.Close())
		}
	}
}

func transport(file string) (credentials.TransportCredentials, error) {
	roots, err := smallfile.Roots(file)
	if err != nil {
		return nil, fmt.Errorf("reading ca_cert_path: %w", err)
	}
	return credentials.NewTLS(&tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}), nil
}
