package kubernetes

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestRead(t *testing.T) {
	dir := t.TempDir()
	write := func(name string) {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"b.yml", "a.yaml", "c.json", "README.md", "below/d.yaml"} {
		write(name)
	}
	in, err := Read(strings.NewReader("from stdin"), dir, "-", filepath.Join(dir, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, i := range in {
		got = append(got, string(i.Data))
	}
	if !slices.Equal(got, []string{"a.yaml", "b.yml", "c.json", "from stdin", "README.md"}) || in[3].Path != "" {
		t.Errorf("read %q", got)
	}
	for file, want := range map[string]string{"kustomization.yaml": "kustomize build", "Chart.yaml": "helm template"} {
		write(file)
		if _, err := Read(nil, dir); err == nil || !strings.Contains(err.Error(), "hint: "+want) {
			t.Errorf("%s: %v", file, err)
		}
		if err := os.Remove(filepath.Join(dir, file)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Read(nil, filepath.Join(dir, "none")); err == nil {
		t.Error("a missing file is read")
	}
}

// TestObjects has what can be wrong with objects, and what finds its way in spite of namespaces.
func TestObjects(t *testing.T) {
	const text = `
apiVersion: v1
kind: ConfigMap
metadata: {name: c, namespace: shop}
data: {k: v}
---
apiVersion: v1
kind: Secret
metadata: {name: s}
data: {a: aGk=, b: "?"}
stringData: {a: over}
---
kind: Deployment
apiVersion: apps/v1
metadata: {name: d, namespace: shop}
spec: {template: {spec: {runtimeClassName: kata-x, containers: []}}}
---
kind: Deployment
apiVersion: apps/v1
metadata: {name: skipped}
spec: {template: {spec: {containers: [], nonsense: 1}}}
---
kind: Job
apiVersion: batch/v1
metadata: {name: j}
spec: {}
---
- a list
`
	s, err := Parse([]Input{{Name: "x", Data: []byte(text)}}, nil, Options{RuntimeClasses: []string{"cloister", "kata"}})
	for _, want := range []string{"3 problems", `x:10: Secret/s: data.b: not base64`, `x:23: Job/j: spec.template: missing`, "x:28: expected a Kubernetes object, got a list"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in %v", want, err)
		}
	}
	if len(s.Workloads) != 1 {
		t.Fatalf("%d workloads", len(s.Workloads))
	}
	w := s.Workloads[0]
	if data, _, ok := s.ConfigMap(w, "c"); !ok || data["k"] != "v" {
		t.Error("the ConfigMap of the namespace is not found")
	}
	if data, ok := s.Secret(w, "s"); !ok || data["a"] != "over" {
		t.Error("the Secret without a namespace is not found")
	}
	if _, _, ok := s.ConfigMap(w, "s"); ok {
		t.Error("a Secret is a ConfigMap")
	}
}
