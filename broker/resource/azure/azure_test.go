package azure

import (
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/cloud"
	"github.com/cloister/cloister/broker/cloud/cloudtest"
	"github.com/cloister/cloister/broker/cloud/microsoft"
	"github.com/cloister/cloister/broker/resource"
	"github.com/cloister/cloister/broker/store"
)

func path(t *testing.T, text string) resource.Path {
	t.Helper()
	p, err := resource.ParsePath(resource.SplitPath(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func config(t *testing.T, s *cloudtest.Azure) Config {
	return Config{Config: microsoft.Config{VaultURL: s.URL, Credentials: microsoft.FromSecret, TenantID: cloudtest.Tenant,
		ClientID: cloudtest.ClientID, ClientSecretFile: cloudtest.File(t, "secret", cloudtest.ClientSecret),
		Authority: s.URL, Audience: cloudtest.Audience,
		Bounds: cloud.Bounds{CACerts: []string{s.CA}, TimeoutMS: 5000}}}
}

func open(t *testing.T, c Config) *Backend {
	t.Helper()
	b, err := New(c, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.client.Close)
	return b
}

func TestGet(t *testing.T) {
	s := cloudtest.NewAzure(t)
	s.Secrets["r--t--text"] = cloudtest.AzureSecret{Value: "hello"}
	s.Secrets["r--t--binary"] = cloudtest.AzureSecret{Value: "AP8=", Type: "application/octet-stream; base64"}
	s.Secrets["r--t--bad"] = cloudtest.AzureSecret{Value: "777333!", Type: "application/octet-stream;base64"}
	s.Denied["r--t--denied"] = true
	b := open(t, config(t, s))
	for name, want := range map[string]string{"r/t/text": "hello", "r/t/binary": "\x00\xff"} {
		if got, err := b.Get(t.Context(), path(t, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	for _, name := range []string{"r/t/missing", "R/t/text", "r/t-/text"} {
		if _, err := b.Get(t.Context(), path(t, name)); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, want := range map[string]string{"r/t/denied": "Key Vault Secrets User", "r/t/bad": "base64"} {
		_, err := b.Get(t.Context(), path(t, name))
		if err == nil || errors.Is(err, store.ErrNotFound) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "777333") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if !errors.Is(b.Put(t.Context(), path(t, "r/t/g"), nil), resource.ErrReadOnly) ||
		!errors.Is(b.Delete(t.Context(), path(t, "r/t/g")), resource.ErrReadOnly) {
		t.Error("it writes")
	}
}

func TestTokens(t *testing.T) {
	s := cloudtest.NewAzure(t)
	s.Secrets["r--t--g"] = cloudtest.AzureSecret{Value: "x"}
	metadata := s.Plain(t)
	federated := func(key func() string) func(*Config) {
		return func(c *Config) {
			c.Credentials, c.FederatedTokenFile = microsoft.FromWorkload, cloudtest.File(t, "token", key())
		}
	}
	good := func() string { return cloudtest.JWT(t, s.Issuer, map[string]any{"aud": "api://AzureADTokenExchange"}) }
	for name, change := range map[string]func(*Config){
		"secret":   func(*Config) {},
		"workload": federated(good),
		"managed":  func(c *Config) { c.Credentials, c.MetadataURL = microsoft.FromManaged, metadata },
	} {
		c := config(t, s)
		change(&c)
		b := open(t, c)
		if _, err := b.Get(t.Context(), path(t, "r/t/g")); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		s.Revoke()
		if _, err := b.Get(t.Context(), path(t, "r/t/g")); err != nil {
			t.Errorf("%s, after the token was withdrawn: %v", name, err)
		}
	}
	for name, change := range map[string]func(*Config){
		"wrong secret": func(c *Config) { c.ClientSecretFile = cloudtest.File(t, "secret", "wrong-777333") },
		"wrong issuer": federated(func() string {
			return cloudtest.JWT(t, cloudtest.RSAKey(t), map[string]any{"aud": "api://AzureADTokenExchange"})
		}),
		"wrong audience":   federated(func() string { return cloudtest.JWT(t, s.Issuer, map[string]any{"aud": "other"}) }),
		"no metadata":      func(c *Config) { c.Credentials, c.MetadataURL = microsoft.FromManaged, "http://127.0.0.1:1" },
		"another audience": func(c *Config) { c.Audience = "https://management.azure.com" },
	} {
		c := config(t, s)
		change(&c)
		_, err := open(t, c).Get(t.Context(), path(t, "r/t/g"))
		if err == nil || errors.Is(err, store.ErrNotFound) || strings.Contains(err.Error(), "777333") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestList(t *testing.T) {
	s := cloudtest.NewAzure(t)
	for _, name := range []string{"a--b--c", "a--b--d", "ab--b--c", "not-mine", "-41--b--c"} {
		s.Secrets[name] = cloudtest.AzureSecret{Value: "x"}
	}
	b := open(t, config(t, s))
	if list, err := b.List(t.Context(), "a", "", 0); err != nil || len(list) != 2 || list[1].Path != "a/b/d" {
		t.Errorf("%+v, %v", list, err)
	}
	if n, err := b.Count(t.Context()); n != 4 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	var stolen atomic.Int32
	other := cloudtest.NewAzure(t)
	other.Hook = func(http.ResponseWriter, *http.Request) bool { stolen.Add(1); return true }
	for _, host := range []string{other.URL, "https://127.0.0.1.evil.example", strings.Replace(s.URL, "https://", "https://user@", 1),
		strings.Replace(s.URL, "https://", "http://", 1)} {
		s.Set(func() { s.NextHost = host })
		if _, err := b.Count(t.Context()); err == nil || !strings.Contains(err.Error(), "next page") {
			t.Errorf("a next page at %s: %v", host, err)
		}
	}
	if stolen.Load() > 0 {
		t.Error("the token went to another host")
	}
}

func TestHostileService(t *testing.T) {
	s := cloudtest.NewAzure(t)
	b := open(t, config(t, s))
	for name, body := range map[string]string{
		"another secret": `{"id":"` + s.URL + `/secrets/r--t--other/1","value":"777333"}`,
		"no id":          `{"value":"777333"}`,
		"no value":       `{"id":"` + s.URL + `/secrets/r--t--g/1"}`,
		"no JSON":        `777333`,
		"oversized":      strings.Repeat("777333", maxAnswer/5),
	} {
		s.Set(func() {
			s.Hook = func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasPrefix(r.URL.Path, "/secrets/") {
					return false
				}
				w.Write([]byte(body))
				return true
			}
		})
		_, err := b.Get(t.Context(), path(t, "r/t/g"))
		if err == nil || errors.Is(err, store.ErrNotFound) || strings.Contains(err.Error(), "777333") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestValidate(t *testing.T) {
	s := cloudtest.NewAzure(t)
	for name, change := range map[string]func(*Config){
		"plain":     func(c *Config) { c.VaultURL = "http://v.vault.azure.net" },
		"path":      func(c *Config) { c.VaultURL = "https://v.vault.azure.net/secrets" },
		"unknown":   func(c *Config) { c.VaultURL, c.Audience = "https://v.example", "" },
		"look-like": func(c *Config) { c.VaultURL, c.Audience = "https://vvault.azure.net", "" },
		"source":    func(c *Config) { c.Credentials = "" },
		"tenant":    func(c *Config) { c.TenantID = "../x" },
		"client":    func(c *Config) { c.ClientID = "me" },
		"authority": func(c *Config) { c.Authority = "http://login.example" },
		"metadata":  func(c *Config) { c.Credentials, c.MetadataURL = microsoft.FromManaged, "http://10.0.0.1" },
	} {
		c := config(t, s)
		change(&c)
		if c.Validate() == nil {
			t.Errorf("%s: %+v is taken", name, c)
		}
	}
	c := config(t, s)
	c.VaultURL, c.Audience = "https://Mine.Vault.Azure.Net", ""
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
}
