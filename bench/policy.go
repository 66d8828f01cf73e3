package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/guest/gate"
	"github.com/cloister/cloister/test/kubepod"
	"github.com/cloister/cloister/wire/policyinput"
)

// upstreamRules names a file with the Kata generator's rules, which plain OPA then evaluates over the same policy_data. Without
// it OPA evaluates our rules.
const upstreamRules = "CLOISTER_UPSTREAM_RULES"

// ourRules is where the rules are, from the top of the repository.
const ourRules = "author/genpolicy/rules.rego"

// runPolicy measures decisions of the guest's engine beside OPA as anyone would use it: a prepared query on the same machine
// in the same minute. Ours includes making the input of the request and keeping the state, OPA's is the evaluation alone.
func runPolicy(ctx context.Context, w io.Writer, runs int) error {
	rules, err := os.ReadFile(ourRules)
	if err != nil {
		return fmt.Errorf("reading our rules (run this at the top of the repository): %w", err)
	}
	others, whose := rules, "our rules"
	if file := os.Getenv(upstreamRules); file != "" {
		if others, err = os.ReadFile(file); err != nil {
			return fmt.Errorf("reading the rules that %s names: %w", upstreamRules, err)
		}
		whose = "the rules of " + upstreamRules
	}
	data, last := kubepod.Large(30) // the last of them is asked about
	text, err := kubepod.Policy(string(rules), data)
	if err != nil {
		return err
	}
	before := inUse()
	started := time.Now()
	e, err := gate.New(text, gate.Options{})
	if err != nil {
		return err
	}
	load := time.Since(started)
	size := inUse() - before
	id := kubepod.ID(3) // the container that small requests are about
	if err := ask(ctx, e, kubepod.Sandbox()); err != nil {
		return err
	}
	otherText, err := kubepod.Policy(string(others), data)
	if err != nil {
		return err
	}
	fresh, err := newPlain(ctx, otherText, nil)
	if err != nil {
		return err
	}
	admitted, err := newPlain(ctx, otherText, last.Request(id))
	if err != nil {
		return fmt.Errorf("OPA with %s: %w", whose, err)
	}
	fmt.Fprintf(w, "decision of a policy of 30 containers\tCloister\tOPA, %s\tratio\tbudget\n", whose)
	create := kubepod.Ask{Name: "create container (last of the list)", Request: last.Request(id)}
	for i, m := range append([]kubepod.Ask{create}, kubepod.Asks(last, id)...) {
		// Each decision is taken back, so that it can be made again; nothing was created before the first.
		first, other, budget := i == 0, admitted, "50µs"
		if first {
			other, budget = fresh, "1ms"
		}
		a, b, err := beside(ctx, runs, func() error { return decide(ctx, e, m.Request) }, func() error { return other.decide(ctx, m.Request) })
		if err != nil {
			return fmt.Errorf("%s: %w", m.Name, err)
		}
		fmt.Fprintf(w, "%s\t%v\t%v\t%.2f\t%s\n", m.Name, a.Round(time.Microsecond), b.Round(time.Microsecond), float64(a)/float64(b), budget)
		if first {
			if err := ask(ctx, e, m.Request); err != nil {
				return err
			}
		}
	}
	fmt.Fprintf(w, "loading the policy (%d KiB of text)\t%v\t\t\t\n", len(text)>>10, load.Round(time.Millisecond))
	fmt.Fprintf(w, "memory of the policy\t%.2f MiB\t\t\t2 MiB\n", float64(size)/(1<<20))
	runtime.KeepAlive(e)
	return nil
}

func ask(ctx context.Context, e *gate.Engine, req proto.Message) error {
	return e.Allow(ctx, policyinput.RuleName(req), req)
}

// decide makes one decision and takes it back.
func decide(ctx context.Context, e *gate.Engine, req proto.Message) error {
	back, err := e.Begin(ctx, policyinput.RuleName(req), req)
	if err != nil {
		return err
	}
	return back(ctx)
}

// beside measures two things in turns and gives the time of each in its best round: the others were disturbed by something
// else on this machine.
func beside(ctx context.Context, runs int, a, b func() error) (time.Duration, time.Duration, error) {
	const calls = 20
	var as, bs []time.Duration
	for range max(runs, 5) {
		for _, x := range []struct {
			f  func() error
			to *[]time.Duration
		}{{a, &as}, {b, &bs}} {
			started := time.Now()
			for range calls {
				if err := x.f(); err != nil {
					return 0, 0, err
				}
			}
			*x.to = append(*x.to, time.Since(started)/calls)
			if ctx.Err() != nil {
				return 0, 0, ctx.Err()
			}
		}
	}
	return slices.Min(as), slices.Min(bs), nil
}

// plain is OPA's own way to evaluate a policy.
type plain struct {
	text    string
	store   storage.Store
	queries map[string]rego.PreparedEvalQuery
	inputs  map[proto.Message]ast.Value
}

// newPlain prepares a policy whose state says, if admitted is there, that it was created: by the ops of the policy's answer.
func newPlain(ctx context.Context, text string, admitted proto.Message) (*plain, error) {
	p := &plain{text: text, store: inmem.NewFromObject(map[string]any{"pstate": map[string]any{}}), queries: map[string]rego.PreparedEvalQuery{},
		inputs: map[proto.Message]ast.Value{}}
	if admitted == nil {
		return p, nil
	}
	answer, err := p.eval(ctx, admitted)
	if err != nil {
		return nil, err
	}
	o, _ := answer.(map[string]any)
	ops, _ := o["ops"].([]any)
	for _, op := range ops {
		op, _ := op.(map[string]any)
		path, ok := storage.ParsePath(fmt.Sprint(op["path"]))
		if !ok || op["op"] != "add" {
			continue
		}
		if err := storage.WriteOne(ctx, p.store, storage.AddOp, path, op["value"]); err != nil {
			return nil, fmt.Errorf("changing the state: %w", err)
		}
	}
	return p, nil
}

func (p *plain) decide(ctx context.Context, req proto.Message) error {
	answer, err := p.eval(ctx, req)
	if err != nil {
		return err
	}
	if o, ok := answer.(map[string]any); ok {
		answer = o["allowed"]
	}
	if answer != true {
		return errors.New("OPA refuses the request")
	}
	return nil
}

func (p *plain) eval(ctx context.Context, req proto.Message) (any, error) {
	rule := policyinput.RuleName(req)
	q, ok := p.queries[rule]
	if !ok {
		var err error
		q, err = rego.New(rego.Query("data.agent_policy."+rule), rego.Module("policy.rego", p.text), rego.Store(p.store),
			rego.SetRegoVersion(ast.RegoV0)).PrepareForEval(ctx)
		if err != nil {
			return nil, fmt.Errorf("preparing %s: %w", rule, err)
		}
		p.queries[rule] = q
	}
	in, ok := p.inputs[req]
	if !ok {
		v, err := policyinput.Value(req)
		if err != nil {
			return nil, err
		}
		if in, err = ast.InterfaceToValue(v); err != nil {
			return nil, err
		}
		p.inputs[req] = in
	}
	result, err := q.Eval(ctx, rego.EvalParsedInput(in))
	if err != nil {
		return nil, err
	}
	if len(result) != 1 || len(result[0].Expressions) != 1 {
		return nil, errors.New("no single answer")
	}
	return result[0].Expressions[0].Value, nil
}

// inUse is the heap after a collection, in bytes.
func inUse() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
