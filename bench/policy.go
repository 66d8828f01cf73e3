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
	"github.com/cloister/cloister/wire/agent"
	"github.com/cloister/cloister/wire/policyinput"
)

// upstreamRules names a file with the Kata generator's rules, which plain OPA then evaluates over the same policy_data. Without
// it OPA evaluates our rules.
const upstreamRules = "CLOISTER_UPSTREAM_RULES"

// ourRules is where the rules are, from the top of the repository.
const ourRules = "author/genpolicy/rules.rego"

// policyPod is a pod of 30 containers with what a busy cluster gives each of them; the last of them is asked about.
func policyPod() (kubepod.Object, *kubepod.Container) {
	list := []*kubepod.Container{kubepod.Pause()}
	for i := range 30 {
		c := kubepod.Workload(fmt.Sprintf("c%d", i))
		for k := range 20 {
			v := fmt.Sprintf("SETTING_%d=value-%d-%d", k, i, k)
			c.Env = append(c.Env, v)
			c.Process()["Env"] = append(c.Process()["Env"].([]string), v)
		}
		for k := range 10 {
			c.Env = append(c.Env, fmt.Sprintf("APP%d_SERVICE_HOST=10.0.0.%d", k, k))
		}
		list = append(list, c)
	}
	return kubepod.Data(list...), list[len(list)-1]
}

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
	data, last := policyPod()
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
	exec := &agent.Process{Args: []string{"/bin/probe", last.Name}, Env: last.Env, Cwd: "/", NoNewPrivileges: true,
		User: &agent.User{UID: 1000, GID: 1000, AdditionalGids: []uint32{1000}}}
	for _, m := range []struct {
		name   string
		req    proto.Message
		first  bool // nothing was created before, and the decision is taken back, so that it can be made again
		budget string
	}{
		{"create container (last of the list)", last.Request(id), true, "1ms"},
		{"exec (a probe)", &agent.ExecProcessRequest{ContainerId: id, ExecId: "x", Process: exec}, false, "50µs"},
		{"copy file", &agent.CopyFileRequest{Path: kubepod.SharedDir + kubepod.ID(5) + "-0123456789abcdef-hosts", FileMode: 0o100644, FileSize: 4, Data: []byte("text")}, false, "50µs"},
		{"update routes", &agent.UpdateRoutesRequest{Routes: &agent.Routes{Routes: []*agent.Route{{Dest: "10.0.0.0/8", Gateway: "10.0.0.1", Device: "eth0"}}}}, false, "50µs"},
		{"read output", &agent.ReadStreamRequest{ContainerId: id, Len: 4096}, false, "50µs"},
		{"start", &agent.StartContainerRequest{ContainerId: id}, false, "50µs"},
		{"stats", &agent.StatsContainerRequest{ContainerId: id}, false, "50µs"},
	} {
		other := admitted
		if m.first {
			other = fresh
		}
		a, b, err := beside(ctx, runs, func() error { return decide(ctx, e, m.req, m.first) }, func() error { return other.decide(ctx, m.req) })
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		fmt.Fprintf(w, "%s\t%v\t%v\t%.2f\t%s\n", m.name, a.Round(time.Microsecond), b.Round(time.Microsecond), float64(a)/float64(b), m.budget)
		if m.first {
			if err := ask(ctx, e, m.req); err != nil {
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

// decide makes one decision, and takes it back if the next one is to be the same.
func decide(ctx context.Context, e *gate.Engine, req proto.Message, undo bool) error {
	back, err := e.Begin(ctx, policyinput.RuleName(req), req)
	if err != nil || !undo {
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
