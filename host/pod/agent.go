package pod

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

	"github.com/cloister/cloister/wire/agent"
)

// Ports of the guest.
const (
	portAgent = 1024
	portLog   = 1025
)

// callTimeout bounds calls that do not wait for anything in the pod.
const callTimeout = 2 * time.Minute

// AgentError is a request that the guest answered with an error.
type AgentError struct {
	// Doing is what was asked for, for example `creating container web`.
	Doing string
	Code  codes.Code
	// Message is the guest's text, word for word except for control characters, up to messageText bytes.
	Message string
}

func (e *AgentError) Error() string { return e.Doing + ": " + e.Message }

// Denied says that the guest's policy forbids the request.
func (e *AgentError) Denied() bool { return e.Code == codes.PermissionDenied }

// IsDenied says whether err is a denial by the guest's policy.
func IsDenied(err error) bool {
	var e *AgentError
	return errors.As(err, &e) && e.Denied()
}

// Agent is a connection to the guest's agent.
type Agent struct {
	agent.AgentServiceService
	Health agent.HealthService

	client *ttrpc.Client
	// gone, when not nil, turns a broken connection into the reason for which the VM ended.
	gone func() error
}

func newAgent(conn net.Conn, gone func() error) *Agent {
	c := ttrpc.NewClient(conn)
	return &Agent{AgentServiceService: agent.NewAgentServiceClient(c), Health: agent.NewHealthClient(c), client: c, gone: gone}
}

// Close closes the connection.
func (a *Agent) Close() error { return a.client.Close() }

// call runs one request under a deadline (0 is none besides ctx's) and explains its failure.
func (a *Agent) call(ctx context.Context, timeout time.Duration, doing string, f func(context.Context) error) error {
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
		return &AgentError{Doing: doing, Code: st.Code(), Message: clean(st.Message())}
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

// clean takes the control characters out of a guest's text, which may end on a terminal, and what is too long.
func clean(s string) string {
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
