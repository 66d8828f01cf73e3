package gate

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/cloister/cloister/wire/agent"
)

const foldRules = head + `
default StartContainerRequest := false
StartContainerRequest if {
	input.container_id in names
	limits[input.container_id] == 1
	not broken
}
names contains c.name if some c in policy_data.list
limits[c.name] := twice(c.n) / 2 if some c in policy_data.list
twice(n) := n * 2
broken if policy_data.missing.member
both := 1 if policy_data.list[0].n == 1
both := 2 if policy_data.list[1].n == 2
chatty := x if { x := 1; print(x) }
seen := count(data.pstate)
whole := input
outer := whole
`

const foldData = `
policy_data := {"list": [{"name": "a", "n": 1}, {"name": "b", "n": 2}], "x": "1.0", "y": 1.0, "z": 1}
`

func TestFold(t *testing.T) {
	for name, text := range map[string]string{
		"JSON": foldRules + foldData, "Rego": foldRules + foldData + "# the end\n", "before": head + foldData + strings.TrimPrefix(foldRules, head),
	} {
		t.Run(name, func(t *testing.T) {
			e := engine(t, text)
			if err := ask(e, &agent.StartContainerRequest{ContainerId: "a"}); err != nil {
				t.Error(err)
			}
			var d *DeniedError
			if err := ask(e, &agent.StartContainerRequest{ContainerId: "b"}); !errors.As(err, &d) || !strings.Contains(err.Error(), "limits.b") {
				t.Errorf("got %v", err)
			}
			for _, folded := range []string{"policy_data", "names", "limits"} {
				if e.policy.constants[folded] == nil {
					t.Errorf("%s is not computed", folded)
				}
			}
			for _, not := range []string{"broken", "both", "chatty", "seen", "whole", "outer", "StartContainerRequest", "twice"} {
				if e.policy.constants[not] != nil {
					t.Errorf("%s is computed: %v", not, e.policy.constants[not])
				}
			}
			y, z := member(e.policy.constants["policy_data"].(ast.Object), "y"), member(e.policy.constants["policy_data"].(ast.Object), "z")
			if y.String() != "1.0" || z.String() != "1" {
				t.Errorf("numbers are %v and %v", y, z)
			}
		})
	}
}

func TestSplitData(t *testing.T) {
	for text, want := range map[string]bool{
		"x\npolicy_data := {\"a\": 1}":                               true,
		"x\npolicy_data := {\"a\": 1}\n \n":                          true,
		"x\npolicy_data := {\"a\": 1} # text":                        false,
		"x\npolicy_data := {\"a\": 1}\ny := 1":                       false,
		"x\npolicy_data := {\"a\": 1, }":                             false,
		"x\npolicy_data := {\"a\"}":                                  false,
		"x\npolicy_data := [1]":                                      false,
		"policy_data := {\"a\": 1}":                                  false,
		"x\npolicy_data := {\"a\": `\npolicy_data := {\"b\": 2}":     true, // what is left does not parse, and then the whole text is
		"x\npolicy_data := {\"a\": {}}\npolicy_data := {\"b\": 2}\n": true,
	} {
		if rules, data := splitData(text); (data != nil) != want || data == nil && rules != text {
			t.Errorf("%q: got %q, %v", text, rules, data)
		}
	}
	// Data inside a raw string is none.
	text := head + "StartContainerRequest if input.container_id == `\npolicy_data := {\"a\": 1}\n`"
	if err := ask(engine(t, text), &agent.StartContainerRequest{ContainerId: "\npolicy_data := {\"a\": 1}\n"}); err != nil {
		t.Error(err)
	}
	if _, err := New(head+"x := `\npolicy_data := {\"b\": 2}\n", Options{}); err == nil {
		t.Error("a text that does not parse is accepted")
	}
}

func TestSharing(t *testing.T) {
	term := ast.MustParseTerm(`{"a": [1, "x", {"k": "v"}], "b": [1, "x", {"k": "v"}], "c": {1, 1.0, "1"}, "d": [1.0, "x", {"k": "v"}]}`)
	got := sharing{}.value(term.Value)
	if got.Compare(term.Value) != 0 || got.String() != term.Value.String() {
		t.Errorf("got %v, expected %v", got, term)
	}
	o := got.(ast.Object)
	if member(o, "a") != member(o, "b") {
		t.Error("equal lists are there twice")
	}
	if d := member(o, "d").String(); !strings.Contains(d, "1.0") {
		t.Errorf("1.0 has become %s", d)
	}
}

func TestPureGroups(t *testing.T) {
	p, err := compile(foldRules + foldData)
	if err != nil {
		t.Fatal(err)
	}
	if got := pureGroups(p.compiler); slices.Contains(got, "whole") || slices.Contains(got, "outer") || slices.Contains(got, "seen") {
		t.Errorf("got %q", got)
	}
}

// TestDropUnused: functions that only made tables go, those that are called in any way stay, and denials keep their lines.
func TestDropUnused(t *testing.T) {
	const text = `package agent_policy

import rego.v1

default StartContainerRequest := false

table := {n: twice(n) | some n in [1, 2]}

twice(n) := n * 2

plain(id) if right[id]

right[id] if some id in ["a", "b"]

named(id) if id != "c"

StartContainerRequest if {
	table[1] == 2
	plain(input.container_id)
	data.agent_policy.named(input.container_id)
}
`
	e, err := New(text, Options{})
	if err != nil {
		t.Fatal(err)
	}
	kept := map[string]bool{}
	for _, r := range e.policy.compiler.Modules["policy"].Rules {
		kept[ruleGroup(r)] = true
	}
	for name, want := range map[string]bool{"twice": false, "plain": true, "named": true, "table": true, "right": true} {
		if kept[name] != want {
			t.Errorf("%s is kept: %v", name, kept[name])
		}
	}
	if err := e.Allow(t.Context(), "StartContainerRequest", &agent.StartContainerRequest{ContainerId: "a"}); err != nil {
		t.Error(err)
	}
	err = e.Allow(t.Context(), "StartContainerRequest", &agent.StartContainerRequest{ContainerId: "x"})
	if err == nil || !strings.Contains(err.Error(), "policy line 11: plain(id) if right[id]") && !strings.Contains(err.Error(), "policy line 11: right[id]") {
		t.Errorf("got %v", err)
	}
}
