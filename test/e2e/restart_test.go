package e2e

import (
	"strings"
	"testing"
)

// TestRestart runs a container that fails once and finds its opened secret and its volume both times.
func TestRestart(t *testing.T) {
	e := newEnv(t)
	e.ok(t, "key", "new", "--type", "signing", "signer.key")
	e.ok(t, "key", "jwk", "signer.key.pub", "--output", "signer.jwk")
	secret := strings.TrimSpace(e.ok(t, "secret", "seal", "kbs:///default/db/password", "--key", "signer.key", "--key-id", "kbs:///default/signer/1"))
	e.write(t, "password", "pa55 of the broker\n")
	e.ok(t, "secret", "put", "kbs:///default/signer/1", "signer.jwk")
	e.ok(t, "secret", "put", "kbs:///default/db/password", "password")
	e.expect(t, "pod-restart", "apiVersion: v1\nkind: Secret\nmetadata: {name: db}\nstringData: {password: "+secret+", user: admin}\n---\n"+
		"apiVersion: v1\nkind: Pod\nmetadata: {name: pod-restart}\nspec:\n  restartPolicy: OnFailure\n"+
		"  volumes: [{name: shared, emptyDir: {}}, {name: db, secret: {secretName: db}}]\n"+
		"  containers:\n    - name: main\n      image: "+e.host+"/team/app:1\n"+
		"      command: [\"/bin/sh\", \"-c\", \"cat /db/password; cat /db/user; echo; test -e /shared/again && exit 0; echo > /shared/again; exit 5\"]\n"+
		"      volumeMounts: [{name: shared, mountPath: /shared}, {name: db, mountPath: /db}]\n")
	out, code := e.run(t, "pod-restart", "pod-restart.toml")
	if code != 0 || strings.Count(out, "pa55 of the broker\nadmin\n") != 2 || strings.Contains(out, "sealed.") {
		t.Errorf("exit code %d, expected 0 after a restart, with the secret both times\n%s", code, out)
	}
	e.nothingLeft(t)
}
