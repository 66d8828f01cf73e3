package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/guest/container"
	"github.com/cloister/cloister/guest/gate"
	"github.com/cloister/cloister/wire/policyinput"
)

// Gate decides requests. Refusals are errors of guest/gate.
type Gate interface {
	// Begin returns no error when the policy rule of that name allows the request. undo takes the decision back when
	// nothing of what was requested has happened.
	Begin(ctx context.Context, rule string, req proto.Message) (undo func(context.Context) error, err error)
	// AllowRead decides a request whose refusal hides data instead of failing.
	AllowRead(ctx context.Context, req proto.Message) (bool, error)
	// AllowUnsealFile returns no error when the policy wants a sealed secret in a file of a container's volume opened.
	AllowUnsealFile(ctx context.Context, f gate.SealedFile) error
	// AllowUnsealVariable does so for one in a variable (NAME=sealed…) of a process.
	AllowUnsealVariable(ctx context.Context, containerID, variable string) error
	// Exited tells the policy how the first process of a container has ended.
	Exited(ctx context.Context, containerID string, status int) error
	// SetPolicy decides about and performs the replacement of the policy in one step.
	SetPolicy(ctx context.Context, text string) error
	// LoadFragment verifies a signed fragment, decides about it and adds it to the policy in one step.
	LoadFragment(ctx context.Context, raw []byte, at time.Time) error
}

// The services of the agent's socket, as the transport names them.
const (
	agentPrefix  = "/grpc.AgentService/"
	healthPrefix = "/grpc.Health/"
)

// decidedLater are the methods whose decision cannot be made before they run. Each of their handlers asks the gate
// itself: reads because a refusal hides what was read, SetPolicy and LoadPolicyFragment because deciding and replacing are one step.
func decidedLater(fullMethod string) bool {
	switch fullMethod {
	case agentPrefix + "ReadStdout", agentPrefix + "ReadStderr", agentPrefix + "SetPolicy", agentPrefix + "LoadPolicyFragment":
		return true
	}
	return false
}

// leavesNothing says whether a failed request has left nothing that a policy would have to know of, so that it may be
// allowed once more. For a container this means that it has never been there: one whose remains cannot be removed, or whose
// id is taken, keeps the decision. A sandbox that fails is forgotten; a file appears whole or not at all; a start that failed
// must not count as one. A process may run although its exec failed, of several routes some may be set, and a request to
// end something has been made: those decisions stay.
func leavesNothing(fullMethod string, err error) bool {
	switch fullMethod {
	case agentPrefix + "CreateContainer":
		return !errors.Is(err, container.ErrRemains) && !errors.Is(err, container.ErrExists)
	case agentPrefix + "StartContainer":
		return !errors.Is(err, container.ErrState)
	case agentPrefix + "CreateSandbox", agentPrefix + "CopyFile":
		return true
	}
	return false
}

// restedUpon are the methods whose decisions decide whether a container may be made: what must run before it, and which files it
// must find. Such a decision does not count before the request has succeeded. So no creation is decided while one is under way.
func restedUpon(fullMethod string) bool {
	return fullMethod == agentPrefix+"StartContainer" || fullMethod == agentPrefix+"CopyFile"
}

// gated returns the interceptor that stands in front of every method of every service. The health service alone, which
// takes no wishes, is not asked about.
func gated(gate Gate, log *slog.Logger) ttrpc.UnaryServerInterceptor {
	var pending sync.RWMutex
	// Files are copied one after the other: the decision about a copy that fails can only be taken back when none about the same volume
	// was made after it.
	var copying sync.Mutex
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
		if info.FullMethod == agentPrefix+"CopyFile" {
			copying.Lock()
			defer copying.Unlock()
		}
		if restedUpon(info.FullMethod) {
			pending.RLock()
			defer pending.RUnlock()
		}
		asked := false
		var undo func(context.Context) error
		resp, err := method(ctx, func(v any) error {
			err := unmarshal(v)
			if err != nil {
				return err
			}
			req, ok := v.(proto.Message)
			if !ok {
				return fmt.Errorf("%s: %T is not a message the policy can judge", info.FullMethod, v)
			}
			asked = true
			if info.FullMethod == agentPrefix+"CreateContainer" {
				pending.Lock()
				defer pending.Unlock()
			}
			undo, err = gate.Begin(ctx, policyinput.RuleName(req), req)
			return err
		})
		if err != nil && undo != nil && leavesNothing(info.FullMethod, err) {
			// The caller may have gone, which can be why the request has failed.
			if err := undo(context.WithoutCancel(ctx)); err != nil {
				log.Warn("a failed request counts as done", "method", path.Base(info.FullMethod), "error", err)
			}
		}
		if err == nil && !asked {
			// Every generated method decodes its request first; one that does not must not become a way around.
			return nil, errors.New(info.FullMethod + " was answered without a decision")
		}
		return resp, err
	}
}
