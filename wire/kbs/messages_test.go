package kbs

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestMessageSpelling(t *testing.T) {
	for want, v := range map[string]any{
		`{"version":"0.4.0","tee":"tpm","extra-params":""}`: Request{Version, "tpm", json.RawMessage(`""`)},
		`{"nonce":"n","extra-params":""}`:                   Challenge{"n", json.RawMessage(`""`)},
		`{"supported-hash-algorithms":["sha256"]}`:          RequestParams{SupportedHashAlgorithms: []string{"sha256"}},
		`{"selected-hash-algorithm":"sha512"}`:              ChallengeParams{SelectedHashAlgorithm: "sha512"},
		`{}`:                                                ChallengeParams{},
		`{"token":"t"}`:                                     TokenResponse{"t"},
		`{"tpm_quote":{"signature":"s","message":"m","pcrs":["p"]},"ak_public":"a"}`:                                                                         TPMEvidence{TPMQuote: TPMQuote{"s", "m", []string{"p"}}, AKPublic: "a"},
		`{"supported-hash-algorithms":null,"cloister.tpm":{"ak_public":"AQ==","ek_public":"Ag==","ek_certificate":"Aw=="}}`:                                  RequestParams{TPM: &TPMEnrol{[]byte{1}, []byte{2}, []byte{3}}},
		`{"cloister.tpm":{"credential_blob":"AQ==","encrypted_secret":"Ag=="}}`:                                                                              ChallengeParams{TPM: &TPMCredential{[]byte{1}, []byte{2}}},
		`{"type":"https://github.com/confidential-containers/kbs/errors/PolicyDeny","detail":"d"}`:                                                           NewError(ErrorPolicyDeny, "d"),
		`{"init-data":null,"runtime-data":{"nonce":"n","tee-pubkey":{"kty":"k","alg":"a"}},"tee-evidence":{"primary_evidence":{},"additional_evidence":""}}`: Attestation{nil, RuntimeData{"n", JWK{Kty: "k", Alg: "a"}}, CompositeEvidence{json.RawMessage(`{}`), ""}},
		`{"format":"toml","body":"b"}`: InitData{"toml", "b"},
	} {
		got, err := json.Marshal(v)
		if err != nil || string(got) != want {
			t.Errorf("%T is %s, %v, expected %s", v, got, err, want)
		}
	}
}

func TestParams(t *testing.T) {
	for _, none := range []string{``, `null`, `""`, ` "" `, `{}`} {
		r, err := Request{ExtraParams: json.RawMessage(none)}.Params()
		if err != nil || r.TPM != nil || r.SupportedHashAlgorithms != nil {
			t.Errorf("request %q: %+v, %v", none, r, err)
		}
		c, err := Challenge{ExtraParams: json.RawMessage(none)}.Params()
		if err != nil || c.HashAlgorithm() != DefaultHash {
			t.Errorf("challenge %q: %+v, %v", none, c, err)
		}
	}
	c, err := Challenge{ExtraParams: json.RawMessage(`{"selected-hash-algorithm":"SHA512"}`)}.Params()
	if err != nil || c.HashAlgorithm() != "sha512" {
		t.Errorf("got %+v, %v", c, err)
	}
	for _, bad := range []string{`"x"`, `1`, `{"selected-hash-algorithm":1}`, `[`} {
		if _, err := (Challenge{ExtraParams: json.RawMessage(bad)}).Params(); err == nil {
			t.Errorf("challenge %s: accepted", bad)
		}
	}
	if _, err := (Request{ExtraParams: json.RawMessage(`{"cloister.tpm":{"ak_public":"?"}}`)}).Params(); err == nil {
		t.Error("request with broken base64: accepted")
	}
}

func TestErrorInformation(t *testing.T) {
	err := fmt.Errorf("asking for a key: %w", Errorf(ErrorPolicyDeny, "resource %s refused", "default/key/1"))
	var info *ErrorInformation
	if !errors.As(err, &info) || info.Name() != ErrorPolicyDeny || !strings.HasSuffix(err.Error(), "resource default/key/1 refused") {
		t.Errorf("got %v", err)
	}
	if got := NewError(ErrorJWE, "").Error(); got != ErrorJWE {
		t.Errorf("got %q", got)
	}
	parsed, err := ParseError([]byte(`{"type":"https://x/errors/TokenNotFound","detail":"none"}`))
	if err != nil || parsed.Name() != ErrorTokenNotFound || parsed.Detail != "none" {
		t.Errorf("got %+v, %v", parsed, err)
	}
	for _, bad := range []string{"", "payload reached size limit", "{}", "[]", `{"type":1}`, `{"detail":"` + strings.Repeat("x", MaxErrorBody) + `"}`} {
		if e, err := ParseError([]byte(bad)); err == nil {
			t.Errorf("%.20q: accepted as %+v", bad, e)
		}
	}
}

func FuzzParseError(f *testing.F) {
	f.Add([]byte(`{"type":"a/b","detail":"c"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if e, err := ParseError(b); err == nil && e.Type == "" && e.Detail == "" {
			t.Fatalf("%q gave an empty error", b)
		}
	})
}

func FuzzAttestation(f *testing.F) {
	f.Add([]byte(`{"init-data":{"format":"toml","body":""},"runtime-data":{"nonce":"n","tee-pubkey":{"kty":"EC"}},"tee-evidence":{"primary_evidence":{},"additional_evidence":""}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var a Attestation
		if json.Unmarshal(b, &a) != nil {
			return
		}
		if _, err := ReportData(a.RuntimeData, &a.TEEEvidence.Additional, DefaultHash); err != nil {
			t.Fatalf("%q was read and cannot be bound: %v", b, err)
		}
	})
}
