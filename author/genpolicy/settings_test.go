package genpolicy

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestPatch has the operations of RFC 6902, right and wrong ones.
func TestPatch(t *testing.T) {
	const doc = `{"a":{"b":[1,2,3],"c/d":"x"},"e":null}`
	for _, tc := range []struct{ patch, want string }{
		{`[{"op":"add","path":"/a/b/1","value":9}]`, `{"a":{"b":[1,9,2,3],"c/d":"x"},"e":null}`},
		{`[{"op":"add","path":"/a/b/-","value":{"f":1}}]`, `{"a":{"b":[1,2,3,{"f":1}],"c/d":"x"},"e":null}`},
		{`[{"op":"add","path":"/a/new","value":true},{"op":"remove","path":"/a/b/0"}]`, `{"a":{"b":[2,3],"c/d":"x","new":true},"e":null}`},
		{`[{"op":"replace","path":"/a/c~1d","value":"y"}]`, `{"a":{"b":[1,2,3],"c/d":"y"},"e":null}`},
		{`[{"op":"move","from":"/a/b","path":"/b"},{"op":"copy","from":"/b/0","path":"/e"}]`, `{"a":{"c/d":"x"},"b":[1,2,3],"e":1}`},
		{`[{"op":"test","path":"/a/b/2","value":3},{"op":"replace","path":"","value":[]}]`, `[]`},
		{`[{"op":"test","path":"/a/b/2","value":4}]`, ""}, {`[{"op":"remove","path":"/x"}]`, ""}, {`[{"op":"replace","path":"/x","value":1}]`, ""},
		{`[{"op":"add","path":"/x/y","value":1}]`, ""}, {`[{"op":"add","path":"/a/b/4","value":1}]`, ""}, {`[{"op":"add","path":"/a/b/01","value":1}]`, ""},
		{`[{"op":"move","from":"/a","path":"/a/z"}]`, ""}, {`[{"op":"nothing","path":"/a"}]`, ""}, {`[{"op":"add","path":"a","value":1}]`, ""},
		{`[{"op":"remove","path":""}]`, ""}, {`[{"op":"add","path":"/a"}]`, ""}, {`{}`, ""},
	} {
		var tree any
		if err := decodeJSON([]byte(doc), &tree); err != nil {
			t.Fatal(err)
		}
		got, err := applyPatch(tree, []byte(tc.patch))
		if tc.want == "" {
			if err == nil {
				t.Errorf("%s: accepted", tc.patch)
			}
			continue
		}
		text, _ := json.Marshal(got)
		if err != nil || string(text) != tc.want {
			t.Errorf("%s: %s, %v, want %s", tc.patch, text, err, tc.want)
		}
	}
}

func TestLoadSettings(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("genpolicy-settings.d/20-later.json", `[{"op":"replace","path":"/kata_config/oci_version","value":"1.3.0"}]`)
	write("genpolicy-settings.d/10-first.json", `[{"op":"replace","path":"/kata_config/oci_version","value":"1.2.0"},{"op":"replace","path":"/cluster_config/emptydir_type","value":"shared-fs"}]`)
	s, err := LoadSettings(dir)
	if err != nil || s.Kata.OCIVersion != "1.3.0" || s.cluster.EmptyDir != emptyDirShared {
		t.Errorf("patched defaults: %v, %+v", err, s)
	}
	write("genpolicy-settings.json", string(defaultSettings))
	if _, err := LoadSettings(filepath.Join(dir, "genpolicy-settings.json")); err != nil {
		t.Error(err)
	}
	for name, want := range map[string]string{
		`[{"op":"add","path":"/commmon","value":{}}]`:                                          "commmon",
		`[{"op":"remove","path":"/common/root_path"}]`:                                         "root_path",
		`[{"op":"replace","path":"/cluster_config/emptydir_type","value":"disk"}]`:             "emptydir_type",
		`[{"op":"replace","path":"/common/image_layer_verification","value":"x"}]`:             "image_layer_verification",
		`[{"op":"add","path":"/request_defaults/ExecProcessRequest/commands","value":["ls"]}]`: "allowed_commands",
		`[{"op":"remove","path":"/nothing"}]`:                                                  "20-later.json",
	} {
		write("genpolicy-settings.d/20-later.json", name)
		if _, err := LoadSettings(dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzSettings wants that no settings and no patch make the reader panic.
func FuzzSettings(f *testing.F) {
	f.Add(defaultSettings, []byte(`[{"op":"add","path":"/common/x","value":1}]`))
	f.Add([]byte(`{"common":{}}`), []byte(`[{"op":"move","from":"/common","path":"/common/a"}]`))
	f.Fuzz(func(_ *testing.T, text, patch []byte) {
		_, _ = parseSettings(text, []namedPatch{{"p", patch}})
	})
}
