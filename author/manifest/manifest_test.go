package manifest

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/author/kubernetes"
	"github.com/cloister/cloister/wire/agent"
	"github.com/cloister/cloister/wire/launch"
)

var update = flag.Bool("update", false, "rewrite golden files")

// images resolves every reference to a digest made from its text.
type images struct{ user string }

func (i images) Resolve(_ context.Context, ref string) (Image, error) {
	if strings.Contains(ref, "missing") {
		return Image{}, errors.New("no such image")
	}
	repo, _, _ := strings.Cut(ref, ":")
	return Image{
		Ref: repo + "@sha256:" + strings.Repeat(fmt.Sprintf("%02x", len(ref)), 32),
		Config: ImageConfig{
			Entrypoint: []string{"/bin/app"}, Cmd: []string{"serve"}, Env: []string{"PATH=/bin", "LANG=C"},
			WorkingDir: "/home", User: i.user,
		},
	}, nil
}

func parse(t testing.TB, text string) (*Manifest, error) {
	t.Helper()
	return Parse(Source{Name: "pod.yaml", Data: []byte(text)})
}

func plan(t testing.TB, text string) (*launch.Plan, error) {
	t.Helper()
	m, err := parse(t, text)
	if err != nil {
		t.Fatal(err)
	}
	return Plan(t.Context(), m, images{})
}

func TestGoldenPlans(t *testing.T) {
	for _, name := range []string{"minimal", "full"} {
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(filepath.Join("testdata", name+".yaml"))
			if err != nil {
				t.Fatal(err)
			}
			p, err := plan(t, string(text))
			if err != nil {
				t.Fatal(err)
			}
			got, err := p.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", name+".plan.json")
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("the plan differs from %s; run the test with -update and look at the difference", golden)
			}
			back, err := launch.Parse(got)
			if err != nil {
				t.Fatal(err)
			}
			if !proto.Equal(back.Containers[0].Create, p.Containers[0].Create) {
				t.Error("the plan does not survive its text form")
			}
			again, err := plan(t, string(text))
			if err != nil || !proto.Equal(again.Containers[0].Create, p.Containers[0].Create) {
				t.Errorf("two plans of one manifest differ (%v)", err)
			}
		})
	}
}

const pod = `
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  containers:
    - name: c
      image: registry.example/c
`

// withPod adds lines below the container (6 blanks) or the spec (2 blanks).
func withPod(lines string) string { return pod + strings.TrimPrefix(lines, "\n") }

func TestAllProblemsAtOnce(t *testing.T) {
	text := `apiVersion: v1
kind: Pod
metadata:
  name: Not_A_Name
spec:
  hostNetwork: true
  unknownThing: 1
  containers:
    - name: c
      image: ""
      volumeMounts:
        - name: none
          mountPath: relative
          subPath: x
      securityContext:
        privileged: true
      env:
        - name: "1A"
          value: 7
  volumes:
    - name: host
      hostPath: {path: /etc}
    - name: claim
      persistentVolumeClaim: {claimName: x}
---
apiVersion: v1
kind: Service
`
	_, err := parse(t, text)
	var e kubernetes.Problems
	if !errors.As(err, &e) {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{
		"pod.yaml:4: Pod/Not_A_Name: metadata.name: ",
		"pod.yaml:6: Pod/Not_A_Name: spec.hostNetwork: not supported: ",
		"pod.yaml:7: Pod/Not_A_Name: spec.unknownThing: unknown field",
		"pod.yaml:10: Pod/Not_A_Name: spec.containers[0].image: no image given",
		"pod.yaml:12: Pod/Not_A_Name: spec.containers[0].volumeMounts[0].name: there is no volume \"none\"",
		"pod.yaml:13: Pod/Not_A_Name: spec.containers[0].volumeMounts[0].mountPath: ",
		"pod.yaml:14: Pod/Not_A_Name: spec.containers[0].volumeMounts[0].subPath: not supported: ",
		"pod.yaml:16: Pod/Not_A_Name: spec.containers[0].securityContext.privileged: not supported: ",
		"pod.yaml:18: Pod/Not_A_Name: spec.containers[0].env[0].name: ",
		"pod.yaml:19: Pod/Not_A_Name: spec.containers[0].env[0].value: expected text, got a number, put it in quotes",
		"pod.yaml:22: Pod/Not_A_Name: spec.volumes[0].hostPath: not supported: ",
		"pod.yaml:24: Pod/Not_A_Name: spec.volumes[1].persistentVolumeClaim: not supported: ",
		"kind: \"Service\" is not supported; expected Pod, ConfigMap or Secret",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("missing: %s", want)
		}
	}
	if len(e) != 13 {
		t.Errorf("%d problems, expected 13:\n%v", len(e), err)
	}
}

func TestRejected(t *testing.T) {
	for name, tc := range map[string]struct{ text, want string }{
		"empty":              {"", "no document of kind Pod"},
		"no pod":             {"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}", "no document of kind Pod"},
		"two pods":           {pod + "---" + pod, "a second Pod"},
		"not yaml":           {"a: [", "yaml"},
		"doubled key":        {withPod("      image: other\n"), "given twice"},
		"alias bomb":         {bomb(), "too large"},
		"merge key":          {strings.Replace(withPod("      workingDir: here\n    - {<<: *c, name: d}\n"), "- name: c", "- &c\n      name: c", 1), `containers[1].workingDir: "here" is not absolute`},
		"list":               {"- a", "expected a Kubernetes object, got a list"},
		"deployment":         {"apiVersion: apps/v1\nkind: Deployment", `"Deployment" is not supported`},
		"version":            {strings.Replace(pod, "v1", "v2", 1), "expected v1"},
		"no containers":      {"apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {}", "at least one container"},
		"same names":         {withPod("    - name: c\n      image: x\n"), "used twice"},
		"missing config":     {withPod("      envFrom: [{configMapRef: {name: x}}]\n"), `ConfigMap "x" is in none`},
		"other namespace":    {withPod("      envFrom: [{configMapRef: {name: m}}]\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: m, namespace: other}\n"), `ConfigMap "m" is in none of the given files, for namespace default`},
		"binary variable":    {withPod("      env: [{name: A, valueFrom: {configMapKeyRef: {name: m, key: k}}}]\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\nbinaryData: {k: aGk=}\n"), `key "k" is binary`},
		"missing secret":     {withPod("      env: [{name: A, valueFrom: {secretKeyRef: {name: x, key: y}}}]\n"), `Secret "x" is in none`},
		"two sources":        {withPod("      env: [{name: A, value: x, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]\n"), "exclude each other"},
		"field":              {withPod("      env: [{name: A, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}]\n"), "is not supported; expected"},
		"resource field":     {withPod("      env: [{name: A, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}]\n"), "resourceFieldRef: not supported"},
		"capability":         {withPod("      securityContext: {capabilities: {add: [CAP_FLY]}}\n"), "not a Linux capability"},
		"quantity":           {withPod("      resources: {limits: {memory: lots}}\n"), "not a quantity"},
		"resource":           {withPod("      resources: {limits: {nvidia.com/gpu: 1}}\n"), "expected cpu or memory"},
		"mount over proc":    {withPod("      volumeMounts: [{name: v, mountPath: /proc/x}]\n  volumes: [{name: v, emptyDir: {}}]\n"), "belongs to the system"},
		"mount over hosts":   {withPod("      volumeMounts: [{name: v, mountPath: /etc/../etc/hosts}]\n  volumes: [{name: v, emptyDir: {}}]\n"), "provided by Cloister"},
		"mount twice":        {withPod("      volumeMounts: [{name: v, mountPath: /a}, {name: v, mountPath: /a/}]\n  volumes: [{name: v, emptyDir: {}}]\n"), "used twice"},
		"medium":             {withPod("  volumes: [{name: v, emptyDir: {medium: HugePages}}]\n"), "HugePages"},
		"volume without":     {withPod("  volumes: [{name: v}]\n"), "exactly one of"},
		"unknown volume":     {withPod("  volumes: [{name: v, cephfs: {user: a}}]\n"), "cephfs: not supported: network volumes"},
		"misspelled volume":  {withPod("  volumes: [{name: v, emptydir: {}}]\n"), "emptydir: unknown field"},
		"item escape":        {withPod("  volumes: [{name: v, configMap: {name: m, items: [{key: k, path: ../x}]}}]\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata: {k: v}\n"), "not a plain file name"},
		"key escape":         {withPod("  volumes: [{name: v, configMap: {name: m}}]\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata: {a/b: v}\n"), "not a file name"},
		"secret not base64":  {withPod("---\napiVersion: v1\nkind: Secret\nmetadata: {name: m}\ndata: {k: '!hush!'}\n"), "not base64"},
		"negative user":      {withPod("      securityContext: {runAsUser: -1}\n"), "not between"},
		"net sysctl":         {withPod("  securityContext: {sysctls: [{name: net.ipv4.ip_forward, value: '1'}]}\n"), "not a parameter of the pod"},
		"probe of init":      {withPod("  initContainers: [{name: i, image: x, livenessProbe: {exec: {command: [a]}}}]\n"), "no probes"},
		"shared pid + init":  {withPod("  shareProcessNamespace: true\n  initContainers: [{name: i, image: x}]\n"), "not supported together"},
		"bool for text":      {withPod("      workingDir: true\n"), "expected text, got true or false"},
		"text for bool":      {withPod("      tty: 'yes'\n"), "expected true or false"},
		"list for map":       {withPod("      securityContext: []\n"), "expected a mapping"},
		"restart policy":     {withPod("  restartPolicy: Sometimes\n"), "not Always"},
		"sidecar":            {withPod("  initContainers: [{name: i, image: x, restartPolicy: Always}]\n"), "sidecar"},
		"too many documents": {strings.Repeat("---\na: 1\n", 4097), "more than 4096 documents"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parse(t, tc.text)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, expected %q", err, tc.want)
			}
			if err != nil && strings.Contains(err.Error(), "!hush!") {
				t.Error("the message shows secret data")
			}
		})
	}
}

// bomb is a small text that grows a thousandfold when its aliases are followed.
func bomb() string {
	return "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  containers:\n  - &c {name: c, image: x, args: [" +
		strings.Repeat("x,", 2000) + "x]}\n" + strings.Repeat("  - *c\n", 1000)
}

func TestHostPortIsIgnored(t *testing.T) {
	text := "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  containers:\n  - {name: c, image: x, ports: [{containerPort: 80, name: http, protocol: TCP}, {containerPort: 81, hostPort: 8081}]}\n"
	m, err := Parse(Source{Name: "pod.yaml", Data: []byte(text)})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"spec.containers[0].ports[1].hostPort is ignored: the host does not forward ports into the guest"}
	if !slices.Equal(m.Warnings, want) {
		t.Errorf("warnings %q, want %q", m.Warnings, want)
	}
}

func TestUnsetIsNotUsed(t *testing.T) {
	m, err := parse(t, withPod("      securityContext: {privileged: false}\n  hostNetwork: false\n  hostPID: null\n  nodeSelector: {a: b}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(m.Warnings, "spec.nodeSelector is ignored: there is one node") {
		t.Errorf("warnings: %q", m.Warnings)
	}
}

func TestProcess(t *testing.T) {
	p, err := plan(t, withPod(`
      command: [/bin/run, "$(A)", "$$(A)", "$(NONE)", "$("]
      env:
        - {name: A, value: one}
        - {name: B, value: "$(A)-$(C)-$$"}
        - {name: LANG, value: de}
        - {name: C, value: late}
      envFrom:
        - configMapRef: {name: m}
        - secretRef: {name: absent, optional: true}
  hostname: box
---
apiVersion: v1
kind: ConfigMap
metadata: {name: m}
data: {A: from, D: "d=e", "bad key": x}
`))
	if err != nil {
		t.Fatal(err)
	}
	pr := p.Containers[0].Create.OCI.Process
	if want := []string{"/bin/run", "one", "$(A)", "$(NONE)", "$("}; !slices.Equal(pr.Args, want) {
		t.Errorf("args %q, expected %q", pr.Args, want)
	}
	if want := []string{"PATH=/bin", "LANG=de", "HOSTNAME=box", "A=one", "D=d=e", "B=one-$(C)-$", "C=late"}; !slices.Equal(pr.Env, want) {
		t.Errorf("env %q, expected %q", pr.Env, want)
	}
	if p.Hostname != "box" || p.Sandbox.Hostname != "box" || pr.Cwd != "/home" {
		t.Errorf("hostname %q, cwd %q", p.Hostname, pr.Cwd)
	}
}

func TestArguments(t *testing.T) {
	for _, tc := range []struct {
		command, args string
		want          []string
	}{
		{"", "", []string{"/bin/app", "serve"}},
		{"", "[x]", []string{"/bin/app", "x"}},
		{"[y]", "", []string{"y"}},
		{"[y]", "[x]", []string{"y", "x"}},
	} {
		p, err := plan(t, withPod("      command: "+tc.command+"\n      args: "+tc.args+"\n"))
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Containers[0].Create.OCI.Process.Args; !slices.Equal(got, tc.want) {
			t.Errorf("command %s args %s: got %q, expected %q", tc.command, tc.args, got, tc.want)
		}
	}
}

func TestIdentity(t *testing.T) {
	n := func(i int64) *int64 { return &i }
	yes := true
	for _, tc := range []struct {
		pod   kubernetes.PodSecurity
		sc    kubernetes.Security
		image string
		want  identity
		err   string
	}{
		{image: "", want: identity{0, 0, []uint32{0}}},
		{image: "1000", want: identity{1000, 0, []uint32{0}}},
		{image: "1000:1001", want: identity{1000, 1001, []uint32{1001}}},
		{image: "root", want: identity{0, 0, []uint32{0}}},
		{image: "nginx", err: "set securityContext.runAsUser"},
		{image: "1000:users", err: "set securityContext.runAsUser"},
		{image: "99999999999", err: "runAsUser"},
		{image: "nginx", sc: kubernetes.Security{RunAsUser: n(5)}, want: identity{5, 0, []uint32{0}}},
		{image: "1000:1001", pod: kubernetes.PodSecurity{RunAsUser: n(7), RunAsGroup: n(8)}, sc: kubernetes.Security{RunAsUser: n(5)}, want: identity{5, 8, []uint32{8}}},
		{image: "1", pod: kubernetes.PodSecurity{FSGroup: n(20), SupplementalGroups: []int64{30, 20, 0}}, want: identity{1, 0, []uint32{0, 20, 30}}},
		{image: "", sc: kubernetes.Security{RunAsNonRoot: &yes}, err: "runAsNonRoot"},
	} {
		got, err := resolveIdentity(tc.pod, tc.sc, tc.image)
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%q: got %v, expected %q", tc.image, err, tc.err)
			}
			continue
		}
		if err != nil || got.uid != tc.want.uid || got.gid != tc.want.gid || !slices.Equal(got.groups, tc.want.groups) {
			t.Errorf("%q: got %v %v, expected %v", tc.image, got, err, tc.want)
		}
	}
}

func TestPlanReportsAllImages(t *testing.T) {
	_, err := plan(t, strings.Replace(pod, "registry.example/c", "missing/a", 1)+"    - name: d\n      image: missing/b\n")
	if err == nil || !strings.Contains(err.Error(), `container "c"`) || !strings.Contains(err.Error(), `container "d"`) {
		t.Errorf("got %v", err)
	}
}

func TestSizeAndLimits(t *testing.T) {
	p, err := plan(t, withPod("      resources: {limits: {cpu: 2500m, memory: 3Gi}, requests: {cpu: 100m}}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if p.Resources != (launch.Resources{VCPUs: 3, MemoryMiB: 4096}) {
		t.Errorf("size %+v", p.Resources)
	}
	r := p.Containers[0].Create.OCI.Linux.Resources
	if !proto.Equal(r.CPU, &agent.LinuxCPU{Shares: 102, Quota: 250000, Period: 100000}) || r.Memory.Limit != 3<<30 {
		t.Errorf("resources %v", r)
	}
}

func FuzzParse(f *testing.F) {
	for _, name := range []string{"minimal", "full"} {
		text, err := os.ReadFile(filepath.Join("testdata", name+".yaml"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte("kind: Pod\nspec: {containers: [{env: [null]}]}"))
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := Parse(Source{Name: "f", Data: text})
		if err != nil {
			var e kubernetes.Problems
			if !errors.As(err, &e) || len(e) == 0 {
				t.Fatalf("not a list of problems: %v", err)
			}
			return
		}
		_, _ = Plan(context.Background(), m, images{}) // refuses some with an error
	})
}
