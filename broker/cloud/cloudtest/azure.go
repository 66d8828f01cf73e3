package cloudtest

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

// The application of the fake.
const (
	Tenant       = "11111111-2222-3333-4444-555555555555"
	ClientID     = "66666666-7777-8888-9999-000000000000"
	ClientSecret = "client-secret-value"
	Audience     = "https://vault.azure.net"
	AzureKey     = "storage"
)

// AzureSecret is a secret.
type AzureSecret struct{ Value, Type string }

// Azure is Entra ID, a Key Vault and the metadata service in one.
type Azure struct {
	Server
	Secrets map[string]AzureSecret
	Denied  map[string]bool
	// Issuer signs federated tokens that Entra ID believes.
	Issuer *rsa.PrivateKey
	// Lifetime of tokens, Revoked ends those given so far.
	Lifetime time.Duration
	PageSize int
	// NextHost replaces the host of next pages.
	NextHost string

	tokens   map[string]time.Time
	serial   int
	versions []string
	keys     map[string]*rsa.PrivateKey
}

// NewAzure starts a fake. Its vault speaks TLS; the metadata service is at the same address.
func NewAzure(t testing.TB) *Azure {
	s := &Azure{Secrets: map[string]AzureSecret{}, Denied: map[string]bool{}, Issuer: RSAKey(t), Lifetime: time.Hour, PageSize: 2,
		tokens: map[string]time.Time{}, keys: map[string]*rsa.PrivateKey{}}
	s.RotateKey(t)
	s.start(t, true, s.serve)
	return s
}

// RSAKey makes a key.
func RSAKey(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// RotateKey makes a new version of the key.
func (s *Azure) RotateKey(t testing.TB) {
	k := RSAKey(t)
	s.Set(func() {
		v := fmt.Sprintf("%032x", len(s.versions)+1)
		s.versions = append(s.versions, v)
		s.keys[v] = k
	})
}

// PublicKey is the public half of the newest version.
func (s *Azure) PublicKey() (version string, public *rsa.PublicKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.versions[len(s.versions)-1]
	return v, &s.keys[v].PublicKey
}

// Revoke ends all tokens given so far.
func (s *Azure) Revoke() { s.Set(func() { clear(s.tokens) }) }

// JWT makes a token signed with RS256.
func JWT(t testing.TB, key *rsa.PrivateKey, claims map[string]any) string {
	t.Helper()
	raw, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	text := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"RS256","typ":"JWT"}`)) + "." + base64.RawURLEncoding.EncodeToString(raw)
	sum := sha256.Sum256([]byte(text))
	sig, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(sig)
}

// verifyJWT returns the claims of a token that key has signed.
func verifyJWT(token string, key *rsa.PublicKey) (map[string]any, bool) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return nil, false
	}
	var raw [3][]byte
	for i, p := range parts {
		var err error
		if raw[i], err = base64.RawURLEncoding.DecodeString(p); err != nil {
			return nil, false
		}
	}
	var head struct{ Alg string }
	var claims map[string]any
	sum := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	ok := json.Unmarshal(raw[0], &head) == nil && head.Alg == "RS256" && json.Unmarshal(raw[1], &claims) == nil &&
		rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], raw[2]) == nil
	return claims, ok
}

func (s *Azure) refuse(w http.ResponseWriter, status int, code, inner string) {
	answer(w, status, map[string]any{"error": map[string]any{"code": code, "message": "leak-777333",
		"innererror": map[string]string{"code": inner}}})
}

func (s *Azure) give(w http.ResponseWriter, seconds any) {
	s.serial++
	token := fmt.Sprintf("azure-token-%d", s.serial)
	s.tokens[token] = s.now().Add(s.Lifetime)
	answer(w, 200, map[string]any{"access_token": token, "expires_in": seconds, "token_type": "Bearer"})
}

func (s *Azure) serve(w http.ResponseWriter, r *http.Request, body []byte) {
	s.Calls = append(s.Calls, r.Method+" "+r.URL.Path)
	seconds := int(s.Lifetime.Seconds())
	switch r.URL.Path {
	case "/" + Tenant + "/oauth2/v2.0/token":
		form, err := url.ParseQuery(string(body))
		good := err == nil && form.Get("grant_type") == "client_credentials" && form.Get("client_id") == ClientID &&
			form.Get("scope") == Audience+"/.default"
		if form.Has("client_assertion") {
			claims, ok := verifyJWT(form.Get("client_assertion"), &s.Issuer.PublicKey)
			good = good && ok && claims["aud"] == "api://AzureADTokenExchange" &&
				form.Get("client_assertion_type") == "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
		} else {
			good = good && form.Get("client_secret") == ClientSecret
		}
		if !good {
			answer(w, 401, map[string]string{"error": "invalid_client", "error_description": "leak-777333"})
			return
		}
		s.give(w, seconds)
		return
	case "/metadata/identity/oauth2/token":
		if r.Header.Get("Metadata") != "true" || r.URL.Query().Get("resource") != Audience || r.URL.Query().Get("api-version") != "2018-02-01" {
			answer(w, 400, map[string]string{"error": "invalid_request"})
			return
		}
		s.give(w, fmt.Sprint(seconds)) // as text
		return
	}
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if expires, ok := s.tokens[token]; !ok || !s.now().Before(expires) {
		s.refuse(w, 401, "Unauthorized", "")
		return
	}
	if r.URL.Query().Get("api-version") == "" {
		s.refuse(w, 400, "BadParameter", "")
		return
	}
	if name, ok := strings.CutPrefix(r.URL.Path, "/keys/"+AzureKey); ok {
		s.key(w, r, strings.Trim(name, "/"), body)
		return
	}
	if r.URL.Path == "/secrets" {
		s.list(w, r)
		return
	}
	name := strings.ToLower(strings.TrimPrefix(r.URL.Path, "/secrets/"))
	v, ok := s.Secrets[name]
	switch {
	case s.Denied[name]:
		s.refuse(w, 403, "Forbidden", "ForbiddenByRbac")
	case !ok:
		s.refuse(w, 404, "SecretNotFound", "")
	default:
		answer(w, 200, map[string]any{"id": s.URL + "/secrets/" + name + "/0123", "value": v.Value, "contentType": v.Type})
	}
}

func (s *Azure) list(w http.ResponseWriter, r *http.Request) {
	var all []string
	for name := range s.Secrets {
		all = append(all, name)
	}
	slices.Sort(all)
	slices.Reverse(all)
	from := 0
	fmt.Sscan(r.URL.Query().Get("$skiptoken"), &from)
	var value []map[string]string
	for _, name := range all[from:min(from+s.PageSize, len(all))] {
		value = append(value, map[string]string{"id": s.URL + "/secrets/" + name})
	}
	out := map[string]any{"value": value, "nextLink": nil}
	if from+s.PageSize < len(all) {
		host := s.URL
		if s.NextHost != "" {
			host = s.NextHost
		}
		out["nextLink"] = fmt.Sprintf("%s/secrets?api-version=7.4&$skiptoken=%d", host, from+s.PageSize)
	}
	answer(w, 200, out)
}

func (s *Azure) key(w http.ResponseWriter, r *http.Request, path string, body []byte) {
	if path == "" {
		v := s.versions[len(s.versions)-1]
		answer(w, 200, map[string]any{"key": map[string]string{"kid": s.URL + "/keys/" + AzureKey + "/" + v, "kty": "RSA"}})
		return
	}
	version, operation, _ := strings.Cut(path, "/")
	key := s.keys[version]
	var in struct{ Alg, Value, Digest string }
	if key == nil || r.Method != http.MethodPost || json.Unmarshal(body, &in) != nil {
		s.refuse(w, 404, "KeyNotFound", "")
		return
	}
	value, err := base64.RawURLEncoding.DecodeString(in.Value)
	digest, err2 := base64.RawURLEncoding.DecodeString(in.Digest)
	if err != nil || err2 != nil {
		s.refuse(w, 400, "BadParameter", "")
		return
	}
	var out []byte
	switch operation + " " + in.Alg {
	case "wrapkey RSA-OAEP-256":
		out, err = rsa.EncryptOAEP(sha256.New(), rand.Reader, &key.PublicKey, value, nil)
	case "unwrapkey RSA-OAEP-256":
		out, err = rsa.DecryptOAEP(sha256.New(), nil, key, value, nil)
	case "sign PS256":
		out, err = rsa.SignPSS(rand.Reader, key, crypto.SHA256, value, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
	case "verify PS256":
		answer(w, 200, map[string]bool{"value": rsa.VerifyPSS(&key.PublicKey, crypto.SHA256, digest, value, nil) == nil})
		return
	default:
		s.refuse(w, 400, "BadParameter", "")
		return
	}
	if err != nil {
		s.refuse(w, 400, "BadParameter", "")
		return
	}
	answer(w, 200, map[string]string{"kid": s.URL + "/keys/" + AzureKey + "/" + version, "value": base64.RawURLEncoding.EncodeToString(out)})
}
