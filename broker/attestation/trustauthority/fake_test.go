package trustauthority

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/cloister/cloister/broker/attestation"
	"github.com/cloister/cloister/tee/hcl"
	"github.com/cloister/cloister/test/fakedcap"
	"github.com/cloister/cloister/wire/kbs"
)

const apiKey = "the-api-key"

// fake is the service: it signs what it is sent, as the real one does when all is well.
type fake struct {
	t      *testing.T
	server *httptest.Server
	dir    string

	mu   sync.Mutex
	key  *rsa.PrivateKey
	kid  string
	alg  jose.SignatureAlgorithm
	jwks bool // the keys can be fetched
	// statuses are given first, one a request; a number of seconds in after goes along.
	statuses []int
	after    string
	reason   string
	// claims may change those of a token, mangle the answer.
	claims func(map[string]any)
	mangle func(string) string
	// what was asked
	path, agent string
	sent        body
	asked       int
}

func newKey(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newFake(t *testing.T) *fake { return newFakeWith(t, newKey(t)) }

func newFakeWith(t *testing.T, key *rsa.PrivateKey) *fake {
	t.Helper()
	f := &fake{t: t, dir: t.TempDir(), key: key, kid: "k1", alg: jose.PS384, jwks: true}
	f.server = httptest.NewTLSServer(f)
	t.Cleanup(f.server.Close)
	f.file("ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.server.Certificate().Raw}))
	f.file("key", []byte(apiKey+"\n"))
	return f
}

func (f *fake) file(name string, text []byte) string {
	f.t.Helper()
	path := filepath.Join(f.dir, name)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		f.t.Fatal(err)
	}
	return path
}

func (f *fake) config() Config {
	return Config{
		BaseURL: f.server.URL, APIKeyFile: filepath.Join(f.dir, "key"), JWKSet: f.server.URL + "/certs",
		CACerts: []string{filepath.Join(f.dir, "ca.pem")},
	}
}

func (f *fake) client(change func(*Config)) *Client {
	f.t.Helper()
	cfg := f.config()
	if change != nil {
		change(&cfg)
	}
	c, err := Open(f.t.Context(), cfg, Options{Now: time.Now, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() {
		if err := c.Close(); err != nil {
			f.t.Error(err)
		}
	})
	return c
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.URL.Path == "/certs" {
		if !f.jwks {
			http.Error(w, "not yet", http.StatusServiceUnavailable)
			return
		}
		key := jose.JSONWebKey{Key: &f.key.PublicKey, KeyID: f.kid, Algorithm: string(f.alg)}
		_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{key}})
		return
	}
	f.asked++
	if r.Header.Get("x-api-key") != apiKey || r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if len(f.statuses) > 0 {
		status := f.statuses[0]
		f.statuses = f.statuses[1:]
		if f.after != "" {
			w.Header().Set("Retry-After", f.after)
		}
		if status/100 == 3 {
			w.Header().Set("Location", "https://elsewhere.example/")
		}
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]string{"error": f.reason})
		return
	}
	f.path, f.agent, f.sent = r.URL.Path, r.UserAgent(), body{}
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&f.sent); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	answer, err := json.Marshal(map[string]string{"token": f.token(f.tokenClaims())})
	if err != nil {
		f.t.Error(err)
	}
	text := string(answer)
	if f.mangle != nil {
		text = f.mangle(text)
	}
	_, _ = io.WriteString(w, text)
}

func (f *fake) tokenClaims() map[string]any {
	claims := map[string]any{
		"iss": issuerURL, "exp": time.Now().Add(time.Minute).Unix(), "ver": "2.0.0", "policy_ids_matched": []any{}, "jti": "a-b-c",
	}
	name, m := "tdx", f.sent.TDX
	if f.sent.SGX != nil {
		name, m = "sgx", f.sent.SGX
	}
	var runtime any
	if err := json.Unmarshal(m.Runtime, &runtime); err != nil {
		f.t.Error(err)
	}
	part := map[string]any{claimTCB: upToDate, claimDebug: disabled, claimRuntime: runtime}
	if m.UserData != nil {
		var user any
		if err := json.Unmarshal(m.UserData, &user); err != nil {
			f.t.Error(err)
		}
		part[claimUserData] = user
	}
	claims[name] = part
	if f.sent.GPU != nil {
		claims[claimGPU] = map[string]any{"measres": "success"}
	}
	if f.claims != nil {
		f.claims(claims)
	}
	return claims
}

func (f *fake) token(claims map[string]any) string {
	var key any = f.key
	if f.alg == jose.HS256 {
		key = []byte(fmt.Sprintf("%064d", 7))
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: f.alg, Key: key},
		(&jose.SignerOptions{}).WithType("JWT").WithHeader("kid", f.kid))
	if err != nil {
		f.t.Error(err)
		return ""
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		f.t.Error(err)
		return ""
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		f.t.Error(err)
		return ""
	}
	text, err := jws.CompactSerialize()
	if err != nil {
		f.t.Error(err)
	}
	return text
}

// guest is a guest that makes evidence with the hash that was selected for it.
type guest struct {
	f    *fake
	tee  string
	dcap *fakedcap.World
	gpus bool
}

func (f *fake) guest(tee string) *guest {
	return &guest{f: f, tee: tee, dcap: fakedcap.New(f.t, time.Now())}
}

func (g *guest) must(err error) {
	g.f.t.Helper()
	if err != nil {
		g.f.t.Fatal(err)
	}
}

func (g *guest) items() []attestation.Item {
	t := g.f.t
	t.Helper()
	nonce := make([]byte, 32)
	_, err := rand.Read(nonce)
	g.must(err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	g.must(err)
	jwk, err := kbs.NewJWK(&key.PublicKey)
	g.must(err)
	device := map[string]any{"nonce": base64.StdEncoding.EncodeToString(nonce), "tee-pubkey": jwk}
	runtime := map[string]any{"nonce": device["nonce"], "tee-pubkey": jwk, "additional-evidence": ""}
	hash, err := hashes(g.tee)
	g.must(err)
	var out []attestation.Item
	if g.gpus {
		text, err := kbs.Canonical(device)
		g.must(err)
		list := gpuEvidence(t, digest(hash, text)[:32], "HOPPER", "HOPPER")
		runtime["additional-evidence"] = `{"nvidia":` + string(list) + `}`
		out = []attestation.Item{{TEE: teeGPU, Evidence: list, ReportData: make([]byte, 48), Runtime: device}}
	}
	text, err := kbs.Canonical(runtime)
	g.must(err)
	sum := digest(hash, text)
	return append([]attestation.Item{{TEE: g.tee, Evidence: g.evidence(sum), ReportData: sum, Runtime: runtime}}, out...)
}

func (g *guest) evidence(reportData []byte) json.RawMessage {
	g.f.t.Helper()
	var m map[string]any
	switch g.tee {
	case teeSGX:
		m = map[string]any{"quote": g.dcap.Quote(fakedcap.Spec{Body: fakedcap.Enclave(reportData)})}
	case teeTDX:
		m = map[string]any{"quote": g.dcap.Quote(fakedcap.Spec{Body: fakedcap.TD(reportData)}), "cc_eventlog": []byte("log")}
	default:
		report := hclReport(g.f.t, reportData)
		parsed, err := hcl.Parse(report)
		g.must(err)
		sum := sha256.Sum256(parsed.RuntimeData)
		m = map[string]any{
			"version": 2, "hcl_report": base64.URLEncoding.EncodeToString(report),
			"td_quote": base64.URLEncoding.EncodeToString(g.dcap.Quote(fakedcap.Spec{Body: fakedcap.TD15(sum[:])})),
		}
	}
	raw, err := json.Marshal(m)
	g.must(err)
	return raw
}

// hclReport is what the paravisor says, with user data.
func hclReport(t *testing.T, user []byte) []byte {
	t.Helper()
	key := newKey(t)
	padded := make([]byte, 64)
	copy(padded, user)
	b64 := base64.RawURLEncoding.EncodeToString
	runtime := fmt.Sprintf(`{"keys":[{"kid":"HCLAkPub","kty":"RSA","n":%q,"e":%q}],"vm-configuration":{},"user-data":"%X"}`,
		b64(key.N.Bytes()), b64(big.NewInt(int64(key.E)).Bytes()), padded)
	const head = 1236
	b := make([]byte, head, head+len(runtime))
	copy(b, "HCLA")
	for at, v := range map[int]uint32{4: 2, 8: uint32(head + len(runtime)), 12: 2, 1216: uint32(20 + len(runtime)), 1220: 1,
		1224: uint32(hcl.TDX), 1228: 1, 1232: uint32(len(runtime))} {
		binary.LittleEndian.PutUint32(b[at:], v)
	}
	return append(b, runtime...)
}

// gpuEvidence is the exchange with some GPUs, unsigned.
func gpuEvidence(t *testing.T, nonce []byte, archs ...string) json.RawMessage {
	t.Helper()
	b := append([]byte{0x11, 0xE0, 0x01, 0xFF}, nonce...)
	b = append(b, 0)                                           // slot
	b = append(b, 0x11, 0x60, 0, 0, 1, 55, 0, 0)               // response with one measurement
	b = append(b, 1, 1, 51, 0, 0x81, 48, 0)                    // of 48 bytes
	b = append(b, make([]byte, 48)...)                         // zeros
	b = append(append(b, make([]byte, 32)...), 0, 0)           // nonce of the device, nothing opaque
	text := hex.EncodeToString(append(b, make([]byte, 96)...)) // signature
	var list []map[string]string
	for _, a := range archs {
		list = append(list, map[string]string{"arch": a, "evidence": text, "certificate": "Y2VydA=="})
	}
	raw, err := json.Marshal(map[string]any{"device_evidence_list": list})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}
