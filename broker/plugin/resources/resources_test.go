package resources

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/cloister/cloister/broker/cloud/cloudtest"
	"github.com/cloister/cloister/broker/plugin"
	"github.com/cloister/cloister/broker/resource"
	"github.com/cloister/cloister/broker/resource/directory"
	"github.com/cloister/cloister/broker/resource/vault"
	"github.com/cloister/cloister/broker/seal"
	"github.com/cloister/cloister/broker/store"
)

type access struct{ admins, guests int }

func (a *access) Admin(context.Context, *plugin.Request) error { a.admins++; return nil }
func (a *access) Guest(context.Context, *plugin.Request) (map[string]any, error) {
	a.guests++
	return nil, nil
}

func do(t *testing.T, p *Plugin, method, target, body string) (*plugin.Answer, *access, error) {
	t.Helper()
	path, query, _ := strings.Cut(target, "?")
	values, err := url.ParseQuery(query)
	if err != nil {
		t.Fatal(err)
	}
	r, err := plugin.NewRequest(method, path, values, []byte(body))
	if err != nil {
		return nil, &access{}, err
	}
	a := &access{}
	answer, err := plugin.Do(t.Context(), p, r, a)
	return answer, a, err
}

func embedded(t *testing.T) func(resource.Config) (*resource.Store, error) {
	t.Helper()
	db, err := store.Open(filepath.Join(t.TempDir(), "db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	key, err := seal.New(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return func(c resource.Config) (*resource.Store, error) { return resource.OpenStore(db, key, c, time.Now) }
}

func TestEmbedded(t *testing.T) {
	c := DefaultConfig()
	c.Embedded.RepositoryResources = 1
	b, err := Open(t.Context(), c, slog.New(slog.DiscardHandler), embedded(t))
	if err != nil {
		t.Fatal(err)
	}
	p := New(b)
	if _, _, err := do(t, p, "GET", "r/t/g", ""); !errors.Is(err, store.ErrNotFound) {
		t.Fatalf("missing: %v", err)
	}
	for i, secret := range []string{"one", "two"} {
		answer, a, err := do(t, p, "POST", "r/t/g", secret)
		if err != nil || !answer.Admin || answer.Encrypt || a.admins != 1 || a.guests != 0 || len(answer.Body) != 0 ||
			answer.Version != uint64(i+1) {
			t.Fatalf("%+v %+v, %v", answer, a, err)
		}
	}
	for target, want := range map[string]string{"r/t/g": "two", "r/t/g?version=1": "one", "r/t/g?version=2": "two", "r/t/g?other=x": "two"} {
		answer, a, err := do(t, p, "GET", target, "")
		if err != nil || string(answer.Body) != want || !answer.Encrypt || a.guests != 1 || a.admins != 0 {
			t.Errorf("%s: %+v %+v, %v", target, answer, a, err)
		}
	}
	answer, _, err := do(t, p, "GET", "r/t/g?versions", "")
	var info resource.Info
	if err != nil || !answer.Encrypt || json.Unmarshal(answer.Body, &info) != nil || info.Path != "r/t/g" || len(info.Versions) != 2 ||
		info.Versions[0].Number != 2 {
		t.Errorf("%s, %v", answer.Body, err)
	}
	answer, a, err := do(t, p, "POST", "r/t/g?rotate=24", "")
	var v resource.Version
	if err != nil || a.admins != 1 || json.Unmarshal(answer.Body, &v) != nil || v.Number != 3 || v.Size != 24 {
		t.Errorf("%+v, %v", answer, err)
	}
	if _, _, err := do(t, p, "POST", "r/t/h", "x"); !errors.Is(err, resource.ErrQuota) {
		t.Errorf("beyond the quota: %v", err)
	}
	if list, err := p.List(t.Context(), "r", "", 0); err != nil || len(list) != 1 || len(list[0].Versions) != 3 {
		t.Errorf("%+v, %v", list, err)
	}
	if n, err := p.Count(t.Context()); n != 1 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if _, a, err := do(t, p, "DELETE", "r/t/g", ""); err != nil || a.admins != 1 {
		t.Errorf("%+v, %v", a, err)
	}
	if _, _, err := do(t, p, "DELETE", "r/t/g", ""); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("deleting twice: %v", err)
	}
}

func TestBadRequestsAskNobody(t *testing.T) {
	b, err := Open(t.Context(), DefaultConfig(), slog.New(slog.DiscardHandler), embedded(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range [][2]string{
		{"PUT", "r/t/g"}, {"HEAD", "r/t/g"}, {"GET", "r/t"}, {"GET", "r/t/g/x"}, {"GET", "r/../g"}, {"GET", "r/t/.g"}, {"POST", "r//g"},
		{"DELETE", ""},
		{"GET", "r/t/g?version=0"}, {"GET", "r/t/g?version="}, {"GET", "r/t/g?version=-1"}, {"GET", "r/t/g?version=1&version=x"},
		{"GET", "r/t/g?version=99999999999999999999"}, {"GET", "r/t/" + strings.Repeat("a", 257)},
	} {
		_, a, err := do(t, New(b), r[0], r[1], "x")
		if !errors.Is(err, plugin.ErrRequest) && !errors.Is(err, resource.ErrPath) || a.admins+a.guests > 0 {
			t.Errorf("%s: %+v, %v", r, a, err)
		}
	}
	for _, r := range []string{"r/t/g?rotate=0", "r/t/g?rotate=x", "r/t/g?rotate=-5", "r/t/g?rotate=99999999", "r/t/g?rotate"} {
		if _, _, err := do(t, New(b), "POST", r, "body"); !errors.Is(err, plugin.ErrRequest) {
			t.Errorf("%s: %v", r, err)
		}
	}
	if _, _, err := do(t, New(b), "POST", "r/t/empty", ""); err != nil {
		t.Fatal(err)
	}
	if _, _, err := do(t, New(b), "POST", "r/t/empty?rotate", ""); !errors.Is(err, plugin.ErrRequest) || !strings.Contains(err.Error(), "size has to be given") {
		t.Errorf("rotating an empty secret: %v, want advice for the client", err)
	}
}

func TestDirectory(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "r/t"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "r/t/g"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := Open(t.Context(), Config{Backend: Directory, Directory: directory.Config{Dir: dir}}, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	p := New(b)
	if answer, _, err := do(t, p, "GET", "r/t/g?version=1", ""); err != nil || string(answer.Body) != "secret" {
		t.Errorf("%+v, %v", answer, err)
	}
	for _, r := range [][2]string{{"POST", "r/t/g"}, {"DELETE", "r/t/g"}} {
		if _, _, err := do(t, p, r[0], r[1], "x"); !errors.Is(err, resource.ErrReadOnly) {
			t.Errorf("%s: %v", r, err)
		}
	}
	if _, _, err := do(t, p, "POST", "r/t/g?rotate", ""); !Unsupported(err) {
		t.Errorf("rotate: %v", err)
	}
	if _, err := p.List(t.Context(), "", "", 0); !Unsupported(err) {
		t.Errorf("list: %v", err)
	}
	if _, err := p.Count(t.Context()); !Unsupported(err) {
		t.Errorf("count: %v", err)
	}
}

func TestVault(t *testing.T) {
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/secret/r/t/g" || r.Header.Get("X-Vault-Token") != "tok" {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		w.Write([]byte(`{"data":{"data":[115,33]}}`))
	}))
	defer h.Close()
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("tok"), 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := Open(t.Context(), Config{Backend: Vault, Vault: vault.Config{URL: h.URL, TokenFile: token}}, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	if answer, _, err := do(t, New(b), "GET", "r/t/g", ""); err != nil || string(answer.Body) != "s!" || !answer.Encrypt {
		t.Errorf("%+v, %v", answer, err)
	}
	if _, _, err := do(t, New(b), "GET", "r/t/other", ""); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("missing: %v", err)
	}
}

// plain is a back end without versions.
type plain struct{ Backend }

func (plain) Get(context.Context, resource.Path) ([]byte, error) { return []byte("p"), nil }

func TestBackendWithoutVersions(t *testing.T) {
	if answer, _, err := do(t, New(plain{}), "GET", "r/t/g", ""); err != nil || string(answer.Body) != "p" {
		t.Errorf("%+v, %v", answer, err)
	}
	for _, target := range []string{"r/t/g?version=1", "r/t/g?versions"} {
		if _, _, err := do(t, New(plain{}), "GET", target, ""); !Unsupported(err) {
			t.Errorf("%s: %v", target, err)
		}
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []Config{{}, {Backend: "aws"}, {Backend: Vault}, {Backend: Directory}, {Backend: Embedded,
		Embedded: resource.Config{OldVersions: -1}}} {
		if _, err := Open(t.Context(), c, slog.New(slog.DiscardHandler), embedded(t)); err == nil {
			t.Errorf("%+v is accepted", c)
		}
	}
}

// TestClouds opens each back end the way a configuration file names it, and reads a resource through the plugin.
func TestClouds(t *testing.T) {
	a, z, g := cloudtest.NewAWS(t, "secretsmanager"), cloudtest.NewAzure(t), cloudtest.NewGoogle(t)
	text := "s!"
	a.Secrets["prod/r/t/g"] = cloudtest.AWSSecret{Text: &text}
	z.Secrets["r--t--g"] = cloudtest.AzureSecret{Value: text}
	g.Secrets["r__t__g"] = [][]byte{[]byte("old"), []byte(text)}
	configs := map[string]string{
		AWS: fmt.Sprintf("[aws]\nregion=%q\nendpoint=%q\ncredentials=\"file\"\n"+
			"credentials_file=%q\nca_certs=[%q]\ntimeout_ms=5000\n[aws.names]\nname_prefix=\"prod/\"",
			cloudtest.Region, a.URL, cloudtest.CredentialsFile(t), a.CA),
		Azure: fmt.Sprintf("[azure]\nvault_url=%q\naudience=%q\ncredentials=\"managed-identity\"\nmetadata_url=%q\nca_certs=[%q]",
			z.URL, cloudtest.Audience, z.Plain(t), z.CA),
		GCP: fmt.Sprintf("[gcp]\nproject_id=%q\nendpoint=%q\ncredentials=\"metadata\"\nmetadata_url=%q\nca_certs=[%q]",
			cloudtest.Project, g.URL, g.Plain(t), g.CA),
	}
	for name, text := range configs {
		c := DefaultConfig()
		d := toml.NewDecoder(strings.NewReader(fmt.Sprintf("backend=%q\n%s", name, text))).DisallowUnknownFields()
		if err := d.Decode(&c); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		b, err := Open(t.Context(), c, slog.New(slog.DiscardHandler), nil)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		p := New(b)
		if answer, _, err := do(t, p, "GET", "r/t/g", ""); err != nil || string(answer.Body) != "s!" || !answer.Encrypt {
			t.Errorf("%s: %+v, %v", name, answer, err)
		}
		if _, _, err := do(t, p, "GET", "r/t/other", ""); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("%s: missing: %v", name, err)
		}
		if _, _, err := do(t, p, "POST", "r/t/g", "x"); !errors.Is(err, resource.ErrReadOnly) {
			t.Errorf("%s: writing: %v", name, err)
		}
		if list, err := p.List(t.Context(), "r", "", 0); err != nil || len(list) != 1 || list[0].Path != "r/t/g" {
			t.Errorf("%s: %+v, %v", name, list, err)
		}
		if n, err := p.Count(t.Context()); n != 1 || err != nil {
			t.Errorf("%s: %d, %v", name, n, err)
		}
		answer, _, err := do(t, p, "GET", "r/t/g?version=1", "")
		if name == GCP && (err != nil || string(answer.Body) != "old") || name != GCP && !Unsupported(err) {
			t.Errorf("%s: an older version: %+v, %v", name, answer, err)
		}
		if len(c.Insecure()) != 0 {
			t.Errorf("%s: insecure are %v", name, c.Insecure())
		}
	}
	bad := Config{Backend: AWS}
	bad.AWS.Names.Mapping, bad.AWS.Names.InsecureAnyPath = "tag", true
	if bad.Validate() == nil || len(bad.Insecure()) != 1 {
		t.Errorf("%v, %v", bad.Validate(), bad.Insecure())
	}
}
