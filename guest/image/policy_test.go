package image

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"github.com/cloister/cloister/internal/testregistry"
)

func publicPEM(t testing.TB, key crypto.PublicKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

func ecKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func payload(identity, digest, typ string) jsonMap {
	return jsonMap{"critical": jsonMap{"identity": jsonMap{"docker-reference": identity},
		"image": jsonMap{"docker-manifest-digest": digest}, "type": typ}, "optional": nil}
}

func signWith(t testing.TB, key crypto.Signer, data []byte) []byte {
	t.Helper()
	sum := sha256.Sum256(data)
	digest, opts := sum[:], crypto.SignerOpts(crypto.SHA256)
	if _, ok := key.(ed25519.PrivateKey); ok {
		digest, opts = data, crypto.Hash(0)
	}
	sig, err := key.Sign(rand.Reader, digest, opts)
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

// putCosign pushes a signature image with the given payload and signature.
func putCosign(t testing.TB, reg *testregistry.Registry, repo, digest string, payload, signature []byte) {
	t.Helper()
	putBlob(t, reg, repo, payload)
	cfg := []byte(`{}`)
	putBlob(t, reg, repo, cfg)
	m := marshal(t, jsonMap{"schemaVersion": 2, "mediaType": typeOCIManifest,
		"config": jsonMap{"mediaType": "application/vnd.oci.image.config.v1+json", "digest": sha256Digest(cfg).String(), "size": len(cfg)},
		"layers": []jsonMap{{"mediaType": cosignPayloadType, "digest": sha256Digest(payload).String(), "size": len(payload),
			"annotations": map[string]string{cosignAnnotation: base64.StdEncoding.EncodeToString(signature)}}}})
	put(t, reg, "/v2/"+repo+"/manifests/"+strings.Replace(digest, ":", "-", 1)+".sig", typeOCIManifest, m)
}

func cosignPolicy(scope string, members jsonMap) string {
	req := jsonMap{"type": "sigstoreSigned"}
	for k, v := range members {
		req[k] = v
	}
	data, _ := json.Marshal(jsonMap{"default": []jsonMap{{"type": "reject"}},
		"transports": jsonMap{"docker": jsonMap{scope: []jsonMap{req}}}})
	return string(data)
}

func TestCosign(t *testing.T) {
	reg := startRegistry(t, testregistry.Options{})
	host := reg.Addr()
	key, other := ecKey(t, elliptic.P256()), ecKey(t, elliptic.P256())
	keys := &keyMap{keys: map[string][]byte{"kbs:///default/cosign-public-key/demo": publicPEM(t, key.Public())}}
	byPath := jsonMap{"keyPath": "kbs:///default/cosign-public-key/demo"}

	for i, tc := range []struct {
		name     string
		identity string
		signer   crypto.Signer
		digest   string // in the payload, if not the image's
		typ      string
		edit     func(payload []byte) []byte // after signing
		rule     jsonMap
		noSig    bool
		want     []string
	}{
		{name: "good"},
		{name: "good, key inline as base64", rule: jsonMap{"keyData": base64.StdEncoding.EncodeToString(publicPEM(t, key.Public()))}},
		{name: "good, key inline as PEM", rule: jsonMap{"keyData": string(publicPEM(t, key.Public()))}},
		{name: "good, exact repository", identity: "elsewhere.example/app", rule: jsonMap{"keyPath": byPath["keyPath"],
			"signedIdentity": jsonMap{"type": "exactRepository", "dockerRepository": "elsewhere.example/app"}}},
		{name: "not signed", noSig: true, want: []string{"not signed", ".sig"}},
		{name: "other key", signer: other, want: []string{"not made by this key", "kbs:///default/cosign-public-key/demo"}},
		{name: "changed payload", edit: func(b []byte) []byte { return append(b, ' ') }, want: []string{"not made by this key"}},
		{name: "for another digest", digest: "sha256:" + strings.Repeat("1", 64), want: []string{"sha256:1111", "expected \"sha256:"}},
		{name: "of another type", typ: "atomic container signature", want: []string{"its type is"}},
		{name: "for another repository", identity: host + "/other", want: []string{"/other", "matchRepository"}},
		{name: "for another registry", identity: "elsewhere.example/app1", want: []string{"elsewhere.example"}},
		{name: "no identity", identity: "-", want: []string{"unreadable identity"}},
		{name: "exact repository of another", rule: jsonMap{"keyPath": byPath["keyPath"],
			"signedIdentity": jsonMap{"type": "exactRepository", "dockerRepository": "elsewhere.example/app"}}, want: []string{"exactRepository"}},
		{name: "key the broker denies", rule: jsonMap{"keyPath": "kbs:///default/no/key"}, want: []string{"kbs:///default/no/key", "request 7c1f"}},
		{name: "key is a private one", rule: jsonMap{"keyData": base64.StdEncoding.EncodeToString([]byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"))}, want: []string{"expected \"PUBLIC KEY\""}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			repo := "app" + itoa(i)
			ref := pushImage(t, reg, repo, "v1", ociLayer(t, "gzip", regular("a", tc.name)))
			digest := ref[strings.Index(ref, "@")+1:]
			identity, typ, claimed, signer := tc.identity, tc.typ, tc.digest, tc.signer
			if identity == "" {
				identity = host + "/" + repo
			} else if identity == "-" {
				identity = ""
			}
			if typ == "" {
				typ = cosignSigned
			}
			if claimed == "" {
				claimed = digest
			}
			if signer == nil {
				signer = key
			}
			if !tc.noSig {
				p := marshal(t, payload(identity, claimed, typ))
				sig := signWith(t, signer, p)
				if tc.edit != nil {
					p = tc.edit(p)
				}
				putCosign(t, reg, repo, digest, p, sig)
			}
			rule := tc.rule
			if rule == nil {
				rule = byPath
			}
			c, m := newClient(t, reg, Config{SecurityPolicy: cosignPolicy(host, rule)}, keys)
			for _, name := range []string{ref, host + "/" + repo + ":v1"} { // a signature also vouches for a tag
				_, err := c.PullImage(testContext(t), name, bundleDir(t))
				if len(tc.want) == 0 {
					if err != nil {
						t.Fatal(err)
					}
					continue
				}
				wantError(t, err, append(tc.want, "Image policy rejected: Denied by policy", "`sigstoreSigned`", repo)...)
				wantNothingLeft(t, c, m)
			}
		})
	}
}

func TestCosignKeyTypes(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, signer := range []crypto.Signer{ecKey(t, elliptic.P256()), ecKey(t, elliptic.P384()), ecKey(t, elliptic.P521()), rsaKey, edKey} {
		key, err := parsePublicKey(publicPEM(t, signer.Public()))
		if err != nil {
			t.Fatal(err)
		}
		data := []byte("payload")
		sig := signWith(t, signer, data)
		if !verifySignature(key, data, sig) {
			t.Errorf("%T: good signature refused", signer)
		}
		for i := range 3 {
			bad := bytes.Clone(sig)
			bad[len(bad)/4*(i+1)] ^= 1
			if verifySignature(key, data, bad) {
				t.Errorf("%T: bad signature accepted", signer)
			}
		}
		if verifySignature(key, []byte("other"), sig) || verifySignature(key, data, nil) {
			t.Errorf("%T: wrong payload or empty signature accepted", signer)
		}
	}
	if _, err := parsePublicKey(publicPEM(t, ecKey(t, elliptic.P224()).Public())); err == nil {
		t.Error("P-224 accepted")
	}
}

func TestPolicyParser(t *testing.T) {
	reject := `[{"type":"reject"}]`
	for _, tc := range []struct{ name, text, want string }{
		{"empty", `{}`, `no "default"`},
		{"empty default", `{"default":[]}`, "empty list"},
		{"empty scope", `{"default":` + reject + `,"transports":{"docker":{"x":[]}}}`, "empty list"},
		{"unknown member", `{"default":` + reject + `,"extra":1}`, "unknown field"},
		{"unknown requirement", `{"default":[{"type":"accept"}]}`, "unknown type"},
		{"member twice", `{"default":[{"type":"reject"}],"default":[{"type":"insecureAcceptAnything"}]}`, "twice"},
		{"member twice in other case", `{"default":[{"type":"reject","Type":"insecureAcceptAnything"}]}`, "twice"},
		{"two keys", `{"default":[{"type":"sigstoreSigned","keyPath":"a","keyData":"b"}]}`, "exactly one"},
		{"no key", `{"default":[{"type":"sigstoreSigned"}]}`, "exactly one"},
		{"fulcio", `{"default":[{"type":"sigstoreSigned","fulcio":{}}]}`, "unknown field"},
		{"keyPaths", `{"default":[{"type":"sigstoreSigned","keyPaths":["a"]}]}`, "unknown field"},
		{"identity not for sigstore", `{"default":[{"type":"sigstoreSigned","keyPath":"a","signedIdentity":{"type":"matchExact"}}]}`, "matchExact"},
		{"identity with strange member", `{"default":[{"type":"signedBy","keyType":"GPGKeys","keyPath":"a","signedIdentity":{"type":"matchExact","prefix":"x"}}]}`, "do not belong"},
		{"key type", `{"default":[{"type":"signedBy","keyType":"X","keyPath":"a"}]}`, "GPGKeys"},
		{"accept with key", `{"default":[{"type":"insecureAcceptAnything","keyPath":"a"}]}`, "no other members"},
		{"data after", `{"default":` + reject + `} {}`, "after"},
		{"deep", strings.Repeat("[", 100), "deeper"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := parsePolicy([]byte(tc.text))
			wantError(t, err, tc.want)
		})
	}
	good := `{"default":[{"type":"reject"}],"transports":{"docker":{"r.example/a":[{"type":"sigstoreSigned","keyPath":"kbs:///a/b/c"}]},"docker-daemon":{"":[{"type":"insecureAcceptAnything"}]}}}`
	if _, err := parsePolicy([]byte(good)); err != nil {
		t.Error(err)
	}
}

func TestPolicyFailsClosed(t *testing.T) {
	reg := startRegistry(t, testregistry.Options{})
	ref := pushImage(t, reg, "app", "v1", ociLayer(t, "gzip", regular("a", "b")))
	for name, cfg := range map[string]Config{
		"policy cannot be fetched":      {SecurityPolicyURI: "kbs:///default/security-policy/none", SecurityPolicy: acceptAll},
		"policy is broken":              {SecurityPolicy: `{`},
		"credentials cannot be fetched": {SecurityPolicy: acceptAll, CredentialsURI: "kbs:///default/credential/none"},
		"registry configuration":        {SecurityPolicy: acceptAll, RegistryConfig: &RegistryConfig{Registries: []RegistryRule{{Location: reg.Addr(), Blocked: true}}}},
	} {
		c, m := newClient(t, reg, cfg, &keyMap{})
		_, err := c.PullImage(testContext(t), ref, bundleDir(t))
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
		wantNothingLeft(t, c, m)
	}
}

func TestScopes(t *testing.T) {
	ref, err := ParseReference("reg.sub.example.com:5000/a/b:v1")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"reg.sub.example.com:5000/a/b:v1", "reg.sub.example.com:5000/a/b", "reg.sub.example.com:5000/a",
		"reg.sub.example.com:5000", "*.sub.example.com", "*.example.com", "*.com", ""}
	if got := scopes(ref); !slices.Equal(got, want) {
		t.Errorf("scopes %q", got)
	}
}

func TestIdentity(t *testing.T) {
	pinned := "r.example/a/b@sha256:" + strings.Repeat("a", 64)
	for _, tc := range []struct {
		id        identity
		ref, sign string
		want      bool
	}{
		{identity{Type: "matchExact"}, "r.example/a/b:v1", "r.example/a/b:v1", true},
		{identity{Type: "matchExact"}, "r.example/a/b:v1", "r.example/a/b:v2", false},
		{identity{Type: "matchExact"}, "r.example/a/b:latest", "r.example/a/b", false},
		{identity{Type: "matchExact"}, pinned, "r.example/a/b:v1", false},
		{identity{Type: "matchRepoDigestOrExact"}, pinned, "r.example/a/b:v1", true},
		{identity{Type: "matchRepoDigestOrExact"}, pinned, "r.example/a/c:v1", false},
		{identity{Type: "matchRepoDigestOrExact"}, "r.example/a/b:v1", "r.example/a/b:v2", false},
		{identity{Type: "matchRepository"}, "r.example/a/b:v1", "r.example/a/b", true},
		{identity{Type: "matchRepository"}, "r.example/a/b:v1", "r.example/a/bc", false},
		{identity{Type: "matchRepository"}, "docker.io/library/x:v1", "index.docker.io/library/x", true},
		{identity{Type: "exactReference", DockerReference: "o.example/x:v1"}, "r.example/a/b:v1", "o.example/x:v1", true},
		{identity{Type: "exactReference", DockerReference: "o.example/x:v1"}, "r.example/a/b:v1", "o.example/x:v2", false},
		{identity{Type: "remapIdentity", Prefix: "mirror.example", SignedPrefix: "r.example"}, "mirror.example/a:v1", "r.example/a:v1", true},
		{identity{Type: "remapIdentity", Prefix: "mirror.exam", SignedPrefix: "r.example/x"}, "mirror.example/a:v1", "r.example/xple/a:v1", false},
		{identity{Type: "remapIdentity", Prefix: "mirror.example", SignedPrefix: "r.example"}, "other.example/a:v1", "other.example/a:v1", true},
	} {
		ref, err := ParseReference(tc.ref)
		if err != nil {
			t.Fatal(err)
		}
		if err := tc.id.accepts(ref, tc.sign); (err == nil) != tc.want {
			t.Errorf("%+v: image %s signed for %s: %v", tc.id, tc.ref, tc.sign, err)
		}
	}
}

func TestSimpleSigning(t *testing.T) {
	reg := startRegistry(t, testregistry.Options{})
	ref := pushImage(t, reg, "app", "v1", ociLayer(t, "gzip", regular("a", "b")))
	digest := ref[strings.Index(ref, "@")+1:]
	newEntity := func() *openpgp.Entity {
		e, err := openpgp.NewEntity("signer", "", "signer@example.com", &packet.Config{RSABits: 2048})
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	signer, other := newEntity(), newEntity()
	var ring bytes.Buffer
	if err := signer.Serialize(&ring); err != nil {
		t.Fatal(err)
	}
	sign := func(by *openpgp.Entity, p jsonMap) []byte {
		var out bytes.Buffer
		w, err := openpgp.Sign(&out, by, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(marshal(t, p)); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	name := reg.Addr() + "/app"
	good := sign(signer, payload(name+":v1", digest, simpleSigned))
	for _, tc := range []struct {
		name string
		sigs [][]byte
		want string
	}{
		{"good", [][]byte{good}, ""},
		{"one good among bad", [][]byte{[]byte("junk"), sign(other, payload(name+":v1", digest, simpleSigned)), good}, ""},
		{"none", nil, "not signed"},
		{"junk", [][]byte{[]byte("junk")}, "not an OpenPGP signed message"},
		{"other key", [][]byte{sign(other, payload(name+":v1", digest, simpleSigned))}, "not in the ring"},
		{"other digest", [][]byte{sign(signer, payload(name+":v1", "sha256:"+strings.Repeat("0", 64), simpleSigned))}, "sha256:0000"},
		{"other name", [][]byte{sign(signer, payload("r.example/app:v1", digest, simpleSigned))}, "r.example/app"},
		{"cosign payload", [][]byte{sign(signer, payload(name+":v1", digest, cosignSigned))}, "its type is"},
		{"cut off", [][]byte{good[:len(good)-10]}, "no acceptable signature"},
		{"changed", [][]byte{bytes.Replace(good, []byte(digest[7:17]), []byte("0000000000"), 1)}, "does not hold"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			store := t.TempDir()
			dir := filepath.Join(store, "app@"+strings.Replace(digest, ":", "=", 1))
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			for i, s := range tc.sigs {
				if err := os.WriteFile(filepath.Join(dir, "signature-"+itoa(i+1)), s, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			policy := marshal(t, jsonMap{"default": []jsonMap{{"type": "signedBy", "keyType": "GPGKeys", "keyData": base64.StdEncoding.EncodeToString(ring.Bytes())}}})
			c, m := newClient(t, reg, Config{SecurityPolicy: string(policy), SigstoreConfig: "default-docker:\n  sigstore: file://" + store + "\n"}, nil)
			_, err := c.PullImage(testContext(t), ref, bundleDir(t))
			if tc.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			wantError(t, err, tc.want, "`signedBy`")
			wantNothingLeft(t, c, m)
		})
	}
}
