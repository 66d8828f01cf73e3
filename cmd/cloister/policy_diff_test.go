package main

import (
	"strings"
	"testing"
)

// TestPoliciesOfSeveralObjects compares and replays what one chart gives: several policies in one file.
func TestPoliciesOfSeveralObjects(t *testing.T) {
	f := newFolder(t)
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	pod := func(kind, name, arg string) string {
		if kind == "Pod" {
			return "apiVersion: v1\nkind: Pod\nmetadata: {" + name + "}\nspec: {containers: [{name: a, image: " + f.registry + "/app:1, command: [/app], args: [" + arg + "]}]}\n---\n"
		}
		return "apiVersion: batch/v1\nkind: " + kind + "\nmetadata: {" + name + "}\nspec: {template: {spec: {containers: [{name: a, image: " + f.registry + "/app:1, command: [/app], args: [" + arg + "]}]}}}\n---\n"
	}
	for name, text := range map[string]string{
		"old": pod("Pod", "name: web", "a") + pod("Job", "generateName: once-", "b") + pod("Pod", "name: gone", "c"),
		"new": pod("Job", "generateName: once-", "x") + pod("Pod", "name: web", "a") + pod("Pod", "name: more", "c"),
		"one": pod("Pod", "name: web", "z"),
	} {
		f.write(t, name+"-in.yaml", text)
		f.run(t, exitDone, "policy", "generate", "--insecure-registry", f.registry, "-o", name+".yaml", name+"-in.yaml")
	}
	out := f.run(t, exitRefused, "policy", "diff", "old.yaml", "new.yaml")
	for _, want := range []string{"Job/once-\n  ~ containers.a.OCI.Process.Args.1: \"b\" -> \"x\"\n- the policy of Pod/gone\n+ the policy of Pod/more\n", "differ in 3 places"} {
		if !strings.Contains(out, want) {
			t.Errorf("the difference lacks %q:\n%s", want, out)
		}
	}
	if out := f.run(t, exitRefused, "policy", "diff", "--json", "old.yaml", "new.yaml"); !strings.Contains(out, `"only": "old"`) || !strings.Contains(out, `"path": "containers.a.OCI.Process.Args.1"`) {
		t.Errorf("as JSON:\n%s", out)
	}
	f.run(t, exitDone, "policy", "diff", "old.yaml", "old.yaml")
	if out := f.run(t, exitDone, "policy", "explain", "old.yaml"); !strings.Contains(out, "\nJob/once-\n") {
		t.Errorf("a name that is generated is not shown:\n%s", out)
	}

	f.write(t, "requests", `{"kind": "GetOOMEventRequest", "request": {}}`)
	f.write(t, "binary", "a\x00b")
	f.write(t, "raw.rego", "package agent_policy\ndefault GetOOMEventRequest := true\n")
	f.run(t, exitDone, "policy", "generate", "--insecure-registry", f.registry, "--raw", "-o", "three.rego", "old-in.yaml")
	for _, tc := range []struct {
		file, object, want string
		exit               int
	}{
		{"old.yaml", "", "holds 3 policies, of Pod/web, Job/once-, Pod/gone", exitRefused},
		{"old.yaml", "Job/once-", "1 requests are decided as expected", exitDone},
		{"old.yaml", "Pod/x", "has no policy of Pod/x", exitRefused},
		{"one.yaml", "", "1 requests are decided as expected", exitDone},
		{"one.yaml", "Pod/web", "1 requests are decided as expected", exitDone},
		{"raw.rego", "Pod/web", "--object is for manifests", exitUsage},
		{"three.rego", "", "holds the texts of 3 policies", exitRefused},
		{"binary", "", "is no text", exitRefused},
	} {
		args := []string{"policy", "test", tc.file, "requests"}
		if tc.object != "" {
			args = append(args, "--object", tc.object)
		}
		if out := f.run(t, tc.exit, args...); !strings.Contains(out, tc.want) {
			t.Errorf("%s of %s: want %q, got\n%s", tc.object, tc.file, tc.want, out)
		}
	}
}
