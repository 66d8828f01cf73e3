package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/internal/testregistry"
)

func TestPullPlain(t *testing.T) {
	for _, how := range []string{"", "gzip", "zstd"} {
		t.Run("compression="+how, func(t *testing.T) {
			reg := startRegistry(t, testregistry.Options{})
			ref := pushImage(t, reg, "team/app", "v1",
				ociLayer(t, how, directory("etc"), regular("etc/motd", "one")),
				ociLayer(t, how, regular("app", strings.Repeat("two", 100_000)), link("bin", "usr/bin", tar.TypeSymlink)))
			c, m := newClient(t, reg, Config{}, nil)
			bundle := bundleDir(t)
			digest, err := c.PullImage(testContext(t), ref, bundle)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasSuffix(ref, digest) {
				t.Errorf("digest %s, expected that of %s", digest, ref)
			}
			lower := m.mounts[filepath.Join(bundle, "rootfs")]
			if len(lower) != 2 {
				t.Fatalf("mounted %q", lower)
			}
			if got := mustRead(t, lower[1], "etc/motd"); got != "one" {
				t.Errorf("etc/motd is %q", got)
			}
			if got := mustRead(t, lower[0], "app"); len(got) != 300_000 {
				t.Errorf("app has %d bytes", len(got))
			}
			var spec struct {
				Process struct{ Args, Env []string }
			}
			if err := json.Unmarshal([]byte(mustRead(t, bundle, "config.json")), &spec); err != nil || !slices.Equal(spec.Process.Args, []string{"/app"}) {
				t.Errorf("config.json: %v %+v", err, spec)
			}
			if _, err := c.PullImage(testContext(t), ref, bundle); err == nil {
				t.Error("the same bundle was pulled twice")
			}
			if err := c.Release(bundle); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(filepath.Join(bundle, "config.json")); err == nil {
				t.Error("config.json is left")
			}
			wantNothingLeft(t, c, m)
			if err := c.Close(); err != nil {
				t.Error(err)
			}
			if left, _ := os.ReadDir(c.store.dir); len(left) != 0 {
				t.Errorf("layers left after Close: %v", left)
			}
		})
	}
}

func TestPullIndex(t *testing.T) {
	reg := startRegistry(t, testregistry.Options{})
	ref := pushImage(t, reg, "app", "amd64", ociLayer(t, "gzip", regular("a", "amd64")))
	amd64 := ref[strings.Index(ref, "@")+1:]
	data := fetchManifest(t, reg, "app", amd64)
	for _, mt := range []string{typeOCIIndex, typeDockerList} {
		ix := marshal(t, jsonMap{"schemaVersion": 2, "mediaType": mt, "manifests": []jsonMap{
			{"mediaType": typeOCIManifest, "digest": amd64, "size": 10, "platform": jsonMap{"os": "linux", "architecture": "s390x"}},
			{"mediaType": typeOCIManifest, "digest": amd64, "size": len(data), "platform": jsonMap{"os": "linux", "architecture": "amd64"}},
		}})
		put(t, reg, "/v2/app/manifests/"+sha256Digest(ix).String(), mt, ix)
		c, _ := newClient(t, reg, Config{}, nil)
		got, err := c.PullImage(testContext(t), reg.Addr()+"/app@"+sha256Digest(ix).String(), bundleDir(t))
		if err != nil {
			t.Fatal(err)
		}
		if got != amd64 {
			t.Errorf("digest is %s, expected the platform's manifest %s", got, amd64)
		}
		c.cfg.Architecture = "riscv64"
		_, err = c.PullImage(testContext(t), reg.Addr()+"/app@"+sha256Digest(ix).String(), bundleDir(t))
		wantError(t, err, "no variant for linux/riscv64", "linux/s390x")
	}
}

func fetchManifest(t *testing.T, reg *testregistry.Registry, repo, name string) []byte {
	t.Helper()
	ref := Reference{Registry: reg.Addr(), Repository: repo}
	data, _, _, err := newRegistry(http.DefaultTransport, ref, true, credential{}, discardLogger()).manifest(testContext(t), name, Digest{})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestLayersAreReusedAfterThePolicy(t *testing.T) {
	reg := startRegistry(t, testregistry.Options{})
	base := ociLayer(t, "gzip", regular("base", "x"))
	one := pushImage(t, reg, "one", "v1", base)
	two := pushImage(t, reg, "two", "v1", base, ociLayer(t, "gzip", regular("more", "y")))
	refused := pushImage(t, reg, "refused", "v1", base)
	policy := `{"default":[{"type":"insecureAcceptAnything"}],"transports":{"docker":{"` + reg.Addr() + `/refused":[{"type":"reject"}]}}}`
	c, m := newClient(t, reg, Config{SecurityPolicy: policy}, nil)
	b1, b2 := bundleDir(t), bundleDir(t)
	for ref, b := range map[string]string{one: b1, two: b2} {
		if _, err := c.PullImage(testContext(t), ref, b); err != nil {
			t.Fatal(err)
		}
	}
	blob := "GET /v2/one/blobs/" + sha256Digest(base.blob).String()
	other := "GET /v2/two/blobs/" + sha256Digest(base.blob).String()
	n := 0
	for _, r := range reg.Requests() {
		if r == blob || r == other {
			n++
		}
	}
	if n != 1 {
		t.Errorf("the shared layer was downloaded %d times", n)
	}
	_, err := c.PullImage(testContext(t), refused, bundleDir(t))
	wantError(t, err, "Denied by policy", "`reject`", "/refused")
	var pe *PolicyError
	if !errors.As(err, &pe) {
		t.Errorf("error is not a PolicyError: %v", err)
	}
	if err := errors.Join(c.Release(b1), c.Release(b2), c.Release(b2)); err != nil {
		t.Error(err)
	}
	wantNothingLeft(t, c, m)
}

func TestWithoutPolicyOnlyDigests(t *testing.T) {
	reg := startRegistry(t, testregistry.Options{})
	pushImage(t, reg, "app", "v1", ociLayer(t, "gzip", regular("a", "b")))
	c, m := newClient(t, reg, Config{}, nil)
	_, err := c.PullImage(testContext(t), reg.Addr()+"/app:v1", bundleDir(t))
	wantError(t, err, "no signature policy is configured", "pinned by digest")
	wantNothingLeft(t, c, m)
}

// TestHostileRegistry: whatever the registry does to an image pinned by digest, the pull fails with the reason and
// leaves nothing.
func TestHostileRegistry(t *testing.T) {
	flip := func(at int) func([]byte) []byte {
		return func(b []byte) []byte {
			b = bytes.Clone(b)
			if at < 0 {
				b[len(b)+at] ^= 1
			} else {
				b[at] ^= 1
			}
			return b
		}
	}
	good := func(t *testing.T, how string) testLayer {
		return ociLayer(t, how, regular("a", strings.Repeat("content ", 5000)), regular("b", "end"))
	}
	type attack struct {
		name  string
		layer func(t *testing.T) testLayer
		lie   func(reg *testregistry.Registry, l testLayer)
		want  []string
	}
	onBlob := func(change func([]byte) []byte) func(*testregistry.Registry, testLayer) {
		return func(reg *testregistry.Registry, l testLayer) { reg.Tamper(sha256Digest(l.blob).String(), change) }
	}
	var attacks []attack
	for _, how := range []string{"", "gzip", "zstd"} {
		plain := func(t *testing.T) testLayer { return good(t, how) }
		attacks = append(attacks,
			attack{"first byte of " + how, plain, onBlob(flip(0)), []string{"was changed", "expected sha256:"}},
			attack{"byte in the middle of " + how, plain, onBlob(flip(60)), []string{"was changed"}},
			attack{"last byte of " + how, plain, onBlob(flip(-1)), []string{"was changed"}},
			attack{"truncated " + how, plain, onBlob(func(b []byte) []byte { return b[:len(b)/2] }), []string{"expected"}},
			attack{"longer " + how, plain, onBlob(func(b []byte) []byte { return append(bytes.Clone(b), 0) }), []string{"expected"}},
			attack{"wrong diff_id " + how, func(t *testing.T) testLayer {
				l := good(t, how)
				l.diffID = "sha256:" + strings.Repeat("a", 64)
				return l
			}, nil, []string{"diff_id", "expected sha256:aaaa"}},
			attack{"wrong size in manifest " + how, func(t *testing.T) testLayer {
				l := good(t, how)
				l.size = int64(len(l.blob)) - 1
				return l
			}, nil, []string{"bytes, expected"}},
			attack{"garbage after the data " + how, func(t *testing.T) testLayer {
				l := good(t, how)
				l.blob = append(bytes.Clone(l.blob), "garbage"...)
				return l
			}, nil, []string{"layer 1"}},
			attack{"data ends early " + how, func(t *testing.T) testLayer {
				l := good(t, how)
				l.blob = l.blob[:len(l.blob)/2]
				return l
			}, nil, []string{"layer 1"}},
		)
	}
	for _, a := range attacks {
		t.Run(a.name, func(t *testing.T) {
			reg := startRegistry(t, testregistry.Options{})
			l := a.layer(t)
			ref := pushImage(t, reg, "app", "v1", l)
			if a.lie != nil {
				a.lie(reg, l)
			}
			c, m := newClient(t, reg, Config{}, nil)
			_, err := c.PullImage(testContext(t), ref, bundleDir(t))
			wantError(t, err, a.want...)
			wantNothingLeft(t, c, m)
		})
	}
}

func TestHostileManifest(t *testing.T) {
	layer := func(t *testing.T) testLayer { return ociLayer(t, "gzip", regular("a", "b")) }
	for _, tc := range []struct {
		name   string
		config jsonMap
		change func([]byte) []byte
		want   string
	}{
		{"other manifest for a digest", nil, func(b []byte) []byte { return append(b, '\n') }, "expected sha256:"},
		{"oversize", nil, func(b []byte) []byte { return make([]byte, maxManifestBytes+10) }, "longer than"},
		{"other OS", jsonMap{"os": "windows"}, nil, `image is for "windows"`},
		{"more diff_ids than layers", jsonMap{"rootfs": jsonMap{"type": "layers", "diff_ids": []string{}}}, nil, "1 layers but 0 diff_ids"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			reg := startRegistry(t, testregistry.Options{})
			ref := pushImageConfig(t, reg, "app", "v1", tc.config, layer(t))
			if tc.change != nil {
				reg.Tamper("/manifests/"+ref[strings.Index(ref, "@")+1:], tc.change)
			}
			c, m := newClient(t, reg, Config{}, nil)
			_, err := c.PullImage(testContext(t), ref, bundleDir(t))
			wantError(t, err, tc.want)
			wantNothingLeft(t, c, m)
		})
	}
	t.Run("unknown media type", func(t *testing.T) {
		reg := startRegistry(t, testregistry.Options{})
		l := layer(t)
		l.mediaType = "application/vnd.example.layer"
		c, _ := newClient(t, reg, Config{}, nil)
		_, err := c.PullImage(testContext(t), pushImage(t, reg, "app", "v1", l), bundleDir(t))
		wantError(t, err, `unhandled media type: "application/vnd.example.layer"`)
	})
}

func TestInterruptedDownloadContinues(t *testing.T) {
	reg := startRegistry(t, testregistry.Options{})
	l := ociLayer(t, "", regular("a", strings.Repeat("0123456789", 100_000)))
	ref := pushImage(t, reg, "app", "v1", l)
	var ranges []string
	reg.Handle(sha256Digest(l.blob).String(), func(w http.ResponseWriter, r *http.Request) {
		ranges = append(ranges, r.Header.Get("Range"))
		if len(ranges) > 1 {
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(l.blob))
			return
		}
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		conn.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: " + itoa(len(l.blob)) + "\r\n\r\n"))
		conn.Write(l.blob[:300_000])
	})
	c, _ := newClient(t, reg, Config{}, nil)
	if _, err := c.PullImage(testContext(t), ref, bundleDir(t)); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(ranges, []string{"", "bytes=300000-"}) {
		t.Errorf("ranges asked for: %q", ranges)
	}
}

func TestPullIsCancelled(t *testing.T) {
	reg := startRegistry(t, testregistry.Options{})
	l := ociLayer(t, "", regular("a", strings.Repeat("x", 1<<20)))
	ref := pushImage(t, reg, "app", "v1", l)
	ctx, cancel := contextWithCancel(t)
	reg.Handle(sha256Digest(l.blob).String(), func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", itoa(len(l.blob)))
		w.Write(l.blob[:1000])
		http.NewResponseController(w).Flush()
		cancel()
		<-r.Context().Done()
	})
	c, m := newClient(t, reg, Config{}, nil)
	_, err := c.PullImage(ctx, ref, bundleDir(t))
	wantError(t, err, "context canceled")
	wantNothingLeft(t, c, m)
}
