package adminauth

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/cloister/cloister/broker/keyset"
)

var now = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

func token(t *testing.T, key ed25519.PrivateKey, change map[string]any) string {
	t.Helper()
	claims := map[string]any{"iss": "idp", "aud": []string{"KBS"}, "sub": "ann", "role": "admin", "exp": now.Add(time.Hour).Unix()}
	for k, v := range change {
		if v == nil {
			delete(claims, k)
			continue
		}
		claims[k] = v
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	compact, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return compact
}

func TestJWT(t *testing.T) {
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, thief, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "idp.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	keys, err := keyset.Open(t.Context(), nil, keyset.Source{PEM: file})
	if err != nil {
		t.Fatal(err)
	}
	auth, err := NewJWT([]Provider{{Issuer: "idp", Audience: "KBS", Keys: keys}}, []Rule{
		{Role: "admin", Paths: "^/kbs/v0/.*$"},
		{Role: "writer", Paths: "/kbs/v0/resource/team-a/.*|/kbs/v0/reference-value", Methods: []string{"POST"}},
	}, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	writer := map[string]any{"role": "writer"}
	for _, tc := range []struct {
		name string
		call Call
		says string
	}{
		{"admin", Call{Bearer: token(t, key, nil), Method: "POST", Path: "/kbs/v0/resource/a/b/c"}, ""},
		{"audience as one text", Call{Bearer: token(t, key, map[string]any{"aud": "KBS"}), Method: "POST", Path: "/kbs/v0/resource/a/b/c"}, ""},
		{"writer of its own", Call{Bearer: token(t, key, writer), Method: "POST", Path: "/kbs/v0/resource/team-a/b/c"}, ""},
		{"second alternative", Call{Bearer: token(t, key, writer), Method: "POST", Path: "/kbs/v0/reference-value"}, ""},
		{"alternatives do not escape the anchors", Call{Bearer: token(t, key, writer), Method: "POST", Path: "/kbs/v0/reference-value/x"}, "no rule lets it"},
		{"nor before them", Call{Bearer: token(t, key, writer), Method: "POST", Path: "/x/kbs/v0/reference-value"}, "no rule lets it"},
		{"a line end does not end the path", Call{Bearer: token(t, key, writer), Method: "POST", Path: "/kbs/v0/reference-value\n/x"}, "no rule lets it"},
		{"another team", Call{Bearer: token(t, key, writer), Method: "POST", Path: "/kbs/v0/resource/team-b/b/c"}, "Role writer not allowed: no rule lets it"},
		{"another method", Call{Bearer: token(t, key, writer), Method: "DELETE", Path: "/kbs/v0/resource/team-a/b/c"}, "no rule lets it"},
		{"outside all rules", Call{Bearer: token(t, key, nil), Method: "GET", Path: "/cloister/v1/audit"}, "no rule lets it"},
		{"no token", Call{Bearer: "", Method: "POST", Path: "/kbs/v0/auth"}, "has no token"},
		{"another key", Call{Bearer: token(t, thief, nil), Method: "POST", Path: "/kbs/v0/resource/a/b/c"}, "Cannot verify token with any of the issuers: "},
		{"a role with an escape sequence", Call{Bearer: token(t, key, map[string]any{"role": "\x1b[2J"}), Method: "POST", Path: "/x"}, `Role \x1b[2J not allowed`},
		{"another issuer", Call{Bearer: token(t, key, map[string]any{"iss": "else"}), Method: "POST", Path: "/kbs/v0/x"}, `iss is "else"`},
		{"another audience", Call{Bearer: token(t, key, map[string]any{"aud": "else"}), Method: "POST", Path: "/kbs/v0/x"}, "aud is"},
		{"no role", Call{Bearer: token(t, key, map[string]any{"role": nil}), Method: "POST", Path: "/kbs/v0/x"}, "has no role"},
		{"no exp", Call{Bearer: token(t, key, map[string]any{"exp": nil}), Method: "POST", Path: "/kbs/v0/x"}, "has no exp"},
		{"expired", Call{Bearer: token(t, key, map[string]any{"exp": now.Add(-time.Hour).Unix()}), Method: "POST", Path: "/kbs/v0/x"}, "expired"},
		{"not yet", Call{Bearer: token(t, key, map[string]any{"nbf": now.Add(time.Hour).Unix()}), Method: "POST", Path: "/kbs/v0/x"}, "not good before"},
		{"alg none", Call{Bearer: "eyJhbGciOiJub25lIn0.e30.", Method: "POST", Path: "/kbs/v0/x"}, "not a signed JWT"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			name, err := auth.Admit(t.Context(), tc.call)
			if tc.says == "" {
				if err != nil || !strings.Contains(name, "ann") {
					t.Fatalf("got %q, %v; want ann admitted", name, err)
				}
				return
			}
			if !errors.Is(err, ErrDenied) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("the error is %v, want a denial that says %q", err, tc.says)
			}
		})
	}
}

func TestRules(t *testing.T) {
	for _, r := range []Rule{{Paths: "/kbs/.*"}, {Role: "a", Paths: "kbs"}, {Role: "a", Paths: "/kbs/("}, {Role: "a", Paths: "/a)|(/.*"}, {Role: "a"}} {
		if _, err := NewJWT([]Provider{{}}, []Rule{r}, time.Now); err == nil {
			t.Errorf("rule %+v is accepted", r)
		}
	}
	if _, err := NewJWT(nil, nil, time.Now); err == nil {
		t.Error("no provider is accepted")
	}
}

type oneToken string

func (o oneToken) Check(_ context.Context, token string) (string, error) {
	if token != string(o) {
		return "", errors.New("the token is wrong")
	}
	return "admin", nil
}

func TestOtherModes(t *testing.T) {
	_, err := (DenyAll{}).Admit(t.Context(), Call{Bearer: "x"})
	if !errors.Is(err, ErrDenied) || !strings.Contains(err.Error(), "DenyAll authorization_mode is enabled") {
		t.Errorf("deny-all: %v", err)
	}
	if name, err := (InsecureAllowAll{}).Admit(t.Context(), Call{}); err != nil || !strings.Contains(name, "insecure") {
		t.Errorf("insecure-allow-all: %q, %v", name, err)
	}
	if _, err := (Bearer{oneToken("x")}).Admit(t.Context(), Call{Bearer: "y"}); !errors.Is(err, ErrDenied) {
		t.Errorf("bearer: %v", err)
	}
	if name, err := (Bearer{oneToken("x")}).Admit(t.Context(), Call{Bearer: "x"}); err != nil || name != "admin" {
		t.Errorf("bearer: %q, %v", name, err)
	}
}
