package genpolicy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
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
		Layers: []imagesource.Layer{{Digest: "sha256:" + strings.Repeat("1", 64), Root: strings.Repeat("1", 64), HashOffset: 4096}, {Digest: "sha256:" + strings.Repeat("2", 64), Root: strings.Repeat("2", 64), HashOffset: 8192}},
	}, nil
}

var images = fakeImages{"registry.example/nginx:1.27": {
	Digest: "sha256:" + strings.Repeat("c", 64), Manifest: "sha256:" + strings.Repeat("d", 64),
	Config: imagesource.Config{
		Entrypoint: []string{"/docker-entrypoint.sh"}, Cmd: []string{"nginx", "-g", "daemon off;"}, Env: []string{"PATH=/usr/bin", "NGINX_VERSION=1.27"},
		StopSignal: "SIGQUIT", Volumes: []string{"/var/log/nginx"}, WorkingDir: "/srv",
	},
	Passwd: []byte("root:x:0:0:root:/root:/bin/sh\nnginx:x:101:102:nginx:/:/bin/false\n"), Group: []byte("nginx:x:102:\nlog:x:55:nginx,root\n"),
	Layers: []imagesource.Layer{{Digest: "sha256:" + strings.Repeat("3", 64), Root: strings.Repeat("3", 64), HashOffset: 12288}},
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

const onePod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  %SPEC\n  containers:\n  - {name: a, image: registry.example/app:1, %C}\n"

func one(t *testing.T, spec, c string, o Options) (container, *Result) {
	t.Helper()
	if spec == "" {
		spec = "restartPolicy: Always"
	}
	if c == "" {
		c = "tty: false"
	}
	r, err := generate(t, strings.NewReplacer("%SPEC", spec, "%C", c).Replace(onePod), o)
	if err != nil {
		t.Fatal(err)
	}
	return dataOf(t, r.Policy).Containers[1], r
}

func TestNames(t *testing.T) {
	s := "[bcdfghjklmnpqrstvwxz2456789]+"
	for _, tc := range []struct {
		kind, name, generate, want string
		good, bad                  []string
	}{
		{"Pod", "a.b", "", `a\.b`, []string{"a.b"}, []string{"axb", "a.b2"}},
		{"Pod", "", "a-", "a-" + s, []string{"a-x5z2q"}, []string{"a-", "a-aeiou"}},
		{"Deployment", "web", "", "web-" + s + "-" + s, []string{"web-6674f9448-xjrzf"}, []string{"web-xjrzf", "webs-6674f9448-xjrzf"}},
		{"DaemonSet", "web", "", "web-" + s, []string{"web-xjrzf"}, []string{"web"}},
		{"StatefulSet", "web", "", "web-[0-9]+", []string{"web-0", "web-12"}, []string{"web-x"}},
		{"Job", "job", "", "job(-[0-9]+)?-" + s, []string{"job-xjrzf", "job-3-xjrzf"}, []string{"job"}},
		{"CronJob", "c", "", "c-[0-9]+(-[0-9]+)?-" + s, []string{"c-28745280-xjrzf"}, []string{"c-xjrzf"}},
		{"DaemonSet", strings.Repeat("n", 60), "", "", []string{strings.Repeat("n", 58) + "xjrzf", strings.Repeat("n", 57) + "xjrzf"}, []string{"other"}},
	} {
		w := &kubernetes.Workload{Kind: tc.kind, Meta: kubernetes.Metadata{Name: tc.name, GenerateName: tc.generate}}
		got, err := sandboxName(w)
		if err != nil || tc.want != "" && got != tc.want {
			t.Errorf("%s: %s, %v, want %s", tc.kind, got, err, tc.want)
			continue
		}
		re := regexp.MustCompile("^" + got + "$")
		for _, n := range tc.good {
			if !re.MatchString(n) {
				t.Errorf("%s %s does not match %s", tc.kind, n, got)
			}
		}
		for _, n := range tc.bad {
			if re.MatchString(n) {
				t.Errorf("%s %s matches %s", tc.kind, n, got)
			}
		}
	}
}

func TestIdentity(t *testing.T) {
	for _, tc := range []struct {
		pod, c string
		uid    uint32
		gid    uint32
		groups []uint32
	}{
		{"", "", 0, 0, []uint32{0, 10}},
		{"securityContext: {runAsUser: 7}", "", 7, 0, []uint32{0}},
		{"securityContext: {runAsUser: 7, runAsGroup: 8, fsGroup: 9, supplementalGroups: [8, 11]}", "", 7, 8, []uint32{8, 9, 11}},
		{"securityContext: {runAsUser: 7, runAsGroup: 8}", "securityContext: {runAsUser: 0}", 0, 8, []uint32{8, 10}},
		{"securityContext: {supplementalGroupsPolicy: Strict}", "", 0, 0, []uint32{0}},
	} {
		c, _ := one(t, tc.pod, tc.c, Options{})
		u := c.OCI.Process.User
		if u.UID != tc.uid || u.GID != tc.gid || !slices.Equal(u.AdditionalGids, tc.groups) {
			t.Errorf("%s %s: %+v", tc.pod, tc.c, u)
		}
	}
	// Where the node does not have the image, what only the image knows must be written down.
	s := settings(t)
	s.cluster.ImagesOnNode = false
	_, err := generate(t, strings.NewReplacer("%SPEC", "restartPolicy: Always", "%C", "tty: true").Replace(onePod), Options{Settings: s})
	if err == nil || !strings.Contains(err.Error(), "supplementalGroups: [0, 10]") {
		t.Errorf("groups of the image: %v", err)
	}
}

func TestLayersOfTheHost(t *testing.T) {
	s := settings(t)
	s.SetLayers(LayersVerity)
	c, r := one(t, "", "", Options{Settings: s})
	if len(c.Storages) != 2 || c.Storages[0].Options[3] != "X-kata.partition-number=1" || !strings.HasSuffix(c.Storages[0].Options[7], "roothash="+strings.Repeat("2", 64)) {
		t.Errorf("storages %+v", c.Storages)
	}
	if pause := dataOf(t, r.Policy).Containers[0]; len(pause.Storages) != 0 || pause.Image != nil {
		t.Errorf("the guest's own pause container has layers: %+v", pause.Storages)
	}
	s.cluster.PauseConfig = nil // as in settings of others: the image is one like any
	_, r = one(t, "", "", Options{Settings: s})
	if pause := dataOf(t, r.Policy).Containers[0]; len(pause.Storages) != 2 || pause.Image == nil {
		t.Errorf("the pause container's layers: %+v", pause.Storages)
	}
}

func TestTags(t *testing.T) {
	c, r := one(t, "", "", Options{Tags: AllowTags})
	if len(r.Pins) != 0 || !c.Image.ByTag || !slices.Contains(c.Image.Names, "registry.example/app:1") || len(r.Warnings) != 1 {
		t.Errorf("%+v, %+v", c.Image, r)
	}
	if _, err := generate(t, strings.NewReplacer("%SPEC", "restartPolicy: Always", "%C", "tty: true").Replace(onePod), Options{Tags: RefuseTags}); err == nil {
		t.Error("a tag is not refused")
	}
}

func TestEmptyDirs(t *testing.T) {
	const volumes = "volumes: [{name: v, emptyDir: {}}]"
	const mounted = "env: [{name: N, valueFrom: {fieldRef: {fieldPath: metadata.name}}}], volumeMounts: [{name: v, mountPath: /v, subPathExpr: x/$(N).d}]"
	for kind, want := range map[string]string{
		emptyDirSealed: `^/run/kata-containers/sandbox/storage/[A-Za-z0-9_=-]+/x/[^/]+\.d$`,
		emptyDirShared: `^$(cpath)/sandbox-[0-9a-f]{16}-v/x/[^/]+\.d$`,
		emptyDirGuest:  `^$(cpath)/$(sandbox-id)/rootfs/local/v/x/[^/]+\.d$`,
	} {
		s := settings(t)
		if err := s.SetEmptyDir(kind); err != nil {
			t.Fatal(err)
		}
		c, _ := one(t, volumes, mounted, Options{Settings: s})
		i := slices.IndexFunc(c.OCI.Mounts, func(m mount) bool { return m.Destination == "/v" })
		if i < 0 || c.OCI.Mounts[i].Source != want {
			t.Errorf("%s: %+v", kind, c.OCI.Mounts)
		}
	}
}

// A pod that wants no token has no place for one.
func TestToken(t *testing.T) {
	for spec, want := range map[string]bool{
		"restartPolicy: Always": true, "automountServiceAccountToken: true": true, "automountServiceAccountToken: false": false,
		"automountServiceAccountToken: false\n  volumes: [{name: v, projected: {sources: [{serviceAccountToken: {path: token}}]}}]": true,
	} {
		container := ""
		if strings.Contains(spec, "projected") {
			container = "volumeMounts: [{name: v, mountPath: " + tokenDir + ", readOnly: true}]"
		}
		c, _ := one(t, spec, container, Options{})
		if got := slices.ContainsFunc(c.OCI.Mounts, func(m mount) bool { return m.Destination == tokenDir }); got != want {
			t.Errorf("%s: a mount for the token is admitted: %v", spec, got)
		}
	}
}

// FuzzGenerate wants that no manifest makes the generator panic.
func FuzzGenerate(f *testing.F) {
	web, err := os.ReadFile("testdata/web.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(web)
	f.Add([]byte(strings.NewReplacer("%SPEC", "securityContext: {runAsUser: -1}", "%C", "volumeMounts: [{name: v, mountPath: x, subPath: ..}], resources: {limits: {nvidia.com/pgpu: 99999999}}").Replace(onePod)))
	s := settings(f)
	f.Fuzz(func(t *testing.T, text []byte) {
		set, _ := kubernetes.Parse([]kubernetes.Input{{Name: "x", Data: text}}, nil, kubernetes.Options{})
		for _, w := range set.Workloads {
			r, err := Generate(t.Context(), set, w, Options{Settings: s, Images: images, Rules: "package agent_policy"})
			if err == nil {
				dataOf(t, r.Policy)
			}
		}
	})
}

// BenchmarkGenerate is a pod of 20 containers, without fetching images.
func BenchmarkGenerate(b *testing.B) {
	var text strings.Builder
	text.WriteString("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  containers:\n")
	for i := range 20 {
		fmt.Fprintf(&text, "  - {name: c%d, image: registry.example/nginx:1.27, env: [{name: A, value: b}], volumeMounts: [{name: v, mountPath: /v}]}\n", i)
	}
	text.WriteString("  volumes: [{name: v, emptyDir: {}}]\n")
	s := settings(b)
	for b.Loop() {
		r, err := generate(b, text.String(), Options{Settings: s})
		if err != nil || len(r.Pins) != 20 {
			b.Fatal(err)
		}
	}
}
