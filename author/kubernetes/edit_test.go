package kubernetes

import (
	"strings"
	"testing"
)

const pod = "kind: Pod\napiVersion: v1\n"

// TestSetAnnotation shows where the annotation goes and that the rest stays as it is.
func TestSetAnnotation(t *testing.T) {
	const spec = "spec:\n  containers: [{name: a, image: b}]\n"
	for name, tc := range map[string][2]string{
		"replaced":        {pod + "metadata:\n  annotations:\n    # why\n    key: old # note\n    z: y\n" + spec, pod + "metadata:\n  annotations:\n    # why\n    key: NEW= # note\n    z: y\n" + spec},
		"double quotes":   {pod + "metadata:\n  annotations:\n    \"key\": \"o\\\"ld\"\n" + spec, pod + "metadata:\n  annotations:\n    \"key\": \"NEW=\"\n" + spec},
		"single quotes":   {pod + "metadata:\n  annotations:\n    key: 'o''ld'\n" + spec, pod + "metadata:\n  annotations:\n    key: 'NEW='\n" + spec},
		"literal":         {pod + "metadata:\n  annotations:\n    key: |\n      old\n      older\n    z: y\n" + spec, pod + "metadata:\n  annotations:\n    key: NEW=\n    z: y\n" + spec},
		"folded at end":   {pod + spec + "metadata:\n  annotations:\n    key: >-\n      old\n\n      older\n", pod + spec + "metadata:\n  annotations:\n    key: NEW=\n"},
		"added":           {pod + "metadata:\n  name: x\n  annotations:\n    z: y\n" + spec, pod + "metadata:\n  name: x\n  annotations:\n    key: NEW=\n    z: y\n" + spec},
		"empty flow":      {pod + "metadata:\n  annotations: {} # none\n" + spec, pod + "metadata:\n  annotations: {\"key\": \"NEW=\"} # none\n" + spec},
		"flow":            {pod + "metadata: {name: x, annotations: {z: y}}\n" + spec, pod + "metadata: {name: x, annotations: {\"key\": \"NEW=\", z: y}}\n" + spec},
		"null":            {pod + "metadata:\n  annotations: # none\n  name: x\n" + spec, pod + "metadata:\n  annotations: # none\n    key: NEW=\n  name: x\n" + spec},
		"tilde":           {pod + "metadata:\n  annotations: ~\n  name: x\n" + spec, pod + "metadata:\n  annotations: {\"key\": \"NEW=\"}\n  name: x\n" + spec},
		"no annotations":  {pod + "metadata:\n  # the name\n  name: x\n" + spec, pod + "metadata:\n  # the name\n  annotations:\n    key: NEW=\n  name: x\n" + spec},
		"no metadata":     {"# a pod\n" + pod + spec, "# a pod\nmetadata:\n  annotations:\n    key: NEW=\n" + pod + spec},
		"windows":         {strings.ReplaceAll(pod+"metadata:\n  name: x\n"+spec, "\n", "\r\n"), strings.ReplaceAll(pod+"metadata:\n  annotations:\n    key: NEW=\n  name: x\n"+spec, "\n", "\r\n")},
		"other documents": {"---\n# é\nkind: Service\napiVersion: v1\nmetadata: {name:   odd}\n---\n" + pod + "metadata:\n  name: \"é\"\n" + spec, "---\n# é\nkind: Service\napiVersion: v1\nmetadata: {name:   odd}\n---\n" + pod + "metadata:\n  annotations:\n    key: NEW=\n  name: \"é\"\n" + spec},
		"json":            {`{"kind":"Pod","apiVersion":"v1","metadata":{"name":"x"},"spec":{"containers":[{"name":"a","image":"b"}]}}`, `{"kind":"Pod","apiVersion":"v1","metadata":{"annotations": {"key": "NEW="}, "name":"x"},"spec":{"containers":[{"name":"a","image":"b"}]}}`},
		"list":            {"kind: List\napiVersion: v1\nitems:\n- kind: Pod\n  apiVersion: v1\n  spec: {containers: []}\n", "kind: List\napiVersion: v1\nitems:\n- metadata:\n    annotations:\n      key: NEW=\n  kind: Pod\n  apiVersion: v1\n  spec: {containers: []}\n"},
		"template": {"kind: CronJob\napiVersion: batch/v1\nspec:\n  jobTemplate:\n    spec:\n      template:\n        spec: {containers: []}\n",
			"kind: CronJob\napiVersion: batch/v1\nspec:\n  jobTemplate:\n    spec:\n      template:\n        metadata:\n          annotations:\n            key: NEW=\n        spec: {containers: []}\n"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := Parse([]Input{{Name: "x.yaml", Data: []byte(tc[0])}}, nil, Options{})
			if err != nil {
				t.Fatal(err)
			}
			if len(s.Workloads) != 1 {
				t.Fatalf("%d workloads", len(s.Workloads))
			}
			if err := s.Workloads[0].SetAnnotation("key", "NEW="); err != nil {
				t.Fatal(err)
			}
			got, err := s.Files[0].Text()
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != tc[1] {
				t.Errorf("got\n%s\nwant\n%s", got, tc[1])
			}
		})
	}
}

// TestSetAnnotationRefused has texts where the change would reach further than meant.
func TestSetAnnotationRefused(t *testing.T) {
	for name, text := range map[string]string{
		"shared metadata":  "kind: List\napiVersion: v1\nitems:\n- kind: Pod\n  apiVersion: v1\n  metadata: &m\n    name: x\n  spec: {containers: []}\n- kind: Service\n  apiVersion: v1\n  metadata: *m\n",
		"alias":            pod + "x: &m {name: x}\nmetadata: *m\nspec: {containers: []}\n",
		"annotations list": pod + "metadata:\n  annotations:\n    key: [1]\nspec: {containers: []}\n",
		"several lines":    pod + "metadata:\n  annotations:\n    key: a\n      b\nspec: {containers: []}\n",
	} {
		s, err := Parse([]Input{{Name: "x.yaml", Data: []byte(text)}}, nil, Options{IgnoreUnknown: true})
		if s == nil || len(s.Workloads) == 0 {
			t.Fatalf("%s: %v", name, err)
		}
		err = s.Workloads[0].SetAnnotation("key", "NEW=")
		if err == nil {
			_, err = s.Files[0].Text()
		}
		if err == nil {
			t.Errorf("%s: not refused", name)
		}
	}
}

func TestSetImage(t *testing.T) {
	text := pod + "spec:\n  initContainers:\n  - image: \"one:1\" # first\n    name: i\n  containers:\n  - {name: a, image: two:2}\n"
	s, err := Parse([]Input{{Name: "x.yaml", Data: []byte(text)}}, nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	w := s.Workloads[0]
	for c, image := range map[*Container]string{&w.Spec.InitContainers[0]: "one:1@sha256:aa", &w.Spec.Containers[0]: "two:2@sha256:bb"} {
		if err := w.SetImage(c, image); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.Files[0].Text()
	want := strings.NewReplacer("one:1", "one:1@sha256:aa", "two:2", "two:2@sha256:bb").Replace(text)
	if err != nil || string(got) != want {
		t.Errorf("got %v\n%s\nwant\n%s", err, got, want)
	}
}

// FuzzEdit wants that nothing panics and that what is written reads back.
func FuzzEdit(f *testing.F) {
	for _, s := range []string{
		pod + "metadata: {name: x}\nspec:\n  containers: [{name: a, image: b, env: [{name: A, value: \"1\"}]}]\n",
		"kind: List\napiVersion: v1\nitems:\n- kind: Pod\n  apiVersion: v1\n  spec: {containers: []}\n---\n" + pod + "spec: &a\n  <<: *a\n",
		pod + "metadata:\n  annotations:\n    key: |\n      x\nspec: {volumes: [{name: v, configMap: {name: c, items: [{key: k, path: p}]}}]}",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := Parse([]Input{{Name: "x", Data: data}}, nil, Options{})
		_ = err
		for _, w := range s.Workloads {
			if w.SetAnnotation("key", "NEW=") != nil {
				return
			}
		}
		if out, err := s.Files[0].Text(); err == nil {
			again, _ := Parse([]Input{{Name: "x", Data: out}}, nil, Options{})
			if len(again.Workloads) != len(s.Workloads) {
				t.Errorf("%d workloads became %d", len(s.Workloads), len(again.Workloads))
			}
		}
	})
}
