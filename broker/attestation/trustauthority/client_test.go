package trustauthority

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/pelletier/go-toml/v2"

	"github.com/cloister/cloister/broker/attestation"
	"github.com/cloister/cloister/broker/outage"
	"github.com/cloister/cloister/broker/token"
)

func TestEveryTEE(t *testing.T) {
	f := newFake(t)
	c := f.client(nil)
	for tee, path := range map[string]string{teeTDX: pathAttest, teeSGX: pathAttest, teeAzure: pathAzure} {
		g := f.guest(tee)
		g.gpus = tee != teeSGX
		items := g.items()
		v, err := c.Evaluate(t.Context(), "id", "default", items)
		if err != nil {
			t.Errorf("%s: %v", tee, err)
			continue
		}
		if f.path != path || f.agent != userAgent || f.sent.MustMatch || (f.sent.GPU != nil) != g.gpus {
			t.Errorf("%s: sent to %s by %s: %+v", tee, f.path, f.agent, f.sent)
		}
		if tee == teeTDX && string(f.sent.TDX.EventLog) != "log" {
			t.Errorf("event log is %q", f.sent.TDX.EventLog)
		}
		if g.gpus && (f.sent.GPU.Arch != "hopper" || len(f.sent.GPU.Evidence) != 2) {
			t.Errorf("%s: GPUs are %+v", tee, f.sent.GPU)
		}
		if _, err := (token.Any{Service: c.Trust()}).Verify(v.Token); err != nil {
			t.Errorf("%s: the token given out: %v", tee, err)
		}
		rec := v.Record
		if rec.ID != "id" || rec.TEE != tee || rec.Parts[0].Status != "affirming" || len(rec.Parts[0].Findings) != 0 ||
			len(rec.Parts) != 1+len(items)-1 {
			t.Errorf("%s: record is %+v", tee, rec)
		}
		if !strings.Contains(string(rec.Parts[0].Evidence), claimTCB) {
			t.Errorf("%s: kept claims are %s", tee, rec.Parts[0].Evidence)
		}
	}
}

func TestWeakPlatform(t *testing.T) {
	f := newFake(t)
	f.claims = func(m map[string]any) {
		m["tdx"].(map[string]any)[claimTCB] = "OutOfDate"
		delete(m["tdx"].(map[string]any), claimDebug)
	}
	v, err := f.client(nil).Evaluate(t.Context(), "id", "default", f.guest(teeTDX).items())
	if err != nil {
		t.Fatal(err)
	}
	text, _ := v.Record.Summary()
	if v.Record.Parts[0].Status != "warning" ||
		!strings.Contains(text, `tdx.attester_tcb_status = "OutOfDate", want "UpToDate"`) || !strings.Contains(text, "tdx.dbgstat is absent") {
		t.Errorf("status %s, %s", v.Record.Parts[0].Status, text)
	}
}

// TestTokens: what is not signed by the service about this request is not given out.
func TestTokens(t *testing.T) {
	key := newKey(t)
	for name, tc := range map[string]struct {
		change func(*fake)
		says   string
	}{
		"another issuer": {func(f *fake) { f.claims = func(m map[string]any) { m["iss"] = "https://ita.example" } }, "its iss is"},
		"expired":        {func(f *fake) { f.claims = func(m map[string]any) { m["exp"] = time.Now().Add(-time.Hour).Unix() } }, "expired"},
		"no expiry":      {func(f *fake) { f.claims = func(m map[string]any) { delete(m, "exp") } }, "no exp"},
		"HMAC":           {func(f *fake) { f.alg = jose.HS256 }, "not valid"},
		"no claims":      {func(f *fake) { f.claims = func(m map[string]any) { delete(m, "tdx") } }, "want the claims about the guest"},
		"no runtime data": {func(f *fake) {
			f.claims = func(m map[string]any) {
				delete(m["tdx"].(map[string]any),
					claimRuntime)
			}
		}, "want the object"},
		"runtime data as text": {func(f *fake) { f.claims = func(m map[string]any) { m["tdx"].(map[string]any)[claimRuntime] = "x" } },
			"want the object"},
		"another nonce": {func(f *fake) {
			f.claims = func(m map[string]any) { m["tdx"].(map[string]any)[claimRuntime].(map[string]any)["nonce"] = "x" }
		}, "about another request"},
		"another key": {func(f *fake) {
			f.claims = func(m map[string]any) { delete(m["tdx"].(map[string]any)[claimRuntime].(map[string]any), "tee-pubkey") }
		}, "about another request"},
		"no GPUs": {func(f *fake) { f.claims = func(m map[string]any) { delete(m, claimGPU) } }, "although evidence of GPUs was sent"},
		"unmatched policies": {func(f *fake) {
			f.claims = func(m map[string]any) { m[claimUnmatched] = []any{map[string]any{"id": "x"}} }
		}, "does not match the policies"},
		"unmatched for GPUs": {func(f *fake) {
			f.claims = func(m map[string]any) { m[claimGPU] = map[string]any{claimUnmatched: "x"} }
		}, "does not match the policies"},
		"no token":  {func(f *fake) { f.mangle = func(string) string { return `{}` } }, "has no token"},
		"no JSON":   {func(f *fake) { f.mangle = func(string) string { return `<html>` } }, "not JSON"},
		"too much":  {func(f *fake) { f.mangle = func(s string) string { return s + strings.Repeat(" ", maxAnswer) } }, "more than"},
		"other JWT": {func(f *fake) { f.mangle = func(string) string { return `{"token":"a.b.c"}` } }, "not valid"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeWith(t, key)
			c := f.client(func(c *Config) { c.PolicyIDs = []string{"c7a0ae5d-7b0b-4b1a-9c1a-0123456789ab"} })
			tc.change(f)
			g := f.guest(teeTDX)
			g.gpus = true
			if _, err := c.Evaluate(t.Context(), "id", "default", g.items()); err == nil || errors.Is(err, outage.ErrUnavailable) ||
				!strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %v, want %q", err, tc.says)
			}
			if !f.sent.MustMatch || len(f.sent.PolicyIDs) != 1 {
				t.Errorf("policies sent: %+v", f.sent)
			}
		})
	}
	f := newFake(t)
	f.claims = func(m map[string]any) { m[claimUnmatched] = []any{"x"} }
	c := f.client(func(c *Config) {
		c.PolicyIDs, c.AllowUnmatchedPolicy = []string{"c7a0ae5d-7b0b-4b1a-9c1a-0123456789ab"}, true
	})
	if _, err := c.Evaluate(t.Context(), "id", "default", f.guest(teeTDX).items()); err != nil || f.sent.MustMatch {
		t.Errorf("allow_unmatched_policy: %v, %v", err, f.sent.MustMatch)
	}
}

// TestUnboundEvidence: evidence of another session is not even sent.
func TestUnboundEvidence(t *testing.T) {
	f := newFake(t)
	c := f.client(nil)
	for name, tc := range map[string]struct {
		tee  string
		make func(g *guest) []attestation.Item
		says string
	}{
		"tdx": {teeTDX, func(g *guest) []attestation.Item {
			items := g.items()
			items[0].Evidence = g.items()[0].Evidence
			return items
		}, "report_data = "},
		"sgx": {teeSGX, func(g *guest) []attestation.Item {
			items := g.items()
			items[0].Evidence = g.items()[0].Evidence
			return items
		}, "report_data = "},
		"azure": {teeAzure, func(g *guest) []attestation.Item {
			items := g.items()
			items[0].Evidence = g.items()[0].Evidence
			return items
		}, "user-data of the HCL report = "},
		"azure, quote of another VM": {teeAzure, func(g *guest) []attestation.Item {
			items := g.items()
			var a, b map[string]any
			g.must(json.Unmarshal(items[0].Evidence, &a))
			g.must(json.Unmarshal(g.items()[0].Evidence, &b))
			a["td_quote"] = b["td_quote"]
			var err error
			items[0].Evidence, err = json.Marshal(a)
			g.must(err)
			return items
		}, "want the digest of the HCL report's runtime data"},
		"gpu": {teeTDX, func(g *guest) []attestation.Item {
			g.gpus = true
			items := g.items()
			items[1].Evidence = g.items()[1].Evidence
			return items
		}, "nonce = "},
		"mixed GPUs": {teeTDX, func(g *guest) []attestation.Item {
			g.gpus = true
			items := g.items()
			items[1].Evidence = json.RawMessage(strings.Replace(string(items[1].Evidence), "HOPPER", "BLACKWELL", 1))
			return items
		}, "one a machine"},
		"sgx quote as tdx": {teeTDX, func(g *guest) []attestation.Item {
			items := g.items()
			g.tee = teeSGX
			items[0].Evidence = g.evidence(items[0].ReportData)
			return items
		}, "quote is of TEE type SGX"},
		"another hash": {teeTDX, func(g *guest) []attestation.Item {
			items := g.items()
			items[0].ReportData = items[0].ReportData[:32]
			return items
		}, "is not the sha512"},
		"another device": {teeTDX, func(g *guest) []attestation.Item {
			return append(g.items(), attestation.Item{TEE: "tpm"})
		}, `device "tpm" cannot`},
		"another TEE": {teeTDX, func(g *guest) []attestation.Item {
			items := g.items()
			items[0].TEE = "snp"
			return items
		}, `"snp" cannot be attested`},
		"no runtime data": {teeTDX, func(g *guest) []attestation.Item {
			items := g.items()
			items[0].Runtime = nil
			return items
		}, "bound to"},
		"nothing": {teeTDX, func(*guest) []attestation.Item { return nil }, "no evidence"},
	} {
		if _, err := c.Evaluate(t.Context(), "id", "default", tc.make(f.guest(tc.tee))); err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v, want %q", name, err, tc.says)
		}
	}
	if f.asked != 0 {
		t.Errorf("the service was asked %d times", f.asked)
	}
}

func TestRepetition(t *testing.T) {
	f := newFake(t)
	c := f.client(nil)
	items := f.guest(teeTDX).items()
	f.statuses = []int{429, 503}
	if _, err := c.Evaluate(t.Context(), "id", "default", items); err != nil || f.asked != 3 {
		t.Errorf("busy at first: %v after %d requests", err, f.asked)
	}
	f.asked, f.statuses, f.reason = 0, []int{500, 502, 503, 504, 500}, "down\x1b[0m\nfor now"
	if _, err := c.Evaluate(t.Context(), "id", "default", items); !errors.Is(err, outage.ErrUnavailable) || f.asked != attempts ||
		!strings.Contains(err.Error(), "504: down [0m for now") {
		t.Errorf("down: %v after %d requests", err, f.asked)
	}
	for status, says := range map[int]string{400: "evidence is refused", 401: "API key in", 307: "redirect", 404: "evidence is refused"} {
		f.asked, f.statuses, f.reason = 0, []int{status}, "why"
		if _, err := c.Evaluate(t.Context(), "id", "default", items); err == nil || errors.Is(err, outage.ErrUnavailable) ||
			f.asked != 1 || !strings.Contains(err.Error(), says) {
			t.Errorf("status %d: %v after %d requests", status, err, f.asked)
		} else if strings.Contains(err.Error(), apiKey) {
			t.Errorf("status %d shows the API key: %v", status, err)
		}
	}
	// A pause that does not fit into the time that is left is not begun.
	f.asked, f.statuses, f.after = 0, []int{429, 429}, "30"
	ctx, cancel := context.WithTimeout(t.Context(), maxRetryAfter-time.Second)
	defer cancel()
	if _, err := c.Evaluate(ctx, "id", "default", items); !errors.Is(err, outage.ErrUnavailable) || f.asked != 1 || ctx.Err() != nil {
		t.Errorf("asked to wait for longer than there is time: %v after %d requests, %v", err, f.asked, ctx.Err())
	}
	f.server.Close()
	if _, err := c.Evaluate(t.Context(), "id", "default", items); !errors.Is(err, outage.ErrUnavailable) {
		t.Errorf("gone: %v", err)
	}
}

// TestKeys: keys that are not there at first, and keys that change.
func TestKeys(t *testing.T) {
	f := newFake(t)
	f.jwks = false
	c := f.client(nil)
	items := f.guest(teeTDX).items()
	f.jwks = true
	if _, err := c.Evaluate(t.Context(), "id", "default", items); err != nil {
		t.Errorf("keys that came late: %v", err)
	}
	c = f.client(nil)
	f.key, f.kid = newKey(t), "k2"
	if _, err := c.Evaluate(t.Context(), "id", "default", items); err != nil {
		t.Errorf("a key that changed: %v", err)
	}
	f.kid = "k3" // within the pause nobody makes the broker fetch again
	if _, err := c.Evaluate(t.Context(), "id", "default", items); !errors.Is(err, token.ErrInvalid) {
		t.Errorf("an unknown key right after: %v", err)
	}
	file := f.file("broken.json", []byte(`{"keys":[]}`))
	cfg := f.config()
	cfg.JWKSet = file
	if _, err := Open(t.Context(), cfg, Options{Now: time.Now}); err == nil {
		t.Error("a file without keys is taken")
	}
	cfg = f.config()
	if err := os.WriteFile(filepath.Join(f.dir, "key"), []byte("two words"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), cfg, Options{Now: time.Now}); err == nil || strings.Contains(err.Error(), "two words") {
		t.Errorf("a broken API key: %v, want an error that does not show it", err)
	}
}

func TestChallenge(t *testing.T) {
	c := newFake(t).client(nil)
	all := json.RawMessage(`{"supported-hash-algorithms":["SHA256","sha384","sha512"]}`)
	for tee, hash := range map[string]string{"tdx": "sha512", "sgx": "sha256", "az-tdx-vtpm": "sha256"} {
		ch, err := c.Challenge(t.Context(), tee, all)
		if err != nil || ch.Hash != hash || ch.Params.SelectedHashAlgorithm != hash || ch.Nonce != "" {
			t.Errorf("%s: %+v %v, want %s", tee, ch, err, hash)
		}
	}
	for _, bad := range []struct{ tee, params string }{{"snp", string(all)}, {"tdx", `""`}, {"tdx",
		`{"supported-hash-algorithms":["sha256"]}`}, {"tdx", "{"}} {
		if ch, err := c.Challenge(t.Context(), bad.tee, json.RawMessage(bad.params)); err == nil {
			t.Errorf("%v: %+v", bad, ch)
		}
	}
	if err := (Policies{}).Put(t.Context(), "x", "y"); !errors.Is(err, ErrUnsupported) {
		t.Errorf("setting a policy: %v", err)
	}
}

func TestConfig(t *testing.T) {
	var c Config
	text := `
		base_url = "https://api.eu.example/"
		api_key_file = "key"
		jwk_set = "https://portal.eu.example/certs"
		issuers = ["x"]
		policy_ids = ["c7a0ae5d-7b0b-4b1a-9c1a-0123456789ab"]
		allow_unmatched_policy = true
		ca_certs = ["ca.pem"]
		timeout_ms = 1000
	`
	if err := toml.NewDecoder(strings.NewReader(text)).DisallowUnknownFields().Decode(&c); err != nil {
		t.Fatal(err)
	}
	c.BaseURL = strings.TrimSuffix(c.BaseURL, "/")
	if err := c.Validate(); err != nil {
		t.Errorf("%+v: %v", c, err)
	}
	if d := (Config{}).withDefaults(); d.BaseURL != DefaultBaseURL || d.JWKSet != DefaultJWKSet || len(d.Issuers) != 2 ||
		d.TimeoutMS != 30000 {
		t.Errorf("defaults are %+v", d)
	}
	for says, change := range map[string]func(*Config){
		"base_url":       func(c *Config) { c.BaseURL = "http://api.example" },
		"jwk_set":        func(c *Config) { c.JWKSet = "http://portal.example/certs" },
		"api_key_file":   func(c *Config) { c.APIKeyFile = "" },
		"not a UUID":     func(c *Config) { c.PolicyIDs = []string{"x"} },
		"at most 10":     func(c *Config) { c.PolicyIDs = make([]string, 11) },
		"timeout_ms is ": func(c *Config) { c.TimeoutMS = 60000 },
	} {
		bad := c
		change(&bad)
		if err := bad.Validate(); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, want %q", err, says)
		}
	}
}

// FuzzMachine: evidence is read or refused, and never sent unbound.
func FuzzMachine(f *testing.F) {
	for _, tee := range []string{teeTDX, teeSGX, teeAzure, teeGPU} {
		f.Add(tee, []byte(`{"quote":"AAAA","hcl_report":"SENMQQ","td_quote":"AA","device_evidence_list":[{"arch":"HOPPER","evidence":"11"}]}`))
	}
	want := make([]byte, 32)
	want[0] = 1
	f.Fuzz(func(t *testing.T, tee string, evidence []byte) {
		if tee == teeGPU {
			_, _ = readGPUs(evidence, want)
			return
		}
		if m, err := readMachine(tee, evidence, want, []byte("{}")); err == nil && len(m.Quote) == 0 {
			t.Fatal("no quote is a quote")
		}
	})
}

// FuzzAnswer: an answer is a token or refused, and a reason is one short line.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte(`{"token":"a.b.c"}`))
	f.Add([]byte(`{"error":"x"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if text, _, err := readAnswer(raw); err == nil && text == "" {
			t.Fatal("no token is a token")
		}
		if s := reason(raw); len(s) > maxReason+2 || strings.ContainsAny(s, "\n\r\x1b") {
			t.Fatalf("reason is %q", s)
		}
		_ = retryAfter(http.Header{"Retry-After": {string(raw)}})
	})
}
