package genpolicy

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

const partlyPod = `apiVersion: v1
kind: ConfigMap
metadata: {name: known}
data: {a: "1", b: "2"}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: later}
data: {a: "3"}
---
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  containers:
  - name: a
    image: registry.example/app:1
    volumeMounts: [{name: v, mountPath: /v, subPath: "SUB"}]
  volumes: [{name: v, projected: {sources: [SOURCES]}}]
`

// TestPartlyKnownFiles: the files of known sources are bound, and of the others no more is free than their places.
func TestPartlyKnownFiles(t *testing.T) {
	const (
		all    = "{configMap: {name: known}}"
		below  = "{configMap: {name: known, items: [{key: a, path: d/a}, {key: b, path: b}]}}"
		token  = "{serviceAccountToken: {path: d/token}}"
		fields = "{downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}, {path: d/cpu, resourceFieldRef: {resource: limits.cpu}}]}}"
		trust  = "{clusterTrustBundle: {name: x, path: ca}}"
		cert   = "{podCertificate: {signerName: x, keyType: ED25519, keyPath: key, certificateChainPath: chain}}"
		secret = "{secret: {name: unknown, optional: true}}"
		items  = "{secret: {name: unknown, items: [{key: x, path: d/x}]}}"
	)
	for name, c := range map[string]struct {
		sub, sources string
		bound        bool
		single       bool
		entries      string // paths, "" for a single file
		free         string // "-": nothing is bound; "*": any
		fails        string
	}{
		"all known":                       {sources: all, bound: true, entries: "a b"},
		"a token":                         {sources: all + "," + token, entries: "a b", free: "d/token"},
		"made sources":                    {sources: strings.Join([]string{all, fields, trust, cert}, ","), entries: "a b", free: "ca chain d/cpu key labels"},
		"a Secret":                        {sources: all + "," + secret, entries: "a b", free: "*"},
		"keys of a Secret":                {sources: items + "," + all, entries: "a b", free: "d/x"},
		"nothing known":                   {sources: token + "," + items, free: "-"},
		"a later source wins":             {sources: all + ",{configMap: {name: later}}", bound: true, entries: "a b"},
		"a known one wins":                {sources: "{secret: {name: unknown, items: [{key: x, path: a}]}}," + all, bound: true, entries: "a b"},
		"an unknown one must not":         {sources: all + ",{secret: {name: unknown, items: [{key: x, path: a}]}}", fails: `Secret "unknown", whose content is not known, replaces the file "a"`},
		"nor a token":                     {sources: all + ",{serviceAccountToken: {path: a}}", fails: `a token, whose content is not known, replaces the file "a"`},
		"sub-path of a known file":        {sub: "a", sources: all + "," + secret, bound: true, single: true, entries: ""},
		"sub-path of a token":             {sub: "d/token", sources: all + "," + token, single: true, free: "-"},
		"sub-path of a directory":         {sub: "d", sources: below + "," + token + "," + items, entries: "a", free: "token x"},
		"sub-path with all known":         {sub: "d", sources: below + ",{serviceAccountToken: {path: token}}", bound: true, entries: "a"},
		"sub-path with a Secret":          {sub: "d", sources: below + "," + secret, entries: "a", free: "*"},
		"sub-path of what is not known":   {sub: "d", sources: all + "," + token, free: "-"},
		"sub-path that a Secret may have": {sub: "e", sources: below + "," + secret, free: "-"},
		"sub-path that nobody has":        {sub: "e", sources: below + "," + token, fails: `the volume has no "e"`},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := generate(t, strings.NewReplacer("SUB", c.sub, "SOURCES", c.sources).Replace(partlyPod), Options{})
			if c.fails != "" {
				if err == nil || !strings.Contains(err.Error(), c.fails) {
					t.Fatalf("%v, want %q", err, c.fails)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			files := dataOf(t, r.Policy).Containers[1].Files
			f := files[slices.IndexFunc(files, func(f fileMount) bool { return f.Destination == "/v" })]
			free := ""
			switch {
			case f.Free == nil && !f.Bound:
				free = "-"
			case f.Free != nil && f.Free.Any:
				free = "*"
			case f.Free != nil:
				free = strings.Join(f.Free.Paths, " ")
			}
			entries := strings.Join(slices.Sorted(maps.Keys(f.Entries)), " ")
			if f.Bound != c.bound || f.Single != c.single || entries != c.entries || free != c.free {
				t.Errorf("bound %v single %v entries %q free %q, want %+v", f.Bound, f.Single, entries, free, c)
			}
			if name == "a later source wins" && f.Entries["a"] != entry("3") {
				t.Error("an earlier source's file is bound")
			}
		})
	}
}

// What a source puts beside or above the volume is refused, as Kubernetes does.
func TestPathsOfSources(t *testing.T) {
	for _, source := range []string{"configMap: {name: known, items: [{key: a, path: %}]}", "configMap: {name: unknown, items: [{key: a, path: %}]}", "serviceAccountToken: {path: %}",
		"downwardAPI: {items: [{path: %, fieldRef: {fieldPath: metadata.name}}]}"} {
		for p, good := range map[string]bool{"a": true, "a/b": true, "./a": true, "..a": true, "../a": false, "a/../b": false, "a/..": false, "/a": false, ".": false, "..": false} {
			text := strings.NewReplacer("%SPEC", "volumes: [{name: v, projected: {sources: [{"+strings.ReplaceAll(source, "%", p)+"}]}}]", "%C", "volumeMounts: [{name: v, mountPath: /v}]").Replace(onePod) +
				"---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: known}\ndata: {a: b}\n"
			_, err := generate(t, text, Options{})
			if (err == nil) != good || err != nil && !strings.Contains(err.Error(), "leads out of the volume") {
				t.Errorf("%s with %q: %v", source, p, err)
			}
		}
	}
}
