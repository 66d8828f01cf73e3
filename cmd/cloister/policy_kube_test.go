package main

import (
	"os"
	"strings"
	"testing"

	"github.com/cloister/cloister/internal/testregistry"
	"github.com/cloister/cloister/wire/initdata"
)

const kubeManifests = `# What helm would print.
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web # the name
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata:
      labels: {app: web}
    spec:
      runtimeClassName: cloister-snp
      containers:
        - name: app
          image: %REGISTRY%/app:1   # by tag
          command: [/app]
---
apiVersion: batch/v1
kind: Job
metadata: {name: other}
spec: {template: {spec: {runtimeClassName: runc, containers: [{name: a, image: nowhere.invalid/a, unknownField: 1}]}}}
`

func TestPolicyGenerateKubernetes(t *testing.T) {
	f := newFolder(t)
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	f.write(t, "web.yaml", kubeManifests)
	args := []string{"policy", "generate", "--insecure-registry", f.registry, "--runtime-class", "cloister"}
	out := f.run(t, exitDone, append(args, "web.yaml")...)
	before, err := os.ReadFile("web.yaml")
	if err != nil {
		t.Fatal(err)
	}
	value := between(t, out, initdata.Annotation+": ", "\n")
	rest := strings.Replace(out, "      annotations:\n        "+initdata.Annotation+": "+value+"\n  ", "", 1)
	digest := between(t, out, "/app:1@", " ")
	if rest := strings.Replace(rest, "@"+digest, "", 1); strings.ReplaceAll(rest, "      labels", "    labels") != strings.ReplaceAll(string(before), "      labels", "    labels") {
		t.Errorf("more changed than annotation and image:\n%s", rest)
	}
	text, err := initdata.DecodeAnnotation(value)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := initdata.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(doc.Data["policy.rego"], digest) {
		t.Error("the policy does not have the image's digest")
	}
	// What --raw prints is the same policy, and once the digest is in the manifest nothing else changes.
	if raw := f.run(t, exitDone, append(args, "--raw", "web.yaml")...); !strings.HasSuffix(raw, doc.Data["policy.rego"]) || !strings.Contains(raw, "warning: ") {
		t.Error("--raw prints another policy")
	}
	f.run(t, exitDone, append(args, "--in-place", "web.yaml")...)
	f.run(t, exitDone, append(args, "--in-place", "web.yaml")...)
	if after, err := os.ReadFile("web.yaml"); err != nil || string(after) != out {
		t.Errorf("--in-place, twice: %v\n%s", err, after)
	}
	if base := f.run(t, exitDone, append(args, "--base64", "web.yaml")...); strings.TrimSpace(base) != value {
		t.Error("--base64 prints another value")
	}
}

// TestPolicyGenerateKeepsInitdata has a pod with an initdata document from before, whose broker must not get lost.
func TestPolicyGenerateKeepsInitdata(t *testing.T) {
	f := newFolder(t)
	before := initdata.Document{Version: initdata.Version, Algorithm: initdata.SHA384, Data: map[string]string{"aa.toml": "broker", "policy.rego": "old"}}
	raw, err := before.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	f.write(t, "pod.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: a, annotations: {"+initdata.Annotation+": "+initdata.EncodeAnnotation(raw)+
		"}}\nspec: {containers: [{name: a, image: %REGISTRY%/app:1, command: [/app]}]}\n")
	args := []string{"policy", "generate", "--no-cache", "--insecure-registry", f.registry, "--base64"}
	out := f.run(t, exitDone, append(args, "pod.yaml")...)
	lines := strings.Fields(out)
	text, err := initdata.DecodeAnnotation(lines[len(lines)-1])
	if err != nil {
		t.Fatal(err)
	}
	doc, err := initdata.Parse(text)
	if err != nil || doc.Data["aa.toml"] != "broker" || doc.Algorithm != initdata.SHA384 || !strings.Contains(doc.Data["policy.rego"], "package agent_policy") {
		t.Errorf("got %v, %v", doc, err)
	}
	f.write(t, "short.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: a, annotations: {cloister.dev/initdata: x}}\nspec: {containers: [{name: a, image: %REGISTRY%/app:1, command: [/app]}]}\n")
	if out := f.run(t, exitRefused, append(args, "short.yaml")...); !strings.Contains(out, "cloister.dev/initdata") || !strings.Contains(out, "hint: rename it") {
		t.Errorf("got %s", out)
	}
}

func between(t *testing.T, s, from, to string) string {
	t.Helper()
	_, rest, ok := strings.Cut(s, from)
	value, _, ok2 := strings.Cut(rest, to)
	if !ok || !ok2 {
		t.Fatalf("no %q in\n%s", from, s)
	}
	return value
}

// TestPolicyGenerateProblems lists all problems of a run.
func TestPolicyGenerateProblems(t *testing.T) {
	f := newFolder(t)
	f.write(t, "bad.yaml", `
apiVersion: v1
kind: Pod
metadata: {name: a}
spec:
  hostPID: true
  containers:
    - {name: a, image: %REGISTRY%/app:1, volumeMounts: [{name: v, mountPath: /v}], env: [{name: X, valueFrom: {secretKeyRef: {name: s, key: k}}}], nosuch: 1}
---
apiVersion: argoproj.io/v1alpha1
kind: Rollout
metadata: {name: r}
spec: {template: {spec: {containers: [{name: a, image: b}]}}}
`)
	out := f.run(t, exitRefused, "policy", "generate", "--no-cache", "--insecure-registry", f.registry, "bad.yaml")
	for _, want := range []string{
		"bad.yaml:6: Pod/a: spec.hostPID: not supported", "bad.yaml:8: Pod/a: spec.containers[0].nosuch: unknown field",
		`spec.containers[0].volumeMounts[0].name: the pod has no volume "v"`, `Secret "s" is not known`,
		"bad.yaml:10: spec.template.spec.containers: kind Rollout",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if out := f.run(t, exitRefused, "policy", "generate", "--no-cache", "--ignore-unknown-fields", "bad.yaml"); !strings.Contains(out, "hint: allow it by --insecure-registry "+f.registry) {
		t.Errorf("no hint: %s", out)
	}
	f.write(t, "elsewhere.yaml", "apiVersion: v1\nkind: Secret\nmetadata: {name: s, namespace: one}\nstringData: {k: v}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: two}\n"+
		"spec: {containers: [{name: a, image: 127.0.0.1:1/app:1, envFrom: [{secretRef: {name: s}}], env: [{name: X, valueFrom: {secretKeyRef: {name: s, key: k}}}]}]}\n")
	out = f.run(t, exitRefused, "policy", "generate", "--no-cache", "--insecure-registry", "127.0.0.1:1", "elsewhere.yaml")
	if strings.Count(out, `Secret "s" is not known in namespace two; the one that was read is in namespace one`) != 2 || !strings.Contains(out, "hint: without a registry at hand: --image-source") {
		t.Errorf("got %s", out)
	}
	if err := os.Mkdir("kus", 0o755); err != nil {
		t.Fatal(err)
	}
	f.write(t, "kus/kustomization.yaml", "resources: []\n")
	if out := f.run(t, exitRefused, "policy", "generate", "kus"); !strings.HasSuffix(out, "\ncloister: hint: kustomize build kus, and give what it prints by -\n") {
		t.Errorf("got %s", out)
	}
	f.run(t, exitUsage, "policy", "generate", "--in-place", "--raw", "bad.yaml")
	f.run(t, exitUsage, "policy", "generate", "--for", "nobody", "bad.yaml")
	if out := f.run(t, exitUsage, "policy", "generate", "--for", "run", "--allow-logs", "--layers", "host", "bad.yaml"); !strings.Contains(out, "--allow-logs, --layers: not with --for run") {
		t.Errorf("got %s", out)
	}
}

// TestPolicyGenerateNothingSelected: who misspells a class deploys nothing that is unprotected by mistake.
func TestPolicyGenerateNothingSelected(t *testing.T) {
	f := newFolder(t)
	f.write(t, "web.yaml", kubeManifests+"---\napiVersion: v1\nkind: Pod\nmetadata: {name: none}\nspec: {containers: [{name: a, image: b}]}\n")
	out := f.run(t, exitRefused, "policy", "generate", "--no-cache", "--runtime-class", "kata", "--runtime-class", "confidential", "web.yaml")
	for _, want := range []string{"no pod has a runtimeClassName that starts with kata or confidential", "hint: the pods have: none, cloister-snp, runc"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if strings.Contains(out, "apiVersion") {
		t.Error("the manifests are printed")
	}
	f.write(t, "empty.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: a}\n")
	if out := f.run(t, exitRefused, "policy", "generate", "--no-cache", "--runtime-class", "kata", "empty.yaml"); !strings.Contains(out, "nothing that makes pods in empty.yaml") {
		t.Errorf("got %s", out)
	}
}

// TestPolicyGenerateNoAccess has a registry that lets only its users in, and a name that is none.
func TestPolicyGenerateNoAccess(t *testing.T) {
	f := newFolder(t)
	r, err := testregistry.Start(testregistry.Options{User: "u", Password: "p"})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	f.write(t, "pod.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: a, image: "+r.Addr()+"/app:1}]}\n")
	out := f.run(t, exitRefused, "policy", "generate", "--no-cache", "--insecure-registry", r.Addr(), "pod.yaml")
	if !strings.Contains(out, "registry "+r.Addr()+" refuses access: ") || !strings.Contains(out, "`docker login "+r.Addr()+"`") {
		t.Errorf("got %s", out)
	}
	f.write(t, "pod.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: a, image: Registry.Example/Shop:1:2}]}\n")
	if out := f.run(t, exitRefused, "policy", "generate", "--no-cache", "pod.yaml"); !strings.Contains(out, "image Registry.Example/Shop:1:2: that is no name of an image: want HOST/PATH:TAG") {
		t.Errorf("got %s", out)
	}
}

// TestPolicyGenerateDirectVolume declares a volume on the command line, right and wrong.
func TestPolicyGenerateDirectVolume(t *testing.T) {
	f := newFolder(t)
	f.write(t, "pod.yaml", `apiVersion: v1
kind: Pod
metadata: {name: a}
spec:
  containers: [{name: a, image: %REGISTRY%/app:1, command: [/app], volumeMounts: [{name: v, mountPath: /v}]}]
  volumes: [{name: v, persistentVolumeClaim: {claimName: data}}]
`)
	args := []string{"policy", "generate", "--no-cache", "--insecure-registry", f.registry, "--raw", "pod.yaml"}
	if out := f.run(t, exitDone, args...); !strings.Contains(out, "direct_volumes") {
		t.Errorf("nobody says what to do: %.2000s", out)
	}
	out := f.run(t, exitDone, append(args, "--direct-volume", `{"storage_class": "x", "fstype": "erofs"}`, "--direct-volume", `{"claim": "data", "fstype": "squashfs"}`,
		"--direct-volume", `{"claim": "data", "fstype": "ext4"}`)...)
	if !strings.Contains(out, "not encrypted: the host can read") || !strings.Contains(out, `"fstype": "squashfs"`) || strings.Contains(out, `"fstype": "ext4"`) {
		t.Errorf("got %.2000s", out)
	}
	if out := f.run(t, exitUsage, append(args, "--direct-volume", "data=ext4")...); !strings.Contains(out, "--direct-volume data=ext4: ") || !strings.Contains(out, `hint: such as {"claim"`) {
		t.Errorf("got %s", out)
	}
}

// TestPolicyGenerateLayerRecipe binds layers as the other recipe makes them: here by a program that makes all of them two empty blocks.
func TestPolicyGenerateLayerRecipe(t *testing.T) {
	f := newFolder(t)
	f.write(t, "pod.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: a, image: %REGISTRY%/app:1, command: [/app]}]}\n")
	program := func(version string) {
		text := "#!/bin/sh\nfor last; do :; done\ncase $1 in --version) echo 'mkfs.erofs (erofs-utils) " + version + "' ;; *) cat >/dev/null; head -c 8192 /dev/zero >\"$last\" ;; esac\n"
		if err := os.WriteFile("mkfs.erofs", []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", here+":"+os.Getenv("PATH"))
	args := []string{"policy", "generate", "--no-cache", "--insecure-registry", f.registry, "--raw", "pod.yaml", "--layers", "host"}
	const root = "roothash=05927d36681daf2129a7ab821c194d61c7943aba7a8a38532b2e075ca1e56736" // by veritysetup, of two empty blocks
	program("1.8.6")
	if out := f.run(t, exitDone, args...); strings.Contains(out, root) || !strings.Contains(out, "roothash=") {
		t.Errorf("the recipe that is meant if none is said: %.2000s", out)
	}
	if out := f.run(t, exitDone, append(args, "--layer-recipe", "containerd-erofs")...); !strings.Contains(out, root) {
		t.Errorf("got %.2000s", out)
	}
	program("1.8.1")
	if out := f.run(t, exitRefused, append(args, "--layer-recipe", "containerd-erofs")...); !strings.Contains(out, "hint: install erofs-utils 1.8.2 or later") {
		t.Errorf("got %s", out)
	}
	if out := f.run(t, exitUsage, append(args, "--layer-recipe", "hcsshim-ext4")...); !strings.Contains(out, "want cloister-erofs-1 or containerd-erofs") {
		t.Errorf("got %s", out)
	}
	if out := f.run(t, exitUsage, append(args[:len(args)-1], "guest", "--layer-recipe", "containerd-erofs")...); !strings.Contains(out, "--layers host") {
		t.Errorf("got %s", out)
	}
}

// TestPolicySimKinds: a kind of request that does not exist is said to be none, before anything is judged.
func TestPolicySimKinds(t *testing.T) {
	f := newFolder(t)
	f.write(t, "p.rego", "package agent_policy\ndefault StartContainerRequest := true\n")
	f.write(t, "r.jsonl", `{"kind": "StartContainerRequest"}`+"\n"+`{"kind": "StartContainer"}`)
	for _, verb := range []string{"sim", "test"} {
		out := f.run(t, exitRefused, "policy", verb, "p.rego", "r.jsonl")
		if !strings.Contains(out, `request 2: "StartContainer" is no kind of request, did you mean StartContainerRequest?`) || !strings.Contains(out, verb+" --help` lists the kinds") ||
			strings.Contains(out, "allowed") || strings.Contains(out, "internal") {
			t.Errorf("got %s", out)
		}
		if out := f.run(t, exitDone, "policy", verb, "--help"); !strings.Contains(out, " HostStorageRequest") || !strings.Contains(out, "ContainerExited") {
			t.Errorf("the help lacks kinds: %s", out)
		}
	}
}
