package aws

import (
	"errors"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/cloud"
	"github.com/cloister/cloister/broker/cloud/amazon"
	"github.com/cloister/cloister/broker/cloud/cloudtest"
	"github.com/cloister/cloister/broker/resource"
	"github.com/cloister/cloister/broker/resource/mapping"
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

func text(s string) cloudtest.AWSSecret { return cloudtest.AWSSecret{Text: &s} }

func config(t *testing.T, s *cloudtest.AWS) Config {
	return Config{Config: amazon.Config{Region: cloudtest.Region, Endpoint: s.URL, Credentials: amazon.FromFile,
		CredentialsFile: cloudtest.CredentialsFile(t), Bounds: cloud.Bounds{CACerts: []string{s.CA}, TimeoutMS: 5000}}}
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
	s := cloudtest.NewAWS(t, "secretsmanager")
	s.Secrets["r/t/text"] = text("hello")
	s.Secrets["r/t/empty"] = text("")
	s.Secrets["r/t/binary"] = cloudtest.AWSSecret{Binary: []byte{0, 255}}
	s.Denied["r/t/denied"] = true
	b := open(t, config(t, s))
	for name, want := range map[string]string{"r/t/text": "hello", "r/t/empty": "", "r/t/binary": "\x00\xff"} {
		if got, err := b.Get(t.Context(), path(t, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if _, err := b.Get(t.Context(), path(t, "r/t/missing")); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("missing: %v", err)
	}
	_, err := b.Get(t.Context(), path(t, "r/t/denied"))
	if err == nil || errors.Is(err, store.ErrNotFound) || !strings.Contains(err.Error(), "secretsmanager:GetSecretValue") ||
		strings.Contains(err.Error(), "777333") {
		t.Errorf("denied: %v", err)
	}
	if err := b.Put(t.Context(), path(t, "r/t/g"), nil); !errors.Is(err, resource.ErrReadOnly) {
		t.Errorf("put: %v", err)
	}
	if err := b.Delete(t.Context(), path(t, "r/t/g")); !errors.Is(err, resource.ErrReadOnly) {
		t.Errorf("delete: %v", err)
	}
}

func TestList(t *testing.T) {
	s := cloudtest.NewAWS(t, "secretsmanager")
	for _, name := range []string{"p/a/b/c", "p/a/b/d", "p/ab/b/c", "p/not-a-path", "other/a/b/c", "p/b/b/c"} {
		s.Secrets[name] = text("x")
	}
	c := config(t, s)
	c.Names = mapping.Config{NamePrefix: "p/"}
	b := open(t, c)
	list, err := b.List(t.Context(), "a", "", 0)
	if err != nil || len(list) != 2 || list[0].Path != "a/b/c" || list[1].Path != "a/b/d" {
		t.Errorf("%+v, %v", list, err)
	}
	if list, err := b.List(t.Context(), "", "a/b/c", 2); err != nil || len(list) != 2 || list[1].Path != "ab/b/c" {
		t.Errorf("%+v, %v", list, err)
	}
	if n, err := b.Count(t.Context()); n != 4 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}

func TestCredentials(t *testing.T) {
	s := cloudtest.NewAWS(t, "secretsmanager")
	s.Secrets["r/t/g"] = text("x")
	role := cloudtest.AWSKey{ID: "ASIATEMPORARY12345", Secret: "temp", Session: "session==", Expires: time.Now().Add(time.Hour)}
	s.Keys[role.ID] = role
	m := cloudtest.NewMetadata(t, role)
	web := cloudtest.AWSKey{ID: "ASIAWEBIDENTITY123", Secret: "web", Session: "web-session", Expires: time.Now().Add(time.Hour)}
	s.Temporary, s.WebToken = web, "web.token"
	for name, change := range map[string]func(*Config){
		"file": func(*Config) {},
		"web": func(c *Config) {
			c.Credentials, c.WebIdentityTokenFile = amazon.FromWebIdentity, cloudtest.File(t, "token", "web.token\n")
		},
		"container": func(c *Config) {
			c.Credentials, c.ContainerURL = amazon.FromContainer, m.URL+"/v1/credentials"
			c.ContainerTokenFile = cloudtest.File(t, "token", "container-token")
		},
		"instance": func(c *Config) { c.Credentials, c.MetadataURL = amazon.FromInstance, m.URL },
	} {
		c := config(t, s)
		c.RoleARN, c.STSEndpoint = cloudtest.Role, s.URL
		change(&c)
		b := open(t, c)
		for range 3 {
			if got, err := b.Get(t.Context(), path(t, "r/t/g")); err != nil || string(got) != "x" {
				t.Errorf("%s: %q, %v", name, got, err)
			}
		}
	}
	if n := len(m.Asked()); n != 4 { // three questions of the instance, one of the container
		t.Errorf("the metadata service was asked %d times: %v", n, m.Asked())
	}
	for name, change := range map[string]func(*Config){
		"wrong profile": func(c *Config) { c.Profile = "other" },
		"no profile":    func(c *Config) { c.Profile = "absent" },
		"wrong region":  func(c *Config) { c.Region = "us-east-1" },
		"bad web token": func(c *Config) {
			c.Credentials, c.WebIdentityTokenFile = amazon.FromWebIdentity, cloudtest.File(t, "token", "other-777333")
		},
		"metadata is down": func(c *Config) { c.Credentials, c.MetadataURL = amazon.FromInstance, "http://127.0.0.1:1" },
		"bad container":    func(c *Config) { c.Credentials, c.ContainerURL = amazon.FromContainer, m.URL+"/v1/credentials" },
	} {
		c := config(t, s)
		c.RoleARN, c.STSEndpoint = cloudtest.Role, s.URL
		change(&c)
		_, err := open(t, c).Get(t.Context(), path(t, "r/t/g"))
		if err == nil || errors.Is(err, store.ErrNotFound) || strings.Contains(err.Error(), "777333") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestExpiredCredentialsAreRenewed(t *testing.T) {
	s := cloudtest.NewAWS(t, "secretsmanager")
	s.Secrets["r/t/g"] = text("x")
	old := cloudtest.AWSKey{ID: "ASIATEMPORARY12345", Secret: "temp", Session: "one", Expires: time.Now().Add(time.Hour)}
	s.Keys[old.ID] = old
	m := cloudtest.NewMetadata(t, old)
	c := config(t, s)
	c.Credentials, c.MetadataURL = amazon.FromInstance, m.URL
	b := open(t, c)
	if _, err := b.Get(t.Context(), path(t, "r/t/g")); err != nil {
		t.Fatal(err)
	}
	fresh := cloudtest.AWSKey{ID: "ASIATEMPORARY99999", Secret: "temp2", Session: "two", Expires: time.Now().Add(time.Hour)}
	s.Set(func() {
		withdrawn := old
		withdrawn.Expires = time.Now().Add(-time.Minute)
		s.Keys = map[string]cloudtest.AWSKey{old.ID: withdrawn, fresh.ID: fresh}
	})
	m.Set(func() { m.Give = fresh })
	if _, err := b.Get(t.Context(), path(t, "r/t/g")); err != nil {
		t.Errorf("after they were withdrawn: %v", err)
	}
	s.Set(func() { s.Keys = nil })
	before := len(s.Asked())
	if _, err := b.Get(t.Context(), path(t, "r/t/g")); err == nil || len(s.Asked())-before != 2 {
		t.Errorf("a caller nobody knows: %v after %d tries", err, len(s.Asked())-before)
	}
}

func TestClockSkew(t *testing.T) {
	s := cloudtest.NewAWS(t, "secretsmanager")
	s.Secrets["r/t/g"] = text("x")
	s.Clock = func() time.Time { return time.Now().Add(3 * time.Hour) }
	b := open(t, config(t, s))
	for range 2 {
		if _, err := b.Get(t.Context(), path(t, "r/t/g")); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(s.Asked()); n != 3 {
		t.Errorf("%d requests, want one more than two", n)
	}
	s.Set(func() { s.Clock = func() time.Time { return time.Now().Add(90 * 24 * time.Hour) } })
	if _, err := b.Get(t.Context(), path(t, "r/t/g")); err == nil {
		t.Error("a service moves the clock by months")
	}
}

func TestHostileService(t *testing.T) {
	s := cloudtest.NewAWS(t, "secretsmanager")
	b := open(t, config(t, s))
	var n atomic.Int32
	for name, hook := range map[string]func(w http.ResponseWriter, r *http.Request) bool{
		"another secret": func(w http.ResponseWriter, _ *http.Request) bool {
			w.Write([]byte(`{"Name":"r/t/other","SecretString":"777333"}`))
			return true
		},
		"no value": func(w http.ResponseWriter, _ *http.Request) bool { w.Write([]byte(`{"Name":"r/t/g"}`)); return true },
		"no JSON":  func(w http.ResponseWriter, _ *http.Request) bool { w.Write([]byte(`777333`)); return true },
		"oversized": func(w http.ResponseWriter, _ *http.Request) bool {
			w.Write([]byte(strings.Repeat("777333", maxAnswer/5)))
			return true
		},
		"odd code": func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(400)
			w.Write([]byte(`{"__type":"x#777333 secret"}`))
			return true
		},
		"throttled for ever": func(w http.ResponseWriter, _ *http.Request) bool {
			n.Add(1)
			w.WriteHeader(400)
			w.Write([]byte(`{"__type":"ThrottlingException"}`))
			return true
		},
	} {
		s.Set(func() { s.Hook = hook })
		got, err := b.Get(t.Context(), path(t, "r/t/g"))
		if err == nil || errors.Is(err, store.ErrNotFound) || strings.Contains(err.Error(), "777333") {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if n.Load() != 4 {
		t.Errorf("%d tries when throttled", n.Load())
	}
}

func TestFilesAreReadAgain(t *testing.T) {
	s := cloudtest.NewAWS(t, "secretsmanager")
	s.Secrets["r/t/g"] = text("x")
	c := config(t, s)
	b := open(t, c)
	if _, err := b.Get(t.Context(), path(t, "r/t/g")); err != nil {
		t.Fatal(err)
	}
	s.Set(func() {
		s.Keys = map[string]cloudtest.AWSKey{"AKIARENEWED1234567": {ID: "AKIARENEWED1234567", Secret: "new"}}
	})
	renewed := "[default]\naws_access_key_id=AKIARENEWED1234567\naws_secret_access_key=new\n"
	if err := os.WriteFile(c.CredentialsFile, []byte(renewed), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Get(t.Context(), path(t, "r/t/g")); err != nil {
		t.Errorf("after the file was renewed: %v", err)
	}
	for _, bad := range []string{"", "[default]\naws_access_key_id=short\naws_secret_access_key=777333\n",
		strings.Repeat("x", cloud.MaxFile+1)} {
		if err := os.WriteFile(c.CredentialsFile, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := open(t, c).Get(t.Context(), path(t, "r/t/g")); err == nil || strings.Contains(err.Error(), "777333") {
			t.Errorf("%.20q: %v", bad, err)
		}
	}
}

func TestValidate(t *testing.T) {
	s := cloudtest.NewAWS(t, "secretsmanager")
	for name, change := range map[string]func(*Config){
		"region":    func(c *Config) { c.Region = "eu-central-1.evil.example/" },
		"plain":     func(c *Config) { c.Endpoint = "http://secrets.example" },
		"source":    func(c *Config) { c.Credentials = "" },
		"relative":  func(c *Config) { c.CredentialsFile = "credentials" },
		"role":      func(c *Config) { c.Credentials, c.RoleARN = amazon.FromWebIdentity, "broker" },
		"metadata":  func(c *Config) { c.Credentials, c.MetadataURL = amazon.FromInstance, "http://10.0.0.1" },
		"container": func(c *Config) { c.Credentials, c.ContainerURL = amazon.FromContainer, "http://agent.example/" },
		"timeout":   func(c *Config) { c.TimeoutMS = 100000 },
		"names":     func(c *Config) { c.Names.Mapping = "tag" },
	} {
		c := config(t, s)
		change(&c)
		if c.Validate() == nil {
			t.Errorf("%s: %+v is taken", name, c)
		}
	}
}
