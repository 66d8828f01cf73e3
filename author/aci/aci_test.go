package aci

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fakeImages are images whose layers have made-up root hashes.
type fakeImages map[string]Image

func (f fakeImages) Image(_ context.Context, name string) (Image, error) {
	i, ok := f[name]
	if !ok {
		return Image{}, fmt.Errorf("there is no image %s", name)
	}
	return i, nil
}

func root(c string) string { return strings.Repeat(c, 64) }

var images = fakeImages{
	"registry.example/shop/web:2": {
		Entrypoint: []string{"/bin/web"}, Cmd: []string{"--listen", ":8080"}, Env: []string{"PATH=/bin", "MODE=debug", "TMP=/scratch"},
		User: "web", WorkingDir: "/srv", StopSignal: "SIGINT", Layers: []string{root("1"), root("2")},
	},
	"registry.example/shop/tools:1": {Entrypoint: []string{"/bin/sh"}, Layers: []string{root("1"), root("3")}},
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// golden compares with a file, or writes it when CLOISTER_UPDATE is set.
func golden(t *testing.T, name, got string) {
	t.Helper()
	if os.Getenv("CLOISTER_UPDATE") != "" {
		if err := os.WriteFile(filepath.Join("testdata", name), []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want := read(t, name); got != want {
		t.Errorf("%s differs from what is made now; CLOISTER_UPDATE=1 go test writes it anew\n%s", name, got)
	}
}

func TestTemplateToPolicy(t *testing.T) {
	text := read(t, "group.json")
	tmpl, err := ParseTemplate(text, TemplateOptions{Parameters: read(t, "group.parameters.json")})
	if err != nil {
		t.Fatal(err)
	}
	p, err := Generate(t.Context(), tmpl.Groups[0], images, Options{Fragments: []Fragment{Infrastructure(InfrastructureSVN)}})
	if err != nil {
		t.Fatal(err)
	}
	policy, err := p.Text()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "group.rego", policy)
	if err := tmpl.Insert(tmpl.Groups[0], Encode(policy)); err != nil {
		t.Fatal(err)
	}
	before, after, _ := strings.Cut(text, `"ccePolicy": ""`)
	if got, want := tmpl.Text(), before+`"ccePolicy": "`+base64.StdEncoding.EncodeToString([]byte(policy))+`"`+after; got != want {
		t.Errorf("the template is not what it was but for the policy:\n%s", got)
	}
	if want := []string{"the secure variable API_KEY can have any value: the policy does not bind it"}; fmt.Sprint(tmpl.Warnings) != fmt.Sprint(want) {
		t.Errorf("warnings: %q", tmpl.Warnings)
	}
}
