package cloudtest

import (
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"hash/crc32"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The project and the identities of the fake.
const (
	Project  = "p-123"
	Account  = "broker@p-123.iam.gserviceaccount.com"
	Provider = "//iam.googleapis.com/projects/123/locations/global/workloadIdentityPools/pool/providers/cluster"
	GCPKey   = "projects/p-123/locations/europe-west3/keyRings/ring/cryptoKeys/storage"
)

// Google is the token services, Secret Manager, KMS and the metadata service in one.
type Google struct {
	Server
	// Secrets are the versions of each, the first being number 1; nil is a disabled one.
	Secrets map[string][][]byte
	Denied  map[string]bool
	// Key is that of the service account, Issuer signs subject tokens that the pool believes.
	Key, Issuer *rsa.PrivateKey
	Lifetime    time.Duration
	PageSize    int
	// BadChecksum damages checksums.
	BadChecksum bool

	tokens map[string]string // to whom they belong
	kms    gcm
}

// NewGoogle starts a fake.
func NewGoogle(t testing.TB) *Google {
	s := &Google{Secrets: map[string][][]byte{}, Denied: map[string]bool{}, Key: RSAKey(t), Issuer: RSAKey(t), Lifetime: time.Hour,
		PageSize: 2, tokens: map[string]string{}, kms: newGCM(t)}
	s.start(t, true, s.serve)
	return s
}

// KeyFile is the file of the service account.
func (s *Google) KeyFile(t testing.TB) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(s.Key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(map[string]string{"type": "service_account", "client_email": Account, "private_key_id": "kid1",
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), "token_uri": s.URL + "/token"})
	if err != nil {
		t.Fatal(err)
	}
	return File(t, "account.json", string(raw))
}

// Revoke ends all tokens given so far.
func (s *Google) Revoke() { s.Set(func() { clear(s.tokens) }) }

func (s *Google) give(who string) string {
	token := fmt.Sprintf("google-token-%d", len(s.Calls))
	s.tokens[token] = who
	return token
}

func (s *Google) refuse(w http.ResponseWriter, status int, code string) {
	answer(w, status, map[string]any{"error": map[string]any{"code": status, "status": code, "message": "leak-777333"}})
}

func (s *Google) serve(w http.ResponseWriter, r *http.Request, body []byte) {
	s.Calls = append(s.Calls, r.Method+" "+r.URL.Path)
	seconds := int(s.Lifetime.Seconds())
	bearer, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	switch r.URL.Path {
	case "/token", "/v1/token":
		form, err := url.ParseQuery(string(body))
		if err != nil || !s.proves(r.URL.Path, form) {
			answer(w, 400, map[string]string{"error": "invalid_grant", "error_description": "leak-777333"})
			return
		}
		who := Account
		if r.URL.Path == "/v1/token" {
			who = "federated"
		}
		answer(w, 200, map[string]any{"access_token": s.give(who), "expires_in": seconds, "token_type": "Bearer"})
		return
	case "/v1/projects/-/serviceAccounts/" + Account + ":generateAccessToken":
		if s.tokens[bearer] != "federated" {
			s.refuse(w, 403, "PERMISSION_DENIED")
			return
		}
		answer(w, 200, map[string]any{"accessToken": s.give(Account), "expireTime": s.now().Add(s.Lifetime).UTC().Format(time.RFC3339)})
		return
	case "/computeMetadata/v1/instance/service-accounts/default/token":
		if r.Header.Get("Metadata-Flavor") != "Google" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		w.Header().Set("Metadata-Flavor", "Google")
		answer(w, 200, map[string]any{"access_token": s.give(Account), "expires_in": seconds, "token_type": "Bearer"})
		return
	}
	if s.tokens[bearer] != Account {
		s.refuse(w, 401, "UNAUTHENTICATED")
		return
	}
	if operation, ok := strings.CutPrefix(r.URL.Path, "/v1/"+GCPKey+":"); ok {
		s.crypt(w, operation, body)
		return
	}
	path, ok := strings.CutPrefix(r.URL.Path, "/v1/projects/"+Project+"/secrets")
	if !ok {
		s.refuse(w, 404, "NOT_FOUND")
		return
	}
	s.secrets(w, r, strings.TrimPrefix(path, "/"))
}

// proves checks the signed claim of a service account, or the token of another provider.
func (s *Google) proves(path string, form url.Values) bool {
	if path == "/v1/token" {
		claims, ok := verifyJWT(form.Get("subject_token"), &s.Issuer.PublicKey)
		return ok && claims["sub"] == "system:serviceaccount:cloister:broker" && form.Get("audience") == Provider &&
			form.Get("grant_type") == "urn:ietf:params:oauth:grant-type:token-exchange" && form.Get("scope") != ""
	}
	claims, ok := verifyJWT(form.Get("assertion"), &s.Key.PublicKey)
	issued, _ := claims["iat"].(float64)
	expires, _ := claims["exp"].(float64)
	now := float64(s.now().Unix())
	return ok && form.Get("grant_type") == "urn:ietf:params:oauth:grant-type:jwt-bearer" && claims["iss"] == Account &&
		claims["aud"] == s.URL+"/token" && claims["scope"] != "" && issued <= now && expires > now && expires-issued <= 3600
}

func (s *Google) secrets(w http.ResponseWriter, r *http.Request, path string) {
	from := 0
	fmt.Sscan(r.URL.Query().Get("pageToken"), &from)
	if path == "" {
		var all []string
		for name := range s.Secrets {
			all = append(all, name)
		}
		slices.Sort(all)
		slices.Reverse(all)
		var page []map[string]string
		for _, name := range all[from:min(from+s.PageSize, len(all))] {
			page = append(page, map[string]string{"name": "projects/123/secrets/" + name})
		}
		answer(w, 200, map[string]any{"secrets": page, "nextPageToken": next(from+s.PageSize, len(all))})
		return
	}
	name, rest, _ := strings.Cut(path, "/versions")
	versions, ok := s.Secrets[name]
	switch {
	case s.Denied[name]:
		s.refuse(w, 403, "PERMISSION_DENIED")
		return
	case !ok:
		s.refuse(w, 404, "NOT_FOUND")
		return
	case rest == "":
		var page []map[string]string
		for i := from; i < min(from+s.PageSize, len(versions)); i++ {
			state := "ENABLED"
			if versions[i] == nil {
				state = "DISABLED"
			}
			page = append(page, map[string]string{"name": fmt.Sprintf("projects/123/secrets/%s/versions/%d", name, i+1), "state": state,
				"createTime": "2026-11-01T00:00:00Z"})
		}
		answer(w, 200, map[string]any{"versions": page, "nextPageToken": next(from+s.PageSize, len(versions))})
		return
	}
	which := strings.TrimSuffix(strings.TrimPrefix(rest, "/"), ":access")
	n := len(versions)
	if which != "latest" {
		n, _ = strconv.Atoi(which)
	}
	if n < 1 || n > len(versions) {
		s.refuse(w, 404, "NOT_FOUND")
		return
	}
	if versions[n-1] == nil {
		s.refuse(w, 400, "FAILED_PRECONDITION")
		return
	}
	answer(w, 200, map[string]any{"name": fmt.Sprintf("projects/123/secrets/%s/versions/%d", name, n),
		"payload": map[string]any{"data": versions[n-1], "dataCrc32c": s.sum(versions[n-1])}})
}

func next(from, of int) string {
	if from >= of {
		return ""
	}
	return fmt.Sprint(from)
}

func (s *Google) sum(b []byte) string {
	n := crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
	if s.BadChecksum {
		n++
	}
	return fmt.Sprint(n)
}

func (s *Google) crypt(w http.ResponseWriter, operation string, body []byte) {
	var in struct {
		Plaintext, Ciphertext []byte
		AAD                   []byte `json:"additionalAuthenticatedData"`
		PlaintextSum          string `json:"plaintextCrc32c"`
		CiphertextSum         string `json:"ciphertextCrc32c"`
		AADSum                string `json:"additionalAuthenticatedDataCrc32c"`
	}
	if json.Unmarshal(body, &in) != nil {
		s.refuse(w, 400, "INVALID_ARGUMENT")
		return
	}
	if operation == "encrypt" {
		sealed := s.kms.encrypt(in.Plaintext, string(in.AAD))
		answer(w, 200, map[string]any{"name": GCPKey + "/cryptoKeyVersions/1", "ciphertext": sealed, "ciphertextCrc32c": s.sum(sealed),
			"verifiedPlaintextCrc32c":                   in.PlaintextSum == s.sum(in.Plaintext),
			"verifiedAdditionalAuthenticatedDataCrc32c": in.AADSum == s.sum(in.AAD)})
		return
	}
	plain, err := s.kms.decrypt(in.Ciphertext, string(in.AAD))
	if err != nil || in.CiphertextSum != s.sum(in.Ciphertext) {
		s.refuse(w, 400, "INVALID_ARGUMENT")
		return
	}
	answer(w, 200, map[string]string{"plaintext": base64.StdEncoding.EncodeToString(plain), "plaintextCrc32c": s.sum(plain)})
}
