package image

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"

	"github.com/cloister/cloister/internal/testregistry"
)

const testKID = "kbs:///default/image-kek/test"

// seal encrypts a layer with nothing but the standard library, as an oracle for the code under test: AES-256-CTR,
// HMAC-SHA256 over the ciphertext, the private options wrapped with AES-256-GCM.
func seal(t testing.TB, l testLayer, kid string, kek []byte, change func(annotations map[string]string)) testLayer {
	t.Helper()
	b64 := base64.StdEncoding.EncodeToString
	key, nonce := bytes.Repeat([]byte{7}, 32), bytes.Repeat([]byte{0xff}, 16) // the counter overflows at once
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	out := make([]byte, len(l.blob))
	cipher.NewCTR(block, nonce).XORKeyStream(out, l.blob)
	mac := hmac.New(sha256.New, key)
	mac.Write(out)
	pub := jsonMap{"cipher": "AES_256_CTR_HMAC_SHA256", "hmac": b64(mac.Sum(nil)), "cipheroptions": jsonMap{}}
	priv := marshal(t, jsonMap{"symkey": b64(key), "digest": sha256Digest(l.blob).String(), "cipheroptions": jsonMap{"nonce": b64(nonce)}})
	wrap, err := aes.NewCipher(kek)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(wrap)
	if err != nil {
		t.Fatal(err)
	}
	iv := bytes.Repeat([]byte{9}, 12)
	packet := jsonMap{"kid": kid, "wrapped_data": b64(gcm.Seal(nil, iv, priv, nil)), "iv": b64(iv), "wrap_type": "A256GCM"}
	annotations := map[string]string{
		"org.opencontainers.image.enc.keys.provider.attestation-agent": b64(marshal(t, packet)),
		"org.opencontainers.image.enc.pubopts":                         b64(marshal(t, pub)),
	}
	if change != nil {
		change(annotations)
	}
	return testLayer{blob: out, mediaType: l.mediaType + "+encrypted", diffID: l.diffID, annotations: annotations}
}

var testKEK = bytes.Repeat([]byte{1}, 32)

func TestPullEncrypted(t *testing.T) {
	for _, how := range []string{"", "gzip", "zstd"} {
		t.Run("compression="+how, func(t *testing.T) {
			reg := startRegistry(t, testregistry.Options{})
			var layers []testLayer
			for i := range 5 { // more than are fetched at once
				l := ociLayer(t, how, regular("file", strings.Repeat("secret", 50_000)+itoa(i)))
				layers = append(layers, seal(t, l, testKID, testKEK, nil))
			}
			ref := pushImage(t, reg, "app", "v1", layers...)
			keys := &keyMap{keys: map[string][]byte{testKID: bytes.Clone(testKEK)}}
			c, m := newClient(t, reg, Config{}, keys)
			bundle := bundleDir(t)
			if _, err := c.PullImage(testContext(t), ref, bundle); err != nil {
				t.Fatal(err)
			}
			for i, dir := range m.mounts[bundle+"/rootfs"] {
				if got := mustRead(t, dir, "file"); !strings.HasSuffix(got, "secret"+itoa(4-i)) {
					t.Errorf("layer %d ends with %q", i, got[len(got)-10:])
				}
			}
			if len(keys.fetched) != 1 {
				t.Errorf("the key was fetched %d times", len(keys.fetched))
			}
			if !bytes.Equal(keys.keys[testKID], testKEK) {
				t.Error("the provider's own copy of the key was wiped")
			}
			// A second container: everything is there, no key is needed.
			if _, err := c.PullImage(testContext(t), ref, bundleDir(t)); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestEncryptedRefusals(t *testing.T) {
	const kidAnnotation = "org.opencontainers.image.enc.keys.provider.attestation-agent"
	const pubAnnotation = "org.opencontainers.image.enc.pubopts"
	edit := func(name string, change func(jsonMap)) func(map[string]string) {
		return func(a map[string]string) {
			var m jsonMap
			data, err := base64.StdEncoding.DecodeString(a[name])
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(data, &m); err != nil {
				t.Fatal(err)
			}
			change(m)
			a[name] = base64.StdEncoding.EncodeToString(marshal(t, m))
		}
	}
	for _, tc := range []struct {
		name   string
		kid    string
		change func(map[string]string)
		layer  func(*testLayer)
		want   []string
	}{
		{name: "broker denies the key", kid: "kbs:///default/other/key", want: []string{"kbs:///default/other/key", "tpm.pcr09 = 3f9a", "request 7c1f"}},
		{name: "other key than it was wrapped with", kid: "kbs:///default/image-kek/wrong", want: []string{"kbs:///default/image-kek/wrong", "not the key it was wrapped with"}},
		{name: "no packet", change: func(a map[string]string) { delete(a, kidAnnotation) }, want: []string{"no annotation"}},
		{name: "no public options", change: func(a map[string]string) { delete(a, pubAnnotation) }, want: []string{"pubopts"}},
		{name: "HMAC of something else", change: edit(pubAnnotation, func(m jsonMap) { m["hmac"] = base64.StdEncoding.EncodeToString(make([]byte, 32)) }), want: []string{"HMAC does not match"}},
		{name: "empty HMAC", change: edit(pubAnnotation, func(m jsonMap) { m["hmac"] = "" }), want: []string{"hmac has 0 bytes"}},
		{name: "other cipher", change: edit(pubAnnotation, func(m jsonMap) { m["cipher"] = "ROT13" }), want: []string{"ROT13"}},
		{name: "other nonce", change: edit(pubAnnotation, func(m jsonMap) {
			m["cipheroptions"] = jsonMap{"nonce": base64.StdEncoding.EncodeToString(make([]byte, 16))}
		}), want: []string{"layer 1"}},
		{name: "unauthenticated wrapping", change: edit(kidAnnotation, func(m jsonMap) { m["wrap_type"] = "A256CTR" }), want: []string{"A256CTR"}},
		{name: "changed packet", change: edit(kidAnnotation, func(m jsonMap) { m["iv"] = base64.StdEncoding.EncodeToString(make([]byte, 12)) }), want: []string{"damaged"}},
		{name: "claims to be plain", layer: func(l *testLayer) { l.mediaType = strings.TrimSuffix(l.mediaType, "+encrypted") }, want: []string{"gzip"}},
		{name: "wrong diff_id", layer: func(l *testLayer) { l.diffID = "sha256:" + strings.Repeat("b", 64) }, want: []string{"diff_id"}},
		{name: "ciphertext changed, manifest adjusted", layer: func(l *testLayer) { l.blob[len(l.blob)/2] ^= 1 }, want: []string{"layer 1"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			reg := startRegistry(t, testregistry.Options{})
			kid := tc.kid
			if kid == "" {
				kid = testKID
			}
			l := seal(t, ociLayer(t, "gzip", regular("a", strings.Repeat("secret", 1000))), kid, testKEK, tc.change)
			if tc.layer != nil {
				tc.layer(&l)
			}
			ref := pushImage(t, reg, "app", "v1", l)
			keys := &keyMap{keys: map[string][]byte{testKID: testKEK, "kbs:///default/image-kek/wrong": make([]byte, 32)}}
			c, m := newClient(t, reg, Config{}, keys)
			_, err := c.PullImage(testContext(t), ref, bundleDir(t))
			wantError(t, err, tc.want...)
			wantNothingLeft(t, c, m)
			for _, secret := range []string{base64.StdEncoding.EncodeToString(testKEK), base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, 32))} {
				if strings.Contains(err.Error(), secret) {
					t.Error("the error holds a key")
				}
			}
		})
	}
}

// TestSecondPacket: several recipients, the first of which is not ours.
func TestSecondPacket(t *testing.T) {
	const name = "org.opencontainers.image.enc.keys.provider.attestation-agent"
	reg := startRegistry(t, testregistry.Options{})
	plain := ociLayer(t, "gzip", regular("a", "b"))
	other := seal(t, plain, "kbs:///default/other/key", bytes.Repeat([]byte{3}, 32), nil)
	l := seal(t, plain, testKID, testKEK, func(a map[string]string) { a[name] = other.annotations[name] + "," + a[name] })
	c, _ := newClient(t, reg, Config{}, &keyMap{keys: map[string][]byte{testKID: testKEK}})
	if _, err := c.PullImage(testContext(t), pushImage(t, reg, "app", "v1", l), bundleDir(t)); err != nil {
		t.Fatal(err)
	}
}

// TestEncryptedLayerIsNotReusedByDiffID: naming the diff_id of an encrypted layer in another image does not open it.
func TestEncryptedLayerIsNotReusedByDiffID(t *testing.T) {
	reg := startRegistry(t, testregistry.Options{})
	secret := ociLayer(t, "gzip", regular("a", "secret"))
	owner := pushImage(t, reg, "owner", "v1", seal(t, secret, testKID, testKEK, nil))
	c, m := newClient(t, reg, Config{}, &keyMap{keys: map[string][]byte{testKID: testKEK}})
	bundle := bundleDir(t)
	if _, err := c.PullImage(testContext(t), owner, bundle); err != nil {
		t.Fatal(err)
	}
	thief := ociLayer(t, "gzip", regular("a", "mine"))
	thief.diffID = secret.diffID
	_, err := c.PullImage(testContext(t), pushImage(t, reg, "thief", "v1", thief), bundleDir(t))
	wantError(t, err, "diff_id")
	if len(m.mounts) != 1 {
		t.Errorf("mounts: %v", m.mounts)
	}
}
