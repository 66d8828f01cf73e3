package nvidia

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/cloister/cloister/test/evidence"
)

// nras is a made-up service.
type nras struct {
	t       *testing.T
	key     *ecdsa.PrivateKey
	kid     string
	alg     jose.SignatureAlgorithm
	overall map[string]any
	device  map[string]any
	jwks    int
	request struct {
		Path, Nonce, Arch string
		Evidence          int
	}
	status int
	mangle func(string) string
	digest string
	server *httptest.Server
}

func newNRAS(t *testing.T) *nras {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	common := func() map[string]any {
		return map[string]any{"iss": nrasIssuer, "exp": fakeNow.Add(time.Hour).Unix(), "iat": fakeNow.Unix(), "nbf": fakeNow.Unix(),
			"eat_nonce": hex.EncodeToString(fakeReportData[:32])}
	}
	n := &nras{t: t, key: key, kid: "k1", alg: jose.ES384, overall: common(), device: common(), status: http.StatusOK}
	n.overall[claimOverall] = true
	n.device["x-nvidia-gpu-attestation-report-nonce-match"] = true
	n.device["measres"] = "success"
	n.server = httptest.NewServer(n)
	t.Cleanup(n.server.Close)
	return n
}

func (n *nras) token(claims map[string]any) string {
	var key any = n.key
	if n.alg == jose.HS256 {
		key = []byte(strings.Repeat("k", 32))
	}
	if n.alg == jose.ES256 {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			n.t.Fatal(err)
		}
		key = k
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: n.alg, Key: key}, (&jose.SignerOptions{}).WithHeader("kid", n.kid))
	if err != nil {
		n.t.Fatal(err)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		n.t.Fatal(err)
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		n.t.Fatal(err)
	}
	text, err := jws.CompactSerialize()
	if err != nil {
		n.t.Fatal(err)
	}
	return text
}

func (n *nras) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/jwks" {
		n.jwks++
		_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &n.key.PublicKey, KeyID: "k1", Algorithm: "ES384"}}})
		return
	}
	var body struct {
		Nonce, Arch   string
		EvidenceList  []struct{ Evidence, Certificate string } `json:"evidence_list"`
		ClaimsVersion string                                   `json:"claims_version"`
	}
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil || r.Method != http.MethodPost || body.ClaimsVersion != "3.0" {
		http.Error(w, "bad request", http.StatusBadRequest)
		return
	}
	n.request.Path, n.request.Nonce, n.request.Arch, n.request.Evidence = r.URL.Path, body.Nonce, body.Arch, len(body.EvidenceList)
	device := n.token(n.device)
	digest := sha256.Sum256([]byte(device))
	if n.digest == "" {
		n.digest = hex.EncodeToString(digest[:])
	}
	n.overall["submods"] = map[string]any{"GPU-0": []any{"DIGEST", []any{"SHA-256", n.digest}}}
	n.digest = ""
	out := fmt.Sprintf(`[["JWT",%q],{"GPU-0":%q}]`, n.token(n.overall), device)
	if n.mangle != nil {
		out = n.mangle(out)
	}
	w.WriteHeader(n.status)
	_, _ = w.Write([]byte(out))
}

func (n *nras) options() Options {
	n.t.Helper()
	r, err := NewRemote(RemoteConfig{URL: n.server.URL + "/v4/attest/", JWKSURL: n.server.URL + "/jwks"})
	if err != nil {
		n.t.Fatal(err)
	}
	return Options{ExpectedReportData: fakeReportData, Now: fakeNow, Remote: r}
}

var remoteEvidence = json.RawMessage(`{"device_evidence_list":[{"arch":"Hopper","evidence":"0011","certificate":"AAAA"}]}`)

func TestRemote(t *testing.T) {
	n := newNRAS(t)
	o := n.options()
	for range 2 {
		out, err := Verify(context.Background(), remoteEvidence, o)
		if err != nil {
			t.Fatal(err)
		}
		if len(out) != 1 || out[0].Class != ClassGPU || out[0].Claims["measres"] != "success" || out[0].Claims[claimOverall] != true {
			t.Errorf("got %v", out)
		}
	}
	if n.jwks != 1 {
		t.Errorf("keys were fetched %d times, want once", n.jwks)
	}
	if r := n.request; r.Path != "/v4/attest/gpu" || r.Arch != "HOPPER" || r.Nonce != strings.Repeat("11", 32) || r.Evidence != 1 {
		t.Errorf("request was %+v", r)
	}
	// A switch: another address, another name of the claim.
	n.device["x-nvidia-switch-attestation-report-nonce-match"] = true
	out, err := Verify(context.Background(), json.RawMessage(strings.Replace(string(remoteEvidence), "Hopper", "LS10", 1)), o)
	if err != nil || out[0].Class != ClassSwitch || n.request.Path != "/v4/attest/switch" || n.request.Arch != "LS10" {
		t.Errorf("switch: %v, %v, %+v", out, err, n.request)
	}
}

func TestRemoteRefused(t *testing.T) {
	for _, c := range []struct {
		name, want string
		change     func(*nras)
	}{
		{"status", "answered 500", func(n *nras) { n.status = 500 }},
		{"nonce mismatch", "want true", func(n *nras) { n.device["x-nvidia-gpu-attestation-report-nonce-match"] = false }},
		{"no nonce match", "want true", func(n *nras) { delete(n.device, "x-nvidia-gpu-attestation-report-nonce-match") }},
		{"nonce match as text", "want true", func(n *nras) { n.device["x-nvidia-gpu-attestation-report-nonce-match"] = "true" }},
		{"nonce of the device", "eat_nonce is", func(n *nras) { n.device["eat_nonce"] = "00" }},
		{"nonce of all", "overall token: eat_nonce is", func(n *nras) { delete(n.overall, "eat_nonce") }},
		{"expired", "it expired at", func(n *nras) { n.device["exp"] = fakeNow.Unix() }},
		{"overall expired", "overall token: it expired at", func(n *nras) { n.overall["exp"] = fakeNow.Unix() }},
		{"no exp", "exp is missing", func(n *nras) { delete(n.device, "exp") }},
		{"exp as text", "exp is missing", func(n *nras) { n.device["exp"] = "9999999999" }},
		{"not yet", "nbf is", func(n *nras) { n.device["nbf"] = fakeNow.Add(time.Hour).Unix() }},
		{"issuer", "iss is", func(n *nras) { n.overall["iss"] = "https://nras.example" }},
		{"digest", "overall token vouches for", func(n *nras) { n.digest = strings.Repeat("0", 64) }},
		{"key id", "not among the 1", func(n *nras) { n.kid = "k2" }},
		{"no key id", "names no key", func(n *nras) { n.kid = "" }},
		{"HMAC", "ES384", func(n *nras) { n.alg = jose.HS256 }},
		{"ES256", "ES384", func(n *nras) { n.alg = jose.ES256 }},
		{"other key", "not signed with", func(n *nras) {
			signer, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			published := n.key
			n.mangle = func(string) string {
				n.key = signer
				device := n.token(n.device)
				overall := n.token(n.overall)
				n.key = published
				return fmt.Sprintf(`[["JWT",%q],{"GPU-0":%q}]`, overall, device)
			}
		}},
		{"no JSON", "reading it", func(n *nras) { n.mangle = func(string) string { return "{" } }},
		{"parts", "1 parts", func(n *nras) { n.mangle = func(string) string { return `[["JWT","x"]]` } }},
		{"first part", "first part", func(n *nras) { n.mangle = func(s string) string { return strings.Replace(s, "JWT", "CWT", 1) } }},
		{"two devices", "2 devices", func(n *nras) {
			n.mangle = func(s string) string { return strings.Replace(s, "{", `{"GPU-1":"x",`, 1) }
		}},
		{"other name", "no digest", func(n *nras) { n.mangle = func(s string) string { return strings.Replace(s, "GPU-0", "GPU-7", 1) } }},
		{"not a token", "ES384", func(n *nras) { n.mangle = func(string) string { return `[["JWT","a.b.c"],{"GPU-0":"x"}]` } }},
		{"much", "more than", func(n *nras) { n.mangle = func(s string) string { return s + strings.Repeat(" ", maxReply) } }},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNRAS(t)
			c.change(n)
			if _, err := Verify(context.Background(), remoteEvidence, n.options()); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestRemoteKeys(t *testing.T) {
	n := newNRAS(t)
	n.kid = "k2"
	o := n.options()
	for i, c := range []struct {
		after time.Duration
		want  int
	}{{0, 1}, {30 * time.Second, 1}, {61 * time.Second, 2}} {
		o.Now = fakeNow.Add(c.after)
		if _, err := Verify(context.Background(), remoteEvidence, o); err == nil {
			t.Error("an unknown key is accepted")
		}
		if n.jwks != c.want {
			t.Errorf("try %d: keys were fetched %d times, want %d", i, n.jwks, c.want)
		}
	}
	for _, bad := range []RemoteConfig{{URL: "x"}, {JWKSURL: "x"}, {JWKSURL: "http://nras.example/jwks"}} {
		if _, err := NewRemote(bad); err == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
	if r, err := NewRemote(RemoteConfig{}); err != nil || r.url != DefaultNRASURL || r.keys.url != DefaultJWKSURL {
		t.Errorf("default: %+v, %v", r, err)
	}
}

// TestRecordedReply reads a reply of the real service. Its keys are not recorded, so the signatures are left out.
func TestRecordedReply(t *testing.T) {
	r, err := parseReply(evidence.Read(t, "nvidia/nras/hopperClaimsv3_detached_eat.json"))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1749601900, 0)
	var all []map[string]any
	for _, token := range []string{r.overall, r.device} {
		jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES384})
		if err != nil {
			t.Fatal(err)
		}
		if jws.Signatures[0].Protected.KeyID == "" {
			t.Error("no key id")
		}
		dec := json.NewDecoder(strings.NewReader(string(jws.UnsafePayloadWithoutVerification())))
		dec.UseNumber()
		var claims map[string]any
		if err := dec.Decode(&claims); err != nil {
			t.Fatal(err)
		}
		if err := checkToken(claims, "931d8dd0add203ac3d8b4fbde75e115278eefcdceac5b87671a748f32364dfcb", now); err != nil {
			t.Error(err)
		}
		all = append(all, claims)
	}
	if err := checkDigest(all[0], r); err != nil {
		t.Error(err)
	}
	r.device += "x"
	if err := checkDigest(all[0], r); err == nil {
		t.Error("another token is vouched for")
	}
}

func FuzzReply(f *testing.F) {
	f.Add([]byte(`[["JWT","a.b.c"],{"GPU-0":"d.e.f"}]`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if r, err := parseReply(text); err == nil && r.name == "" && r.device == "" && r.overall == "" && len(text) > 1<<20 {
			t.Fatal("nothing was read of much")
		}
	})
}
