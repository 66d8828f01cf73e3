package broker

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/config"
	"github.com/cloister/cloister/test/faketpm"
	"github.com/cloister/cloister/wire/kbs"
)

func TestSecretReachesApprovedGuest(t *testing.T) {
	w := newWorld(t, nil)
	g := w.guest().ready()
	status, jwe := g.do("GET", "/kbs/v0/resource/default/key/1", nil, nil)
	if status != http.StatusOK {
		t.Fatalf("resource: %d %s", status, jwe)
	}
	if strings.Contains(string(jwe), secretText) {
		t.Fatal("the secret travels in the clear")
	}
	plain, err := kbs.Decrypt(jwe, g.key)
	w.must(err)
	if string(plain) != secretText {
		t.Fatalf("got %q", plain)
	}
	// The same by bearer token, without the cookie: passport mode.
	g.cookie = nil
	status, jwe = g.do("GET", "/kbs/v0/resource/default/key/1", nil, http.Header{"Authorization": {"Bearer " + g.token}})
	if status != http.StatusOK {
		t.Fatalf("resource by token: %d %s", status, jwe)
	}
	if _, err := kbs.Decrypt(jwe, w.guest().key); err == nil {
		t.Fatal("another guest's key opens the answer")
	}
}

func TestTokenContent(t *testing.T) {
	w := newWorld(t, nil)
	g := w.guest().ready()
	parts := strings.Split(g.token, ".")
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	w.must(err)
	var claims struct {
		Profile string `json:"eat_profile"`
		Issuer  string `json:"iss"`
		Iat     int64
		Exp     int64
		ID      string `json:"jti"`
		Submods map[string]struct {
			Status string         `json:"ear.status"`
			Vector map[string]int `json:"ear.trustworthiness-vector"`
			Policy string         `json:"ear.appraisal-policy-id"`
			Claims map[string]any `json:"ear.veraison.annotated-evidence"`
		}
	}
	w.must(json.Unmarshal(raw, &claims))
	cpu := claims.Submods["cpu0"]
	tpm, _ := cpu.Claims["tpm"].(map[string]any)
	for name, ok := range map[string]bool{
		"profile": claims.Profile == "tag:github.com,2024:confidential-containers/Trustee",
		"issuer":  claims.Issuer == "CoCo-Attestation-Service",
		"exp":     claims.Exp == claims.Iat+300,
		"status":  cpu.Status == "affirming" && cpu.Policy == "default",
		"vector":  cpu.Vector["hardware"] == 2 && cpu.Vector["executables"] == 3 && cpu.Vector["configuration"] == 2,
		"claims":  cpu.Claims["init_data"] == w.tpm.PCR(8) && cpu.Claims["init_data_claims"] != nil && cpu.Claims["runtime_data_claims"] != nil,
		"tpm":     tpm["pcr04"] == w.tpm.PCR(4) && tpm["ak_endorsement"] == "ek-certificate" && tpm["report_data"] == nil && tpm["uefi_event_logs"] != nil,
	} {
		if !ok {
			t.Errorf("%s of the token is wrong: %s", name, raw)
		}
	}
	header, err := base64.RawURLEncoding.DecodeString(parts[0])
	w.must(err)
	var h struct {
		Typ, Alg string
		JWK      map[string]any
	}
	w.must(json.Unmarshal(header, &h))
	if h.Typ != "JWT" || h.Alg != "ES256" || h.JWK["crv"] != "P-256" || h.JWK["alg"] != "ES256" {
		t.Errorf("token header is %s", header)
	}
	_, keys := g.do("GET", "/.well-known/jwks.json", nil, nil)
	if x, _ := h.JWK["x"].(string); x == "" || !strings.Contains(string(keys), x) {
		t.Errorf("key set %s lacks the key of the token", keys)
	}
}

// TestDenialsSayWhy changes one thing about the guest at a time.
func TestDenialsSayWhy(t *testing.T) {
	for _, tc := range []struct {
		name   string
		config func(*config.Config)
		boot   func(*world, *guest)
		says   []string
	}{
		{
			name: "command line",
			boot: func(_ *world, g *guest) { g.tpm.Measure(9, []byte("init=/bin/sh")) },
			says: []string{"resource default/key/1 refused: tpm.pcr09 = ", ` is not one of the 2 registered values of "tpm_pcr09" (policy default_cpu, request `},
		},
		{
			name: "kernel",
			boot: func(_ *world, g *guest) { g.tpm.Measure(4, []byte("other kernel")) },
			says: []string{"tpm.pcr04 = ", `is not the registered value of "tpm_pcr04"`},
		},
		{
			name: "unannounced endorsement key",
			boot: func(_ *world, g *guest) { g.enrol = false },
			says: []string{`tpm.ak_endorsement = "none", want "ek-certificate"`, `"trusted_aks"`},
		},
		{
			name: "unanswered credential",
			boot: func(_ *world, g *guest) {
				g.tamper = func(_ *kbs.Attestation, e *kbs.TPMEvidence) { e.AKCredential = "" }
			},
			says: []string{`tpm.ak_endorsement = "none"`},
		},
		{
			name:   "unknown maker",
			config: func(c *config.Config) { c.TPM.EKRoots = nil },
			says:   []string{`tpm.ak_endorsement = "none", want "ek-certificate"`},
		},
		{
			name: "foreign TPM, same measurements",
			boot: func(w *world, g *guest) {
				other, err := faketpm.New(w.clock.now())
				w.must(err)
				w.boot(other)
				g.tpm = other
			},
			says: []string{`tpm.ak_endorsement = "none", want "ek-certificate"`},
		},
		{
			name: "no initdata sent or measured",
			boot: func(w *world, g *guest) {
				g.tpm.Extend(8, []byte("something else"))
				g.tamper = func(a *kbs.Attestation, _ *kbs.TPMEvidence) { a.InitData = nil }
			},
			says: []string{"init_data = ", `"tpm_init_data"`},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, tc.config)
			g := w.guest()
			if tc.boot != nil {
				tc.boot(w, g)
			}
			g.ready()
			status, answer := g.do("GET", "/kbs/v0/resource/default/key/1", nil, nil)
			name, text := w.detail(answer)
			if status != http.StatusUnauthorized || name != "PolicyDeny" {
				t.Errorf("answer is %d %s, want 401 PolicyDeny: %s", status, name, text)
			}
			id := g.last.Header.Get("X-Request-Id")
			for _, s := range append(tc.says, id) {
				if !strings.Contains(text, s) {
					t.Errorf("denial lacks %q: %s", s, text)
				}
			}
			rec, err := w.admin.Explain(t.Context(), id)
			w.must(err)
			if rec.Attestation == nil || len(rec.Attestation.Parts) != 1 || len(rec.Attestation.Parts[0].Findings) == 0 {
				t.Fatalf("record %s lacks the attestation or its findings", id)
			}
			// A missing resource is refused in the same words: nobody learns what exists.
			_, missing := g.do("GET", "/kbs/v0/resource/default/key/2", nil, nil)
			name2, text2 := w.detail(missing)
			cut := func(s string) string {
				s = strings.ReplaceAll(s, "default/key/2", "default/key/1")
				return s[:strings.Index(s, ", request ")]
			}
			if name2 != name || cut(text) != cut(text2) {
				t.Errorf("a missing resource is refused differently:\n%s\n%s", text, text2)
			}
		})
	}
}

func TestInsecureUnknownTPM(t *testing.T) {
	w := newWorld(t, func(c *config.Config) { c.TPM.EKRoots, c.TPM.InsecureUnknownTPM = nil, true })
	g := w.guest()
	g.enrol = false
	g.ready()
	if status, answer := g.do("GET", "/kbs/v0/resource/default/key/1", nil, nil); status != http.StatusOK {
		t.Fatalf("resource: %d %s", status, answer)
	}
	st, err := w.admin.Status(t.Context())
	w.must(err)
	if len(st.Insecure) != 2 || !strings.Contains(strings.Join(st.Insecure, " "), "tpm.insecure_unknown_tpm") {
		t.Errorf("status does not show the switch: %v", st.Insecure)
	}
}

func TestListedKey(t *testing.T) {
	w := newWorld(t, func(c *config.Config) { c.TPM.EKRoots = nil })
	ak, err := w.tpm.AKPublic()
	w.must(err)
	w.must(w.admin.RegisterReferenceValues(t.Context(), map[string]any{"trusted_aks": []string{ak}}))
	g := w.guest().ready()
	if status, answer := g.do("GET", "/kbs/v0/resource/default/key/1", nil, nil); status != http.StatusOK {
		t.Fatalf("resource: %d %s", status, answer)
	}
}

// TestBrokenEvidence: what cannot be verified gets no token at all.
func TestBrokenEvidence(t *testing.T) {
	flip := func(s string) string {
		raw, err := base64.StdEncoding.DecodeString(s)
		if err != nil {
			panic(err)
		}
		raw[len(raw)-1] ^= 1
		return base64.StdEncoding.EncodeToString(raw)
	}
	for _, tc := range []struct {
		name   string
		tamper func(*world, *kbs.Attestation, *kbs.TPMEvidence)
		body   func([]byte) []byte
		says   string
	}{
		{name: "wrong nonce", says: "want the nonce of this session", tamper: func(_ *world, a *kbs.Attestation, _ *kbs.TPMEvidence) {
			a.RuntimeData.Nonce = base64.StdEncoding.EncodeToString(make([]byte, 32))
		}},
		{name: "other guest's key", says: "report_data = ", tamper: func(w *world, a *kbs.Attestation, _ *kbs.TPMEvidence) {
			jwk, err := kbs.NewJWK(&w.guest().key.PublicKey)
			w.must(err)
			a.RuntimeData.TEEPubKey = jwk
		}},
		{name: "tampered register", says: "the register values hash to", tamper: func(_ *world, _ *kbs.Attestation, e *kbs.TPMEvidence) {
			e.TPMQuote.PCRs[9] = strings.Repeat("0", 64)
		}},
		{name: "tampered signature", says: "quote signature", tamper: func(_ *world, _ *kbs.Attestation, e *kbs.TPMEvidence) {
			e.TPMQuote.Signature = flip(e.TPMQuote.Signature)
		}},
		{name: "tampered quote", says: "quote signature", tamper: func(_ *world, _ *kbs.Attestation, e *kbs.TPMEvidence) {
			e.TPMQuote.Message = flip(e.TPMQuote.Message)
		}},
		{name: "fewer registers", says: "want all of 0 to 23", tamper: func(w *world, a *kbs.Attestation, e *kbs.TPMEvidence) {
			none := ""
			data, err := kbs.ReportData(a.RuntimeData, &none, kbs.DefaultHash)
			w.must(err)
			*e, err = w.tpm.EvidenceOver(data[:32], []byte{0xff, 0xfe, 0xff})
			w.must(err)
		}},
		{name: "short qualifying data", says: "want 32, 48 or 64", tamper: func(w *world, a *kbs.Attestation, e *kbs.TPMEvidence) {
			none := ""
			data, err := kbs.ReportData(a.RuntimeData, &none, kbs.DefaultHash)
			w.must(err)
			*e, err = w.tpm.Evidence(data[:16])
			w.must(err)
		}},
		{name: "event log of another boot", says: "event_log gives pcr09", tamper: func(w *world, a *kbs.Attestation, e *kbs.TPMEvidence) {
			log := e.EventLog
			w.tpm.Extend(9, []byte("late"))
			none := ""
			data, err := kbs.ReportData(a.RuntimeData, &none, kbs.DefaultHash)
			w.must(err)
			*e, err = w.tpm.Evidence(data[:32])
			w.must(err)
			e.EventLog = log
		}},
		{name: "changed initdata", says: "pcr08 = ", tamper: func(_ *world, a *kbs.Attestation, _ *kbs.TPMEvidence) {
			a.InitData.Body = strings.Replace(initToml, "agent_policy", "agent_polic1", 1)
		}},
		{name: "initdata of another algorithm", says: "init-data cannot be held against a TPM", tamper: func(_ *world, a *kbs.Attestation, _ *kbs.TPMEvidence) {
			a.InitData.Body = strings.Replace(initToml, "sha256", "sha384", 1)
		}},
		{name: "initdata of another format", says: `want "toml"`, tamper: func(_ *world, a *kbs.Attestation, _ *kbs.TPMEvidence) {
			a.InitData.Format = "json"
		}},
		{name: "wrong credential", says: "ak_credential is not the secret", tamper: func(_ *world, _ *kbs.Attestation, e *kbs.TPMEvidence) {
			e.AKCredential = flip(e.AKCredential)
		}},
		{name: "another attestation key", says: "not the key that was announced", tamper: func(w *world, a *kbs.Attestation, e *kbs.TPMEvidence) {
			other, err := faketpm.New(w.clock.now())
			w.must(err)
			w.boot(other)
			none := ""
			data, err := kbs.ReportData(a.RuntimeData, &none, kbs.DefaultHash)
			w.must(err)
			credential := e.AKCredential
			*e, err = other.Evidence(data[:32])
			w.must(err)
			e.AKCredential = credential
		}},
		{name: "unknown device", says: `verifier of "sample" is disabled`, tamper: func(w *world, a *kbs.Attestation, e *kbs.TPMEvidence) {
			a.TEEEvidence.Additional = `{"sample":{}}`
			data, err := kbs.ReportData(a.RuntimeData, &a.TEEEvidence.Additional, kbs.DefaultHash)
			w.must(err)
			credential := e.AKCredential
			*e, err = w.tpm.Evidence(data[:32])
			w.must(err)
			e.AKCredential = credential
		}},
		{name: "broken tee key", says: "tee-pubkey", tamper: func(_ *world, a *kbs.Attestation, _ *kbs.TPMEvidence) {
			a.RuntimeData.TEEPubKey.X = "AAAA"
		}},
		{name: "not JSON", says: "reading the attestation", body: func([]byte) []byte { return []byte("{") }},
		{name: "no evidence", says: "evidence", body: func([]byte) []byte { return nil }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, nil)
			g := w.guest()
			if tc.tamper != nil {
				g.tamper = func(a *kbs.Attestation, e *kbs.TPMEvidence) { tc.tamper(w, a, e) }
			}
			g.body = tc.body
			if tc.name == "no evidence" {
				g.body = func(b []byte) []byte {
					var a kbs.Attestation
					w.must(json.Unmarshal(b, &a))
					a.TEEEvidence.Primary = json.RawMessage("null")
					out, err := json.Marshal(a)
					w.must(err)
					return out
				}
				tc.says = "is missing"
			}
			if status, answer := g.auth(); status != http.StatusOK {
				t.Fatalf("auth: %d %s", status, answer)
			}
			status, answer := g.attest()
			name, text := w.detail(answer)
			if status != http.StatusUnauthorized || name != "AttestationError" || !strings.Contains(text, tc.says) {
				t.Errorf("answer is %d %s %q, want 401 AttestationError with %q", status, name, text, tc.says)
			}
			if status, _ := g.do("GET", "/kbs/v0/resource/default/key/1", nil, nil); status != http.StatusUnauthorized {
				t.Errorf("resource after refused evidence: %d, want 401", status)
			}
		})
	}
}

func TestReplayInAnotherSession(t *testing.T) {
	w := newWorld(t, nil)
	honest := w.guest().ready()
	thief := w.guest()
	if status, answer := thief.auth(); status != http.StatusOK {
		t.Fatalf("auth: %d %s", status, answer)
	}
	status, answer := thief.post(honest.sent)
	if _, text := w.detail(answer); status != http.StatusUnauthorized || !strings.Contains(text, "want the nonce of this session") {
		t.Errorf("replayed evidence: %d %s", status, text)
	}
	// With the nonce put right, the quote does not fit.
	replaced := strings.Replace(string(honest.sent), honest.nonce, thief.nonce, 1)
	status, answer = thief.post([]byte(replaced))
	if _, text := w.detail(answer); status != http.StatusUnauthorized || !strings.Contains(text, "report_data = ") {
		t.Errorf("replayed quote: %d %s", status, text)
	}
}

func TestSessionRules(t *testing.T) {
	w := newWorld(t, func(c *config.Config) { c.Attestation.MaxSessions = 2 })
	g := w.guest().ready()
	first := g.token
	// A second attestation gives the old token and does not look at the body.
	if status, answer := g.post([]byte("nonsense")); status != http.StatusOK || g.token != first {
		t.Errorf("second attestation: %d %s", status, answer)
	}
	late := w.guest()
	if status, answer := late.auth(); status != http.StatusOK {
		t.Fatalf("auth: %d %s", status, answer)
	}
	if status, answer := w.guest().auth(); status != http.StatusServiceUnavailable || !strings.Contains(string(answer), "all 2 are taken") {
		t.Errorf("third session: %d %s, want 503", status, answer)
	}
	w.clock.advance(5 * time.Minute)
	status, answer := late.attest()
	if _, text := w.detail(answer); status != http.StatusUnauthorized || !strings.Contains(text, "session is expired") {
		t.Errorf("expired session: %d %s", status, text)
	}
	status, answer = g.do("GET", "/kbs/v0/resource/default/key/1", nil, nil)
	if name, text := w.detail(answer); status != http.StatusUnauthorized || name != "TokenNotFound" || !strings.Contains(text, "expired") {
		t.Errorf("resource in an expired session: %d %s %s", status, name, text)
	}
	status, answer = g.do("GET", "/kbs/v0/resource/default/key/1", nil, http.Header{"Authorization": {"Bearer " + first}})
	if name, text := w.detail(answer); status != http.StatusUnauthorized || name != "TokenVerifierError" || !strings.Contains(text, "expired") {
		t.Errorf("expired token: %d %s %s", status, name, text)
	}
	if status, answer := w.guest().auth(); status != http.StatusOK {
		t.Errorf("auth after the old sessions ended: %d %s", status, answer)
	}
	stranger := w.guest()
	stranger.cookie = &http.Cookie{Name: kbs.SessionCookie, Value: strings.Repeat("0", 32)}
	if status, _ := stranger.post([]byte("{}")); status != http.StatusUnauthorized {
		t.Errorf("unknown session: %d, want 401", status)
	}
	stranger.cookie = nil
	if status, _ := stranger.post([]byte("{}")); status != http.StatusUnauthorized {
		t.Errorf("no session: %d, want 401", status)
	}
}

func TestAuthRefusals(t *testing.T) {
	w := newWorld(t, nil)
	unrestricted, err := json.Marshal(kbs.RequestParams{TPM: ptr(w.tpm.Unrestricted())})
	w.must(err)
	for _, tc := range []struct{ name, body, says string }{
		{"old version", `{"version":"0.1.1","tee":"tpm","extra-params":""}`, "KBS Client Protocol Version Mismatch: expect =0.4.0 while the request is 0.1.1"},
		{"unknown tee", `{"version":"0.4.0","tee":"moon","extra-params":""}`, `tee "moon" has no verifier, known: `},
		{"sample is not there", `{"version":"0.4.0","tee":"sample","extra-params":""}`, "insecure_sample"},
		{"not JSON", `version`, "reading the request"},
		{"broken enrolment", `{"version":"0.4.0","tee":"tpm","extra-params":{"cloister.tpm":{"ak_public":"AAAA"}}}`, "reading ak_public"},
		{"key that signs anything", `{"version":"0.4.0","tee":"tpm","extra-params":` + string(unrestricted) + `}`, "ak_public"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			status, answer := w.guest().do("POST", "/kbs/v0/auth", []byte(tc.body), nil)
			name, text := w.detail(answer)
			if status != http.StatusUnauthorized || name != "AttestationError" || !strings.Contains(text, tc.says) {
				t.Errorf("answer is %d %s %q, want 401 AttestationError with %q", status, name, text, tc.says)
			}
		})
	}
	g := w.guest()
	status, answer := g.do("POST", "/kbs/v0/auth", []byte(`{"version":"0.4.0","tee":"tpm","extra-params":""}`), nil)
	if status != http.StatusOK || !strings.Contains(string(answer), `"extra-params":""`) {
		t.Errorf("auth of a client without extensions: %d %s", status, answer)
	}
}

func ptr[T any](v T) *T { return &v }
