// Package agent is the host's client of the guest's agent: one connection, calls with deadlines, failures that are explained.
//
// What the guest answers is not trusted: texts are cut and cleaned before they reach a terminal, a file or another program.
package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"
	"unicode"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cloister/cloister/host/trace"

	pb "github.com/cloister/cloister/wire/agent"
)

// Ports of the guest.
const (
	PortAgent = 1024
	PortLog   = 1025
	// PortForward connects to TCP ports of the pod.
	PortForward = 1030
)

// CallTimeout bounds calls that do not wait for anything in the pod.
const CallTimeout = 2 * time.Minute

// Error is a request that the guest answered with an error.
type Error struct {
	// Doing is what was asked for, for example `creating container web`.
	Doing string
	Code  codes.Code
	// Message is the guest's text, word for word except for control characters, up to messageText bytes.
	Message string
}

func (e *Error) Error() string { return e.Doing + ": " + e.Message }

// Denied says that the guest's policy forbids the request.
func (e *Error) Denied() bool { return e.Code == codes.PermissionDenied }

// IsDenied says whether err is a denial by the guest's policy.
func IsDenied(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Denied()
}

// Client is a connection to the guest's agent.
type Client struct {
	pb.AgentServiceService
	Health pb.HealthService

	client *ttrpc.Client
	// gone, when not nil, turns a broken connection into the reason for which the VM ended.
	gone func() error
}

// New speaks the protocol on conn. gone, which may be nil, is asked for the reason when the connection breaks.
// more sees each call.
func New(conn net.Conn, gone func() error, more ...ttrpc.UnaryClientInterceptor) *Client {
	c := ttrpc.NewClient(conn, ttrpc.WithChainUnaryClientInterceptor(append(more, trace.Interceptor)...))
	return &Client{AgentServiceService: pb.NewAgentServiceClient(c), Health: pb.NewHealthClient(c), client: c, gone: gone}
}

// Close closes the connection.
func (a *Client) Close() error { return a.client.Close() }

// Call runs one request under a deadline (0 is none besides ctx's) and explains its failure.
func (a *Client) Call(ctx context.Context, timeout time.Duration, doing string, f func(context.Context) error) error {
	cctx := ctx
	if timeout > 0 {
		var cancel context.CancelFunc
		cctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	err := f(cctx)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", doing, context.Cause(ctx))
	case cctx.Err() != nil:
		return fmt.Errorf("%s: no answer within %s: %w", doing, timeout, cctx.Err())
	}
	if st, ok := status.FromError(err); ok {
		return &Error{Doing: doing, Code: st.Code(), Message: Clean(st.Message())}
	}
	if a.gone != nil {
		if reason := a.gone(); reason != nil {
			return fmt.Errorf("%s: %w", doing, reason)
		}
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// messageText is how much of a guest's text is kept. It goes into the state file and to the process that started the
// supervisor, both of which are read with a limit: a longer text would make the pod, and the listing of all, unreadable.
const messageText = 16 << 10

// Clean takes the control characters out of a guest's text, which may end on a terminal, and what is too long.
func Clean(s string) string {
	if len(s) > messageText {
		s = s[:messageText] + "..."
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' && r != '\t' {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}
