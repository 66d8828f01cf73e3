package se_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"

	verifier "github.com/cloister/cloister/broker/verifier/se"
	"github.com/cloister/cloister/tee/se"
)

var (
	ctx = context.Background()
	now = time.Unix(1_800_000_000, 0)
)

var brokerKey = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

func hostKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func tags(v byte) se.Tags {
	t, _ := se.ParseTags(bytes.Repeat([]byte{v}, se.TagsSize))
	return t
}

func challenge(t testing.TB, hosts ...*ecdsa.PrivateKey) *se.Challenge {
	t.Helper()
	o := verifier.ChallengeOptions{Tags: tags(1), MeasurementKey: brokerKey(), Now: now}
	for _, h := range hosts {
		o.HostKeys = append(o.HostKeys, &h.PublicKey)
	}
	c, err := verifier.Challenge(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func open(t testing.TB, key, iv, sealed, aad []byte) []byte {
	t.Helper()
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	out, err := gcm.Open(nil, iv, sealed, aad)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// firmware is what a machine does with a request: it opens its slot and the secrets.
func firmware(t testing.TB, host *ecdsa.PrivateKey, request []byte) (key, nonce, hash []byte) {
	t.Helper()
	r, err := se.ParseRequest(request)
	if err != nil {
		t.Fatal(err)
	}
	private, err := host.ECDH()
	if err != nil {
		t.Fatal(err)
	}
	padded := func(point []byte) []byte {
		out := make([]byte, 160)
		copy(out[14:], point[1:67])
		copy(out[94:], point[67:])
		return out
	}
	unpadded := append(append([]byte{4}, r.PublicKey[14:80]...), r.PublicKey[94:]...)
	requester, err := ecdh.P521().NewPublicKey(unpadded)
	if err != nil {
		t.Fatal(err)
	}
	shared, err := private.ECDH(requester)
	if err != nil {
		t.Fatal(err)
	}
	wrapping := sha256.Sum256(append(shared, 0, 0, 0, 1))
	name := sha256.Sum256(padded(private.PublicKey().Bytes()))
	for _, slot := range r.KeySlots {
		if !bytes.Equal(slot[:32], name[:]) {
			continue
		}
		prot := open(t, wrapping[:], make([]byte, 12), slot[32:], nil)
		aad, err := r.Authenticated(len(r.Encrypted))
		if err != nil {
			t.Fatal(err)
		}
		secret := open(t, prot, r.IV[:], append(bytes.Clone(r.Encrypted), r.Tag[:]...), aad)
		return secret[:64], secret[64:], name[:]
	}
	t.Fatal("no slot for this host")
	return nil, nil, nil
}

type evidenceMap map[string][]byte

func (e evidenceMap) json(t testing.TB) json.RawMessage {
	t.Helper()
	raw, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// answer is what a guest makes of a challenge on a host, when its image has the tags given.
func answer(t testing.TB, c *se.Challenge, host *ecdsa.PrivateKey, image se.Tags, reportData []byte) evidenceMap {
	t.Helper()
	key, nonce, hash := firmware(t, host, c.Request)
	e := evidenceMap{
		"cuid": bytes.Repeat([]byte{5}, 16), "user_data": append(bytes.Clone(reportData), make([]byte, 64-len(reportData))...),
		"additional_data": append(bytes.Repeat([]byte{6}, 32), hash...), "encr_measurement_key": c.EncryptedKey,
		"encr_request_nonce": c.EncryptedNonce, "image_hdr_tags": image.Bytes(),
	}
	mac := hmac.New(sha512.New, key)
	mac.Write(se.Measured(image, e["cuid"], e["user_data"], nonce, e["additional_data"]))
	e["measurement"] = mac.Sum(nil)
	return e
}

func options() verifier.Options {
	return verifier.Options{MeasurementKey: brokerKey(), ExpectedReportData: []byte("digest"), Now: now.Add(time.Minute)}
}

func TestRoundTrip(t *testing.T) {
	a, b := hostKey(t), hostKey(t)
	c := challenge(t, a, b, a)
	if r, err := se.ParseRequest(c.Request); err != nil || len(r.KeySlots) != 2 {
		t.Errorf("request with %v slots, %v; expected 2", r, err)
	}
	if c.MeasurementSize != 64 || c.AdditionalSize != 64 {
		t.Errorf("sizes %d and %d", c.MeasurementSize, c.AdditionalSize)
	}
	for _, host := range []*ecdsa.PrivateKey{a, b} {
		claims, err := verifier.Verify(ctx, answer(t, c, host, tags(1), []byte("digest")).json(t), options())
		if err != nil {
			t.Fatal(err)
		}
		if claims["cuid"] != strings.Repeat("05", 16) || claims["tag"] != strings.Repeat("01", 16) ||
			claims["report_data"] != "646967657374" {
			t.Errorf("claims = %v", claims)
		}
		if _, ok := claims["init_data"]; ok {
			t.Error("Secure Execution cannot vouch for init data, but there is a claim")
		}
	}
	other := challenge(t, a)
	if bytes.Equal(other.Request[0xE0:], c.Request[0xE0:]) || bytes.Equal(other.EncryptedKey, c.EncryptedKey) {
		t.Error("two challenges share secrets")
	}
}

func TestRefused(t *testing.T) {
	host := hostKey(t)
	c := challenge(t, host)
	otherKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]struct {
		evidence func(e evidenceMap)
		options  func(o *verifier.Options)
		why      string
	}{
		"other session":     {nil, func(o *verifier.Options) { o.ExpectedReportData = []byte("other") }, "user_data = "},
		"no report data":    {nil, func(o *verifier.Options) { o.ExpectedReportData = nil }, "report data of 0"},
		"long report data":  {nil, func(o *verifier.Options) { o.ExpectedReportData = make([]byte, 65) }, "report data of 65"},
		"no key":            {nil, func(o *verifier.Options) { o.MeasurementKey = nil }, "no key"},
		"another's key":     {nil, func(o *verifier.Options) { o.MeasurementKey = otherKey }, "not made here"},
		"late":              {nil, func(o *verifier.Options) { o.Now = now.Add(5 * time.Minute) }, "expired"},
		"short user data":   {func(e evidenceMap) { e["user_data"] = e["user_data"][:63] }, nil, "user_data has 63"},
		"longer user data":  {func(e evidenceMap) { e["user_data"] = append(e["user_data"], 1) }, nil, "the measurement"},
		"other measurement": {func(e evidenceMap) { e["measurement"][63] ^= 1 }, nil, "the measurement"},
		"other cuid":        {func(e evidenceMap) { e["cuid"][0] ^= 1 }, nil, "the measurement"},
		"other host hash":   {func(e evidenceMap) { e["additional_data"][63] ^= 1 }, nil, "the measurement"},
		"other tags":        {func(e evidenceMap) { e["image_hdr_tags"][0] ^= 1 }, nil, "not made here"},
		"key altered":       {func(e evidenceMap) { e["encr_measurement_key"][9] ^= 1 }, nil, "not made here"},
		"nonce altered":     {func(e evidenceMap) { e["encr_request_nonce"][9] ^= 1 }, nil, "not made here"},
		"expiry altered":    {func(e evidenceMap) { e["encr_request_nonce"][256] ^= 1 }, nil, "not made here"},
		"proof altered":     {func(e evidenceMap) { e["encr_request_nonce"][295] ^= 1 }, nil, "not made here"},
		"proof cut off":     {func(e evidenceMap) { e["encr_request_nonce"] = e["encr_request_nonce"][:256] }, nil, "no proof"},
		"proof cut":         {func(e evidenceMap) { e["encr_request_nonce"] = e["encr_request_nonce"][:290] }, nil, "have 256 and 290"},
		"key cut":           {func(e evidenceMap) { e["encr_measurement_key"] = e["encr_measurement_key"][:255] }, nil, "have 255"},
		"not JSON":          {func(e evidenceMap) { clear(e) }, nil, "parsing"},
	} {
		e := answer(t, c, host, tags(1), []byte("digest"))
		for name, b := range e {
			e[name] = bytes.Clone(b)
		}
		if f.evidence != nil {
			f.evidence(e)
		}
		o := options()
		if f.options != nil {
			f.options(&o)
		}
		if _, err := verifier.Verify(ctx, e.json(t), o); err == nil || !strings.Contains(err.Error(), f.why) {
			t.Errorf("%s: got %v, expected a refusal with %q", name, err, f.why)
		}
	}
}

// TestTampering flips a bit of every byte that a guest sends.
func TestTampering(t *testing.T) {
	host := hostKey(t)
	good := answer(t, challenge(t, host), host, tags(1), []byte("digest"))
	for name := range good {
		for i := range good[name] {
			e := evidenceMap{}
			for name, b := range good {
				e[name] = bytes.Clone(b)
			}
			e[name][i] ^= 1 << (i % 8)
			if _, err := verifier.Verify(ctx, e.json(t), options()); err == nil {
				t.Errorf("bit flip in byte %d of %s accepted", i, name)
			}
		}
	}
}

// TestOtherImage runs another image on a genuine machine: its firmware measures that image's tags.
func TestOtherImage(t *testing.T) {
	host := hostKey(t)
	c := challenge(t, host)
	e := answer(t, c, host, tags(2), []byte("digest"))
	if _, err := verifier.Verify(ctx, e.json(t), options()); err == nil {
		t.Error("another image is accepted with its own tags")
	}
	e["image_hdr_tags"] = tags(1).Bytes()
	if _, err := verifier.Verify(ctx, e.json(t), options()); err == nil {
		t.Error("another image is accepted with the right image's tags")
	}
}

// TestForgedKey chooses the measurement key, which whoever knows the broker's public key can.
func TestForgedKey(t *testing.T) {
	public := &brokerKey().PublicKey
	key, nonce := make([]byte, 64), make([]byte, 16)
	//lint:ignore SA1019 the padding is upstream's wire format
	encryptedKey, err := rsa.EncryptPKCS1v15(rand.Reader, public, key)
	if err != nil {
		t.Fatal(err)
	}
	//lint:ignore SA1019 the padding is upstream's wire format
	encryptedNonce, err := rsa.EncryptPKCS1v15(rand.Reader, public, nonce)
	if err != nil {
		t.Fatal(err)
	}
	e := evidenceMap{
		"cuid": make([]byte, 16), "user_data": append([]byte("digest"), make([]byte, 58)...), "additional_data": make([]byte, 64),
		"encr_measurement_key": encryptedKey, "encr_request_nonce": encryptedNonce, "image_hdr_tags": tags(1).Bytes(),
	}
	mac := hmac.New(sha512.New, key)
	mac.Write(se.Measured(tags(1), e["cuid"], e["user_data"], nonce, e["additional_data"]))
	e["measurement"] = mac.Sum(nil)
	if _, err := verifier.Verify(ctx, e.json(t), options()); err == nil {
		t.Error("a measurement under a chosen key is accepted")
	}
	o := options()
	o.ForeignChallenge = true // upstream's weakness, by name
	if _, err := verifier.Verify(ctx, e.json(t), o); err != nil {
		t.Errorf("a foreign challenge: %v", err)
	}
	e["encr_request_nonce"] = append(encryptedNonce, make([]byte, 40)...)
	if _, err := verifier.Verify(ctx, e.json(t), o); err == nil {
		t.Error("a wrong proof is accepted where none is needed")
	}
}

func TestChallengeRefused(t *testing.T) {
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	host := hostKey(t)
	for name, o := range map[string]verifier.ChallengeOptions{
		"no host keys": {MeasurementKey: brokerKey()},
		"no own key":   {HostKeys: []*ecdsa.PublicKey{&host.PublicKey}},
		"P-256 host":   {HostKeys: []*ecdsa.PublicKey{&p256.PublicKey}, MeasurementKey: brokerKey()},
	} {
		if _, err := verifier.Challenge(o); err == nil {
			t.Errorf("%s: a challenge was made", name)
		}
	}
	small, err := json.Marshal(challenge(t, host))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"request_blob", "measurement_size", "additional_size", "encr_measurement_key",
		"encr_request_nonce", "image_hdr_tags"} {
		if !strings.Contains(string(small), `"`+name+`":`) {
			t.Errorf("the challenge has no %s", name)
		}
	}
}

func FuzzVerify(f *testing.F) {
	host := hostKey(f)
	f.Add([]byte(answer(f, challenge(f, host), host, tags(1), []byte("digest")).json(f)))
	f.Fuzz(func(t *testing.T, raw []byte) {
		o := options()
		o.ForeignChallenge = true
		claims, err := verifier.Verify(ctx, raw, o)
		if err == nil && claims == nil {
			t.Fatal("neither claims nor an error")
		}
	})
}
