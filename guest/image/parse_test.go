package image

import (
	"strings"
	"testing"
)

func TestParseReference(t *testing.T) {
	digest := "sha256:" + strings.Repeat("a", 64)
	for in, want := range map[string]string{
		"alpine":                                "docker.io/library/alpine:latest",
		"alpine:3":                              "docker.io/library/alpine:3",
		"team/app":                              "docker.io/team/app:latest",
		"index.docker.io/team/app":              "docker.io/team/app:latest",
		"localhost/app":                         "localhost/app:latest",
		"localhost:5000/app:v1":                 "localhost:5000/app:v1",
		"10.0.2.2:5000/a/b/c@" + digest:         "10.0.2.2:5000/a/b/c@" + digest,
		"r.example/app:v1@" + digest:            "r.example/app@" + digest,
		"docker://r.example/a_b/c__d/e-f.g:V_1": "r.example/a_b/c__d/e-f.g:V_1",
		"[::1]:5000/app":                        "[::1]:5000/app:latest",
	} {
		got, err := ParseReference(in)
		if err != nil || got.String() != want {
			t.Errorf("%q is %q, expected %q (%v)", in, got, want, err)
		}
	}
	for _, bad := range []string{"", ":", "@", "a@b", "UPPER/x:y z", "r.example/", "r.example/../x", "r.example/a//b", "r.example/.a", "r.example/A",
		"app@sha256:abc", "app@md5:" + strings.Repeat("a", 32), "app@sha256:" + strings.Repeat("A", 64), "app:", "app:" + strings.Repeat("x", 129),
		"r.example:port/x", "-r.example/x", "r..example/x", "app?x", "app#x", "user:pw@r.example/x", strings.Repeat("a", 2000)} {
		if got, err := ParseReference(bad); err == nil {
			t.Errorf("%q is accepted as %q", bad, got)
		}
	}
}

func FuzzParseReference(f *testing.F) {
	for _, s := range []string{"alpine", "localhost:5000/app:v1", "r.example/a/b@sha256:" + strings.Repeat("a", 64), "[::1]:5/x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := ParseReference(s)
		if err != nil {
			return
		}
		again, err := ParseReference(ref.String())
		if err != nil || again != ref {
			t.Fatalf("%q is %q, which is %q (%v)", s, ref, again, err)
		}
		if strings.ContainsAny(ref.String(), "?#% \x00\\") || strings.Contains(ref.Repository, "..") {
			t.Fatalf("%q gives a path that is not safe in a URL: %q", s, ref)
		}
	})
}

const digestA = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

const goodManifest = `{"schemaVersion":2,"mediaType":"` + typeOCIManifest + `","config":{"mediaType":"x","digest":"` + digestA + `","size":2},` +
	`"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"` + digestA + `","size":5}]}`

func TestParseManifestRefuses(t *testing.T) {
	if _, _, err := parseManifest([]byte(goodManifest), typeOCIManifest+"; charset=utf-8"); err != nil {
		t.Fatal(err)
	}
	replace := func(old, new string) string { return strings.Replace(goodManifest, old, new, 1) }
	for name, tc := range map[string]struct{ text, contentType, want string }{
		"not JSON":           {"{", "", "JSON"},
		"schema 1":           {replace(`"schemaVersion":2`, `"schemaVersion":1`), "", "schema version 1"},
		"manifest and index": {replace(`"layers"`, `"manifests":[],"layers"`), "", "ambiguous"},
		"type says index":    {replace(typeOCIManifest, typeOCIIndex), "", "has layers"},
		"registry disagrees": {goodManifest, typeDockerManifest, "registry says"},
		"unknown type":       {replace(typeOCIManifest, "application/vnd.example"), "", "unknown manifest media type"},
		"no layers":          {replace(`{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"`+digestA+`","size":5}`, ""), "", "no layers"},
		"layers twice":       {replace(`"layers"`, `"Layers":[],"layers"`), "", "twice"},
		"negative size":      {replace(`"size":5`, `"size":-5`), "", "size"},
		"size is a string":   {replace(`"size":5`, `"size":"5"`), "", "JSON"},
		"short digest":       {replace(digestA+`","size":5`, `sha256:aa","size":5`), "", "hexadecimal"},
		"huge configuration": {replace(`"size":2`, `"size":99999999`), "", "limit"},
		"no configuration":   {replace(`"config":{"mediaType":"x","digest":"`+digestA+`","size":2},`, ""), "", "no configuration"},
		"unknown layer type": {replace("layer.v1.tar", "layer.v1.rar"), "", "unhandled media type"},
		"sizes overflow": {replace(`"size":5}`, `"size":4611686018427387904},{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"`+
			digestA+`","size":4611686018427387904}`), "", "layer 2 has 4611686018427387904 bytes"},
		"double encrypted": {replace("layer.v1.tar", "layer.v1.tar+encrypted+encrypted"), "", "unhandled media type"},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := parseManifest([]byte(tc.text), tc.contentType)
			wantError(t, err, tc.want)
		})
	}
}

func FuzzParseManifest(f *testing.F) {
	f.Add([]byte(goodManifest), typeOCIManifest)
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"mediaType":"`+typeOCIManifest+`","digest":"`+digestA+`","size":1,"platform":{"os":"linux","architecture":"amd64"}}]}`), typeOCIIndex)
	f.Fuzz(func(t *testing.T, data []byte, contentType string) {
		m, ix, err := parseManifest(data, contentType)
		if err != nil {
			return
		}
		if (m == nil) == (ix == nil) {
			t.Fatal("neither or both of manifest and index")
		}
		if m != nil && (len(m.Layers) == 0 || len(m.Layers) > maxLayers) {
			t.Fatal("layers out of bounds")
		}
		if m != nil {
			var sum int64
			for _, l := range m.Layers {
				if sum += l.Size; l.Size <= 0 || sum <= 0 {
					t.Fatal("sizes out of bounds")
				}
			}
		}
		if ix != nil {
			if d, err := ix.choose("amd64"); err == nil && d.Digest.Algorithm == "" {
				t.Fatal("chose an entry without digest")
			}
		}
	})
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(`{"os":"linux","architecture":"amd64","config":{"Cmd":["a"]},"rootfs":{"type":"layers","diff_ids":["` + digestA + `"]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if c, err := parseConfig(data, 1, "amd64"); err == nil {
			if _, err := runtimeSpec(c); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func FuzzParsePolicy(f *testing.F) {
	f.Add([]byte(acceptAll))
	f.Add([]byte(`{"default":[{"type":"signedBy","keyType":"GPGKeys","keyData":"YQ==","signedIdentity":{"type":"remapIdentity","prefix":"a","signedPrefix":"b"}}],"transports":{"docker":{"":[{"type":"reject"}]}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := parsePolicy(data)
		if err != nil {
			return
		}
		if len(p.fallback) == 0 {
			t.Fatal("a policy without requirements")
		}
		for scope, reqs := range p.docker {
			if len(reqs) == 0 {
				t.Fatalf("scope %q without requirements", scope)
			}
		}
	})
}

func FuzzParseChallenge(f *testing.F) {
	f.Add(`Bearer realm="https://auth.example/token",service="r.example",scope="repository:a:pull"`)
	f.Add(`Basic realm=x`)
	f.Fuzz(func(t *testing.T, s string) { _, _, _ = parseChallenge(s) })
}

func FuzzRegistryConfig(f *testing.F) {
	f.Add([]byte("unqualified-search-registries=['a.example']\n[[registry]]\nprefix='*.b'\nlocation='c'\n[[registry.mirror]]\nlocation='d'"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parseRegistryConfig(data)
		if err != nil {
			return
		}
		ref, _ := ParseReference("alpine")
		_, _ = c.sources(ref)
	})
}
