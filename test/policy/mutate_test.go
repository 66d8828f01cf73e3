package policy_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/cloister/cloister/guest/gate"
	"github.com/cloister/cloister/wire/agent"
	"github.com/cloister/cloister/wire/launch"
	"github.com/cloister/cloister/wire/policyinput"
)

// mutation is one change of a request, at a field path.
type mutation struct {
	path string
	req  proto.Message
}

// mutations lists every single-step change of m: each scalar changed and cleared,
// each list and map grown, shrunk and reordered, each message dropped or added.
func mutations(m proto.Message) []mutation {
	var out []mutation
	var walk func(path string, at func(protoreflect.Message) protoreflect.Message)
	// emit clones m, finds the place again and changes it there.
	emit := func(path string, at func(protoreflect.Message) protoreflect.Message, change func(protoreflect.Message)) {
		c := proto.Clone(m)
		change(at(c.ProtoReflect()))
		if !proto.Equal(c, m) {
			out = append(out, mutation{path, c})
		}
	}
	walk = func(path string, at func(protoreflect.Message) protoreflect.Message) {
		here := at(m.ProtoReflect())
		fields := here.Descriptor().Fields()
		for i := range fields.Len() {
			fd := fields.Get(i)
			p := strings.TrimPrefix(path+"."+string(fd.Name()), ".")
			v := here.Get(fd)
			switch {
			case fd.IsMap():
				emit(p+" add", at, func(x protoreflect.Message) {
					x.Mutable(fd).Map().Set(protoreflect.ValueOfString("kernel.added").MapKey(), protoreflect.ValueOfString("1"))
				})
				for k := range v.Map().Range {
					emit(p+" drop "+k.String(), at, func(x protoreflect.Message) { x.Mutable(fd).Map().Clear(k) })
					emit(p+" change "+k.String(), at, func(x protoreflect.Message) {
						x.Mutable(fd).Map().Set(k, protoreflect.ValueOfString("changed"))
					})
				}
			case fd.IsList():
				emit(p+" grow", at, func(x protoreflect.Message) {
					l := x.Mutable(fd).List()
					if fd.Message() == nil {
						l.Append(other(fd, l.NewElement()))
						return
					}
					l.AppendMutable()
				})
				n := v.List().Len()
				if n > 0 {
					emit(p+" shrink", at, func(x protoreflect.Message) { x.Mutable(fd).List().Truncate(n - 1) })
					emit(p+" repeat", at, func(x protoreflect.Message) {
						l := x.Mutable(fd).List()
						l.Append(l.Get(0))
					})
				}
				if n > 1 {
					emit(p+" swap", at, func(x protoreflect.Message) {
						l := x.Mutable(fd).List()
						a, b := l.Get(0), l.Get(n-1)
						l.Set(0, b)
						l.Set(n-1, a)
					})
				}
				for j := range n {
					pj := fmt.Sprintf("%s[%d]", p, j)
					if fd.Message() != nil {
						walk(pj, func(x protoreflect.Message) protoreflect.Message { return at(x).Mutable(fd).List().Get(j).Message() })
						continue
					}
					emit(pj, at, func(x protoreflect.Message) {
						l := x.Mutable(fd).List()
						l.Set(j, other(fd, l.Get(j)))
					})
				}
			case fd.Message() != nil:
				if !here.Has(fd) {
					emit(p+" add", at, func(x protoreflect.Message) { x.Mutable(fd) })
					continue
				}
				emit(p+" drop", at, func(x protoreflect.Message) { x.Clear(fd) })
				walk(p, func(x protoreflect.Message) protoreflect.Message { return at(x).Mutable(fd).Message() })
			default:
				emit(p+" change", at, func(x protoreflect.Message) { x.Set(fd, other(fd, v)) })
				emit(p+" clear", at, func(x protoreflect.Message) { x.Clear(fd) })
			}
		}
	}
	walk("", func(x protoreflect.Message) protoreflect.Message { return x })
	return out
}

// other is a value that differs from v.
func other(fd protoreflect.FieldDescriptor, v protoreflect.Value) protoreflect.Value {
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(!v.Bool())
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(v.String() + "x")
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes(append(append([]byte{}, v.Bytes()...), 'x'))
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(v.Int()) + 1)
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(v.Int() + 1)
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(v.Uint()) + 1)
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(v.Uint() + 1)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(v.Enum() + 1)
	}
	panic("no other value for " + fd.Kind().String())
}

// harmless lists, per request, the mutations that may pass, and why.
var harmless = map[string]map[string]string{
	"CreateContainerRequest": {
		"exec_id clear":               "shims name the first process by the container's id or not at all",
		"OCI.Process.ConsoleSize add": "the size of a terminal window; only with a terminal",
	},
	"ExecProcessRequest": {
		"exec_id change":            "the host names the processes it starts",
		"process.Capabilities drop": "without a list the runtime gives the container's capabilities",
		"process.Terminal change":   "commands allowed by name may have a terminal",
	},
	"SignalProcessRequest": {
		"exec_id change": "a process that does not exist is not found", "exec_id clear": "the first process",
	},
	"WaitProcessRequest": {
		"exec_id change": "a process that does not exist is not found", "exec_id clear": "the first process",
	},
	"ReadStreamRequest": {
		"exec_id change": "a process that does not exist is not found", "exec_id clear": "the first process",
		"len change": "how much to read", "len clear": "how much to read",
	},
	"WriteStreamRequest": {
		"exec_id clear": "the first process", "data change": "what the user types", "data clear": "what the user types",
	},
	"TtyWinResizeRequest": {
		"exec_id change": "a process that does not exist is not found", "exec_id clear": "the first process",
		"row change": "window", "row clear": "window", "column change": "window", "column clear": "window",
	},
	"RemoveContainerRequest": {
		"container_id change": "removing an unknown id does nothing but retire it",
		"timeout change":      "how long to wait",
	},
}

func TestEveryMutationIsDenied(t *testing.T) {
	const secret = "correct-horse-battery"
	e, plan := full(t)
	total := 0
	used := map[string]bool{}
	check := func(fresh func() *gate.Engine, req proto.Message, also ...string) {
		t.Helper()
		rule := policyinput.RuleName(req)
		for _, m := range mutations(req) {
			total++
			err := ask(e, m.req)
			if err == nil {
				used[rule+" "+m.path] = true
				if harmless[rule][m.path] == "" && !slices.Contains(also, m.path) {
					t.Errorf("%s with %s is allowed", rule, m.path)
				}
				e = fresh()
				continue
			}
			var d *gate.DeniedError
			if !errors.As(err, &d) {
				t.Errorf("%s with %s: %v", rule, m.path, err)
				continue
			}
			if len(d.Reasons) == 0 || len(err.Error()) > 2048 || strings.Contains(err.Error(), secret) {
				t.Errorf("%s with %s: bad message: %s", rule, m.path, err)
			}
		}
	}
	start := func() *gate.Engine { e, _ := full(t); return e }
	check(start, plan.Sandbox)
	for _, f := range plan.Files {
		mustAllow(t, e, f.Request)
		if f.Request.FileMode&0o170000 == 0o040000 {
			check(start, f.Request, "data change") // a directory has no data; the guest ignores it
			continue
		}
		check(start, f.Request)
	}
	// Each container in the state in which it may be created.
	for i, c := range plan.Containers {
		at := func() *gate.Engine { return createdUpTo(t, plan, i) }
		e = at()
		check(at, c.Create)
		mustAllow(t, e, c.Create)
	}
	up := func() *gate.Engine { e, _ := running(t); return e }
	e = up()
	web, shell := plan.Containers[1], plan.Containers[2]
	id := shell.Create.ContainerId
	for _, req := range []proto.Message{
		execOf(web, "exec-1", false, "/bin/healthy", "--quick"),
		execOf(shell, "exec-2", false, "/bin/date", "-u"),
		&agent.SignalProcessRequest{ContainerId: id, ExecId: id, Signal: 15},
		&agent.WaitProcessRequest{ContainerId: id, ExecId: id},
		&agent.ReadStreamRequest{ContainerId: id, ExecId: id, Len: 10},
		&agent.WriteStreamRequest{ContainerId: id, ExecId: id, Data: []byte("x")},
		&agent.TtyWinResizeRequest{ContainerId: id, ExecId: id, Row: 1, Column: 1},
		&agent.StatsContainerRequest{ContainerId: id},
		&agent.StartContainerRequest{ContainerId: id},
		&agent.RemoveContainerRequest{ContainerId: id},
	} {
		mustAllow(t, e, req)
		e = up()
		if i, ok := req.(*agent.SignalProcessRequest); ok {
			i.Signal = 9 // 9+1 = SIGUSR1
		}
		check(up, req)
	}
	for rule, paths := range harmless {
		for path := range paths {
			if !used[rule+" "+path] {
				t.Errorf("%s with %s is listed as harmless but was never allowed", rule, path)
			}
		}
	}
	t.Logf("%d mutations", total)
	if total < 1000 {
		t.Errorf("only %d mutations were tried", total)
	}
}

// createdUpTo is an engine that has created and started the containers before n.
func createdUpTo(t *testing.T, plan *launch.Plan, n int) *gate.Engine {
	t.Helper()
	e, _ := full(t)
	mustAllow(t, e, plan.Sandbox)
	sendFiles(t, e, plan)
	for _, c := range plan.Containers[:n] {
		mustAllow(t, e, c.Create)
		mustAllow(t, e, &agent.StartContainerRequest{ContainerId: c.Create.ContainerId})
		exited(t, e, c.Create.ContainerId, 0)
	}
	return e
}

// TestEveryRuleIsDecided asks for each method of the agent with an empty request:
// the policy must have an answer, and only the harmless ones are yes.
func TestEveryRuleIsDecided(t *testing.T) {
	allowed := map[string]bool{
		"DestroySandboxRequest": true, "GetOOMEventRequest": true, "GuestDetailsRequest": true, "OnlineCPUMemRequest": true,
		"RemoveStaleVirtiofsShareMountsRequest": true,
	}
	e, _ := full(t)
	methods := agent.File_wire_agent_agent_proto.Services().ByName("AgentService").Methods()
	for i := range methods.Len() {
		in := methods.Get(i).Input()
		mt, err := protoregistryType(in)
		if err != nil {
			t.Fatal(err)
		}
		err = ask(e, mt)
		var d *gate.DeniedError
		if err != nil && !errors.As(err, &d) {
			t.Errorf("%s: %v", in.Name(), err)
		}
		if got := err == nil; got != allowed[string(in.Name())] {
			t.Errorf("%s: allowed %v, expected %v", in.Name(), got, !got)
		}
	}
	if methods.Len() < 30 {
		t.Errorf("only %d methods", methods.Len())
	}
}
