// Package imagepull tests that what the author's desk makes of an image is what the guest accepts: built from files,
// encrypted, signed, pulled under a policy.
package imagepull

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	author "github.com/cloister/cloister/author/image"
	guest "github.com/cloister/cloister/guest/image"
	"github.com/cloister/cloister/internal/testregistry"
)

type keys map[string][]byte

func (k keys) Resource(_ context.Context, uri string) ([]byte, error) {
	if v, ok := k[uri]; ok {
		return v, nil
	}
	return nil, errors.New("refused by the broker (policy demo, request 1)")
}

// mounts remembers the layers instead of mounting them.
type mounts map[string][]string

func (m mounts) Mount(lower []string, _, _, target string) error { m[target] = lower; return nil }
func (m mounts) Unmount(target string) error                     { delete(m, target); return nil }

const (
	kekURI    = "kbs:///default/image-kek/demo"
	cosignURI = "kbs:///default/cosign-public-key/demo"
	policyURI = "kbs:///default/security-policy/demo"
)

func TestAuthorToGuest(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	reg, err := testregistry.Start(testregistry.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer reg.Close()

	src := filepath.Join(t.TempDir(), "app")
	if err := os.WriteFile(src, []byte("#!/bin/true\nthe secret program"), 0o755); err != nil {
		t.Fatal(err)
	}
	private, public, err := author.GenerateKeyPair()
	if err != nil {
		t.Fatal(err)
	}
	_, otherPublic, err := author.GenerateKeyPair()
	if err != nil {
		t.Fatal(err)
	}
	kek := bytes.Repeat([]byte{42}, 32)
	policy := fmt.Sprintf(`{"default":[{"type":"reject"}],"transports":{"docker":{"%s":[{"type":"sigstoreSigned","keyPath":"%s"}]}}}`, reg.Addr(), cosignURI)
	all := keys{kekURI: kek, cosignURI: public, policyURI: []byte(policy)}

	for _, compression := range []string{"gzip", "zstd", "none"} {
		plain, enc := reg.Addr()+"/plain:"+compression, reg.Addr()+"/app:"+compression
		img, err := author.Build(author.Spec{Files: map[string]string{"/app": src}, Entrypoint: []string{"/app"}, Compression: compression})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := author.Push(ctx, img, plain, author.Options{}); err != nil {
			t.Fatal(err)
		}
		result, err := author.Encrypt(ctx, plain, enc, []author.Key{{KID: kekURI, KEK: kek}}, author.EncryptOptions{})
		if err != nil {
			t.Fatal(err)
		}
		ref := reg.Addr() + "/app@" + result.Digest
		pull := func(k keys) (string, error) {
			m := mounts{}
			c, err := guest.New(guest.Config{WorkDir: t.TempDir(), SecurityPolicyURI: policyURI, Mounter: m, Architecture: "amd64",
				RegistryConfig: &guest.RegistryConfig{Registries: []guest.RegistryRule{{Location: reg.Addr(), Insecure: true}}}}, k)
			if err != nil {
				t.Fatal(err)
			}
			bundle := filepath.Join(t.TempDir(), "bundle")
			if _, err := c.PullImage(ctx, ref, bundle); err != nil {
				return "", err
			}
			data, err := os.ReadFile(filepath.Join(m[filepath.Join(bundle, "rootfs")][0], "app"))
			return string(data), errors.Join(err, c.Close())
		}
		refused := func(name string, k keys, want ...string) {
			t.Helper()
			_, err := pull(k)
			for _, w := range want {
				if err == nil || !strings.Contains(err.Error(), w) {
					t.Errorf("%s, %s: expected %q, got %v", compression, name, w, err)
				}
			}
		}
		without := func(uri string) keys {
			out := keys{}
			for k, v := range all {
				if k != uri {
					out[k] = v
				}
			}
			return out
		}
		refused("unsigned", all, "Denied by policy", "not signed")
		if _, err := author.Sign(ctx, ref, private, author.SignOptions{}); err != nil {
			t.Fatal(err)
		}
		if got, err := pull(all); err != nil || !strings.HasSuffix(got, "the secret program") {
			t.Errorf("%s: %q, %v", compression, got, err)
		}
		refused("no image key", without(kekURI), kekURI, "refused by the broker (policy demo, request 1)")
		refused("no policy", without(policyURI), policyURI, "refused by the broker")
		refused("no public key", without(cosignURI), cosignURI, "refused by the broker")
		wrong := without(cosignURI)
		wrong[cosignURI] = otherPublic
		refused("other public key", wrong, "not made by this key")
		wrong = without(kekURI)
		wrong[kekURI] = make([]byte, 32)
		refused("other image key", wrong, "not the key it was wrapped with")
		info, err := author.Inspect(ctx, ref, author.Options{})
		if err != nil {
			t.Fatal(err)
		}
		reg.Tamper(info.Platforms[0].Layers[0].Digest, func(b []byte) []byte { b = bytes.Clone(b); b[10] ^= 1; return b })
		refused("flipped byte", all, "was changed", "expected sha256:")
		reg.Tamper(info.Platforms[0].Layers[0].Digest, nil)
	}
}
