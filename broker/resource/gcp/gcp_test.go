package gcp

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/cloud"
	"github.com/cloister/cloister/broker/cloud/cloudtest"
	"github.com/cloister/cloister/broker/cloud/google"
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

func config(t *testing.T, s *cloudtest.Google) Config {
	return Config{Project: cloudtest.Project, Config: google.Config{Endpoint: s.URL, Credentials: google.FromKey, KeyFile: s.KeyFile(t),
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
	s := cloudtest.NewGoogle(t)
	s.Secrets["r__t__g"] = [][]byte{[]byte("one"), nil, {0, 255}}
	s.Denied["r__t__denied"] = true
	b := open(t, config(t, s))
	if got, err := b.Get(t.Context(), path(t, "r/t/g")); err != nil || string(got) != "\x00\xff" {
		t.Errorf("%q, %v", got, err)
	}
	if got, v, err := b.GetVersion(t.Context(), path(t, "r/t/g"), 1); err != nil || string(got) != "one" || v.Number != 1 || v.Size != 3 {
		t.Errorf("%q, %+v, %v", got, v, err)
	}
	if _, _, err := b.GetVersion(t.Context(), path(t, "r/t/g"), 2); err == nil || errors.Is(err, store.ErrNotFound) {
		t.Errorf("a disabled version: %v", err)
	}
	if _, _, err := b.GetVersion(t.Context(), path(t, "r/t/g"), 4); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("an absent version: %v", err)
	}
	versions, err := b.Versions(t.Context(), path(t, "r/t/g"))
	if err != nil || len(versions) != 2 || versions[0].Number != 3 || versions[1].Number != 1 ||
		versions[0].Size != -1 || versions[0].Time.Month() != 11 {
		t.Errorf("%+v, %v", versions, err)
	}
	if _, err := b.Get(t.Context(), path(t, "r/t/missing")); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("missing: %v", err)
	}
	_, err = b.Get(t.Context(), path(t, "r/t/denied"))
	if err == nil || errors.Is(err, store.ErrNotFound) || !strings.Contains(err.Error(), "secretAccessor") ||
		strings.Contains(err.Error(), "777333") {
		t.Errorf("denied: %v", err)
	}
	s.Set(func() { s.BadChecksum = true })
	if _, err := b.Get(t.Context(), path(t, "r/t/g")); err == nil || !strings.Contains(err.Error(), "checksum") {
		t.Errorf("damaged: %v", err)
	}
	if !errors.Is(b.Put(t.Context(), path(t, "r/t/g"), nil), resource.ErrReadOnly) ||
		!errors.Is(b.Delete(t.Context(), path(t, "r/t/g")), resource.ErrReadOnly) {
		t.Error("it writes")
	}
}

func TestList(t *testing.T) {
	s := cloudtest.NewGoogle(t)
	for _, name := range []string{"a__b__c", "a__b__d", "ab__b__c", "not_mine", "A__b__c"} {
		s.Secrets[name] = [][]byte{{}}
	}
	b := open(t, config(t, s))
	if list, err := b.List(t.Context(), "a", "", 0); err != nil || len(list) != 2 || list[1].Path != "a/b/d" {
		t.Errorf("%+v, %v", list, err)
	}
	if n, err := b.Count(t.Context()); n != 4 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}

func TestTokens(t *testing.T) {
	s := cloudtest.NewGoogle(t)
	s.Secrets["r__t__g"] = [][]byte{[]byte("x")}
	metadata := s.Plain(t)
	workload := func(c *Config, token string) {
		c.Credentials, c.SubjectTokenFile, c.Audience = google.FromWorkload, cloudtest.File(t, "token", token), cloudtest.Provider
		c.ServiceAccount, c.STSEndpoint, c.IAMEndpoint = cloudtest.Account, s.URL, s.URL
	}
	subject := map[string]any{"sub": "system:serviceaccount:cloister:broker"}
	for name, change := range map[string]func(*Config){
		"key":      func(*Config) {},
		"workload": func(c *Config) { workload(c, cloudtest.JWT(t, s.Issuer, subject)) },
		"metadata": func(c *Config) { c.Credentials, c.MetadataURL = google.FromMetadata, metadata },
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
	other := cloudtest.NewGoogle(t)
	for name, change := range map[string]func(*Config){
		"key of another": func(c *Config) {
			mine := s.Key
			s.Key = other.Key
			c.KeyFile = s.KeyFile(t)
			s.Key = mine
		},
		"another issuer":  func(c *Config) { workload(c, cloudtest.JWT(t, other.Issuer, subject)) },
		"another subject": func(c *Config) { workload(c, cloudtest.JWT(t, s.Issuer, map[string]any{"sub": "777333"})) },
		"no metadata":     func(c *Config) { c.Credentials, c.MetadataURL = google.FromMetadata, "http://127.0.0.1:1" },
		"not JSON":        func(c *Config) { c.KeyFile = cloudtest.File(t, "key", "777333") },
		"plain token_uri": func(c *Config) {
			c.KeyFile = cloudtest.File(t, "key", `{"type":"service_account","client_email":"a@b",`+
				`"token_uri":"http://token.example","private_key":"777333"}`)
		},
	} {
		c := config(t, s)
		change(&c)
		_, err := open(t, c).Get(t.Context(), path(t, "r/t/g"))
		if err == nil || errors.Is(err, store.ErrNotFound) || strings.Contains(err.Error(), "777333") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestImpostor(t *testing.T) {
	s := cloudtest.NewGoogle(t)
	s.Hook = func(w http.ResponseWriter, _ *http.Request) bool {
		w.Write([]byte(`{"access_token":"t","expires_in":3600,"token_type":"Bearer"}`))
		return true
	}
	c := config(t, s)
	c.Credentials, c.MetadataURL = google.FromMetadata, s.Plain(t)
	if _, err := open(t, c).Get(t.Context(), path(t, "r/t/g")); err == nil || !strings.Contains(err.Error(), "not the metadata service") {
		t.Errorf("an impostor: %v", err)
	}
}

// TestClockSkew: a claim from the future is refused, and signed again by the clock of the service.
func TestClockSkew(t *testing.T) {
	s := cloudtest.NewGoogle(t)
	s.Secrets["r__t__g"] = [][]byte{[]byte("x")}
	s.Clock = func() time.Time { return time.Now().Add(-2 * time.Hour) }
	if _, err := open(t, config(t, s)).Get(t.Context(), path(t, "r/t/g")); err != nil {
		t.Error(err)
	}
}

func TestHostileService(t *testing.T) {
	s := cloudtest.NewGoogle(t)
	b := open(t, config(t, s))
	for name, body := range map[string]string{
		"another secret":  `{"name":"projects/1/secrets/r__t__other/versions/1","payload":{"data":"Nzc3MzMz"}}`,
		"another version": `{"name":"projects/1/secrets/r__t__g/versions/8","payload":{"data":"Nzc3MzMz"}}`,
		"no name":         `{"payload":{"data":"Nzc3MzMz"}}`,
		"no JSON":         `777333`,
		"oversized":       strings.Repeat("777333", maxAnswer/5),
	} {
		s.Set(func() {
			s.Hook = func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasPrefix(r.URL.Path, "/v1/projects/") {
					return false
				}
				w.Write([]byte(body))
				return true
			}
		})
		_, _, err := b.GetVersion(t.Context(), path(t, "r/t/g"), 7)
		if err == nil || errors.Is(err, store.ErrNotFound) || strings.Contains(err.Error(), "777333") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestValidate(t *testing.T) {
	s := cloudtest.NewGoogle(t)
	for name, change := range map[string]func(*Config){
		"plain":    func(c *Config) { c.Endpoint = "http://sm.example" },
		"project":  func(c *Config) { c.Project = "p/../q" },
		"location": func(c *Config) { c.Location = "evil.example/" },
		"source":   func(c *Config) { c.Credentials = "" },
		"relative": func(c *Config) { c.KeyFile = "key.json" },
		"pool":     func(c *Config) { c.Credentials, c.SubjectTokenFile = google.FromWorkload, "/token" },
		"metadata": func(c *Config) { c.Credentials, c.MetadataURL = google.FromMetadata, "http://10.0.0.1" },
	} {
		c := config(t, s)
		change(&c)
		if c.Validate() == nil {
			t.Errorf("%s: %+v is taken", name, c)
		}
	}
}
