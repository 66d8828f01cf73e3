package kubernetes

import (
	"slices"
	"strings"
	"testing"
)

// TestFieldsAndKinds has a reader that takes less than the package knows.
func TestFieldsAndKinds(t *testing.T) {
	const text = `
kind: List
apiVersion: v1
items:
- apiVersion: v1
  kind: Pod
  metadata: {name: p, annotation: {a: b}}
  status: {}
  extra: 1
  spec:
    nodeName: n
    hostNetwork: true
    hostPID: false
    nonsense: {deep: 1}
    containers:
    - name: a
      tty: true
    - name: b
      tty: false
      dose: 1
- {apiVersion: v1, kind: Service, metadata: {name: s}}
- {apiVersion: v2, kind: Secret, metadata: {name: s}}
- {apiVersion: v1, kind: ConfigMap, metadata: {labels: {a: b}}, data: {k: v}, binaryData: {k: aGk=}}
`
	var asked []string
	s, err := Parse([]Input{{Name: "x", Data: []byte(text)}}, nil, Options{
		Kinds: []string{"Pod", "ConfigMap", "Secret"},
		Fields: func(path string) (string, string) {
			asked = append(asked, path)
			switch path {
			case "spec.hostNetwork", "spec.hostPID", "spec.containers[].tty":
				return "reason of " + path, ""
			case "spec.nodeName", "spec.nonsense":
				return "", "a good reason"
			}
			return "", ""
		},
	})
	if err == nil {
		t.Fatal("no problems")
	}
	for _, want := range []string{
		"9 problems",
		"x:7: Pod/p: items[0].metadata.annotation: unknown field",
		"x:9: Pod/p: items[0].extra: unknown field",
		"x:12: Pod/p: items[0].spec.hostNetwork: not supported: reason of spec.hostNetwork",
		"x:17: Pod/p: items[0].spec.containers[0].tty: not supported: reason of",
		"x:20: Pod/p: items[0].spec.containers[1].dose: unknown field",
		`x:21: items[1].kind: "Service" is not supported; expected Pod, ConfigMap or Secret`,
		`x:22: items[2].apiVersion: got "v2", expected v1`,
		"x:23: ConfigMap/: metadata.name: missing",
		"x:23: ConfigMap/: binaryData.k: the key is also in data",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in\n%v", want, err)
		}
	}
	if want := []string{"spec.nodeName is ignored: a good reason", "spec.nonsense is ignored: a good reason"}; !slices.Equal(s.Warnings, want) {
		t.Errorf("warnings %q", s.Warnings)
	}
	if slices.Contains(asked, "spec.nonsense.deep") || !slices.Contains(asked, "spec.containers[].name") {
		t.Errorf("asked about %q", asked)
	}
}

func TestFault(t *testing.T) {
	const text = `
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  containers:
  - &a
    name: a
    resources:
      limits:
        example.com/x: 1
  - *a
`
	s, err := Parse([]Input{{Name: "x", Data: []byte(text)}}, nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for path, line := range map[string]int{
		"": 2, "metadata.name": 4, "metadata.namespace": 4, "spec.containers": 6, "spec.containers[0]": 7, "spec.containers[0].image": 7,
		"spec.containers[0].resources.limits.example.com/x": 10, `spec.containers[0].resources.limits["example.com/x"]`: 11,
		`spec.containers[0].resources.limits["example.com/x`: 10, "spec.containers[1].resources.limits.cpu": 10, "spec.containers[2].name": 6,
		"spec.containers[x]": 6, "spec.containers.name": 6, "spec[0]": 5, "none.of.this": 2,
	} {
		if p := s.Workloads[0].Fault(path, "wrong"); p.Line != line || p.Path != path || p.Object != "Pod/p" {
			t.Errorf("%s: %v, want line %d", path, p, line)
		}
	}
}

func TestDigest(t *testing.T) {
	digest := func(container string) string {
		s, err := Parse([]Input{{Name: "x", Data: []byte("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  containers:\n" + container)}}, nil, Options{})
		if err != nil {
			t.Fatal(err)
		}
		d, err := s.Workloads[0].Spec.Containers[0].Digest()
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	one := digest("  - {name: a, image: x, args: ['1']}\n")
	if other := digest("# a comment\n\n  -\n    image: \"x\"\n    args:\n    - \"1\" # more\n    name: a\n"); one != other {
		t.Error("form and order count")
	}
	if other := digest("  - {name: a, image: x, args: ['2']}\n"); one == other {
		t.Error("the content does not count")
	}
}

// TestExpand has the examples of Kubernetes' documentation and odd ones.
func TestExpand(t *testing.T) {
	values := map[string]string{"A": "one", "B": "$(A)"}
	for text, want := range map[string]string{
		"": "", "$": "$", "a$": "a$", "$(A)": "one", "-$(A)-$(B)-": "-one-$(A)-", "$$(A)": "$(A)", "$$$(A)": "$one", "$(C)": "$(C)", "$(A": "$(A",
		"$(": "$(", "$A": "$A", "$(C$(A))": "$(C$(A))", "$$$$": "$$",
	} {
		if got := Expand(text, values); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}
