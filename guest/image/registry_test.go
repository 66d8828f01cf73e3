package image

import (
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/cloister/cloister/internal/testregistry"
)

// loginRegistry returns a registry that asks for a login and an image at it; its content comes from an open registry.
func loginRegistry(t *testing.T, opts testregistry.Options) (*testregistry.Registry, string) {
	t.Helper()
	opts.Dir = t.TempDir()
	locked := startRegistry(t, opts)
	open := startRegistry(t, testregistry.Options{})
	l := ociLayer(t, "gzip", regular("a", "b"))
	ref := pushImage(t, open, "team/app", "v1", l)
	digest := ref[strings.Index(ref, "@")+1:]
	// The locked registry shows what the open one has.
	for _, path := range []string{"/manifests/" + digest, "/blobs/" + sha256Digest(l.blob).String()} {
		locked.Handle(path, proxyTo(t, open))
	}
	cfg := configDigest(t, open, digest)
	locked.Handle("/blobs/"+cfg, proxyTo(t, open))
	return locked, locked.Addr() + "/team/app@" + digest
}

func configDigest(t *testing.T, reg *testregistry.Registry, digest string) string {
	m, _, err := parseManifest(fetchManifest(t, reg, "team/app", digest), "")
	if err != nil {
		t.Fatal(err)
	}
	return m.Config.Digest.String()
}

func proxyTo(t *testing.T, reg *testregistry.Registry) http.HandlerFunc {
	return httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: reg.Addr()}).ServeHTTP
}

// TestSentToLoopback has a registry on plain HTTP, that is anybody on the way to it, send the guest to the guest's own
// REST API, whose answers hold secrets: with the rest of a broken download, and for a token.
func TestSentToLoopback(t *testing.T) {
	const secret = "s3cret-of-the-pod"
	asked := make(chan string, 16)
	hub := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.URL.Path
		_, _ = w.Write([]byte(`{"token":"` + secret + `"}`))
	}))
	t.Cleanup(hub.Close)
	reg := startRegistry(t, testregistry.Options{})
	l := ociLayer(t, "gzip", regular("a", "b"))
	ref := pushImage(t, reg, "team/app", "v1", l)
	leaked := make(chan string, 16)
	reg.Handle("/blobs/"+sha256Digest(l.blob).String(), func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Range") != "" {
			http.Redirect(w, r, hub.URL+"/cdh/resource/default/key/1", http.StatusTemporaryRedirect)
			return
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(l.blob)))
		_, _ = w.Write(l.blob[:1])
	})
	c, _ := newClient(t, reg, Config{}, nil)
	_, err := c.PullImage(testContext(t), ref, bundleDir(t))
	if err == nil || strings.Contains(err.Error(), secret) {
		t.Errorf("broken download: got %v, expected an error without the secret", err)
	}
	digest := ref[strings.Index(ref, "@")+1:]
	reg.Handle("/manifests/"+digest, func(w http.ResponseWriter, r *http.Request) {
		leaked <- r.Header.Get("Authorization")
		w.Header().Set("Www-Authenticate", `Bearer realm="`+hub.URL+`/aa/token?token_type=kbs"`)
		w.WriteHeader(http.StatusUnauthorized)
	})
	c, _ = newClient(t, reg, Config{}, nil)
	_, err = c.PullImage(testContext(t), ref, bundleDir(t))
	if err == nil || strings.Contains(err.Error(), secret) {
		t.Errorf("token: got %v, expected an error without the secret", err)
	}
	close(asked)
	for path := range asked {
		t.Errorf("the guest was made to ask its own service for %s", path)
	}
	close(leaked)
	for authorization := range leaked {
		if strings.Contains(authorization, secret) {
			t.Errorf("the registry was sent %q", authorization)
		}
	}
}

func authJSON(registry, user, password string) []byte {
	return []byte(`{"auths":{"other.example":{"identitytoken":"x"},"` + registry + `":{"auth":"` + base64.StdEncoding.EncodeToString([]byte(user+":"+password+"\n")) + `"}}}`)
}

func TestLogin(t *testing.T) {
	for _, basic := range []bool{false, true} {
		locked, ref := loginRegistry(t, testregistry.Options{User: "me", Password: "s3cret-password", Basic: basic, TLS: true})
		const uri = "kbs:///default/credential/registry"
		for _, tc := range []struct {
			name, auth string
			want       []string
		}{
			{"right", string(authJSON(locked.Addr(), "me", "s3cret-password")), nil},
			{"right, for the team", string(authJSON(locked.Addr()+"/team", "me", "s3cret-password")), nil},
			{"wrong password", string(authJSON(locked.Addr(), "me", "wrong-password")), []string{"401"}},
			{"for another registry", string(authJSON("other.example:5000", "me", "s3cret-password")), []string{"authenticating"}},
			{"none", "", []string{"authenticating"}},
		} {
			t.Run(tc.name, func(t *testing.T) {
				cfg := Config{RegistryConfig: &RegistryConfig{}, ExtraRoots: []string{string(locked.RootPEM())}}
				keys := &keyMap{keys: map[string][]byte{}}
				if tc.auth != "" {
					cfg.CredentialsURI, keys.keys[uri] = uri, []byte(tc.auth)
				}
				c, _ := newClient(t, locked, cfg, keys)
				_, err := c.PullImage(testContext(t), ref, bundleDir(t))
				if tc.want == nil {
					if err != nil {
						t.Fatal(err)
					}
					return
				}
				wantError(t, err, tc.want...)
				if strings.Contains(err.Error(), "password") && strings.Contains(err.Error(), "s3cret-password") {
					t.Errorf("the error holds the password: %v", err)
				}
			})
		}
	}
}

// TestNoLoginInTheClear keeps credentials from a registry on plain HTTP, whether it asks for them or not.
func TestNoLoginInTheClear(t *testing.T) {
	const uri = "kbs:///default/credential/registry"
	for _, basic := range []bool{false, true} {
		locked, ref := loginRegistry(t, testregistry.Options{User: "me", Password: "s3cret-password", Basic: basic})
		asked := false
		locked.Handle("/manifests/"+ref[strings.Index(ref, "@")+1:], func(http.ResponseWriter, *http.Request) { asked = true })
		keys := &keyMap{keys: map[string][]byte{uri: authJSON(locked.Addr(), "me", "s3cret-password")}}
		c, _ := newClient(t, locked, Config{CredentialsURI: uri}, keys)
		_, err := c.PullImage(testContext(t), ref, bundleDir(t))
		wantError(t, err, "credentials are configured for "+locked.Addr()+"/team/app", "plain HTTP")
		if asked {
			t.Error("the registry was asked for the image")
		}
		keys.keys[uri] = authJSON("other.example", "me", "s3cret-password")
		c, _ = newClient(t, locked, Config{CredentialsURI: uri}, keys)
		_, err = c.PullImage(testContext(t), ref, bundleDir(t))
		if err == nil || strings.Contains(err.Error(), "plain HTTP") {
			t.Errorf("credentials of another registry: got %v", err)
		}
	}
}

func TestTLS(t *testing.T) {
	reg := startRegistry(t, testregistry.Options{TLS: true})
	cfg := Config{RegistryConfig: &RegistryConfig{}}
	c, _ := newClient(t, reg, cfg, nil)
	digest := "sha256:" + strings.Repeat("0", 64)
	_, err := c.PullImage(testContext(t), reg.Addr()+"/app@"+digest, bundleDir(t))
	wantError(t, err, "certificate")
	cfg.ExtraRoots = []string{string(reg.RootPEM())}
	c, _ = newClient(t, reg, cfg, nil)
	_, err = c.PullImage(testContext(t), reg.Addr()+"/app@"+digest, bundleDir(t))
	wantError(t, err, "404")
	if _, err = New(Config{WorkDir: t.TempDir(), ExtraRoots: []string{"junk"}}, nil); err == nil {
		t.Error("junk accepted as a root certificate")
	}
	// Plain HTTP is not tried, nor followed to, unless configured.
	plain := startRegistry(t, testregistry.Options{})
	c, _ = newClient(t, plain, Config{RegistryConfig: &RegistryConfig{}}, nil)
	_, err = c.PullImage(testContext(t), plain.Addr()+"/app@"+digest, bundleDir(t))
	wantError(t, err, "HTTP response to HTTPS client")
	reg.Handle("/manifests/"+digest, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://"+plain.Addr()+r.URL.Path, http.StatusTemporaryRedirect)
	})
	c, _ = newClient(t, reg, cfg, nil)
	_, err = c.PullImage(testContext(t), reg.Addr()+"/app@"+digest, bundleDir(t))
	wantError(t, err, "redirected from https to http")
}

func TestMirrorsAndBlocking(t *testing.T) {
	reg := startRegistry(t, testregistry.Options{})
	ref := pushImage(t, reg, "mirrored/app", "v1", ociLayer(t, "gzip", regular("a", "b")))
	digest := ref[strings.Index(ref, "@"):]
	text := `
[[registry]]
prefix = "upstream.invalid"
location = "127.0.0.1:1"
[[registry.mirror]]
location = "` + reg.Addr() + `/nothing-here"
insecure = true
[[registry.mirror]]
location = "` + reg.Addr() + `/mirrored"
insecure = true
[[registry]]
prefix = "upstream.invalid/bad"
blocked = true
[[registry]]
location = "gone.example"
`
	parsed, err := parseRegistryConfig([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	c, _ := newClient(t, reg, Config{RegistryConfig: parsed}, nil)
	if _, err := c.PullImage(testContext(t), "upstream.invalid/app"+digest, bundleDir(t)); err != nil {
		t.Error(err)
	}
	_, err = c.PullImage(testContext(t), "upstream.invalid/bad/app"+digest, bundleDir(t))
	wantError(t, err, "blocked by registry rule")
	_, err = c.PullImage(testContext(t), "upstream.invalid/other"+digest, bundleDir(t))
	wantError(t, err, "all mirror, mapping and original locations", "nothing-here/other", "mirrored/other", "127.0.0.1:1/other")
	for text, want := range map[string]string{"[[registry]]\nprefix='a'\nfoo=1": "foo", "[[registry]]": "neither prefix nor location", "x": "registry configuration"} {
		_, err := parseRegistryConfig([]byte(text))
		wantError(t, err, want)
	}
}

func TestRegistryPrefixes(t *testing.T) {
	for _, tc := range []struct {
		ref, prefix string
		want        bool
	}{
		{"r.example/a:v1", "r.example", true},
		{"r.example/a:v1", "r.example/a", true},
		{"r.example/ab:v1", "r.example/a", false},
		{"r.example.com/a:v1", "r.example", false},
		{"r.example:5000/a:v1", "r.example", true},
		{"evil.example/r.example/a:v1", "r.example", false}, // upstream matches anywhere
		{"sub.r.example/a:v1", "*.r.example", true},
		{"r.example/a:v1", "*.r.example", false},
		{"evil.example/x.r.example:v1", "*.r.example", false},
	} {
		ref, err := ParseReference(tc.ref)
		if err != nil {
			t.Fatal(err)
		}
		if got := matchPrefix(ref.String(), tc.prefix) > 0; got != tc.want {
			t.Errorf("%s matches %s: %v", tc.ref, tc.prefix, got)
		}
	}
}

func TestProxyChoice(t *testing.T) {
	choose, err := ProxyConfig{HTTPS: "http://proxy.example:3128", NoProxy: "internal.example, 10.0.0.0/8,.corp, host:8443"}.chooser()
	if err != nil {
		t.Fatal(err)
	}
	for target, want := range map[string]bool{
		"https://r.example/":            true,
		"http://r.example/":             false, // no http_proxy
		"https://internal.example/":     false,
		"https://sub.internal.example/": false,
		"https://notinternal.example/":  true,
		"https://10.1.2.3/":             false,
		"https://11.1.2.3/":             true,
		"https://x.corp/":               false,
		"https://host:8443/":            false,
		"https://host:443/":             true,
	} {
		u, _ := url.Parse(target)
		got, err := choose(&http.Request{URL: u})
		if err != nil || (got != nil) != want {
			t.Errorf("%s: proxy %v, %v", target, got, err)
		}
	}
	// And a proxy is really used.
	reg := startRegistry(t, testregistry.Options{})
	ref := pushImage(t, reg, "app", "v1", ociLayer(t, "gzip", regular("a", "b")))
	used := 0
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		used++
		r.RequestURI = ""
		resp, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		w.WriteHeader(resp.StatusCode)
		data, _ := readAtMost(resp.Body, 1<<20)
		w.Write(data)
	}))
	defer proxy.Close()
	c, _ := newClient(t, reg, Config{Proxy: ProxyConfig{HTTP: proxy.URL}}, nil)
	if _, err := c.PullImage(testContext(t), ref, bundleDir(t)); err != nil || used != 3 {
		t.Errorf("%d requests through the proxy, %v", used, err)
	}
}

func TestCredentialLookup(t *testing.T) {
	entry := func(s string) string {
		return `{"auth":"` + base64.StdEncoding.EncodeToString([]byte(s)) + `"}`
	}
	creds, err := parseCredentials([]byte(`{"auths":{"https://index.docker.io/v1/":` + entry("hub:1") + `,"r.example/a/b":` + entry("ab:2") +
		`,"r.example":` + entry("r:3:with:colons") + `,"http://h.example":` + entry("h:4") + `,"s.example/secret":` + entry("s:5") + `}}`))
	if err != nil {
		t.Fatal(err)
	}
	for ref, want := range map[string]credential{
		"alpine": {"hub", "1"}, "r.example/a/b:v1": {"ab", "2"}, "r.example/a/b/c": {"ab", "2"}, "r.example/a": {"r", "3:with:colons"},
		"h.example/x": {"h", "4"}, "s.example/other": {}, "s.example/secret/x": {"s", "5"}, "none.example/x": {},
	} {
		parsed, err := ParseReference(ref)
		if err != nil {
			t.Fatal(err)
		}
		if got := creds.lookup(parsed); got != want {
			t.Errorf("%s: user %q", ref, got.user)
		}
	}
	for _, bad := range []string{"", "[]", `{"auths":{"a":{"auth":"%%%"}}}`, `{"auths":{"a":{"auth":"YQ=="}}}`} {
		if _, err := parseCredentials([]byte(bad)); err == nil {
			t.Errorf("%q accepted", bad)
		}
	}
}
