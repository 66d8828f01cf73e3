package manifest

import (
	"io"
	"log"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// served is a registry with one image under two architectures as an index.
func served(t *testing.T) (host string, index, single v1.Hash) {
	t.Helper()
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(srv.Close)
	host = strings.TrimPrefix(srv.URL, "http://")
	image := func(arch, cmd string) v1.Image {
		img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{
			OS: "linux", Architecture: arch,
			Config: v1.Config{Entrypoint: []string{"/bin/app"}, Cmd: []string{cmd}, Env: []string{"A=b"}, User: "7", WorkingDir: "/w", StopSignal: "SIGQUIT"},
		})
		if err != nil {
			t.Fatal(err)
		}
		return img
	}
	amd, arm := image("amd64", "amd"), image("arm64", "arm")
	idx := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: arm, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}}},
		mutate.IndexAddendum{Add: amd, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}})
	push := func(tag string, write func(name.Reference) error) {
		ref, err := name.ParseReference(host + "/team/app:" + tag)
		if err != nil {
			t.Fatal(err)
		}
		if err := write(ref); err != nil {
			t.Fatal(err)
		}
	}
	push("multi", func(r name.Reference) error { return remote.WriteIndex(r, idx) })
	push("arm", func(r name.Reference) error { return remote.Write(r, arm) })
	push("one", func(r name.Reference) error { return remote.Write(r, amd) })
	index, err := idx.Digest()
	if err != nil {
		t.Fatal(err)
	}
	single, err = amd.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return host, index, single
}

func TestRegistryResolver(t *testing.T) {
	host, index, single := served(t)
	r := &RegistryResolver{InsecureHosts: []string{host}, GuestHosts: map[string]string{host: "10.0.2.2:5000"}}
	for ref, digest := range map[string]string{
		"multi":                 index.String(),
		"one":                   single.String(),
		"one@" + index.String(): index.String(),
	} {
		img, err := r.Resolve(t.Context(), host+"/team/app:"+ref)
		if err != nil {
			t.Fatal(err)
		}
		if want := "10.0.2.2:5000/team/app@" + digest; img.Ref != want {
			t.Errorf("%s: %s, expected %s", ref, img.Ref, want)
		}
		if c := img.Config; c.Cmd[0] != "amd" || c.User != "7" || c.WorkingDir != "/w" || c.Env[0] != "A=b" || c.StopSignal != "SIGQUIT" {
			t.Errorf("%s: configuration %+v", ref, c)
		}
	}
	for ref, want := range map[string]string{
		host + "/team/app:arm":    "for arm64, expected amd64",
		host + "/team/app:absent": "resolving image",
		"UPPER/case:x y":          "image reference",
	} {
		if _, err := r.Resolve(t.Context(), ref); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, expected %q", ref, err, want)
		}
	}
	if _, err := (&RegistryResolver{}).Resolve(t.Context(), host+"/team/app:one"); err == nil || !strings.Contains(err.Error(), "plain HTTP") {
		t.Errorf("plain HTTP without leave: %v", err)
	}
}
