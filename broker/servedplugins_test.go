package broker

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"

	"github.com/cloister/cloister/broker/clientcert/certtest"
	"github.com/cloister/cloister/broker/config"
	"github.com/cloister/cloister/broker/pkcs11"
	"github.com/cloister/cloister/broker/plugin/external"
	"github.com/cloister/cloister/broker/plugin/nebulaca"
	pkcs11plugin "github.com/cloister/cloister/broker/plugin/pkcs11"
	"github.com/cloister/cloister/broker/plugin/provisioner"
	"github.com/cloister/cloister/broker/plugin/resources"
	"github.com/cloister/cloister/broker/plugin/sample"
	"github.com/cloister/cloister/test/softhsm"
	wire "github.com/cloister/cloister/wire/plugin"
)

// backend is an external plugin: what is below admin/ is for administrators, everything else for guests.
type backend struct {
	wire.UnimplementedKbsPluginServer
}

func (backend) ValidateAuth(_ context.Context, r *wire.ValidateAuthRequest) (*wire.ValidateAuthResponse, error) {
	path := r.GetPath()
	return &wire.ValidateAuthResponse{RequiresAdminAuth: len(path) > 0 && path[0] == "admin"}, nil
}

func (backend) NeedsEncryption(context.Context, *wire.NeedsEncryptionRequest) (*wire.NeedsEncryptionResponse, error) {
	return &wire.NeedsEncryptionResponse{RequiresPayloadEncryption: true}, nil
}

func (backend) Handle(_ context.Context, r *wire.PluginRequest) (*wire.PluginResponse, error) {
	if len(r.GetPath()) > 0 && r.GetPath()[0] == "broken" {
		return &wire.PluginResponse{StatusCode: 500, Body: []byte("inner words")}, nil
	}
	return &wire.PluginResponse{Body: []byte("external " + strings.Join(r.GetPath(), "/"))}, nil
}

func startBackend(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	wire.RegisterKbsPluginServer(srv, backend{})
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(srv.Stop)
	return "http://" + l.Addr().String()
}

// attested is a guest after its handshake.
func (s *served) attested() *guest {
	s.t.Helper()
	return s.guest().ready()
}

// wants fails the test unless a guest opens what begins so.
func (g *guest) wants(method, path, begin string) string {
	g.w.t.Helper()
	got, err := g.open(method, path, nil)
	if err != nil || !strings.HasPrefix(got, begin) {
		g.w.t.Errorf("%s %s: %.200q, %v, want %q", method, path, got, err, begin)
	}
	return got
}

// refused fails the test unless a request is answered so, with words.
func (g *guest) refused(method, path string, want int, says string) {
	g.w.t.Helper()
	if status, answer := g.do(method, "/kbs/v0/"+path, nil, nil); status != want || !strings.Contains(string(answer), says) {
		g.w.t.Errorf("%s %s: %d %.300s, want %d %q", method, path, status, answer, want, says)
	}
}

// TestPluginsOverHTTP: administrators and guests reach each plugin as it is meant, guests' answers are encrypted to them, and errors of a
// plugin do not get out.
func TestPluginsOverHTTP(t *testing.T) {
	s := newServed(t, func(dir string, c *config.Config) {
		c.Plugins.Sample = &sample.Config{}
		c.Plugins.NebulaCA = &nebulaca.Config{WorkDir: filepath.Join(dir, "nebula"), CA: nebulaca.CAConfig{Name: "test", IPs: "10.1.0.0/16"}}
		c.Plugins.Provisioner = &provisioner.Config{KeyLength: 40}
		c.Plugins.External = &external.Config{Backends: []external.Backend{{Name: "ext", Endpoint: startBackend(t)}}}
	})
	s.approve()
	bearer := "Authorization: Bearer " + s.token()
	g := s.attested()
	for path, want := range map[string]string{"sample/x": "sample plugin response", "external/ext/admin/a": "external admin/a"} {
		if code, body := s.do(s.http(), "GET", "/kbs/v0/"+path, "", bearer); code != 200 || body != want {
			t.Errorf("%s by the administrator: %d %q", path, code, body)
		}
		g.refused("GET", path, 401, "")
	}
	// The default resource policy is about resources: other plugins give nothing to guests until a policy says so.
	g.refused("GET", "external/ext/a", 401, "refused")
	s.must(s.admin.SetResourcePolicy(t.Context(), "package policy\nimport rego.v1\nallow if input.submods.cpu0[\"ear.status\"] == \"affirming\"\n"))
	g.wants("GET", "external/ext/a/b", "external a/b")
	g.refused("GET", "external/ext/broken", 401, "the plugin failed")
	if _, answer := g.do("GET", "/kbs/v0/external/ext/broken", nil, nil); bytes.Contains(answer, []byte("inner words")) {
		t.Errorf("a guest is told %s", answer)
	}
	g.refused("GET", "external/none/a", 404, "")
	g.refused("GET", "nothing/a", 404, "no plugin")
	for _, path := range []string{"external/ext/a", "nebula-ca/credential?name=n&ip=10.1.2.3/16", "provisioner/default/x/root"} {
		if code, body := s.do(s.http(), "GET", "/kbs/v0/"+path, "", bearer); code != 401 {
			t.Errorf("%s by the administrator: %d %.200s", path, code, body)
		}
	}
	credential := g.wants("GET", "nebula-ca/credential?name=node&ip=10.1.2.3/16", `{`)
	var parts map[string][]uint16
	if err := json.Unmarshal([]byte(credential), &parts); err != nil || len(parts["node_crt"]) == 0 || len(parts["node_key"]) == 0 {
		t.Errorf("the credential is %.200s, %v", credential, err)
	}
	g.refused("GET", "nebula-ca/credential?name=node&ip=192.168.1.1/16", 401, "")
	g.refused("GET", "nebula-ca/other", 401, "credential?name")

	code, body := s.do(s.http(), "POST", "/kbs/v0/provisioner/provision", `{"vm_name":"vm1"}`, bearer)
	if code != 200 || !strings.Contains(body, "default/") {
		t.Fatalf("provisioning: %d %s", code, body)
	}
	uuid := between(t, body, "default/", "/root")
	g.refused("POST", "provisioner/provision", 401, "")
	g.refused("GET", "provisioner/default/"+uuid+"/root", 401, "") // its init data names no machine
	// The machine that it was made for names it in its init data, and gets 40 letters.
	own := s.attested()
	own.init = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n\n[data]\n\"trustee.kbs.resource\" = \"kbs+provisioner:///default/" + uuid + "/root\"\n"
	own.tpm = bootedTPM(t, own.init)
	ak, err := own.tpm.AKPublic()
	s.must(err)
	s.must(s.admin.RegisterReferenceValues(t.Context(), map[string]any{
		"trusted_aks": []string{ak}, "tpm_init_data": []string{s.tpm.PCR(8), own.tpm.PCR(8)},
	}))
	own.cookie = nil
	if disk := own.ready().wants("GET", "provisioner/default/"+uuid+"/root", "version"); !regexp.MustCompile(`= "[A-Za-z0-9+/_-]{40}"`).MatchString(disk) {
		t.Errorf("there is no key of 40 letters among the %d bytes", len(disk))
	}
	own.refused("GET", "provisioner/default/00000000-0000-0000-0000-000000000000/root", 401, "")
	if code, body := s.do(s.http(), "DELETE", "/kbs/v0/provisioner/provision/"+uuid, "", bearer); code != 200 {
		t.Errorf("removing the machine: %d %s", code, body)
	}
	entries, err := s.admin.Audit(t.Context(), 0)
	s.must(err)
	found := map[string]bool{}
	for _, e := range entries {
		if e.Event == "plugin" {
			found[e.Decision+" "+strings.SplitN(e.Subject, "/", 2)[0]] = true
		}
	}
	for _, want := range []string{"deny sample", "allow external", "deny external", "allow nebula-ca", "allow provisioner", "deny provisioner"} {
		if !found[want] {
			t.Errorf("the audit log has no %q", want)
		}
	}
	st, err := s.admin.Status(t.Context())
	if err != nil || len(st.Plugins) < 5 {
		t.Errorf("plugins of the status: %+v, %v", st, err)
	}
}

// TestPKCS11OverHTTP keeps a secret in a token and wraps a key with it.
func TestPKCS11OverHTTP(t *testing.T) {
	h := softhsm.New(t)
	helper := softhsm.Helper(t)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	file := certtest.Write(t, filepath.Join(t.TempDir(), "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	h.Util(t, "--import", file, "--token", softhsm.Label, "--label", "wrapping", "--id", "a1", "--pin", softhsm.PIN)
	s := newServed(t, func(_ string, c *config.Config) {
		c.Plugins.PKCS11 = &pkcs11plugin.Config{LookupLabel: "wrapping", RSAMechanism: pkcs11.RSAPKCSTest, Config: pkcs11.Config{
			Module: softhsm.Module, TokenLabel: softhsm.Label, PINFile: h.PINFile, Helper: helper, Environment: []string{softhsm.Variable},
		}}
	})
	s.approve()
	s.must(s.admin.SetResourcePolicy(t.Context(), allowAll))
	g := s.attested()
	g.refused("GET", "pkcs11/resource/a/b/c", 404, "does not exist")
	if code, body := s.do(s.http(), "POST", "/kbs/v0/pkcs11/resource/a/b/c", "in the token", "Authorization: Bearer "+s.token()); code != 200 {
		t.Fatalf("writing: %d %s", code, body)
	}
	g.wants("GET", "pkcs11/resource/a/b/c", "in the token")
	g.refused("POST", "pkcs11/resource/a/b/c", 401, "")
	code, wrapped := s.do(s.http(), "POST", "/kbs/v0/pkcs11/wrap-key", "a key of a disk", "Authorization: Bearer "+s.token())
	if code != 200 || strings.Contains(wrapped, "a key of a disk") {
		t.Fatalf("wrapping: %d %q", code, wrapped)
	}
	if got, err := g.open("GET", "pkcs11/wrap-key", []byte(wrapped)); err != nil || got != "a key of a disk" {
		t.Errorf("unwrapping: %q, %v", got, err)
	}
}

// TestResourceVersions: versions over HTTP, rotation, quotas and pages of the list.
func TestResourceVersions(t *testing.T) {
	s := newServed(t, func(_ string, c *config.Config) {
		c.Resources.Embedded.OldVersions, c.Resources.Embedded.RepositoryBytes, c.Resources.Embedded.RepositoryResources = 2, 4096, 6
	})
	s.approve()
	bearer := "Authorization: Bearer " + s.token()
	write := func(path, body string) (*http.Response, string) {
		t.Helper()
		return s.send(s.http(), "POST", "/kbs/v0/resource/"+path, body, bearer)
	}
	for i := range 4 {
		res, body := write("default/key/v", fmt.Sprintf("value %d", i+1))
		if got := res.Header.Get("Cloister-Version"); res.StatusCode != 200 || got != fmt.Sprint(i+1) {
			t.Errorf("version %d: %d %q %s", i+1, res.StatusCode, got, body)
		}
	}
	g := s.attested()
	g.wants("GET", "resource/default/key/v", "value 4")
	g.wants("GET", "resource/default/key/v?version=2", "value 2")
	if g.last.Header.Get("Cloister-Version") != "2" {
		t.Errorf("the version is %q", g.last.Header.Get("Cloister-Version"))
	}
	g.refused("GET", "resource/default/key/v?version=1", 404, "does not exist") // no longer kept
	g.refused("GET", "resource/default/key/v?version=zero", 401, "want a number")
	versions := g.wants("GET", "resource/default/key/v?versions", "{")
	if !strings.Contains(versions, `"default/key/v"`) || strings.Contains(versions, "value") {
		t.Errorf("versions: %s", versions)
	}
	g.refused("POST", "resource/default/key/v?rotate", 401, "")
	res, body := write("default/key/v?rotate=32", "")
	if res.StatusCode != 200 || res.Header.Get("Cloister-Version") != "5" || res.Header.Get("Content-Type") != "application/json" {
		t.Errorf("rotation: %d %s %v", res.StatusCode, body, res.Header)
	}
	if got := g.wants("GET", "resource/default/key/v", ""); len(got) != 32 || got == "value 4" {
		t.Errorf("after the rotation there are %d bytes", len(got))
	}
	for path, want := range map[string]int{"default/key/v?rotate=0": 401, "default/key/none?rotate=32": 404, "default/key": 404, "default/key/v?rotate=32&x=1": 200} {
		if res, body := write(path, ""); res.StatusCode != want {
			t.Errorf("POST %s: %d %s, want %d", path, res.StatusCode, body, want)
		}
	}
	if res, body := write("default/key/large", strings.Repeat("x", 5000)); res.StatusCode != 401 || !strings.Contains(body, "repository") {
		t.Errorf("above the quota of bytes: %d %s", res.StatusCode, body)
	}
	for i := range 4 {
		if res, body := write(fmt.Sprintf("default/page/%d", i), "x"); res.StatusCode != 200 {
			t.Errorf("resource %d: %d %s", i, res.StatusCode, body)
		}
	}
	if res, body := write("default/page/9", "x"); res.StatusCode != 401 || !strings.Contains(body, "repository") {
		t.Errorf("above the quota of resources: %d %s", res.StatusCode, body)
	}
	var all []string
	for after, pages := "", 0; pages < 9; pages++ {
		code, body := s.do(s.http(), "GET", "/cloister/v1/resources?limit=2&prefix=default&after="+after, "", bearer)
		var page []struct{ Path string }
		if err := json.Unmarshal([]byte(body), &page); err != nil || code != 200 || len(page) > 2 {
			t.Fatalf("page: %d %s, %v", code, body, err)
		}
		if len(page) == 0 {
			break
		}
		for _, r := range page {
			all = append(all, r.Path)
		}
		after = page[len(page)-1].Path
	}
	if got := strings.Join(all, " "); got != "default/key/1 default/key/v default/page/0 default/page/1 default/page/2 default/page/3" {
		t.Errorf("the pages have %s", got)
	}
	for query, want := range map[string]int{"limit=0": 400, "limit=x": 400, "prefix=../x": 400} {
		if code, body := s.do(s.http(), "GET", "/cloister/v1/resources?"+query, "", bearer); code != want {
			t.Errorf("list with %s: %d %s, want %d", query, code, body, want)
		}
	}
}

// TestDirectoryBackend serves files of a folder that the broker does not write.
func TestDirectoryBackend(t *testing.T) {
	var folder string
	s := newServed(t, func(dir string, c *config.Config) {
		folder = filepath.Join(dir, "secrets")
		c.Resources.Backend, c.Resources.Directory.Dir = "directory", folder
		if err := os.MkdirAll(filepath.Join(folder, "default", "key"), 0o700); err != nil {
			t.Fatal(err)
		}
		certtest.Write(t, filepath.Join(folder, "default", "key", "1"), []byte(secretText))
	})
	s.must(s.admin.RegisterReferenceValues(t.Context(), approved(s.tpm)))
	s.wantSecret("from the folder")
	certtest.Write(t, filepath.Join(folder, "default", "key", "1"), []byte("another"))
	g := s.attested()
	g.wants("GET", "resource/default/key/1", "another")
	g.refused("GET", "resource/default/key/2", 404, "does not exist")
	g.wants("GET", "resource/default/key/1?version=1", "another")
	g.refused("GET", "resource/default/key/1?version=2", 404, "does not exist")
	if err := s.admin.PutResource(t.Context(), "default/key/2", []byte("x")); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("writing into the folder: %v", err)
	}
	if st, err := s.admin.Status(t.Context()); err != nil || st.Resources != -1 && st.Resources != 1 {
		t.Errorf("status: %+v, %v", st, err)
	}
	if code, body := s.do(s.http(), "GET", "/cloister/v1/resources", "", "Authorization: Bearer "+s.token()); code != 501 && code != 200 {
		t.Errorf("the list: %d %s", code, body)
	}
}

// kv1 is as much of a Vault as a broker needs: the KV engine version 1 at "kv1".
type kv1 struct {
	mu     sync.Mutex
	values map[string]json.RawMessage
	token  string
}

func (v *kv1) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v.mu.Lock()
	defer v.mu.Unlock()
	key, ok := strings.CutPrefix(r.URL.Path, "/v1/kv1/")
	switch {
	case r.Header.Get("X-Vault-Token") != v.token:
		w.WriteHeader(http.StatusForbidden)
	case r.URL.Path == "/v1/sys/internal/ui/mounts/kv1":
		fmt.Fprint(w, `{"data":{"type":"kv","options":{"version":"1"}}}`)
	case !ok:
		w.WriteHeader(http.StatusNotFound)
	case r.Method == http.MethodPost:
		var body json.RawMessage
		_ = json.NewDecoder(r.Body).Decode(&body)
		v.values[key] = body
		w.WriteHeader(http.StatusNoContent)
	case v.values[key] == nil:
		w.WriteHeader(http.StatusNotFound)
	default:
		fmt.Fprintf(w, `{"data":%s}`, v.values[key])
	}
}

// TestVaultBackend keeps secrets in a Vault, and tells an outage from a secret that does not exist.
func TestVaultBackend(t *testing.T) {
	v := &kv1{values: map[string]json.RawMessage{}, token: "hvs.the-token"}
	srv := httptest.NewServer(v)
	defer srv.Close()
	s := newServed(t, func(dir string, c *config.Config) {
		c.Resources.Backend = resources.Vault
		c.Resources.Vault.URL, c.Resources.Vault.MountPath = srv.URL, "kv1"
		c.Resources.Vault.TokenFile = certtest.Write(t, filepath.Join(dir, "vault-token"), []byte(v.token))
	})
	s.approve()
	s.wantSecret("from the vault")
	g := s.attested()
	g.refused("GET", "resource/default/key/2", 404, "does not exist")
	v.mu.Lock()
	v.token = "hvs.another"
	v.mu.Unlock()
	g.refused("GET", "resource/default/key/1", 401, "the plugin failed")
	if strings.Contains(s.log.String(), "hvs.the-token") {
		t.Error("the log has the vault's token")
	}
}
