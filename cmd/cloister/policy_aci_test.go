package main

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"os"
	"strings"
	"testing"

	"github.com/cloister/cloister/wire/didx509/didtest"
)

const aciTemplate = `{
  // comments stay
  "parameters": { "image": { "type": "string" } },
  "resources": [
    {
      "type": "Microsoft.ContainerInstance/containerGroups",
      "name": "web",
      "properties": {
        "sku": "Confidential",
        "containers": [ { "name": "app", "properties": { "image": "[parameters('image')]", "command": [ "/app", "-v" ] } } ]
      }
    }
  ]
}
`

func TestPolicyACI(t *testing.T) {
	f := newFolder(t)
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	f.write(t, "web.json", aciTemplate)
	f.write(t, "web.parameters.json", `{"parameters": {"image": {"value": "%REGISTRY%/app:1"}}}`)
	if out := f.run(t, exitRefused, "policy", "aci", "web.json"); !strings.Contains(out, "parameter image, which has no value") || !strings.Contains(out, "hint: give the parameter's value") {
		t.Errorf("without parameters: %s", out)
	}
	args := []string{"policy", "aci", "--parameters", "web.parameters.json", "--insecure-registry", f.registry}
	out := f.run(t, exitDone, append(args, "web.json")...)
	digest, rest, _ := strings.Cut(strings.TrimPrefix(out, "web: HOST_DATA "), "\n")
	value := between(t, rest, `"ccePolicy": "`, `"`)
	policy, err := base64.StdEncoding.DecodeString(value)
	if err != nil {
		t.Fatal(err)
	}
	if sum := sha256.Sum256(policy); hex.EncodeToString(sum[:]) != digest {
		t.Errorf("HOST_DATA %s is not the digest of the policy", digest)
	}
	inserted := "\"confidentialComputeProperties\": {\n          \"ccePolicy\": \"" + value + "\"\n        },\n        "
	if strings.Replace(rest, inserted, "", 1) != aciTemplate {
		t.Errorf("more changed than the policy:\n%s", rest)
	}
	if raw := f.run(t, exitDone, append(args, "--raw", "web.json")...); raw != string(policy) {
		t.Error("--raw prints another policy")
	}
	// On standard input a template is known by its schema; bicep prints it there.
	schema := strings.Replace(aciTemplate, "{", `{ "$schema": "https://schema.management.azure.com/schemas/2019-04-01/deploymentTemplate.json#",`, 1)
	var piped, said bytes.Buffer
	if code := run(t.Context(), append(args, "--host-data", "-"), strings.NewReader(schema), &piped, &said); code != exitDone || strings.TrimSpace(piped.String()) != digest {
		t.Errorf("standard input: exit code %d, %s%s", code, piped.String(), said.String())
	}
	if code := run(t.Context(), []string{"policy", "aci", "-"}, strings.NewReader("kind: Nothing\napiVersion: v1\n"), &piped, &said); code != exitRefused || !strings.Contains(said.String(), "nothing that makes pods in standard input") {
		t.Errorf("standard input: exit code %d, %s", code, said.String())
	}
	if data := f.run(t, exitDone, append(args, "--host-data", "web.json")...); strings.TrimSpace(data) != digest {
		t.Error("--host-data prints another digest")
	}
	f.run(t, exitDone, append(args, "--in-place", "web.json")...)
	if again := f.run(t, exitDone, append(args, "web.json")...); !strings.HasSuffix(again, rest) {
		t.Errorf("a policy that is there already is not replaced by the same:\n%s", again)
	}
	for _, want := range []string{`"/app",`, `"-v"`, `"feed": "mcr.microsoft.com/aci/aci-cc-infra-fragment"`, "package policy"} {
		if !strings.Contains(string(policy), want) {
			t.Errorf("no %s in the policy", want)
		}
	}
	f.run(t, exitUsage, append(args, "--raw", "--base64", "web.json")...)
	f.run(t, exitUsage, append(args, "--fragment", "web", "web.json")...)
}

// TestPolicyACIFiles: a folder whose manifests were not all printed would lose pods.
func TestPolicyACIFiles(t *testing.T) {
	f := newFolder(t)
	if err := os.Mkdir("pods", 0o755); err != nil {
		t.Fatal(err)
	}
	const pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers: [{name: a, image: %REGISTRY%/app:1, command: [/app]}]\n"
	args := []string{"policy", "aci", "--no-cache", "--insecure-registry", f.registry}
	f.write(t, "pods/a.yaml", pod)
	f.run(t, exitDone, append(args, "--in-place", "pods")...)
	if text, err := os.ReadFile("pods/a.yaml"); err != nil || !strings.Contains(string(text), "virtualnode.ccepolicy") {
		t.Errorf("--in-place with a folder: %v\n%.300s", err, text)
	}
	f.write(t, "pods/b.yaml", strings.Replace(pod, "spec:", "spec:\n  nosuch: 1", 1))
	if out := f.run(t, exitUsage, append(args, "pods")...); !strings.Contains(out, "pods has 2 manifests") {
		t.Errorf("got %s", out)
	}
	if out := f.run(t, exitRefused, append(args, "pods/b.yaml")...); !strings.Contains(out, "pods/b.yaml:5: Pod/a: spec.nosuch: unknown field") || strings.Contains(out, "hint") {
		t.Errorf("a hint at a flag that there is not: %s", out)
	}
	f.run(t, exitUsage, append(args, "--in-place", "-")...)
}

func TestPolicyACIPod(t *testing.T) {
	f := newFolder(t)
	f.write(t, "pod.yaml", `apiVersion: v1
kind: Pod
metadata:
  name: web
spec:
  containers:
    - name: app # the app
      image: %REGISTRY%/app:1
      command: [/app]
`)
	out := f.run(t, exitDone, "policy", "aci", "--no-cache", "--insecure-registry", f.registry, "pod.yaml")
	policy, err := base64.StdEncoding.DecodeString(between(t, out, "microsoft.containerinstance.virtualnode.ccepolicy: ", "\n"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(policy), "/dev/termination-log") || !strings.Contains(out, "# the app") || !strings.Contains(out, "Pod/web: HOST_DATA ") {
		t.Errorf("%s\n%s", out, policy)
	}
}

// TestPolicyFragment goes from a template to a signed fragment and to the policy that accepts it.
func TestPolicyFragment(t *testing.T) {
	f := newFolder(t)
	f.write(t, "web.json", strings.Replace(aciTemplate, "[parameters('image')]", "%REGISTRY%/app:1", 1))
	args := []string{"policy", "aci", "--no-cache", "--insecure-registry", f.registry}
	f.run(t, exitDone, append(args, "--fragment", "shop", "--svn", "3", "-o", "shop.rego", "web.json")...)

	key, ca := didtest.NewKey(t), didtest.NewAuthority(t)
	var chain []byte
	for _, c := range ca.Issue(t, didtest.Leaf(), key.Public()) {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	f.write(t, "chain.pem", string(chain))
	f.write(t, "key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
	sign := []string{"policy", "fragment", "sign", "--key", "key.pem", "--chain", "chain.pem", "--feed", "registry.example/shop"}
	out := f.run(t, exitDone, append(sign, "--svn", "3", "-o", "shop.cose", "shop.rego")...)
	issuer := strings.TrimSpace(strings.TrimPrefix(out, "issuer "))
	if out := f.run(t, exitRefused, append(sign, "--svn", "4", "shop.rego")...); !strings.Contains(out, "its svn is 3, want 4") {
		t.Errorf("another version: %s", out)
	}
	verify := []string{"policy", "fragment", "verify", "--at", didtest.At.Format("2006-01-02T15:04:05Z07:00")}
	if out := f.run(t, exitDone, append(verify, "--issuer", issuer, "--feed", "registry.example/shop", "--minimum-svn", "3", "shop.cose")...); !strings.Contains(out, "verified: feed registry.example/shop, version 3") {
		t.Error(out)
	}
	for _, bad := range [][]string{{"--issuer", issuer + "1"}, {"--feed", "x"}, {"--minimum-svn", "4"}, {"--at", "2036-01-01T00:00:00Z"}} {
		f.run(t, exitRefused, append(append(verify, bad...), "shop.cose")...)
	}
	if out := f.run(t, exitDone, "policy", "fragment", "inspect", "shop.cose"); !strings.Contains(out, "version    3") || !strings.Contains(out, "package shop") {
		t.Error(out)
	}
	f.write(t, "fragments.json", f.run(t, exitDone, "policy", "fragment", "inspect", "--declare", "aci", "shop.cose"))
	policy := f.run(t, exitDone, append(args, "--raw", "--fragments", "fragments.json", "web.json")...)
	if !strings.Contains(policy, issuer) || !strings.Contains(policy, `"minimum_svn": "3"`) {
		t.Errorf("the fragment is not declared:\n%s", policy)
	}

	// The same for Cloister's guest.
	f.write(t, "pod.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: app, image: %REGISTRY%/app:1, command: [/app]}]}\n")
	f.run(t, exitDone, "policy", "generate", "--raw", "--no-cache", "--insecure-registry", f.registry, "-o", "pod.rego", "pod.yaml")
	f.run(t, exitDone, "policy", "fragment", "new", "--feed", "registry.example/shop", "--svn", "7", "-o", "pod.fragment.rego", "pod.rego")
	f.run(t, exitDone, "policy", "generate", "--no-cache", "--insecure-registry", f.registry, "-o", "pod.out.yaml", "pod.yaml")
	if of := f.run(t, exitDone, "policy", "fragment", "new", "--feed", "registry.example/shop", "--svn", "7", "pod.out.yaml"); of != f.run(t, exitDone, "policy", "fragment", "new", "--feed", "registry.example/shop", "--svn", "7", "pod.rego") {
		t.Error("the policy of a manifest makes another fragment than its text")
	}
	if out := f.run(t, exitRefused, "policy", "generate", "--fragment", "fragments.json", "pod.yaml"); !strings.Contains(out, "inspect --declare guest") {
		t.Error(out)
	}
	f.run(t, exitDone, append(sign, "--svn", "7", "-o", "pod.cose", "pod.fragment.rego")...)
	if out := f.run(t, exitDone, "policy", "fragment", "inspect", "--declare", "guest", "pod.cose"); !strings.Contains(out, `"minimum_svn": 7`) {
		t.Error(out)
	}
	f.write(t, "declare.json", f.run(t, exitDone, "policy", "fragment", "inspect", "--declare", "guest", "pod.cose"))
	policy = f.run(t, exitDone, "policy", "generate", "--raw", "--no-cache", "--insecure-registry", f.registry, "--fragment", "declare.json", "pod.yaml")
	if !strings.Contains(policy, `"minimum_svn": 7`) || !strings.Contains(policy, issuer) {
		t.Error("the policy does not declare the fragment")
	}
	f.write(t, "declare.json", `{"issuer": "Contoso", "feed": "x", "minimum_svn": 1}`)
	f.run(t, exitRefused, "policy", "generate", "--raw", "--fragment", "declare.json", "pod.yaml")
	raw, err := os.ReadFile("pod.cose")
	if err != nil {
		t.Fatal(err)
	}
	raw[len(raw)/2] ^= 1
	f.write(t, "bad.cose", string(raw))
	f.run(t, exitRefused, append(verify, "bad.cose")...)
}
