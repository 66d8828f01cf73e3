package genpolicy

import (
	"fmt"
	"strings"
	"testing"
)

const restartPod = `apiVersion: v1
kind: Pod
metadata: {name: work}
spec:
  restartPolicy: %s
  initContainers: [{name: first, image: "registry.example/app:1"%s}]
  containers: [{name: main, image: "registry.example/app:1"%s}, {name: other, image: "registry.example/app:1"}]
`

// TestRestarts: which containers the kubelet can run again, by the pod, the container and its rules.
func TestRestarts(t *testing.T) {
	const (
		never  = ", restartPolicy: Never"
		always = ", restartPolicy: Always"
		rule   = ", restartPolicy: Never, restartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [42]}}]"
		all    = ", restartPolicy: Never, restartPolicyRules: [{action: RestartAllContainers, exitCodes: {operator: In, values: [88]}}]"
	)
	for _, c := range []struct {
		pod, first, main string
		want             string // of first, main and other
		o                Options
	}{
		{"Always", "", "", "true true true", Options{}},
		{"OnFailure", "", "", "true true true", Options{}},
		{"Never", "", "", "false false false", Options{}},
		{"Never", "", always, "false true false", Options{}},
		{"Never", always, "", "true false false", Options{}},
		{"Always", "", never, "true false true", Options{}},
		{"Always", never, rule, "false true true", Options{}},
		{"Never", "", rule, "false true false", Options{}},
		{"Never", always, all, "true true true", Options{}},
		{"Never", "", all, "true true true", Options{AnyOrder: true}},
	} {
		r, err := generate(t, fmt.Sprintf(restartPod, c.pod, c.first, c.main), c.o)
		if err != nil {
			t.Errorf("%+v: %v", c, err)
			continue
		}
		all := dataOf(t, r.Policy).Containers
		if got := fmt.Sprint(all[1].Restarts, all[2].Restarts, all[3].Restarts); got != c.want || all[0].Restarts {
			t.Errorf("%+v: got %s", c, got)
		}
	}
	_, err := generate(t, fmt.Sprintf(restartPod, "Never", "", all), Options{})
	if err == nil || !strings.Contains(err.Error(), "spec.containers[0].restartPolicyRules[0].action: RestartAllContainers runs init containers again") {
		t.Errorf("got %v", err)
	}
}
