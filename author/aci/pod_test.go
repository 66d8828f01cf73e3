package aci

import (
	"encoding/base64"
	"errors"
	"strings"
	"testing"

	"github.com/cloister/cloister/author/kubernetes"
)

func parsePods(t *testing.T, text string) *kubernetes.Set {
	t.Helper()
	set, err := kubernetes.Parse([]kubernetes.Input{{Name: "pod.yaml", Data: []byte(text)}}, nil, kubernetes.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func TestPod(t *testing.T) {
	set := parsePods(t, read(t, "pod.yaml"))
	if len(set.Workloads) != 1 {
		t.Fatalf("%d workloads", len(set.Workloads))
	}
	w := set.Workloads[0]
	g, warnings, err := FromPod(set, w, PodOptions{})
	if err != nil {
		t.Fatal(err)
	}
	p, err := Generate(t.Context(), g, images, Options{Fragments: []Fragment{Infrastructure(InfrastructureSVN)}})
	if err != nil {
		t.Fatal(err)
	}
	policy, err := p.Text()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "pod.rego", policy)
	golden(t, "pod.warnings", strings.Join(warnings, "\n")+"\n")
	if err := w.SetAnnotation(PodAnnotation, Encode(policy)); err != nil {
		t.Fatal(err)
	}
	text, err := set.Files[0].Text()
	if err != nil || !strings.Contains(string(text), PodAnnotation+": "+base64.StdEncoding.EncodeToString([]byte(policy))) {
		t.Errorf("%v\n%s", err, text)
	}
	g, warnings, err = FromPod(set, w, PodOptions{PinSecrets: true})
	if err != nil || len(warnings) != 0 {
		t.Fatalf("%v, %q", err, warnings)
	}
	for _, v := range g.Containers[1].Env {
		if v.Name == "PASSWORD" && (v.Pattern || v.Value != "hunter2") {
			t.Errorf("a pinned secret is %+v", v)
		}
	}
}

func TestPodFaults(t *testing.T) {
	set := parsePods(t, `apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  hostNetwork: true
  volumes: [{name: h, hostPath: {path: /etc}}]
  containers:
    - name: a
      image: x
      command: ["/x", "$(POD)"]
      env:
        - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        - {name: C, valueFrom: {configMapKeyRef: {name: none, key: k}}}
      envFrom: [{secretRef: {name: none}}]
      volumeMounts: [{name: nosuch, mountPath: /x}]
`)
	_, _, err := FromPod(set, set.Workloads[0], PodOptions{})
	var problems kubernetes.Problems
	if !errors.As(err, &problems) || len(problems) != 6 {
		t.Fatalf("%v", err)
	}
	for _, want := range []string{"hostNetwork", "paths of a node", "POD is not bound", `ConfigMap "none"`, `Secret "none"`, `no volume "nosuch"`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in %v", want, err)
		}
	}
}
