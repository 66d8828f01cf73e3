package kms

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/cloister/cloister/broker/cloud"
	"github.com/cloister/cloister/broker/cloud/amazon"
	"github.com/cloister/cloister/broker/cloud/cloudtest"
	"github.com/cloister/cloister/broker/cloud/google"
	"github.com/cloister/cloister/broker/cloud/microsoft"
	"github.com/cloister/cloister/broker/seal"
)

func awsConfig(t *testing.T) (Config, *cloudtest.AWS) {
	s := cloudtest.NewAWS(t, "kms")
	return Config{Provider: AWS, AWS: AWSConfig{KeyARN: cloudtest.KeyARN, Config: amazon.Config{Region: cloudtest.Region, Endpoint: s.URL,
		Credentials: amazon.FromFile, CredentialsFile: cloudtest.CredentialsFile(t), Bounds: cloud.Bounds{CACerts: []string{s.CA}}}}}, s
}

func azureConfig(t *testing.T) (Config, *cloudtest.Azure) {
	s := cloudtest.NewAzure(t)
	return Config{Provider: Azure, Azure: AzureConfig{Key: cloudtest.AzureKey, Config: microsoft.Config{
		VaultURL: s.URL, Audience: cloudtest.Audience,
		Credentials: microsoft.FromManaged, MetadataURL: s.Plain(t), Bounds: cloud.Bounds{CACerts: []string{s.CA}}}}}, s
}

func gcpConfig(t *testing.T) (Config, *cloudtest.Google) {
	s := cloudtest.NewGoogle(t)
	return Config{Provider: GCP, GCP: GCPConfig{Key: cloudtest.GCPKey, Config: google.Config{Endpoint: s.URL, Credentials: google.FromKey,
		KeyFile: s.KeyFile(t), Bounds: cloud.Bounds{CACerts: []string{s.CA}}}}}, s
}

// vault is a transit engine; deaf ones are of before there was associated_data.
func vault(t *testing.T, deaf bool) Config {
	key, err := seal.New(bytes.Repeat([]byte{9}, 32))
	if err != nil {
		t.Fatal(err)
	}
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var in struct {
			Plaintext, Ciphertext []byte
			Text                  string `json:"ciphertext"`
			AAD                   []byte `json:"associated_data"`
		}
		raw := json.NewDecoder(r.Body)
		var members map[string]json.RawMessage
		if r.Header.Get("X-Vault-Token") != "hvs.good" || raw.Decode(&members) != nil {
			w.WriteHeader(403)
			return
		}
		json.Unmarshal(members["plaintext"], &in.Plaintext)
		json.Unmarshal(members["ciphertext"], &in.Text)
		json.Unmarshal(members["associated_data"], &in.AAD)
		if deaf {
			in.AAD = nil
		}
		out := map[string]any{}
		switch r.URL.Path {
		case "/v1/transit/encrypt/storage":
			sealed, _ := key.Seal(string(in.AAD), in.Plaintext)
			b, _ := json.Marshal(sealed)
			out["ciphertext"] = "vault:v1:" + strings.Trim(string(b), `"`)
		case "/v1/transit/decrypt/storage":
			var sealed []byte
			json.Unmarshal([]byte(`"`+strings.TrimPrefix(in.Text, "vault:v1:")+`"`), &sealed)
			plain, err := key.Open(string(in.AAD), sealed)
			if err != nil {
				w.WriteHeader(400)
				return
			}
			out["plaintext"] = plain
		default:
			w.WriteHeader(404)
		}
		json.NewEncoder(w).Encode(map[string]any{"data": out})
	}))
	t.Cleanup(h.Close)
	return Config{Provider: Transit, Transit: TransitConfig{URL: h.URL, TokenFile: cloudtest.File(t, "token", "hvs.good\n"), Key: "storage"}}
}

func wrapper(t *testing.T, c Config) seal.Wrapper {
	t.Helper()
	w, err := Open(t.Context(), c, Outside{}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func all(t *testing.T) map[string]Config {
	a, _ := awsConfig(t)
	z, _ := azureConfig(t)
	g, _ := gcpConfig(t)
	return map[string]Config{AWS: a, Azure: z, GCP: g, Transit: vault(t, false),
		KeyFile: {Provider: KeyFile, KeyFile: KeyFileConfig{cloudtest.File(t, "kek", strings.Repeat("k", 32))}}}
}

func TestWrappers(t *testing.T) {
	for name, c := range all(t) {
		t.Run(name, func(t *testing.T) {
			w := wrapper(t, c)
			if !strings.HasPrefix(w.Name(), name+":") {
				t.Errorf("its name is %q", w.Name())
			}
			plain, bound := bytes.Repeat([]byte{3}, 64), []byte("context\x00one")
			wrapped, err := w.Wrap(t.Context(), plain, bound)
			if err != nil || bytes.Contains(wrapped, plain[:8]) {
				t.Fatalf("%x, %v", wrapped, err)
			}
			if got, err := w.Unwrap(t.Context(), wrapped, bound); err != nil || !bytes.Equal(got, plain) {
				t.Fatalf("%x, %v", got, err)
			}
			if got, err := w.Unwrap(t.Context(), wrapped, []byte("context\x00two")); err == nil {
				t.Errorf("unwraps for another context: %x", got)
			}
			for i := range wrapped {
				bad := bytes.Clone(wrapped)
				bad[i] ^= 1
				if got, err := w.Unwrap(t.Context(), bad, bound); err == nil && !bytes.Equal(got, plain) {
					t.Errorf("byte %d changed: %x", i, got)
				}
			}
			for _, bad := range [][]byte{nil, {0}, wrapped[:len(wrapped)/2], bytes.Repeat([]byte("x"), 10000)} {
				if got, err := w.Unwrap(t.Context(), bad, bound); err == nil {
					t.Errorf("%.20q is unwrapped: %x", bad, got)
				}
			}
		})
	}
}

// TestBrokersWithEveryService runs a whole life of storage keys on each.
func TestBrokersWithEveryService(t *testing.T) {
	configs := all(t)
	configs["deaf transit"] = vault(t, true)
	for name, c := range configs {
		t.Run(name, func(t *testing.T) {
			path := t.TempDir() + "/store.keys"
			src := seal.Source{Identity: "prod", Keep: seal.InFile(path, time.Now), Wrap: wrapper(t, c), Now: time.Now}
			first, err := seal.Open(t.Context(), src)
			if err != nil {
				t.Fatal(err)
			}
			sealed, err := first.Seal("here", []byte("secret"))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := first.Rotate(t.Context()); err != nil {
				t.Fatal(err)
			}
			if n, err := first.Rewrap(t.Context()); n != 2 || err != nil {
				t.Fatal(n, err)
			}
			src.Wrap = wrapper(t, c) // another process
			again, err := seal.Open(t.Context(), src)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := again.Open("here", sealed); err != nil || string(got) != "secret" {
				t.Errorf("%q, %v", got, err)
			}
			// The record of one broker in the place of another's, with the identity written over.
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, bytes.Replace(raw, []byte(`"identity": "prod"`), []byte(`"identity": "test"`), 1), 0o600); err != nil {
				t.Fatal(err)
			}
			src.Identity = "test"
			if _, err := seal.Open(t.Context(), src); err == nil || !strings.Contains(err.Error(), "another identity") {
				t.Errorf("keys of another broker: %v", err)
			}
		})
	}
}

// TestAzureForgery: who knows the public key can wrap a key of their own, but not sign it.
func TestAzureForgery(t *testing.T) {
	c, s := azureConfig(t)
	w := wrapper(t, c)
	bound := []byte("context")
	version, public := s.PublicKey()
	value, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, public, bytes.Repeat([]byte{6}, 64), nil)
	if err != nil {
		t.Fatal(err)
	}
	genuine, err := w.Wrap(t.Context(), bytes.Repeat([]byte{3}, 64), bound)
	if err != nil {
		t.Fatal(err)
	}
	var a azureWrapped
	if err := json.Unmarshal(genuine, &a); err != nil {
		t.Fatal(err)
	}
	forged, err := json.Marshal(azureWrapped{version, value, a.Signature})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := w.Unwrap(t.Context(), forged, bound); err == nil {
		t.Errorf("a key that somebody else wrapped is taken: %x", got)
	}
	s.RotateKey(t)
	if _, err := w.Unwrap(t.Context(), genuine, bound); err != nil {
		t.Errorf("after the key of the vault was rotated: %v", err)
	}
	renewed, err := w.Wrap(t.Context(), bytes.Repeat([]byte{3}, 64), bound)
	if next, _ := s.PublicKey(); err != nil || !bytes.Contains(renewed, []byte(next)) {
		t.Errorf("the new version is not used: %v", err)
	}
}

func TestOutages(t *testing.T) {
	c, s := awsConfig(t)
	w := wrapper(t, c)
	for _, code := range []string{"AccessDeniedException", "DisabledException", "KMSInvalidStateException", "NotFoundException"} {
		s.Set(func() {
			s.Hook = func(w http.ResponseWriter, _ *http.Request) bool {
				w.WriteHeader(400)
				w.Write([]byte(`{"__type":"` + code + `","message":"leak-777333"}`))
				return true
			}
		})
		_, err := w.Wrap(t.Context(), []byte("x"), nil)
		if err == nil || !strings.Contains(err.Error(), code) || strings.Contains(err.Error(), "777333") {
			t.Errorf("%s: %v", code, err)
		}
	}
	src := seal.Source{Identity: "prod", Keep: seal.InFile(t.TempDir()+"/k", time.Now), Wrap: w, Now: time.Now}
	if _, err := seal.Open(t.Context(), src); err == nil {
		t.Error("a broker starts without its key service")
	}
}

func TestConfig(t *testing.T) {
	text := `
provider = "aws-kms"
[aws_kms]
key_arn = "` + cloudtest.KeyARN + `"
region = "eu-central-1"
credentials = "instance"
timeout_ms = 5000
[azure_key_vault]
key = "k"
vault_url = "https://v.vault.azure.net"
[gcp_kms]
key = "k"
credentials = "metadata"
ca_certs = ["/ca.pem"]
[vault_transit]
vault_url = "https://v"
timeout_ms = 7
[key_file]
file = "/k"
`
	var c Config
	if err := toml.NewDecoder(strings.NewReader(text)).DisallowUnknownFields().Decode(&c); err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil || c.AWS.TimeoutMS != 5000 || c.AWS.Region != "eu-central-1" || c.GCP.CACerts[0] != "/ca.pem" ||
		c.Transit.TimeoutMS != 7 {
		t.Errorf("%+v, %v", c, err)
	}
	for name, change := range map[string]func(*Config){
		"provider": func(c *Config) { c.Provider = "" },
		"alias":    func(c *Config) { c.AWS.KeyARN = "alias/x" },
		"region":   func(c *Config) { c.AWS.Region = "eu-west-1" },
		"azure":    func(c *Config) { c.Provider = Azure },
		"gcp":      func(c *Config) { c.Provider = GCP },
		"transit":  func(c *Config) { c.Provider = Transit },
		"plain":    func(c *Config) { *c = vault(t, false); c.Transit.URL = "http://vault.example" },
		"file":     func(c *Config) { c.Provider, c.KeyFile.File = KeyFile, "k" },
	} {
		bad := c
		change(&bad)
		if bad.Validate() == nil {
			t.Errorf("%s is taken", name)
		}
	}
	if _, err := Open(t.Context(), Config{Provider: PKCS11}, Outside{}, time.Now); err == nil {
		t.Error("a token that is not there is opened")
	}
	mine, err := seal.KeyFile(cloudtest.File(t, "kek", strings.Repeat("k", 32)))
	if err != nil {
		t.Fatal(err)
	}
	outside := Outside{PKCS11: func(context.Context) (seal.Wrapper, error) { return mine, nil }}
	got, err := Open(t.Context(), Config{Provider: PKCS11}, outside, time.Now)
	if err != nil || got != mine {
		t.Errorf("%v, %v", got, err)
	}
}
