package policy_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/guest/gate"
	"github.com/cloister/cloister/test/kubepod"
	"github.com/cloister/cloister/wire/agent"
)

const partlyManifest = `apiVersion: v1
kind: ConfigMap
metadata: {name: known}
data: {mode: "hi", x: "world"}
---
apiVersion: v1
kind: Pod
metadata: {name: web-bcdf-ghjkl, namespace: shop}
spec:
  containers:
  - name: a
    image: registry.example/app:1
    volumeMounts: [{name: some, mountPath: /etc/some, readOnly: true}]
  volumes:
  - name: some
    projected:
      sources:
      - configMap: {name: known, items: [{key: mode, path: mode}, {key: x, path: sub/x}]}
      - UNKNOWN
`

const (
	partlyToken  = "serviceAccountToken: {path: keys/token, expirationSeconds: 3600}"
	partlySecret = "secret: {name: unknown, optional: true}"
)

// partly is a pod with a volume of which the files mode and sub/x are known. What the kubelet has published first was copied, without the
// container, and files are those of the source that is not known.
func partly(t *testing.T, unknown string, files ...proto.Message) (e *gate.Engine, root string, create createRequest) {
	t.Helper()
	g := generate(t, strings.Replace(partlyManifest, "UNKNOWN", unknown, 1), oneImage{}, nil)
	e = g.engine(t)
	mustAllow(t, e, kubepod.Sandbox())
	id := kubepod.ID(1)
	create = g.request(t, "a", id)
	root = mountAt(create, "/etc/some").Source
	for _, r := range append(version(root, "..2026"), files...) {
		mustAllow(t, e, r)
	}
	return e, root, create
}

// version is what a host copies that publishes the known files, without the links to them.
func version(root, name string) []proto.Message {
	at := root + "/" + name
	return []proto.Message{dir(root), dir(at), file(at+"/mode", "hi"), dir(at + "/sub"), file(at+"/sub/x", "world")}
}

func links(root, name string, more ...string) []proto.Message {
	out := []proto.Message{link(root+"/..data", name)}
	for _, first := range append([]string{"mode", "sub"}, more...) {
		out = append(out, link(root+"/"+first, "..data/"+first))
	}
	return out
}

func allowAll(t *testing.T, e *gate.Engine, list []proto.Message) {
	t.Helper()
	for _, r := range list {
		mustAllow(t, e, r)
	}
}

// TestGeneratedPartlyKnownVolume: what is known of a volume is bound, the rest is where its source has it, and may change.
func TestGeneratedPartlyKnownVolume(t *testing.T) {
	e, root, create := partly(t, partlyToken)
	now := root + "/..2026"
	mustDeny(t, e, create) // no links yet
	for _, bad := range []proto.Message{
		file(now+"/mode", "ho"), file(now+"/other", "x"), file(now+"/sub/token", "x"), file(now+"/keys", "x"), file(now+"/keys/other", "x"), file(now+"/sub", "x"),
		file(now+"/mode/token", "x"), link(root+"/other", "..data/other"), link(root+"/keys", "..data/mode"), link(root+"/keys", "/etc"), dir(root + "/other"),
		&agent.CopyFileRequest{Path: now + "/keys/token", FileMode: modeFile | 0o4000, FileSize: 1, Data: []byte("x")},
	} {
		mustDeny(t, e, bad)
	}
	allowAll(t, e, []proto.Message{dir(now + "/keys"), file(now+"/keys/token", "one")})
	allowAll(t, e, links(root, "..2026", "keys"))
	mustAllow(t, e, link(root+"/..data", "..2025")) // published again, as far as the guest knows without its files
	mustDeny(t, e, create)
	mustDeny(t, e, dir(root+"/..data"))
	mustAllow(t, e, link(root+"/..data", "..2026"))
	mustAllow(t, e, create)

	// The kubelet renews the token: a new version, complete before the link leads to it.
	next := root + "/..2027"
	mustDeny(t, e, link(root+"/..data", "..2027"))
	for i, r := range version(root, "..2027") {
		mustAllow(t, e, r)
		if i < 4 {
			mustDeny(t, e, link(root+"/..data", "..2027"))
		}
	}
	for _, bad := range []proto.Message{
		file(next+"/mode", "ho"), file(next+"/other", "x"), file(root+"/mode", "hi"), dir(root + "/mode"), dir(root + "/..data"), link(root+"/mode", "..data/sub/x"),
		link(root+"/..data", "../x"), link(root+"/..data", "..2028"), file(next, "x"), link(next, "..2026"), file(root+"/..data/mode", "hi"), file(now, "x"), link(root, "..x"),
	} {
		mustDeny(t, e, bad)
	}
	allowAll(t, e, []proto.Message{dir(next + "/keys"), file(next+"/keys/token", "two"), file(next+"/keys/token", "three"), link(root+"/..data", "..2027")})
	mustDeny(t, e, link(root+"/..data", "..2026")) // forgotten: all of it has to be copied again
	allowAll(t, e, version(root, "..2026"))
	mustAllow(t, e, link(root+"/..data", "..2026"))

	mustAllow(t, e, &agent.RemoveContainerRequest{ContainerId: create.ContainerId})
	state, err := e.State(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for key := range state {
		if strings.HasPrefix(key, "tree:") || strings.HasPrefix(key, "closed:") {
			t.Errorf("the state keeps %s", key)
		}
	}
}

// TestGeneratedPartlyUnknownNames: of the source nothing is known, so its files can have any name but those of known ones.
func TestGeneratedPartlyUnknownNames(t *testing.T) {
	e, root, create := partly(t, partlySecret)
	now := root + "/..2026"
	allowAll(t, e, links(root, "..2026"))
	for _, bad := range []proto.Message{
		file(now+"/mode", "ho"), file(now+"/sub", "x"), file(now+"/mode/x", "x"), dir(now + "/mode"), dir(now + "/mode/x"), dir(now + "/sub/x"), file(now+"/sub/x/y", "x"),
		file(now+"/..x", "x"), file(now+"/..x/y", "x"), dir(now + "/..x"), link(root+"/a", "..data/b"), link(root+"/a/b", "..data/a/b"), link(root+"/..a", "..data/..a"), link(now+"/a", "..data/a"),
		file(root+"/sub/x", "x"), file(root, "x"), link(root+"/mode", "..2026/mode"),
	} {
		mustDeny(t, e, bad)
	}
	allowAll(t, e, []proto.Message{file(now+"/user", "me"), dir(now + "/more"), file(now+"/more/x", "1"), file(now+"/sub/y", "2"), link(root+"/user", "..data/user"), link(root+"/more", "..data/more")})
	mustAllow(t, e, create)
	mustAllow(t, e, file(now+"/user", "you"))
	mustDeny(t, e, file(now+"/sub/x", "you"))
	mustDeny(t, e, file(now+"/sub", "you"))
}

// TestGeneratedPartlyForLong: a token is renewed every hour for as long as the pod lives.
func TestGeneratedPartlyForLong(t *testing.T) {
	e, root, create := partly(t, partlyToken)
	allowAll(t, e, links(root, "..2026"))
	mustAllow(t, e, create)
	var first int
	for i := range 200 {
		name := fmt.Sprintf("..%d", 3000+i)
		allowAll(t, e, version(root, name))
		allowAll(t, e, []proto.Message{dir(root + "/" + name + "/keys"), file(root+"/"+name+"/keys/token", name), link(root+"/..data", name)})
		state, err := e.State(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		size := len(fmt.Sprint(state))
		if i == 0 {
			first = size
		} else if size > first+64 {
			t.Fatalf("after %d updates the state has %d bytes, after the first %d", i+1, size, first)
		}
	}
}
