package genpolicy

import (
	"slices"
	"strings"
	"testing"
)

const clusterPod = `apiVersion: batch/v1
kind: KIND
metadata: {name: work}
spec:
  template:
    spec:
      enableServiceLinks: LINKS
      containers:
      - name: a
        image: registry.example/app:1
        args: ["ARG"]
        env: [{name: PORT, value: "80"}, {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}, {name: URL, value: "$(JOB_COMPLETION_INDEX)"}]
        livenessProbe: {exec: {command: [/check, "$(PORT)", "$(NODE)", "$$(PORT)", "$(KUBERNETES_SERVICE_HOST)"]}}
        lifecycle: {preStop: {exec: {command: [/stop, "$(PORT)"]}}}
        volumeMounts: [{name: tmp, mountPath: /tmp/x, subPathExpr: "to/$(KUBERNETES_SERVICE_PORT)"}]
      volumes: [{name: tmp, emptyDir: {}}]
`

func clusterArg(t *testing.T, kind, links, arg string, o Options) (container, error) {
	t.Helper()
	if kind == "Pod" {
		t.Fatal("a pod has no template")
	}
	text := strings.NewReplacer("KIND", kind, "LINKS", links, "ARG", arg).Replace(clusterPod)
	if kind != "Job" {
		text = strings.ReplaceAll(text, "batch/v1", "apps/v1")
	}
	r, err := generate(t, text, o)
	if err != nil {
		return container{}, err
	}
	return dataOf(t, r.Policy).Containers[1], nil
}

func TestClusterVariables(t *testing.T) {
	const address = `((([0-9]|[1-9][0-9]|1[0-9]{2}|2[0-4][0-9]|25[0-5])\.){3}([0-9]|[1-9][0-9]|1[0-9]{2}|2[0-4][0-9]|25[0-5])|[0-9A-Fa-f]{0,4}(:[0-9A-Fa-f]{0,4}){2,7}|\[[0-9A-Fa-f]{0,4}(:[0-9A-Fa-f]{0,4}){2,7}\])`
	for _, c := range []struct{ kind, links, arg, name, pattern string }{
		{"Deployment", "true", "$(KUBERNETES_SERVICE_HOST)", "KUBERNETES_SERVICE_HOST", "(?:" + address + ")"},
		{"Deployment", "false", "$(KUBERNETES_SERVICE_HOST)", "KUBERNETES_SERVICE_HOST", "(?:" + address + ")"},
		{"Deployment", "true", "$(DB_SERVICE_HOST)", "DB_SERVICE_HOST", "(?:" + address + `|\$\(DB_SERVICE_HOST\))`},
		{"Deployment", "false", "$(DB_SERVICE_HOST)", "", ""},
		{"Deployment", "true", "$(DB_SERVICE_PORT_HTTP)", "DB_SERVICE_PORT_HTTP", `(?:[0-9]{1,5}|\$\(DB_SERVICE_PORT_HTTP\))`},
		{"Deployment", "true", "$(db_service_host) $(DB_HOST) $(HOSTNAME) $(TERM) $(PATH)", "", ""},
		{"Deployment", "true", "$(JOB_COMPLETION_INDEX)", "", ""},
		{"Job", "true", "$(JOB_COMPLETION_INDEX)", "JOB_COMPLETION_INDEX", `(?:[0-9]+|\$\(JOB_COMPLETION_INDEX\))`},
		{"Job", "true", "$(URL)", "", ""}, // the controller adds the index behind the manifest's variables
		{"Deployment", "true", "$(AZURE_CLIENT_ID)", "AZURE_CLIENT_ID", `(?:[A-Fa-f0-9-]*|\$\(AZURE_CLIENT_ID\))`},
	} {
		got, err := clusterArg(t, c.kind, c.links, c.arg, Options{})
		if err != nil {
			t.Errorf("%s: %v", c.arg, err)
			continue
		}
		args := got.OCI.Process.Args
		arg := args[len(args)-1]
		switch {
		case c.name == "" && (len(got.ClusterValues) > 0 || strings.Contains(arg, "cluster:")):
			t.Errorf("%s: %s %v, want none of the cluster", c.arg, arg, got.ClusterValues)
		case c.name != "" && (len(got.ClusterValues) != 1 || got.ClusterValues[c.name] != c.pattern || arg != "$(cluster:"+c.name+")"):
			t.Errorf("%s: %s %v, want %s", c.arg, arg, got.ClusterValues, c.pattern)
		}
		if want := [][]string{{"/check", "80", "", "$(PORT)", "$(KUBERNETES_SERVICE_HOST)"}, {"/stop", "$(PORT)"}}; !slices.EqualFunc(got.ExecCommands, want, slices.Equal) {
			t.Errorf("commands %q, want %q", got.ExecCommands, want)
		}
		if !slices.ContainsFunc(got.OCI.Mounts, func(m mount) bool { return m.Destination == "/tmp/x" && strings.HasSuffix(m.Source, "/to/[^/]+$") }) {
			t.Errorf("no mount of the sub-path: %+v", got.OCI.Mounts)
		}
	}
}

func TestClusterVariablesRefused(t *testing.T) {
	s := settings(t)
	create := s.Requests["CreateContainerRequest"].(map[string]any)
	create["allow_env_regex"] = []any{"^REGION=[a-z]+$", "^ANY=.*$", "^NOCOMMA=[^,]+$", "^OPENEND=x", "^TWO=a$|^THREE=b$", "no expression"}
	for arg, want := range map[string]string{
		"$(ANY)": "$(ANY) is added by the cluster and can be any text", "$(NOCOMMA)": "can be any text", "$(cluster:REGION)": "has a meaning in policies",
		"$(REGION)": "", "$(OPENEND) $(TWO) $(THREE)": "", // the last are no variables that could be told from text
	} {
		got, err := clusterArg(t, "Deployment", "true", arg, Options{Settings: s})
		switch {
		case want == "" && err != nil, want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: %v, want %q", arg, err, want)
		case arg == "$(REGION)" && got.ClusterValues["REGION"] != `(?:[a-z]+|\$\(REGION\))`:
			t.Errorf("%s: %v", arg, got.ClusterValues)
		}
	}
	create["allow_env_regex"] = []any{1}
	if _, err := clusterArg(t, "Deployment", "true", "x", Options{Settings: s}); err == nil {
		t.Error("a number is taken for an expression")
	}
}
