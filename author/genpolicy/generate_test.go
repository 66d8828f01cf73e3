package genpolicy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister/cloister/author/imagesource"
	"github.com/cloister/cloister/author/kubernetes"
)

var update = flag.Bool("update", false, "write the golden files")

// fakeImages has images by reference; a reference that it does not know is a plain image.
type fakeImages map[string]*imagesource.Image

func (f fakeImages) Image(_ context.Context, ref string, _ imagesource.Need) (*imagesource.Image, error) {
	if img, ok := f[ref]; ok {
		return img, nil
	}
	if strings.Contains(ref, "missing") {
		return nil, errors.New("fetching it: there is no such image")
	}
	return &imagesource.Image{
		Reference: ref, Digest: "sha256:" + strings.Repeat("a", 64), Manifest: "sha256:" + strings.Repeat("b", 64),
		Config: imagesource.Config{Entrypoint: []string{"/bin/app"}, Env: []string{"PATH=/bin"}},
		Passwd: []byte("root:x:0:0:root:/root:/bin/sh\n"), Group: []byte("root:x:0:root\nwheel:x:10:root\n"),
		Layers: []imagesource.Layer{{Digest: "sha256:" + strings.Repeat("1", 64), Root: strings.Repeat("1", 64)}, {Digest: "sha256:" + strings.Repeat("2", 64), Root: strings.Repeat("2", 64)}},
	}, nil
}

var images = fakeImages{"registry.example/nginx:1.27": {
	Digest: "sha256:" + strings.Repeat("c", 64), Manifest: "sha256:" + strings.Repeat("d", 64),
	Config: imagesource.Config{
		Entrypoint: []string{"/docker-entrypoint.sh"}, Cmd: []string{"nginx", "-g", "daemon off;"}, Env: []string{"PATH=/usr/bin", "NGINX_VERSION=1.27"},
		StopSignal: "SIGQUIT", Volumes: []string{"/var/log/nginx"}, WorkingDir: "/srv",
	},
	Passwd: []byte("root:x:0:0:root:/root:/bin/sh\nnginx:x:101:102:nginx:/:/bin/false\n"), Group: []byte("nginx:x:102:\nlog:x:55:nginx,root\n"),
	Layers: []imagesource.Layer{{Digest: "sha256:" + strings.Repeat("3", 64), Root: strings.Repeat("3", 64)}},
}}

func settings(t testing.TB) *Settings {
	t.Helper()
	s, err := DefaultSettings()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func generate(t testing.TB, text string, o Options) (*Result, error) {
	t.Helper()
	set, err := kubernetes.Parse([]kubernetes.Input{{Name: "pod.yaml", Data: []byte(text)}}, nil, kubernetes.Options{})
	if err != nil {
		return nil, err
	}
	if len(set.Workloads) != 1 {
		t.Fatalf("%d workloads", len(set.Workloads))
	}
	if o.Settings == nil {
		o.Settings = settings(t)
	}
	if o.Images == nil {
		o.Images = images
	}
	o.Rules = "package agent_policy\n"
	return Generate(t.Context(), set, set.Workloads[0], o)
}

// dataOf is the policy_data of a policy.
func dataOf(t testing.TB, policy string) policyData {
	t.Helper()
	_, text, ok := strings.Cut(policy, "\npolicy_data := ")
	if !ok {
		t.Fatal("no policy_data")
	}
	var d policyData
	if err := json.Unmarshal([]byte(text), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs; run with -update and look at the change", name)
	}
}

func TestGolden(t *testing.T) {
	text, err := os.ReadFile("testdata/web.yaml")
	if err != nil {
		t.Fatal(err)
	}
	r, err := generate(t, string(text), Options{})
	if err != nil {
		t.Fatal(err)
	}
	data := dataOf(t, r.Policy)
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", " ")
	for _, c := range data.Containers {
		if err := enc.Encode(c); err != nil {
			t.Fatal(err)
		}
	}
	golden(t, "web.golden", out.Bytes())
	again, err := generate(t, string(text), Options{})
	if err != nil || again.Policy != r.Policy {
		t.Errorf("the same input gives another policy: %v", err)
	}
	if !r.Secrets || len(r.Pins) != 3 {
		t.Errorf("Secrets %v, pins %v", r.Secrets, r.Pins)
	}
}
