package policy_test

import (
	"strings"
	"testing"

	"github.com/cloister/cloister/test/kubepod"
	"github.com/cloister/cloister/wire/agent"
)

const addressManifest = `apiVersion: v1
kind: Pod
metadata: {name: web-bcdf-ghjkl, namespace: shop}
spec:
  containers:
  - name: a
    image: registry.example/proxy:1
    args: ["--listen=$(ALL)"]
    env:
    - {name: ONE, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: ALL, valueFrom: {fieldRef: {fieldPath: status.podIPs}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: status.hostIPs}}}
`

// TestGeneratedAddresses: a pod in a cluster of two families has two addresses where the manifest asks for all of them, and only there.
func TestGeneratedAddresses(t *testing.T) {
	e := generate(t, addressManifest, oneImage{}, nil)
	engine := e.engine(t)
	mustAllow(t, engine, kubepod.Sandbox())
	n := 0
	with := func(one, all, node string) *agent.CreateContainerRequest {
		n++
		r := e.request(t, "a", kubepod.ID(n))
		r.OCI.Process.Args = []string{"/app", "--listen=" + all}
		for i, v := range r.OCI.Process.Env {
			switch name, _, _ := strings.Cut(v, "="); name {
			case "ONE":
				r.OCI.Process.Env[i] = "ONE=" + one
			case "ALL":
				r.OCI.Process.Env[i] = "ALL=" + all
			case "NODE":
				r.OCI.Process.Env[i] = "NODE=" + node
			}
		}
		return r
	}
	for _, good := range [][3]string{
		{"10.1.2.3", "10.1.2.3", "192.0.2.1"},
		{"10.1.2.3", "10.1.2.3,fd00:1::3", "192.0.2.1,fd00::1"},
		{"fd00:1::3", "fd00:1::3,10.1.2.3", "fd00::1"},
	} {
		r := with(good[0], good[1], good[2])
		mustAllow(t, engine, r)
		mustAllow(t, engine, &agent.RemoveContainerRequest{ContainerId: r.ContainerId})
	}
	for _, bad := range [][3]string{
		{"10.1.2.3,fd00:1::3", "10.1.2.3", "192.0.2.1"},
		{"10.1.2.3", "10.1.2.3,", "192.0.2.1"},
		{"10.1.2.3", "10.1.2.3,evil.example", "192.0.2.1"},
		{"10.1.2.3", "10.1.2.3,fd00:1::3,fd00:1::4", "192.0.2.1"},
		{"10.1.2.3", "10.1.2.3", "192.0.2.1 fd00::1"},
		{"10.1.2.3", "$(pod-ips)", "192.0.2.1"},
	} {
		mustDeny(t, engine, with(bad[0], bad[1], bad[2]))
	}
}
