// Package gate holds the policy engine: every request of the host passes it
// before anything in the guest looks at the request.
//
// One Engine owns one policy (Rego text, package agent_policy) and its state
// (data.pstate). A decision is one step under one lock: evaluate the rule named
// after the request, and if it allows, apply the state changes it asks for.
// Either both happen or neither. Whatever is not a clear yes is a no: an
// undefined rule, an answer of another type, a state change outside pstate, an
// evaluation past its deadline.
//
// A denial explains itself. The refused request is evaluated a second time under
// a tracer and the expressions that failed are reported with what was got and
// what was expected; nothing about the rules is written down twice.
package gate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/wire/policyinput"
)

// Options tune an Engine. The zero value is usable.
type Options struct {
	// Logger receives warnings about insecure policies. Default: discard.
	Logger *slog.Logger
	// Timeout bounds one evaluation. Default 10 s: a decision takes well below a
	// millisecond, the rest is slack for emulated machines and foreign policies.
	Timeout time.Duration
}

const defaultTimeout = 10 * time.Second

// Engine decides requests. It is safe for concurrent use; decisions are serial.
type Engine struct {
	log     *slog.Logger
	timeout time.Duration
	lock    chan struct{} // holds one token; a channel, so that waiting honours the context
	policy  *policy       // guarded by lock
	names   names         // guarded by lock
	open    bool          // guarded by lock: there is no policy, and everything is allowed; see NewOpen
}

// NewOpen makes an engine without a policy, which allows every request until SetPolicy gives it one. It is for guests that trust their
// host and can prove nothing (sandboxed mode), and spares them the compiler.
func NewOpen(opts Options) *Engine {
	e := newEngine(opts)
	e.open = true
	e.log.Warn("insecure: there is no policy, every request is allowed")
	return e
}

func newEngine(opts Options) *Engine {
	e := &Engine{log: opts.Logger, timeout: opts.Timeout, lock: make(chan struct{}, 1), names: names{}}
	if e.log == nil {
		e.log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	if e.timeout <= 0 {
		e.timeout = defaultTimeout
	}
	return e
}

// New makes an engine with its first policy. The text is trusted by the caller
// (default file or measured initdata): no rule is asked.
func New(text string, opts Options) (*Engine, error) {
	e := newEngine(opts)
	p, err := e.load(context.Background(), text)
	if err != nil {
		return nil, err
	}
	e.policy = p
	return e, nil
}

// load compiles text and asks it once whether refused requests shall pass and failed ones be undone.
func (e *Engine) load(ctx context.Context, text string) (*policy, error) {
	p, err := compile(text)
	if err != nil {
		return nil, &PolicyError{Err: err}
	}
	ctx, cancel := context.WithTimeout(ctx, e.timeout)
	defer cancel()
	for rule, flag := range map[string]*bool{allowFailingRule: &p.insecureAllowFailing, undoFailedRule: &p.undoFailed} {
		d, err := p.decide(ctx, rule, emptyInput(), nil)
		if err != nil && !errors.Is(err, errUndefined) {
			return nil, &PolicyError{Err: fmt.Errorf("evaluating %s: %w", rule, err)}
		}
		*flag = err == nil && d.allowed
	}
	if p.insecureAllowFailing {
		e.log.Warn("insecure: the policy sets " + allowFailingRule + ", requests that it refuses are let through")
	}
	return p, nil
}

// Insecure reports whether the current policy lets refused requests through.
func (e *Engine) Insecure() bool {
	e.lock <- struct{}{}
	defer func() { <-e.lock }()
	return e.open || e.policy.insecureAllowFailing
}

// Allow decides req by the policy rule of that name. It returns nil when the
// request may proceed, *DeniedError when the policy refuses it, *InternalError
// when the policy gives no usable answer (which is a refusal as well).
func (e *Engine) Allow(ctx context.Context, rule string, req proto.Message) error {
	_, err := e.Begin(ctx, rule, req)
	return err
}

// Begin is Allow for a request that may still fail. undo then takes back what the decision has changed in the state, so
// that the same request can be allowed again. Only a policy that sets UndoFailedRequests wants this, and what it marks as
// lasting stays all the same: other decisions may rest on it. undo does nothing and returns an error when later decisions
// have changed the same members, or the policy was replaced: what was built on the decision must not lose its ground.
func (e *Engine) Begin(ctx context.Context, rule string, req proto.Message) (undo func(context.Context) error, err error) {
	if err := e.acquire(ctx); err != nil {
		return nil, &InternalError{Rule: rule, Err: err}
	}
	defer func() { <-e.lock }()
	p := e.policy
	changes, err := e.allowLocked(ctx, rule, req)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) error { return e.undo(ctx, rule, p, changes) }, nil
}

func (e *Engine) undo(ctx context.Context, rule string, p *policy, changes []change) error {
	if err := e.acquire(ctx); err != nil {
		return &InternalError{Rule: rule, Err: err}
	}
	defer func() { <-e.lock }()
	err := errStateMoved
	switch {
	case e.open:
		err = nil // there is no state
	case p == nil || e.policy.store != p.store: // a policy that has got a fragment keeps its state
	case !p.undoFailed && len(changes) > 0:
		err = errors.New("the policy does not set " + undoFailedRule)
	default:
		err = e.policy.revert(ctx, changes)
	}
	if err != nil {
		return &InternalError{Rule: rule, Err: fmt.Errorf("taking back a decision: %w", err)}
	}
	return nil
}

// AllowRead decides a ReadStreamRequest, whose refusal redacts the data instead
// of failing the call. Only a usable answer of the policy counts as yes.
func (e *Engine) AllowRead(ctx context.Context, req proto.Message) (bool, error) {
	err := e.Allow(ctx, policyinput.RuleName(req), req)
	var denied *DeniedError
	if errors.As(err, &denied) {
		return false, nil
	}
	return err == nil, err
}

// Exited tells the policy that the first process of a container has ended with
// status: a fact that no request of the host can claim. A policy whose rule
// ContainerExited is absent or says no takes no note of it.
func (e *Engine) Exited(ctx context.Context, containerID string, status int) error {
	const rule = "ContainerExited"
	if err := e.acquire(ctx); err != nil {
		return &InternalError{Rule: rule, Err: err}
	}
	defer func() { <-e.lock }()
	if e.open {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, e.timeout)
	defer cancel()
	d, err := e.policy.decide(ctx, rule, exitInput(containerID, status), nil)
	if errors.Is(err, errUndefined) || err == nil && !d.allowed {
		return nil
	}
	if err == nil {
		_, err = e.policy.applyOps(ctx, d.ops)
	}
	if err != nil {
		return &InternalError{Rule: rule, Err: err}
	}
	return nil
}

// AllowPort decides whether the host may reach a TCP port of the pod from inside. It is no request of the protocol; the
// rule is PortForwardRequest with the input {"port": N}.
func (e *Engine) AllowPort(ctx context.Context, port uint16) error {
	return e.allowFact(ctx, "PortForwardRequest", false, portInput(port))
}

// SetPolicy asks the current policy whether it may be replaced by text and, if
// so, replaces rules and state in the same step. A text that does not compile
// gives *PolicyError and leaves everything as it was.
func (e *Engine) SetPolicy(ctx context.Context, text string) error {
	const rule = "SetPolicyRequest"
	if err := e.acquire(ctx); err != nil {
		return &InternalError{Rule: rule, Err: err}
	}
	defer func() { <-e.lock }()
	in, err := setPolicyInput(text)
	if err != nil {
		return &PolicyError{Err: err}
	}
	if _, err := e.decideLocked(ctx, rule, in); err != nil {
		return err
	}
	p, err := e.load(ctx, text)
	if err != nil {
		return err
	}
	e.policy, e.open = p, false
	return nil
}

func (e *Engine) acquire(ctx context.Context) error {
	select {
	case e.lock <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for the policy engine: %w", ctx.Err())
	}
}

func (e *Engine) allowLocked(ctx context.Context, rule string, req proto.Message) ([]change, error) {
	if e.open {
		return nil, nil
	}
	q, err := e.policy.query(rule)
	if err != nil {
		return nil, &InternalError{Rule: rule, Err: err}
	}
	in, err := encodeInput(req, q.readsBytes, e.names)
	if err != nil {
		return nil, &InternalError{Rule: rule, Err: err}
	}
	return e.decideLocked(ctx, rule, in)
}

func (e *Engine) decideLocked(ctx context.Context, rule string, in *input) ([]change, error) {
	p := e.policy
	if e.open {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, e.timeout)
	defer cancel()
	var prints printBuffer
	d, err := p.decide(ctx, rule, in, &prints)
	if err == nil && d.allowed {
		var changes []change
		if changes, err = p.applyOps(ctx, d.ops); err == nil {
			return changes, nil
		}
		err = fmt.Errorf("applying state changes: %w", err)
	}
	if p.insecureAllowFailing {
		e.log.Warn("insecure: request refused by the policy is let through", "rule", rule)
		return nil, nil
	}
	if err != nil {
		return nil, &InternalError{Rule: rule, Err: err}
	}
	return nil, &DeniedError{Rule: rule, Reasons: p.explain(ctx, rule, in), Prints: prints.text(in.secrets)}
}
