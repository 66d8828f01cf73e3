package asapi

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/cloister/cloister/broker/adminauth"
	"github.com/cloister/cloister/broker/attestation"
	"github.com/cloister/cloister/broker/audit"
	"github.com/cloister/cloister/broker/decision"
	"github.com/cloister/cloister/broker/outage"
	"github.com/cloister/cloister/broker/token"
	"github.com/cloister/cloister/broker/verifier"
	"github.com/cloister/cloister/wire/as"
	"github.com/cloister/cloister/wire/rvps"
)

// fake is everything behind the API; it remembers what it was asked.
type fake struct {
	items    []attestation.Item
	policy   string
	err      error
	audit    []audit.Entry
	auditErr error
	records  []decision.Record
	policies map[string]string
	values   map[string]string
}

func (f *fake) Challenge(_ context.Context, tee string, _ json.RawMessage) (*verifier.Challenge, error) {
	if tee == "se" {
		return &verifier.Challenge{Nonce: `{"request_blob":""}`}, nil
	}
	return &verifier.Challenge{}, nil
}

func (f *fake) Evaluate(_ context.Context, id, policy string, items []attestation.Item) (*attestation.Verdict, error) {
	if f.err != nil {
		return nil, f.err
	}
	f.items, f.policy = items, policy
	return &attestation.Verdict{Token: "token-of-" + items[0].TEE, Record: decision.Record{ID: id, Parts: []decision.Part{{Name: "cpu0", Status: "affirming"}}}}, nil
}

func (f *fake) Append(_ context.Context, e audit.Entry) error {
	f.audit = append(f.audit, e)
	return f.auditErr
}

type fakeDecisions struct{ *fake }

func (f fakeDecisions) Put(_ context.Context, r decision.Record) error {
	f.records = append(f.records, r)
	return nil
}

type fakePolicies struct{ *fake }

func (f fakePolicies) Put(_ context.Context, id, text string) error {
	f.policies[id] = text
	return nil
}

func (f fakePolicies) IDs(context.Context) ([]string, error) { return []string{"default_cpu"}, nil }

func (f *fake) Register(_ context.Context, message []byte, by string) ([]string, error) {
	f.values["message"], f.values["by"] = string(message), by
	return []string{"a"}, nil
}

func (f *fake) Lookup(_ context.Context, name string) (json.RawMessage, error) {
	if name == "known" {
		return json.RawMessage(`["1"]`), nil
	}
	return nil, nil
}

func (f *fake) KeySet() map[string][]token.JWK { return map[string][]token.JWK{"keys": {{Kty: "EC"}}} }

func (f *fake) Admit(_ context.Context, c adminauth.Call) (string, error) {
	if c.Bearer != "admin" {
		return "", adminauth.ErrDenied
	}
	return "ann", nil
}

func newFake() (*fake, *API) {
	f := &fake{policies: map[string]string{}, values: map[string]string{}}
	return f, New(Parts{
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Now: time.Now, Attestation: f, Policies: fakePolicies{f}, References: f, Audit: f,
		Decisions: fakeDecisions{f}, Tokens: f, Admins: f,
	})
}

const initTOML = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n\n[data]\n\"a\" = \"b\"\n"

var b64 = base64.RawURLEncoding.EncodeToString

func TestREST(t *testing.T) {
	f, api := newFake()
	srv := httptest.NewServer(api.REST())
	defer srv.Close()
	do := func(method, path, bearer, body string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, srv.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+bearer)
		resp, err := srv.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(text)
	}
	evidence := b64([]byte(`{"quote":"x"}`))
	toml, err := json.Marshal(initTOML)
	if err != nil {
		t.Fatal(err)
	}
	body := `{"verification_requests":[{"tee":"azsnpvtpm","evidence":"` + evidence + `","runtime_data":{"structured":{"c":{"d":"e"},"b":1,"a":"test"}},` +
		`"init_data":{"init_data_toml":` + string(toml) + `}}],"policy_ids":["strict"]}`
	code, answer := do("POST", "/attestation", "", body)
	if code != http.StatusOK || !strings.HasPrefix(answer, "token-of-") {
		t.Fatalf("attestation: %d %s", code, answer)
	}
	// The vector of kbs-protocol.md section 2.3.
	const want = "e71ce8e70d814ba6639c3612ebee0ff1f76f650f8dbb5e47157e0f3f525cd22c4597480a186427c813ca941da78870c3"
	if got := hex.EncodeToString(f.items[0].ReportData); got != want || f.items[0].Runtime["a"] != "test" {
		t.Errorf("report data is %s of %v, want %s", got, f.items[0].Runtime, want)
	}
	if f.policy != "strict" || len(f.items[0].InitData) != 32 || f.items[0].InitClaims == nil {
		t.Errorf("policy %q, item %+v", f.policy, f.items[0])
	}
	if len(f.records) != 1 || len(f.audit) != 1 || f.audit[0].Decision != audit.Allow {
		t.Errorf("records %v, audit %v", f.records, f.audit)
	}
	for name, bad := range map[string]string{
		"no evidence":       `{"verification_requests":[],"policy_ids":[]}`,
		"not JSON":          `{`,
		"two runtime data":  `{"verification_requests":[{"tee":"tdx","evidence":"` + evidence + `","runtime_data":{"raw":"AA","structured":{}}}]}`,
		"two init data":     `{"verification_requests":[{"tee":"tdx","evidence":"` + evidence + `","init_data":{"init_data_digest":"AA","init_data_toml":"x"}}]}`,
		"hash unknown":      `{"verification_requests":[{"tee":"tdx","evidence":"` + evidence + `","runtime_data":{"structured":{}},"runtime_data_hash_algorithm":"md5"}]}`,
		"runtime no object": `{"verification_requests":[{"tee":"tdx","evidence":"` + evidence + `","runtime_data":{"structured":[1]}}]}`,
		"duplicate member":  `{"verification_requests":[{"tee":"tdx","evidence":"` + evidence + `","runtime_data":{"structured":{"a":1,"a":2}}}]}`,
		"evidence no JSON":  `{"verification_requests":[{"tee":"tdx","evidence":"` + b64([]byte("{")) + `"}]}`,
		"unbound":           `{"verification_requests":[{"tee":"tdx","evidence":"` + evidence + `"}]}`,
		"bound to nothing":  `{"verification_requests":[{"tee":"tdx","evidence":"` + evidence + `","runtime_data":{"raw":""}}]}`,
		"evidence no b64":   `{"verification_requests":[{"tee":"tdx","evidence":"*"}]}`,
		"bad init data":     `{"verification_requests":[{"tee":"tdx","evidence":"` + evidence + `","init_data":{"init_data_toml":"x"}}]}`,
		"too large":         `{"verification_requests":[{"tee":"tdx","evidence":"` + strings.Repeat("A", MaxMessage) + `"}]}`,
	} {
		want := http.StatusBadRequest
		if name == "too large" {
			want = http.StatusRequestEntityTooLarge
		}
		if code, answer := do("POST", "/attestation", "", bad); code != want {
			t.Errorf("%s: %d %.100s, want %d", name, code, answer, want)
		}
	}
	f.err = errors.New("the quote is bad")
	if code, answer := do("POST", "/attestation", "", body); code != http.StatusInternalServerError || !strings.Contains(answer, "the quote is bad") {
		t.Errorf("refused evidence: %d %s", code, answer)
	}
	f.err = nil
	if code, answer := do("POST", "/challenge", "", `{}`); code != http.StatusBadRequest {
		t.Errorf("a challenge for nothing: %d %s", code, answer)
	}
	policy := `{"policy_id":"mine_cpu","policy":"` + b64([]byte("package policy")) + `"}`
	if code, _ := do("POST", "/policy", "nobody", policy); code != http.StatusUnauthorized || len(f.policies) != 0 {
		t.Errorf("a stranger's policy: %d, %v", code, f.policies)
	}
	if code, _ := do("POST", "/policy", "admin", `{"policy_id":"mine_cpu","policy":"*"}`); code != http.StatusBadRequest {
		t.Errorf("a policy that is no base64: %d", code)
	}
	if code, answer := do("POST", "/policy", "admin", policy); code != http.StatusOK || f.policies["mine_cpu"] != "package policy" {
		t.Errorf("policy: %d %s %v", code, answer, f.policies)
	}
	if code, answer := do("GET", "/policy", "", ""); code != http.StatusOK || strings.TrimSpace(answer) != `[{"policy-id":"default_cpu"}]` {
		t.Errorf("policies: %d %s", code, answer)
	}
	if code, answer := do("POST", "/challenge", "", `{"tee":"se","tee_params":""}`); code != http.StatusOK || answer != `{"request_blob":""}` {
		t.Errorf("challenge: %d %s", code, answer)
	}
	f.auditErr = errors.New("disk full")
	if code, answer := do("POST", "/attestation", "", body); code == http.StatusOK {
		t.Errorf("a token without an audit entry: %s", answer)
	}
	if code, _ := do("POST", "/policy", "admin", `{"policy_id":"other","policy":""}`); code == http.StatusOK || f.policies["other"] != "" {
		t.Error("a change without an audit entry")
	}
}

func TestGRPC(t *testing.T) {
	f, api := newFake()
	ln := bufconn.Listen(1 << 20)
	srv := api.GRPC()
	go srv.Serve(ln)
	defer srv.Stop()
	conn, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return ln.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx := t.Context()
	client := as.NewAttestationServiceClient(conn)
	one := &as.IndividualAttestationRequest{
		Tee: "tdx", Evidence: b64([]byte(`{}`)),
		RuntimeData: &as.IndividualAttestationRequest_RawRuntimeData{RawRuntimeData: b64([]byte("raw"))},
		InitData:    &as.IndividualAttestationRequest_InitDataDigest{InitDataDigest: b64([]byte("digest"))},
	}
	reply, err := client.AttestationEvaluate(ctx, &as.AttestationRequest{VerificationRequests: []*as.IndividualAttestationRequest{one}})
	if err != nil || reply.GetAttestationToken() != "token-of-tdx" {
		t.Fatalf("evaluate: %v %v", reply, err)
	}
	if it := f.items[0]; string(it.ReportData) != "raw" || string(it.InitData) != "digest" || it.Runtime != nil || f.policy != "default" {
		t.Errorf("item %+v, policy %q", it, f.policy)
	}
	f.err = errors.New("the quote is bad")
	if _, err := client.AttestationEvaluate(ctx, &as.AttestationRequest{VerificationRequests: []*as.IndividualAttestationRequest{one}}); status.Code(err) != codes.Aborted || !strings.Contains(err.Error(), "the quote is bad") {
		t.Errorf("bad evidence: %v", err)
	}
	set := &as.SetPolicyRequest{PolicyId: "p_cpu", Policy: b64([]byte("package policy"))}
	if _, err := client.SetAttestationPolicy(ctx, set); status.Code(err) != codes.Aborted || len(f.policies) != 0 {
		t.Errorf("a stranger's policy: %v", err)
	}
	admin := metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer admin")
	if _, err := client.SetAttestationPolicy(admin, set); err != nil || f.policies["p_cpu"] != "package policy" {
		t.Errorf("policy: %v %v", err, f.policies)
	}
	if c, err := client.GetAttestationChallenge(ctx, &as.ChallengeRequest{Inner: map[string]string{"tee": "se", "tee_params": ""}}); err != nil || c.GetAttestationChallenge() == "" {
		t.Errorf("challenge: %v %v", c, err)
	}
	refs := rvps.NewReferenceValueProviderServiceClient(conn)
	if v, err := refs.QueryReferenceValue(ctx, &rvps.ReferenceValueQueryRequest{ReferenceValueId: "known"}); err != nil || v.GetReferenceValueResults() != `["1"]` {
		t.Errorf("query: %v %v", v, err)
	}
	if v, err := refs.QueryReferenceValue(ctx, &rvps.ReferenceValueQueryRequest{ReferenceValueId: "unknown"}); err != nil || v.ReferenceValueResults != nil {
		t.Errorf("unknown value: %v %v, want it absent", v, err)
	}
	if _, err := refs.RegisterReferenceValue(ctx, &rvps.ReferenceValueRegisterRequest{Message: "{}"}); err == nil || f.values["message"] != "" {
		t.Errorf("a stranger's value: %v", err)
	}
	if _, err := refs.RegisterReferenceValue(admin, &rvps.ReferenceValueRegisterRequest{Message: "{}"}); err != nil || f.values["by"] != "ann" {
		t.Errorf("register: %v %v", err, f.values)
	}
}

// TestOutage: what is away for now is no verdict about evidence, in both protocols.
func TestOutage(t *testing.T) {
	f, api := newFake()
	f.err = fmt.Errorf("asking for reference values: %w", outage.ErrUnavailable)
	_, err := (&attestationGRPC{api: api}).AttestationEvaluate(t.Context(), &as.AttestationRequest{VerificationRequests: []*as.IndividualAttestationRequest{
		{Tee: "tdx", Evidence: b64([]byte(`{}`)), RuntimeData: &as.IndividualAttestationRequest_RawRuntimeData{RawRuntimeData: "AA"}},
	}})
	if status.Code(err) != codes.Unavailable {
		t.Errorf("gRPC: %v, want UNAVAILABLE", err)
	}
	w := httptest.NewRecorder()
	body := `{"verification_requests":[{"tee":"tdx","evidence":"` + b64([]byte(`{}`)) + `","runtime_data":{"raw":"AA"}}],"policy_ids":[]}`
	api.REST().ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/attestation", strings.NewReader(body)))
	if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
		t.Errorf("REST: %d %s, want 503 and when to come again", w.Code, w.Body)
	}
}

func TestDiscovery(t *testing.T) {
	_, api := newFake()
	api.Issuer = "https://as.example"
	w := httptest.NewRecorder()
	api.REST().ServeHTTP(w, httptest.NewRequest(http.MethodGet, token.DiscoveryPath, nil))
	if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), `"jwks_uri":"https://as.example/.well-known/jwks.json"`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}
