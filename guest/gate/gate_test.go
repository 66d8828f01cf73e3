package gate

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/wire/agent"
	"github.com/cloister/cloister/wire/policyinput"
)

func engine(t testing.TB, text string) *Engine {
	t.Helper()
	e, err := New(text, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func ask(e *Engine, req proto.Message) error {
	return e.Allow(context.Background(), policyinput.RuleName(req), req)
}

const head = "package agent_policy\nimport rego.v1\n"

func TestDialects(t *testing.T) {
	for name, text := range map[string]string{
		"v0 plain":    "package agent_policy\ndefault StartContainerRequest = false\nStartContainerRequest { input.container_id == \"a\" }",
		"v0 keywords": "package agent_policy\nimport future.keywords.in\nimport future.keywords.if\nStartContainerRequest if { input.container_id in [\"a\"] }",
		"v0 rego.v1":  head + `StartContainerRequest if input.container_id == "a"`,
		"v1":          "package agent_policy\nStartContainerRequest if input.container_id == \"a\"",
		"no types":    head + "policy_data := {\"x\": 1}\nStartContainerRequest if { not policy_data.missing.member; input.container_id == \"a\" }",
	} {
		t.Run(name, func(t *testing.T) {
			if err := ask(engine(t, text), &agent.StartContainerRequest{ContainerId: "a"}); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestAnswers(t *testing.T) {
	e := engine(t, head+`
default SignalProcessRequest := false
StatsContainerRequest := true
PauseContainerRequest := "yes"
ResumeContainerRequest := {"allowed": "yes"}
RemoveContainerRequest := {"allowed": false, "ops": [{"op": "add", "path": "/pstate/x", "value": 1}]}
WaitProcessRequest := {"allowed": true}
WaitProcessRequest := {"allowed": false}
`)
	for _, tc := range []struct {
		req      proto.Message
		allowed  bool
		internal string
	}{
		{&agent.StatsContainerRequest{}, true, ""},
		{&agent.SignalProcessRequest{}, false, ""},
		{&agent.RemoveContainerRequest{}, false, ""},
		{&agent.PauseContainerRequest{}, false, "policy answer is of type string"},
		{&agent.ResumeContainerRequest{}, false, "no boolean member allowed"},
		{&agent.WaitProcessRequest{}, false, "conflict"},
		{&agent.CreateSandboxRequest{}, false, "no such rule"},
	} {
		err := ask(e, tc.req)
		rule := policyinput.RuleName(tc.req)
		var d *DeniedError
		var in *InternalError
		switch {
		case tc.allowed && err != nil, !tc.allowed && err == nil:
			t.Errorf("%s: %v", rule, err)
		case tc.internal != "" && (!errors.As(err, &in) || !strings.HasPrefix(err.Error(), rule+": internal error ") || !strings.Contains(err.Error(), tc.internal)):
			t.Errorf("%s: got %v, expected an internal error with %q", rule, err, tc.internal)
		case !tc.allowed && tc.internal == "" && (!errors.As(err, &d) || !strings.HasPrefix(err.Error(), rule+" is blocked by policy: ")):
			t.Errorf("%s: got %v, expected a denial", rule, err)
		}
	}
	if got := pstate(t, e); got != "{}" {
		t.Errorf("state is %s, expected none", got)
	}
}

func pstate(t testing.TB, e *Engine) string {
	t.Helper()
	v, err := e.policy.state(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return v.String()
}

func TestStateChanges(t *testing.T) {
	const rule = `
StartContainerRequest := {"allowed": true, "ops": [
	{"op": "add", "path": "/pstate/first", "value": {"n": 1}},
	%s
]}`
	for _, tc := range []struct{ op, state, err string }{
		{`{"op": "replace", "path": "/pstate/first/n", "value": 2}`, `{"first": {"n": 2}}`, ""},
		{`{"op": "add", "path": "/pstate/a~1b~0c", "value": true}`, `{"a/b~c": true, "first": {"n": 1}}`, ""},
		{`{"op": "add", "path": "/pstate/list", "value": [1]}, {"op": "add", "path": "/pstate/list/-", "value": 2}`, `{"first": {"n": 1}, "list": [1, 2]}`, ""},
		{`{"op": "remove", "path": "/pstate/none"}`, `{}`, "state change 1"},
		{`{"op": "add", "path": "/agent_policy/x", "value": 1}`, `{}`, "not below /pstate/"},
		{`{"op": "replace", "path": "/pstate", "value": {}}`, `{}`, "not below /pstate/"},
		{`{"op": "add", "path": "/pstate/x~2", "value": 1}`, `{}`, "bad escape"},
		{`{"op": "copy", "path": "/pstate/x", "from": "/pstate/first"}`, `{}`, "not one of"},
		{`{"op": "add", "path": "/pstate/x"}`, `{}`, "no value"},
		{`"text"`, `{}`, "not an object"},
	} {
		e := engine(t, head+strings.Replace(rule, "%s", tc.op, 1))
		err := ask(e, &agent.StartContainerRequest{})
		if (err == nil) != (tc.err == "") || (err != nil && !strings.Contains(err.Error(), tc.err)) {
			t.Errorf("%s: got %v, expected %q", tc.op, err, tc.err)
		}
		if got := pstate(t, e); got != tc.state {
			t.Errorf("%s: state %s, expected %s", tc.op, got, tc.state)
		}
	}
}

func TestUndo(t *testing.T) {
	text := head + `
StartContainerRequest := {"allowed": true, "ops": input_ops[input.container_id]}
input_ops := {
	"add": [{"op": "add", "path": "/pstate/a", "value": {"n": 1}}],
	"deep": [{"op": "replace", "path": "/pstate/a/n", "value": 2}],
	"list": [{"op": "add", "path": "/pstate/l/-", "value": 3}, {"op": "remove", "path": "/pstate/l/0"}],
	"init": [{"op": "add", "path": "/pstate/l", "value": [1, 2]}],
	"move": [{"op": "remove", "path": "/pstate/a"}, {"op": "add", "path": "/pstate/b", "value": true}],
	"none": [],
}
SetPolicyRequest := true
UndoFailedRequests := true
`
	ctx := t.Context()
	e := engine(t, text)
	begin := func(what string) func(context.Context) error {
		t.Helper()
		undo, err := e.Begin(ctx, "StartContainerRequest", &agent.StartContainerRequest{ContainerId: what})
		if err != nil {
			t.Fatal(err)
		}
		return undo
	}
	state := func(want string) {
		t.Helper()
		v, err := e.policy.state(ctx)
		if err != nil || v.String() != want {
			t.Errorf("state is %v, %v, expected %s", v, err, want)
		}
	}
	undo := func(f func(context.Context) error, ok bool) {
		t.Helper()
		if err := f(ctx); (err == nil) != ok {
			t.Errorf("undo: %v", err)
		}
	}
	undo(begin("none"), true)
	undo(begin("add"), true)
	state(`{}`)
	begin("init")
	undo(begin("list"), true)
	state(`{"l": [1, 2]}`)
	first := begin("add")
	undo(begin("deep"), true)
	state(`{"a": {"n": 1}, "l": [1, 2]}`)
	deep := begin("deep")
	undo(first, false) // what came after was built on it
	state(`{"a": {"n": 2}, "l": [1, 2]}`)
	move := begin("move")
	state(`{"b": true, "l": [1, 2]}`)
	undo(deep, false)
	undo(move, true)
	undo(move, false) // once
	undo(deep, true)
	undo(first, true)
	state(`{"l": [1, 2]}`)
	last := begin("add")
	if err := e.SetPolicy(ctx, text); err != nil {
		t.Fatal(err)
	}
	begin("add")
	undo(last, false)
	state(`{"a": {"n": 1}}`)
}

// TestLasting has decisions whose requests fail: what they rest on, and what others have written as well, stays.
func TestLasting(t *testing.T) {
	text := head + `
StartContainerRequest := {"allowed": true, "ops": [
	{"op": "add", "path": "/pstate/pod", "value": "one", "lasts": true},
	{"op": "add", "path": concat("", ["/pstate/", input.container_id]), "value": true},
]}
`
	for name, tc := range map[string]struct{ text, want string }{
		"undone":                {text + "UndoFailedRequests := true", `{"b": true, "pod": "one"}`},
		"not undone":            {text, `{"a": true, "b": true, "c": true, "pod": "one"}`},
		"expressly not undone":  {text + "UndoFailedRequests := false", `{"a": true, "b": true, "c": true, "pod": "one"}`},
		"an answer of no sense": {text + `UndoFailedRequests := {"allowed": false}`, `{"a": true, "b": true, "c": true, "pod": "one"}`},
	} {
		t.Run(name, func(t *testing.T) {
			e := engine(t, tc.text)
			undos := map[string]func(context.Context) error{}
			for _, id := range []string{"a", "b", "b", "c"} { // the second b writes what is there already
				undo, err := e.Begin(t.Context(), "StartContainerRequest", &agent.StartContainerRequest{ContainerId: id})
				if err != nil {
					t.Fatal(err)
				}
				if undos[id] == nil {
					undos[id] = undo
				}
			}
			for id, undo := range undos {
				if err := undo(t.Context()); (err == nil) != (id != "b" && name == "undone") {
					t.Errorf("undoing %s: %v", id, err)
				}
			}
			if v, err := e.policy.state(t.Context()); err != nil || v.String() != tc.want {
				t.Errorf("the state is %v, %v, expected %s", v, err, tc.want)
			}
		})
	}
}

func TestForbiddenBuiltins(t *testing.T) {
	for _, call := range []string{
		`http.send({"method": "get", "url": "http://127.0.0.1"})`, `opa.runtime()`, `time.now_ns()`, `rand.intn("x", 2)`,
		`net.lookup_ip_addr("localhost")`, `uuid.rfc4122("x")`, `rego.parse_module("x", "package x")`, `trace("x")`,
		`io.jwt.decode("x")`, `providers.aws.sign_req({}, {}, 1)`,
	} {
		if _, err := New(head+"StartContainerRequest if x := "+call, Options{}); err == nil {
			t.Errorf("%s is accepted", call)
		}
	}
}

func TestBadPolicies(t *testing.T) {
	for name, text := range map[string]string{
		"empty":         "",
		"other package": "package other\nx := 1",
		"syntax":        "package agent_policy\nx := {",
		"unsafe":        head + "StartContainerRequest if x == 1",
		"long line":     "package agent_policy\n# " + strings.Repeat("x", maxLineBytes),
		"many lines":    "package agent_policy\n" + strings.Repeat("#\n", maxLines),
		"large":         "package agent_policy\n" + strings.Repeat(strings.Repeat("#", 1000)+"\n", 17000),
		"recursion":     head + "StartContainerRequest if StartContainerRequest",
	} {
		var pe *PolicyError
		if _, err := New(text, Options{}); !errors.As(err, &pe) {
			t.Errorf("%s: got %v, expected a policy error", name, err)
		}
	}
}

func TestDeadline(t *testing.T) {
	e, err := New(head+`
StartContainerRequest if {
	n := numbers.range(1, 2000)
	count([1 | some a in n; some b in n; some c in n; a + b + c == -1]) == 1
}
StatsContainerRequest := true`, Options{Timeout: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	err = ask(e, &agent.StartContainerRequest{})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, expected the deadline", err)
	}
	if err := ask(e, &agent.StatsContainerRequest{}); err != nil {
		t.Errorf("after a deadline: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := e.Allow(ctx, "StatsContainerRequest", &agent.StatsContainerRequest{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, expected cancellation", err)
	}
}

func TestSetPolicy(t *testing.T) {
	ctx := t.Context()
	const second = head + "default SetPolicyRequest := false\nStatsContainerRequest := true"
	e := engine(t, head+`
SetPolicyRequest if startswith(input.policy, "package agent_policy")
StartContainerRequest := {"allowed": true, "ops": [{"op": "add", "path": "/pstate/x", "value": 1}]}`)
	if err := ask(e, &agent.StartContainerRequest{}); err != nil {
		t.Fatal(err)
	}
	var pe *PolicyError
	if err := e.SetPolicy(ctx, "package agent_policy\nx := {"); !errors.As(err, &pe) {
		t.Errorf("got %v, expected a policy error", err)
	}
	if pstate(t, e) == "{}" {
		t.Error("a failed replacement lost the state")
	}
	if err := e.SetPolicy(ctx, second); err != nil {
		t.Fatal(err)
	}
	if got := pstate(t, e); got != "{}" {
		t.Errorf("the new policy starts with state %s", got)
	}
	if err := ask(e, &agent.StatsContainerRequest{}); err != nil {
		t.Error(err)
	}
	var d *DeniedError
	if err := e.SetPolicy(ctx, second); !errors.As(err, &d) {
		t.Errorf("got %v, expected a denial", err)
	}
}

func TestAllowFailingIsLoud(t *testing.T) {
	var log bytes.Buffer
	opts := Options{Logger: slog.New(slog.NewTextHandler(&log, nil))}
	e, err := New(head+"AllowRequestsFailingPolicy := true\ndefault StartContainerRequest := false", opts)
	if err != nil {
		t.Fatal(err)
	}
	if !e.Insecure() {
		t.Error("not reported as insecure")
	}
	for _, req := range []proto.Message{&agent.StartContainerRequest{}, &agent.StatsContainerRequest{}} {
		log.Reset()
		if err := ask(e, req); err != nil {
			t.Error(err)
		}
		if !strings.Contains(log.String(), "insecure") {
			t.Errorf("nothing was logged: %q", log.String())
		}
	}
	if engine(t, head+"AllowRequestsFailingPolicy := false").Insecure() || engine(t, head+"x := 1").Insecure() {
		t.Error("insecure without being asked")
	}
	if _, err := New(head+`AllowRequestsFailingPolicy := "true"`, opts); err == nil {
		t.Error("an answer that is no boolean is accepted")
	}
}

func TestAllowRead(t *testing.T) {
	req := &agent.ReadStreamRequest{ContainerId: "a"}
	yes, err := engine(t, head+"ReadStreamRequest := true").AllowRead(t.Context(), req)
	if !yes || err != nil {
		t.Errorf("got %v, %v", yes, err)
	}
	no, err := engine(t, head+"default ReadStreamRequest := false").AllowRead(t.Context(), req)
	if no || err != nil {
		t.Errorf("got %v, %v", no, err)
	}
	if yes, err := engine(t, head+"x := 1").AllowRead(t.Context(), req); yes || err == nil {
		t.Errorf("undefined: got %v, %v", yes, err)
	}
}

func TestPrintsAreBoundedAndRedacted(t *testing.T) {
	e := engine(t, head+`
default ExecProcessRequest := false
ExecProcessRequest if {
	print("env", input.process.Env, concat("", [x | some _ in numbers.range(1, 5000); x := "y"]))
	false
}`)
	err := ask(e, &agent.ExecProcessRequest{Process: &agent.Process{Env: []string{"KEY=very-secret-value"}}})
	var d *DeniedError
	if !errors.As(err, &d) || d.Prints == "" {
		t.Fatalf("got %v", err)
	}
	if strings.Contains(err.Error(), "very-secret-value") || len(err.Error()) > 2048 {
		t.Errorf("bad message: %s", err)
	}
}

func TestConcurrentDecisions(t *testing.T) {
	e := engine(t, head+`
StartContainerRequest := {"allowed": true, "ops": [{"op": "add", "path": "/pstate/taken", "value": true}]} if not data.pstate.taken
default StartContainerRequest := false`)
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := 0
	for range 32 {
		wg.Go(func() {
			if ask(e, &agent.StartContainerRequest{}) == nil {
				mu.Lock()
				won++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if won != 1 {
		t.Errorf("%d of 32 won, expected 1", won)
	}
}

func TestRuleNames(t *testing.T) {
	e := engine(t, head+"x := true")
	for _, name := range []string{"", "a.b", `x"]`, "x\n", strings.Repeat("x", 200)} {
		var in *InternalError
		if err := e.Allow(t.Context(), name, &agent.StartContainerRequest{}); !errors.As(err, &in) {
			t.Errorf("%q: got %v", name, err)
		}
	}
}

func TestBytesAreSparedWhenUnread(t *testing.T) {
	e := engine(t, head+`
WriteStreamRequest if input.container_id == "a"
SetIPTablesRequest if count(input.data) == 3
ReseedRandomDevRequest if sees(input)
sees(i) if count(i.data) == 2`)
	for rule, want := range map[string]bool{"WriteStreamRequest": false, "SetIPTablesRequest": true, "ReseedRandomDevRequest": true} {
		q, err := e.policy.query(rule)
		if err != nil {
			t.Fatal(err)
		}
		if q.readsBytes != want {
			t.Errorf("%s: reads bytes %v, expected %v", rule, q.readsBytes, want)
		}
	}
	if err := ask(e, &agent.SetIPTablesRequest{Data: []byte("abc")}); err != nil {
		t.Error(err)
	}
	if err := ask(e, &agent.ReseedRandomDevRequest{Data: []byte("ab")}); err != nil {
		t.Error(err)
	}
}

func FuzzNew(f *testing.F) {
	f.Add(head + "StartContainerRequest if input.container_id == \"a\"")
	f.Add("package agent_policy\ndefault x = {\"a\": [1]}\nx { y := input.z[_] }")
	f.Fuzz(func(t *testing.T, text string) {
		e, err := New(text, Options{Timeout: time.Second})
		if err != nil {
			return
		}
		err = ask(e, &agent.StartContainerRequest{ContainerId: "a"})
		if err != nil && len(err.Error()) > 2048 {
			t.Errorf("message of %d bytes", len(err.Error()))
		}
	})
}

func TestExited(t *testing.T) {
	const rule = `
default StartContainerRequest := false
StartContainerRequest if data.pstate.done == "c1"
ContainerExited := {"allowed": true, "ops": [{"op": "add", "path": "/pstate/done", "value": input.container_id}]} if input.status == 0
`
	e, err := New("package agent_policy\nimport rego.v1\n"+rule, Options{})
	if err != nil {
		t.Fatal(err)
	}
	start := &agent.StartContainerRequest{ContainerId: "c2"}
	for _, status := range []int{1, 137, -1} {
		if err := e.Exited(t.Context(), "c1", status); err != nil {
			t.Fatal(err)
		}
		if e.Allow(t.Context(), "StartContainerRequest", start) == nil {
			t.Fatalf("status %d counts as success", status)
		}
	}
	if err := e.Exited(t.Context(), "c1", 0); err != nil {
		t.Fatal(err)
	}
	if err := e.Allow(t.Context(), "StartContainerRequest", start); err != nil {
		t.Error(err)
	}
	// Policies of others know nothing of it.
	if e, err = New("package agent_policy\n", Options{}); err != nil {
		t.Fatal(err)
	}
	if err := e.Exited(t.Context(), "c1", 0); err != nil {
		t.Error(err)
	}
}

func TestAllowPort(t *testing.T) {
	e, err := New("package agent_policy\nPortForwardRequest { input.port == 8080 }\n", Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.AllowPort(t.Context(), 8080); err != nil {
		t.Error(err)
	}
	if err := e.AllowPort(t.Context(), 8081); err == nil {
		t.Error("another port was allowed")
	}
	if e, err = New("package agent_policy\n", Options{}); err != nil {
		t.Fatal(err)
	}
	if err := e.AllowPort(t.Context(), 8080); err == nil {
		t.Error("a policy without the rule allows ports")
	}
}

func TestOpenUntilThereIsAPolicy(t *testing.T) {
	e := NewOpen(Options{})
	ctx := t.Context()
	if !e.Insecure() {
		t.Error("an engine without a policy calls itself secure")
	}
	for _, rule := range []string{"CreateContainerRequest", "SetPolicyRequest", "HostStorageRequest", "NeverHeardOf"} {
		undo, err := e.Begin(ctx, rule, &agent.CreateContainerRequest{})
		if err != nil {
			t.Fatalf("%s: %v", rule, err)
		}
		if err := undo(ctx); err != nil {
			t.Errorf("taking back %s: %v", rule, err)
		}
	}
	if err := errors.Join(e.AllowPort(ctx, 80), e.Exited(ctx, "c", 1)); err != nil {
		t.Error(err)
	}
	if err := e.SetPolicy(ctx, "package agent_policy\n("); err == nil {
		t.Error("a policy that does not compile was taken")
	}
	undo, err := e.Begin(ctx, "CreateContainerRequest", &agent.CreateContainerRequest{})
	if err != nil {
		t.Fatal("a policy that was refused is in force:", err)
	}
	if err := e.SetPolicy(ctx, "package agent_policy\ndefault StartContainerRequest := true"); err != nil {
		t.Fatal(err)
	}
	if e.Insecure() || e.Allow(ctx, "CreateContainerRequest", &agent.CreateContainerRequest{}) == nil || e.AllowPort(ctx, 80) == nil {
		t.Error("the policy is not in force")
	}
	if err := e.Allow(ctx, "StartContainerRequest", &agent.StartContainerRequest{}); err != nil {
		t.Error(err)
	}
	if undo(ctx) == nil {
		t.Error("a decision of before the policy was taken back")
	}
}
