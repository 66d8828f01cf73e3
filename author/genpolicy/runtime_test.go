package genpolicy

import (
	"strings"
	"testing"
)

// TestWarnRuntime: what the runtime will refuse is said when the policy is made, at the line where it stands, and nothing else is.
func TestWarnRuntime(t *testing.T) {
	r, err := generate(t, `apiVersion: v1
kind: Pod
metadata: {name: a}
spec:
  containers:
    - name: c
      image: app
      volumeMounts:
        - {name: data, mountPath: /data}
        - {name: logs, mountPath: /logs}
        - {name: disk, mountPath: /dev/x}
        - {name: tmp, mountPath: /tmp}
  hostNetwork: true
  volumes:
    - name: data
      persistentVolumeClaim: {claimName: data}
    - name: logs
      hostPath: {path: /var/log}
    - {name: disk, hostPath: {path: /dev/sdb}}
    - {name: tmp, emptyDir: {}}
    - {name: unused, nfs: {server: a, path: /b}}
`, Options{})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"pod.yaml:13: Pod/a: spec.hostNetwork: ", "pod.yaml:15: Pod/a: spec.volumes[0]: ", "pod.yaml:18: Pod/a: spec.volumes[1].hostPath: "}
	for i, w := range r.Warnings {
		if i >= len(want) || !strings.HasPrefix(w.String(), want[i]) {
			t.Errorf("warning %d: %s", i, w)
		}
	}
	if len(r.Warnings) != len(want) {
		t.Errorf("%d warnings, want %d", len(r.Warnings), len(want))
	}
}
