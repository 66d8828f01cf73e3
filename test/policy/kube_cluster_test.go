package policy_test

import (
	"slices"
	"testing"

	"github.com/cloister/cloister/test/kubepod"
	"github.com/cloister/cloister/wire/agent"
)

const clusterManifest = `apiVersion: v1
kind: Pod
metadata: {name: web-bcdf-ghjkl, namespace: shop}
spec:
  containers:
  - name: a
    image: registry.example/app:1
    command: [/app, "--api=https://$(KUBERNETES_SERVICE_HOST):$(KUBERNETES_SERVICE_PORT)", "--pod=$(POD)@$(KUBERNETES_SERVICE_HOST)"]
    args: [$(DB), "$$(KUBERNETES_SERVICE_HOST)", "$(HOSTNAME)", "costs $$5 $(DB_PORT_5432_TCP_PROTO)"]
    env:
    - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: DB, value: "db at $(DB_PORT)"}
    - {name: DB_SERVICE_HOST, value: db.example}
    - {name: OWN, value: $(DB_SERVICE_HOST)}
`

// TestGeneratedClusterVariables: what the kubelet makes of variables of services that the manifest names, and nothing else.
func TestGeneratedClusterVariables(t *testing.T) {
	g := generate(t, clusterManifest, oneImage{}, nil)
	e := g.engine(t)
	mustAllow(t, e, kubepod.Sandbox())
	n := 0
	with := func(db string, change func(args []string)) *agent.CreateContainerRequest {
		n++
		r := g.request(t, "a", kubepod.ID(n))
		r.OCI.Process.Args = []string{"/app", "--api=https://10.96.0.1:443", "--pod=web-bcdf-ghjkl@10.96.0.1", db, "$(KUBERNETES_SERVICE_HOST)", "$(HOSTNAME)", "costs $5 tcp"}
		for i, v := range r.OCI.Process.Env {
			if len(v) > 3 && v[:3] == "DB=" {
				r.OCI.Process.Env[i] = "DB=" + db
			}
		}
		r.OCI.Process.Env = append(r.OCI.Process.Env, "KUBERNETES_SERVICE_HOST=10.96.0.1", "DB_PORT=tcp://10.96.0.7:5432")
		if change != nil {
			change(r.OCI.Process.Args)
		}
		return r
	}
	allow := func(r *agent.CreateContainerRequest) {
		t.Helper()
		mustAllow(t, e, r)
		mustAllow(t, e, &agent.RemoveContainerRequest{ContainerId: r.ContainerId})
	}
	allow(with("db at tcp://10.96.0.7:5432", nil))
	allow(with("db at udp://10.96.0.8:53", func(args []string) { args[6] = "costs $5 udp" }))
	allow(with("db at $(DB_PORT)", func(args []string) { args[6] = "costs $5 $(DB_PORT_5432_TCP_PROTO)" })) // there is no such service
	allow(with("db at tcp://[fd00:10:96::7]:5432", func(args []string) {
		args[1], args[2] = "--api=https://fd00:10:96::1:443", "--pod=web-bcdf-ghjkl@fd00:10:96::1"
	}))
	six := with("db at tcp://10.96.0.7:5432", nil)
	six.OCI.Process.Env = append(six.OCI.Process.Env, "B_SERVICE_HOST=fd00:10:96::2", "B_PORT=udp://[fd00:10:96::2]:53", "B_PORT_53_UDP_ADDR=fd00:10:96::2")
	allow(six)
	if !slices.Contains(with("", nil).OCI.Process.Env, "OWN=db.example") {
		t.Error("a service's variable hides that of the manifest")
	}
	for _, bad := range []string{"db at tcp://10.96.0.7:5432 --insecure", "db at tcp://evil.example:5432", "db at ", "db at $(cluster:DB_PORT)", "db at $(DB_HOST)", "x"} {
		mustDeny(t, e, with(bad, nil))
	}
	for name, change := range map[string]func([]string){
		"the API's address is a name":     func(a []string) { a[1] = "--api=https://evil.example:443" },
		"no address":                      func(a []string) { a[1] = "--api=https://$(KUBERNETES_SERVICE_HOST):443" },
		"no port":                         func(a []string) { a[1] = "--api=https://10.96.0.1:" },
		"a longer port":                   func(a []string) { a[1] = "--api=https://10.96.0.1:443/x" },
		"a line more":                     func(a []string) { a[1] = "--api=https://10.96.0.1:443\n" },
		"another pod":                     func(a []string) { a[2] = "--pod=other@10.96.0.1" },
		"an escaped variable is expanded": func(a []string) { a[4] = "10.96.0.1" },
		"the kubelet knows no HOSTNAME":   func(a []string) { a[5] = "web-bcdf-ghjkl" },
		"another protocol":                func(a []string) { a[6] = "costs $5 sctp" },
	} {
		t.Run(name, func(t *testing.T) { mustDeny(t, e, with("db at tcp://10.96.0.7:5432", change)) })
	}
}
