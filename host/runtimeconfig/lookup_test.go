package runtimeconfig

import (
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
)

func createOptions(path, body string) []byte {
	var b []byte
	b = protowire.AppendTag(b, 1, protowire.BytesType)
	b = protowire.AppendString(b, "io.containerd.cri.v1")
	if path != "" {
		b = protowire.AppendTag(b, 2, protowire.BytesType)
		b = protowire.AppendString(b, path)
	}
	if body != "" {
		b = protowire.AppendTag(b, 3, protowire.BytesType)
		b = protowire.AppendString(b, body)
	}
	b = protowire.AppendTag(b, 9, protowire.VarintType)
	return protowire.AppendVarint(b, 7)
}

func TestLookupOrder(t *testing.T) {
	dir := t.TempDir()
	file := func(name, vcpus string) string {
		f := filepath.Join(dir, name, "r.toml")
		write(t, f, "[sandbox]\nvcpus = "+vcpus+"\n")
		return f
	}
	env, opt, def := file("env", "2"), file("opt", "3"), file("def", "4")
	const typ = "runtimeoptions.v1.Options"
	getenv := func(m map[string]string) func(string) string { return func(k string) string { return m[k] } }
	for _, tc := range []struct {
		name  string
		r     Request
		vcpus float64
		from  string
	}{
		{"environment", Request{Getenv: getenv(map[string]string{EnvFile: env}), OptionsType: typ, Options: createOptions(opt,
			"")}, 2, KindFile},
		{"path", Request{OptionsType: "type.googleapis.com/" + typ, Options: createOptions(opt, "[sandbox]\nvcpus = 9\n")}, 3, KindFile},
		{"body", Request{OptionsType: typ, Options: createOptions("", "[sandbox]\nvcpus = 9\n")}, 9, KindOptions},
		{"default file", Request{OptionsType: typ, Options: createOptions("", "")}, 4, KindFile},
		{"runc's", Request{OptionsType: "containerd.runc.v1.Options", Options: []byte{0x10, 1}}, 4, KindFile},
		{"nothing", Request{Defaults: []string{dir + "/none"}}, 1, KindDefault},
	} {
		if tc.r.Defaults == nil {
			tc.r.Defaults = []string{dir + "/none", def}
		}
		e, err := Load(tc.r)
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		if e.Config.Sandbox.VCPUs != tc.vcpus || e.Source("sandbox.vcpus").Kind != tc.from {
			t.Errorf("%s: %g from %s", tc.name, e.Config.Sandbox.VCPUs, e.Source("sandbox.vcpus"))
		}
	}
	for says, r := range map[string]Request{
		"KATA_CONF_FILE is":              {Getenv: getenv(map[string]string{EnvKataFile: env})},
		"want an absolute path":          {OptionsType: typ, Options: createOptions("r.toml", "")},
		"no such file":                   {OptionsType: typ, Options: createOptions(dir+"/none", "")},
		"want runtimeoptions.v1.Options": {OptionsType: "x.Options"},
		"and no type":                    {Options: []byte{1}},
		"reading the options":            {OptionsType: typ, Options: []byte{0x12, 0xff}},
	} {
		r.Defaults = []string{}
		if _, err := Load(r); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("error %v, want one with %q", err, says)
		}
	}
}

func FuzzOptions(f *testing.F) {
	f.Add(createOptions("/x", "body"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if o, err := parseOptions("runtimeoptions.v1.Options", raw); err == nil && len(o.path)+len(o.body) > len(raw) {
			t.Error("more came out than went in")
		}
	})
}
