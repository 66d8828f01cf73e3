package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"strings"

	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/wire/policyinput"
)

// Gate decides requests. Refusals are errors of guest/gate.
type Gate interface {
	// Allow returns nil when the policy rule of that name allows the request.
	Allow(ctx context.Context, rule string, req proto.Message) error
	// AllowRead decides a request whose refusal hides data instead of failing.
	AllowRead(ctx context.Context, req proto.Message) (bool, error)
	// Exited tells the policy how the first process of a container has ended.
	Exited(ctx context.Context, containerID string, status int) error
	// SetPolicy decides about and performs the replacement of the policy in one step.
	SetPolicy(ctx context.Context, text string) error
}

// The services of the agent's socket, as the transport names them.
const (
	agentPrefix  = "/grpc.AgentService/"
	healthPrefix = "/grpc.Health/"
)

// decidedLater are the methods whose decision cannot be made before they run. Each of their handlers asks the gate
// itself: reads because a refusal hides what was read, SetPolicy because deciding and replacing are one step.
func decidedLater(fullMethod string) bool {
	switch fullMethod {
	case agentPrefix + "ReadStdout", agentPrefix + "ReadStderr", agentPrefix + "SetPolicy":
		return true
	}
	return false
}

// gated returns the interceptor that stands in front of every method of every service. The health service alone, which
// takes no wishes, is not asked about.
func gated(gate Gate, log *slog.Logger) ttrpc.UnaryServerInterceptor {
	return func(ctx context.Context, unmarshal ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, method ttrpc.Method) (_ any, err error) {
		defer func() {
			if err != nil {
				log.Warn("request failed", "method", path.Base(info.FullMethod), "error", err)
				err = wireError(err)
			}
		}()
		if strings.HasPrefix(info.FullMethod, healthPrefix) || decidedLater(info.FullMethod) {
			return method(ctx, unmarshal)
		}
		asked := false
		resp, err := method(ctx, func(v any) error {
			if err := unmarshal(v); err != nil {
				return err
			}
			req, ok := v.(proto.Message)
			if !ok {
				return fmt.Errorf("%s: %T is not a message the policy can judge", info.FullMethod, v)
			}
			asked = true
			return gate.Allow(ctx, policyinput.RuleName(req), req)
		})
		if err == nil && !asked {
			// Every generated method decodes its request first; one that does not must not become a way around.
			return nil, errors.New(info.FullMethod + " was answered without a decision")
		}
		return resp, err
	}
}
