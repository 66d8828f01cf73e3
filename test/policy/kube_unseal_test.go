package policy_test

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/cloister/cloister/author/policy"
	"github.com/cloister/cloister/guest/gate"
	"github.com/cloister/cloister/test/kubepod"
	"github.com/cloister/cloister/wire/agent"
)

func sum(text string) string {
	s := sha256.Sum256([]byte(text))
	return hex.EncodeToString(s[:])
}

// TestKubernetesSealedSecrets has a host that brings a pod's sealed secrets to other places of the pod.
func TestKubernetesSealedSecrets(t *testing.T) {
	const key, other = "sealed.header.key.signature", "sealed.header.other.signature"
	web := kubepod.Workload("web", kubepod.SharedMount("/etc/keys", "rbind", "rprivate", "ro"), kubepod.SharedMount("/etc/one", "rbind", "rprivate", "ro"),
		kubepod.SharedMount("/var/token", "rbind", "rprivate", "ro"), kubepod.SharedMount("/etc/any", "rbind", "rprivate", "ro"))
	entry := func(text string) kubepod.Object { return kubepod.Object{"sha256": sum(text), "size": len(text)} }
	files := func(destination string, single, bound bool, entries kubepod.Object) kubepod.Object {
		return kubepod.Object{"destination": destination, "base": destination[strings.LastIndexByte(destination, '/')+1:], "kind": "secret", "single": single, "bound": bound, "entries": entries}
	}
	web.Entry["files"] = []kubepod.Object{
		files("/etc/keys", false, true, kubepod.Object{"key": entry(key), "sub/other": entry(other)}), files("/etc/one", true, true, kubepod.Object{"": entry(key)}),
		files("/var/token", false, false, kubepod.Object{"key": entry(key)}), // a projected volume with a token
		files("/etc/any", false, false, kubepod.Object{}),
	}
	web.Process()["Env"] = append(web.Process()["Env"].([]string), "KEY="+key)
	web.Env = append(web.Env, "KEY="+key)
	side := kubepod.Workload("side")
	web.Entry["image"], side.Entry["image"] = image(kubepod.DigestOne), image(kubepod.DigestOne)
	p := kubepod.Pause()
	p.Entry["image"] = nil
	data := ours(kubepod.Data(p, web, side))
	e := kubeEngine(t, data)
	mustAllow(t, e, kubepod.Sandbox())
	// The file's content is bound before the container is made; see TestKubernetesBoundFiles.
	for id, c := range map[string]*kubepod.Container{kubepod.ID(1): web, kubepod.ID(2): side} {
		if c == web {
			keys := kubepod.SharedDir + id + "-0123456789abcdef-keys"
			for _, r := range []*agent.CopyFileRequest{dir(keys), dir(keys + "/sub"), file(keys+"/key", key), file(keys+"/sub/other", other), file(kubepod.SharedDir+id+"-0123456789abcdef-one", key)} {
				mustAllow(t, e, r)
			}
		}
		mustAllow(t, e, c.Request(id))
	}
	at := func(destination, name, text string) gate.SealedFile {
		return gate.SealedFile{ContainerID: kubepod.ID(1), Destination: destination, Name: name, Path: "/x", SHA256: sum(text)}
	}
	for _, f := range []gate.SealedFile{
		at("/etc/keys", "key", key), at("/etc/keys", "..2026_01_01/key", key), at("/etc/keys", "..2026_01_01/sub/other", other), at("/etc/one", "", key), at("/var/token", "..1/key", key),
	} {
		if err := e.AllowUnsealFile(t.Context(), f); err != nil {
			t.Errorf("%+v: %v", f, err)
		}
	}
	sidecar := at("/etc/keys", "key", key)
	sidecar.ContainerID = kubepod.ID(2)
	nobody := at("/etc/keys", "key", key)
	nobody.ContainerID = kubepod.ID(3)
	for _, f := range []gate.SealedFile{
		sidecar, nobody, at("/etc/keys", "key", other), at("/etc/keys", "other", key), at("/etc/keys", "sub/other", key), at("/etc/keys", "", key), at("/etc/keys", "..1/..2/key", key),
		at("/etc/one", "key", key), at("/etc/one", "", other), at("/etc/any", "key", key), at("/var/token", "token", key), at("/etc/hosts", "", key), at("/etc/keys", "key", key+"\n"),
	} {
		if err := e.AllowUnsealFile(t.Context(), f); err == nil {
			t.Errorf("%+v is opened", f)
		}
	}
	for variable, want := range map[string]bool{
		"KEY=" + key: true, "KEY=" + other: false, "HOSTNAME=" + key: false, "POD=" + key: false, "KUBERNETES_SERVICE_HOST=" + key: false, "MODE=" + key: false,
	} {
		if err := e.AllowUnsealVariable(t.Context(), kubepod.ID(1), variable); (err == nil) != want {
			t.Errorf("%s: %v", variable, err)
		}
		if err := e.AllowUnsealVariable(t.Context(), kubepod.ID(2), variable); err == nil {
			t.Errorf("%s is opened in another container", variable)
		}
	}
	// The host may name the pod so: the variable is allowed, but not opened.
	hostname := side.Request(kubepod.ID(4))
	for i, v := range hostname.OCI.Process.Env {
		if strings.HasPrefix(v, "HOSTNAME=") {
			hostname.OCI.Process.Env[i] = "HOSTNAME=" + key
		}
	}
	mustAllow(t, e, &agent.RemoveContainerRequest{ContainerId: kubepod.ID(2)})
	mustAllow(t, e, hostname)
	if err := e.AllowUnsealVariable(t.Context(), kubepod.ID(4), "HOSTNAME="+key); err == nil {
		t.Error("a sealed secret is opened in a variable that the host fills")
	}
}

// TestPodSealedSecrets is the same for the policies of `cloister run`.
func TestPodSealedSecrets(t *testing.T) {
	plan, _ := loadPlan(t, "testdata/full.yaml")
	e := newEngine(t, plan, policy.Options{})
	mustAllow(t, e, plan.Sandbox)
	sendFiles(t, e, plan)
	c := plan.Containers[0].Create
	mustAllow(t, e, c)
	opened := 0
	for _, f := range plan.Files {
		r := f.Request
		if r.GetFileMode()&0o170000 != 0o100000 {
			continue
		}
		mine := false
		for _, m := range c.OCI.Mounts {
			mine = mine || r.GetPath() == m.Source || strings.HasPrefix(r.GetPath(), m.Source+"/")
		}
		at := gate.SealedFile{ContainerID: c.ContainerId, Destination: "/x", Path: r.GetPath(), SHA256: sum(string(r.GetData()))}
		if err := e.AllowUnsealFile(t.Context(), at); (err == nil) != mine {
			t.Errorf("%s: %v", r.GetPath(), err)
		}
		if mine {
			opened++
		}
		at.SHA256 = sum("another text")
		if err := e.AllowUnsealFile(t.Context(), at); err == nil {
			t.Errorf("another text at %s is opened", r.GetPath())
		}
	}
	if opened == 0 {
		t.Error("the first container has no files")
	}
	for _, v := range c.OCI.Process.Env {
		if err := e.AllowUnsealVariable(t.Context(), c.ContainerId, v); err != nil {
			t.Error(err)
		}
	}
	if err := e.AllowUnsealVariable(t.Context(), c.ContainerId, "X=sealed.y"); err == nil {
		t.Error("any variable is opened")
	}
}

// TestKubernetesPinSurvives has a host that makes the create fail that said which pod this is, to say something else later.
func TestKubernetesPinSurvives(t *testing.T) {
	web, side := kubepod.Workload("web"), kubepod.Workload("side")
	e := kubeEngine(t, kubepod.Data(kubepod.Pause(), web, side))
	mustAllow(t, e, kubepod.Sandbox())
	undo, err := e.Begin(t.Context(), "CreateContainerRequest", web.Request(kubepod.ID(1)))
	if err != nil {
		t.Fatal(err)
	}
	mustAllow(t, e, side.Request(kubepod.ID(2)))
	if err := undo(t.Context()); err != nil {
		t.Fatal(err)
	}
	other := web.Request(kubepod.ID(3))
	other.OCI.Annotations["io.kubernetes.cri.sandbox-id"] = kubepod.ID(9)
	mustDeny(t, e, other)
	mustAllow(t, e, web.Request(kubepod.ID(1))) // and the honest one may try again
}
