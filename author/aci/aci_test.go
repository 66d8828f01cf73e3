package aci

import (
	"context"
	"encoding/base64"
	"errors"
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

func TestInsert(t *testing.T) {
	const head, tail = `{"resources": [{"type": "Microsoft.ContainerInstance/containerGroups", "name": "g", "properties": `, `}]}`
	const containers = `"containers": [{"name": "c", "properties": {"image": "i"}}]`
	for name, tc := range map[string]struct{ in, want string }{
		"replaced":      {`{"confidentialComputeProperties": {"ccePolicy": "old" }, ` + containers + `}`, `{"confidentialComputeProperties": {"ccePolicy": "NEW" }, ` + containers + `}`},
		"null":          {`{"confidentialComputeProperties": {"ccePolicy": null}, ` + containers + `}`, `{"confidentialComputeProperties": {"ccePolicy": "NEW"}, ` + containers + `}`},
		"an expression": {`{"confidentialComputeProperties": {"CCEPolicy": "[parameters('p')]"}, ` + containers + `}`, `{"confidentialComputeProperties": {"CCEPolicy": "NEW"}, ` + containers + `}`},
		"empty object":  {`{"confidentialComputeProperties": {}, ` + containers + `}`, `{"confidentialComputeProperties": {"ccePolicy": "NEW"}, ` + containers + `}`},
		"other members": {`{"confidentialComputeProperties": {"x": 1}, ` + containers + `}`, `{"confidentialComputeProperties": {"ccePolicy": "NEW", "x": 1}, ` + containers + `}`},
		"no object":     {`{"confidentialComputeProperties": null, ` + containers + `}`, `{"confidentialComputeProperties": {"ccePolicy": "NEW"}, ` + containers + `}`},
		"absent":        {`{` + containers + `}`, `{"confidentialComputeProperties": {"ccePolicy": "NEW"}, ` + containers + `}`},
		"absent, lines": {"{\r\n\t\t" + containers + "\r\n\t}", "{\r\n\t\t\"confidentialComputeProperties\": {\r\n\t\t\t\t\"ccePolicy\": \"NEW\"\r\n\t\t},\r\n\t\t" + containers + "\r\n\t}"},
		"empty, lines":  {"{\n  \"confidentialComputeProperties\": {\n  },\n  " + containers + "}", "{\n  \"confidentialComputeProperties\": {\n    \"ccePolicy\": \"NEW\"\n  },\n  " + containers + "}"},
	} {
		tmpl, err := ParseTemplate(head+tc.in+tail, TemplateOptions{})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := tmpl.Insert(tmpl.Groups[0], "NEW"); err != nil {
			t.Fatal(err)
		}
		if got := strings.TrimSuffix(strings.TrimPrefix(tmpl.Text(), head), tail); got != tc.want {
			t.Errorf("%s:\n%q, want\n%q", name, got, tc.want)
		}
	}
}

// TestTemplateFaults lists all faults of a template at once.
func TestTemplateFaults(t *testing.T) {
	_, err := ParseTemplate(read(t, "faults.json"), TemplateOptions{})
	if err == nil {
		t.Fatal("no fault is found")
	}
	golden(t, "faults.txt", err.Error()+"\n")
}

func TestGroupForms(t *testing.T) {
	text := `{
		"languageVersion": "2.0",
		"parameters": {"off": {"defaultValue": false}, "open": {"type": "string"}, "all": {"defaultValue": [{"name": "c", "properties": {"image": "registry.example/shop/tools:1", "command": ["/x", "[[notanexpression]"]}}]}},
		"resources": {
			"one": {"type": "Microsoft.ContainerInstance/containerGroups", "name": "one", "properties": {"sku": "Standard", "containers": "[parameters('all')]"}},
			"two": {"type": "Microsoft.ContainerInstance/containerGroups", "condition": "[parameters('off')]", "name": "two", "properties": {}},
			"three": {"type": "microsoft.containerinstance/containergroupprofiles", "name": "three", "properties": {"containers": [{"name": "c", "properties": {
				"image": "registry.example/shop/tools:1", "command": ["/x"], "securityContext": {"privileged": "true", "seccompProfile": "eyJkZWZhdWx0QWN0aW9uIjoiU0NNUF9BQ1RfQUxMT1ciLCJjb21tZW50IjoieCJ9"},
				"environmentVariables": [{"name": "URL", "value": "[concat('http://', parameters('open'), '/$')]"}]}}]}}
		}
	}`
	tmpl, err := ParseTemplate(text, TemplateOptions{AllowOpen: true})
	if err != nil {
		t.Fatal(err)
	}
	if len(tmpl.Groups) != 2 || tmpl.Groups[0].Name != "one" || tmpl.Groups[1].Name != "three" {
		t.Fatalf("groups %+v", tmpl.Groups)
	}
	if got := tmpl.Groups[0].Containers[0].Entrypoint; len(got) != 2 || got[1] != "[notanexpression]" {
		t.Errorf("command %q", got)
	}
	p, err := Generate(t.Context(), tmpl.Groups[1], images, Options{DenyStdio: true, InsecureDebug: true})
	if err != nil {
		t.Fatal(err)
	}
	policy, err := p.Text()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "profile.rego", policy)
	golden(t, "profile.warnings", strings.Join(tmpl.Warnings, "\n")+"\n")
}

func TestGenerateFaults(t *testing.T) {
	ok := Container{Name: "c", Image: "registry.example/shop/web:2"}
	for name, tc := range map[string]struct {
		change func(c *Container)
		image  Image
		fault  string
	}{
		"no image":          {func(c *Container) { c.Image = "nowhere" }, Image{}, "there is no image"},
		"capability":        {func(c *Container) { c.Security.CapAdd = []string{"NET_NOTHING"} }, Image{}, "no capability"},
		"dropped":           {func(c *Container) { c.Security.CapDrop = []string{"x"} }, Image{}, "no capability"},
		"no command":        {func(c *Container) { c.Image = "bare" }, Image{Layers: []string{root("1")}}, "names a command"},
		"no layers":         {func(c *Container) { c.Image = "bare" }, Image{Cmd: []string{"/x"}}, "no layers"},
		"stop signal":       {func(c *Container) { c.Image = "bare" }, Image{Cmd: []string{"/x"}, Layers: []string{root("1")}, StopSignal: "SIGNOTHING"}, "stop signal"},
		"user":              {func(c *Container) { c.Image = "bare" }, Image{Cmd: []string{"/x"}, Layers: []string{root("1")}, User: "a:b:c"}, "more than one colon"},
		"variable":          {func(c *Container) { c.Image = "bare" }, Image{Cmd: []string{"/x"}, Layers: []string{root("1")}, Env: []string{"X"}}, "has no value"},
		"pattern of a rule": {func(c *Container) { c.Env = []Variable{{"X", "(", true}} }, Image{}, "missing closing"},
	} {
		c := ok
		tc.change(&c)
		all := fakeImages{"bare": tc.image}
		for k, v := range images {
			all[k] = v
		}
		if _, err := Generate(t.Context(), &Group{Name: "g", Containers: []Container{c}}, all, Options{}); err == nil || !strings.Contains(err.Error(), tc.fault) {
			t.Errorf("%s: %v, want %q", name, err, tc.fault)
		}
	}
}

func TestSignals(t *testing.T) {
	for in, want := range map[string]string{"": "[9 15]", "SIGQUIT": "[9 15 3]", "term": "[9 15]", "37": "[9 15 37]", "SIGRTMIN+3": "[9 15 37]"} {
		if got, err := stopSignals(in); err != nil || fmt.Sprint(got) != want {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
}

func TestCapabilities(t *testing.T) {
	for _, tc := range []struct {
		s    Security
		want string
	}{
		{Security{CapDrop: []string{"ALL"}}, "[]"},
		{Security{CapDrop: []string{"all"}, CapAdd: []string{"net_raw", "CAP_KILL"}}, "[CAP_KILL CAP_NET_RAW]"},
		{Security{CapDrop: []string{"ALL", "KILL"}, CapAdd: []string{"KILL"}}, "[]"},
	} {
		c, err := tc.s.capabilities()
		if err != nil || fmt.Sprint(c.Bounding) != tc.want || len(c.Ambient) != 0 || len(c.Inheritable) != 0 {
			t.Errorf("%+v: %+v, %v", tc.s, c, err)
		}
	}
	if c, err := (Security{Privileged: true}).capabilities(); err != nil || len(c.Inheritable) != 41 {
		t.Errorf("privileged: %d, %v", len(c.Inheritable), err)
	}
}

func TestReadFragments(t *testing.T) {
	iss := Infrastructure(1).Issuer
	good := `{"fragments": [{"issuer": "` + iss + `", "feed": "f", "minimum_svn": "2", "includes": ["containers"]}]}`
	if f, err := ReadFragments([]byte(good)); err != nil || len(f) != 1 || f[0].MinimumSVN != "2" {
		t.Errorf("%v, %v", f, err)
	}
	for _, change := range [][2]string{{iss, "Contoso"}, {`"f"`, `""`}, {`"2"`, `"two"`}, {`"2"`, `"02"`}, {`"2"`, `2`}, {`["containers"]`, `[]`}, {`"containers"`, `"all"`}, {`"feed"`, `"foo"`}} {
		if f, err := ReadFragments([]byte(strings.Replace(good, change[0], change[1], 1))); err == nil {
			t.Errorf("%q is taken: %v", change, f)
		}
	}
}

func TestFragmentText(t *testing.T) {
	p, err := Generate(t.Context(), &Group{Name: "g", Containers: []Container{{Name: "c", Image: "registry.example/shop/web:2"}}}, images, Options{})
	if err != nil {
		t.Fatal(err)
	}
	text, err := p.FragmentText("shop", 3)
	if err != nil || !strings.HasPrefix(text, "package shop\n\nsvn := \"3\"\n") || strings.Contains(text, "pause") {
		t.Errorf("%v\n%s", err, text)
	}
	for _, bad := range []string{"", "policy", "framework", "a.b", "1a", "input"} {
		if _, err := p.FragmentText(bad, 1); err == nil {
			t.Errorf("a package can be called %q", bad)
		}
	}
}

// TestTemplateOpen: what depends on a parameter without a value is one fault each, and not one more for what is missing then.
func TestTemplateOpen(t *testing.T) {
	const template = `{"parameters": {"x": {"type": "string"}}, "resources": [{"type": "Microsoft.ContainerInstance/containerGroups", "name": "g", "properties": {
  "osType": "Linux", "sku": "Confidential", "volumes": %s, "containers": %s}}]}`
	const open = `"[parameters('x')]"`
	container := func(properties string) string { return `[{"name": "c", "properties": {` + properties + `}}]` }
	for name, c := range map[string][2]string{
		"image":          {"[]", container(`"image": ` + open)},
		"part of image":  {"[]", container(`"image": "[concat('registry/', parameters('x'))]"`)},
		"containers":     {"[]", open},
		"a container":    {"[]", `[` + open + `]`},
		"properties":     {"[]", `[{"name": "c", "properties": ` + open + `}]`},
		"volumes":        {open, container(`"image": "a", "volumeMounts": [{"name": "v", "mountPath": "/v"}]`)},
		"name of volume": {`[{"name": ` + open + `, "emptyDir": {}}]`, container(`"image": "a", "volumeMounts": [{"name": "v", "mountPath": "/v"}]`)},
		"mounted volume": {`[{"name": "v", "emptyDir": {}}]`, container(`"image": "a", "volumeMounts": [{"name": ` + open + `, "mountPath": "/v"}]`)},
		"mount path":     {`[{"name": "v", "emptyDir": {}}]`, container(`"image": "a", "volumeMounts": [{"name": "v", "mountPath": ` + open + `}]`)},
		"variable":       {"[]", container(`"image": "a", "environmentVariables": [{"name": ` + open + `, "value": "1"}]`)},
		"value":          {"[]", container(`"image": "a", "environmentVariables": [{"name": "A", "value": ` + open + `}]`)},
		"command":        {"[]", container(`"image": "a", "command": ` + open)},
		"word":           {"[]", container(`"image": "a", "command": [` + open + `]`)},
		"no function":    {"[]", container(`"image": "[nothing()]"`)},
	} {
		_, err := ParseTemplate(fmt.Sprintf(template, c[0], c[1]), TemplateOptions{})
		if err == nil || strings.Count(err.Error(), "\n") > 0 {
			t.Errorf("%s: %v", name, err)
		}
		var open *OpenError
		if errors.As(err, &open) != (name != "no function") {
			t.Errorf("%s: %T %v", name, err, err)
		}
	}
}
