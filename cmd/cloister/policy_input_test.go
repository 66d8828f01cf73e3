package main

import (
	"os"
	"strings"
	"testing"
)

// TestPolicyWrongInput has what a new user may give to commands about policies by mistake. Each is refused in words about the file that
// was given, and nothing that is in it can steer the terminal.
func TestPolicyWrongInput(t *testing.T) {
	f := newFolder(t)
	f.write(t, "empty", " \n")
	f.write(t, "binary", "\x00\xff\x1b[31m")
	f.write(t, "escape.rego", "package agent_policy\nallow baz \x1b[31m\n")
	f.write(t, "requests.jsonl", `{"kind": "StartContainerRequest"}`)
	f.write(t, "chart.yaml", "apiVersion: v1\nkind: Pod\nspec:\n  {{- if .Values.x }}\n  a: b\n")
	f.write(t, "quoted.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers:\n  - name: a\n    image: \"{{ .Values.image }}\"\n")
	f.write(t, "broken.json", `{"resources": [`)
	f.write(t, "words", "hello world\n")
	f.write(t, "p.rego", "package agent_policy\ndefault StartContainerRequest := true\n")
	if err := os.Mkdir("folder", 0o755); err != nil {
		t.Fatal(err)
	}
	large, err := os.Create("large")
	if err != nil {
		t.Fatal(err)
	}
	defer large.Close()
	if err := large.Truncate(1 << 30); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ args, want string }{
		{"explain empty", "error: reading the policy: empty is empty\n"},
		{"explain binary", "error: reading the policy: binary is no text\n"},
		{"explain large", "error: reading the policy: large has more than 33554432 bytes\n"},
		{"explain folder", "error: reading the policy: read folder: is a directory\n"},
		{"explain none", "error: reading the policy: open none: no such file"},
		{"explain escape.rego", "escape.rego: it is no policy: line 2: "},
		{"explain words", "words: it is no policy: line 1: package expected"},
		{"explain chart.yaml", "chart.yaml looks like a manifest or template and cannot be read: "},
		{"explain broken.json", "broken.json looks like a manifest or template and cannot be read: "},
		{"explain requests.jsonl", "requests.jsonl holds recorded requests and no policy\ncloister: hint: `cloister policy sim POLICY REQUESTS`"},
		{"diff p.rego empty", "empty is empty\n"},
		{"sim requests.jsonl p.rego", "requests.jsonl holds recorded requests and no policy\n"},
		{"sim escape.rego requests.jsonl", "escape.rego: it is no policy: line 2: "},
		{"test words requests.jsonl", "words: it is no policy: line 1: package expected"},
		{"sim p.rego folder", "error: reading the requests: read folder: is a directory\n"},
		{"sim p.rego binary", "error: reading the request in line 1: invalid character"},
		{"generate --no-cache --rules words quoted.yaml", "error: reading the rules: words: it is no policy: line 1"},
		{"generate --no-cache --rules large quoted.yaml", "error: reading the rules: large has more than"},
		{"generate --no-cache --settings folder quoted.yaml", "folder has neither genpolicy-settings.json nor genpolicy-settings.d/*.json\n"},
		{"generate --no-cache --settings empty quoted.yaml", "error: reading settings: empty: it is empty\n"},
		{"generate --no-cache --initdata large quoted.yaml", "large has more than"},
		{"generate --no-cache --image-source oci:nowhere quoted.yaml", "error: image source oci:nowhere: "},
		{"generate --no-cache quoted.yaml", "hint: line 7 of quoted.yaml is part of a template: render it, for a chart by `helm template`"},
		{"generate --no-cache chart.yaml", "is this a template? Render it"},
		{"aci large", "large: the file has more than"},
		{"aci broken.json", "broken.json: reading the template: line 1: the document ends early\n"},
		{"fragment inspect large", "large has 1073741824 bytes, the limit is"},
	} {
		out := f.run(t, exitRefused, append([]string{"policy"}, strings.Fields(c.args)...)...)
		if !strings.Contains(out, c.want) || strings.ContainsAny(out, "\x1b\x00") {
			t.Errorf("policy %s: %q, want %q", c.args, out, c.want)
		}
	}
}

func TestHarmless(t *testing.T) {
	for in, want := range map[string]string{"a\n\tb ü": "a\n\tb ü", "a\x1b[2Jb": "a\ufffd[2Jb", "\xff\u202e": "\ufffd\ufffd"} {
		if got := harmless(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}
