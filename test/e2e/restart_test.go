package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
)

// sealed is a sealed secret that names a resource, and the JWK that its signature verifies with.
func sealed(t *testing.T, signer, resource string) (text, jwk string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	input := b64([]byte(`{"alg":"ES256","kid":"`+signer+`"}`)) + "." +
		b64([]byte(`{"version":"0.1.0","type":"vault","name":"`+resource+`","provider":"kbs","provider_settings":{},"annotations":{}}`))
	sum := sha256.Sum256([]byte(input))
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	jwk = fmt.Sprintf(`{"kty":"EC","crv":"P-256","alg":"ES256","x":%q,"y":%q}`, b64(point[1:33]), b64(point[33:]))
	return "sealed." + input + "." + b64(append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)), jwk
}

// TestRestart runs a container that fails once and finds its opened secret and its volume both times.
func TestRestart(t *testing.T) {
	e := newEnv(t)
	secret, jwk := sealed(t, "kbs:///default/signer/1", "kbs:///default/db/password")
	e.write(t, "signer.jwk", jwk)
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
