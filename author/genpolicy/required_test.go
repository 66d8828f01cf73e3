package genpolicy

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cloister/cloister/author/imagesource"
)

// TestRequired has the variables and mounts that the host must not leave out.
func TestRequired(t *testing.T) {
	set := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {A: \"1\", B: \"2\", 3C: \"3\"}\n---\n"
	pod := strings.NewReplacer("%SPEC", "volumes: [{name: v, emptyDir: {}}, {name: w, emptyDir: {}}, {name: h, hostPath: {path: /dev/kvm}}]", "%C", strings.Join([]string{
		"tty: true", "envFrom: [{configMapRef: {name: c}}, {prefix: P_, configMapRef: {name: c}}, {secretRef: {name: no, optional: true}}]",
		"env: [{name: B, value: x}, {name: N, valueFrom: {fieldRef: {fieldPath: status.podIP}}}, {name: O, valueFrom: {secretKeyRef: {name: no, key: k, optional: true}}}]",
		"volumeMounts: [{name: v, mountPath: /v/}, {name: v, mountPath: w, subPath: x}, {name: w, mountPath: /etc/hosts}, {name: h, mountPath: /dev/kvm}]",
	}, ", ")).Replace(onePod)
	odd := fakeImages{"registry.example/app:1": {Digest: "sha256:" + strings.Repeat("a", 64), Found: "layout",
		Config: imagesource.Config{Entrypoint: []string{"/x"}, Env: []string{"IMAGE=1", "B=image", "GONE"}}}}
	r, err := generate(t, set+pod, Options{Images: odd})
	if err != nil {
		t.Fatal(err)
	}
	c := dataOf(t, r.Policy).Containers[1]
	if want := []string{"IMAGE", "B", "A", "P_3C", "P_A", "P_B", "N"}; !slices.Equal(c.RequiredEnv, want) {
		t.Errorf("variables %q, want %q", c.RequiredEnv, want)
	}
	for _, v := range []string{defaultPath, "3C=3", "B=x", "TERM=xterm", "HOSTNAME=$(host-name)"} { // containerd, kubelet
		if !slices.Contains(c.OCI.Process.Env, v) {
			t.Errorf("%s is not allowed: %q", v, c.OCI.Process.Env)
		}
	}
	if slices.Contains(c.OCI.Process.Env, "GONE=") {
		t.Error("a variable that the runtime takes away is allowed")
	}
	if want := []string{"/v", "/w", "/etc/hosts"}; !slices.Equal(c.RequiredMounts, want) {
		t.Errorf("mounts %q, want %q", c.RequiredMounts, want)
	}
	var volumes []string
	for _, s := range c.Storages {
		volumes = append(volumes, s.Volume)
	}
	for _, m := range c.OCI.Mounts {
		volumes = append(volumes, m.Volume)
	}
	volumes = slices.DeleteFunc(volumes, func(v string) bool { return v == "" })
	if want := []string{"v", "w", "w", "v", "v"}; !slices.Equal(volumes, want) {
		t.Errorf("volumes %q, want %q", volumes, want)
	}
	if i := slices.IndexFunc(c.OCI.Mounts, func(m mount) bool { return m.Written == "/v/" }); i < 0 || c.OCI.Mounts[i].Destination != "/v" {
		t.Error("how the manifest writes /v is lost")
	}
	const found = "registry.example/app:1 is taken from layout, which has an image with this tag and does not say of which name"
	if text := fmt.Sprint(r.Warnings); len(r.Warnings) != 3 || !strings.Contains(text, found) {
		t.Errorf("warnings %s, want two of what is optional and not known, and one of the image", text)
	}
}

// TestSealedImages are for layers of the host only.
func TestSealedImages(t *testing.T) {
	sealed := fakeImages{"registry.example/app:1": {Digest: "sha256:" + strings.Repeat("a", 64), Config: imagesource.Config{Entrypoint: []string{"/x"}},
		Layers: []imagesource.Layer{{Root: strings.Repeat("1", 64), HashOffset: 4096, KeyID: "kbs:///default/image-key/a"}}}}
	pod := strings.NewReplacer("%SPEC", "restartPolicy: Always", "%C", "tty: true").Replace(onePod) + "  - {name: b, image: registry.example/app:1}\n"
	_, err := generate(t, pod, Options{Images: sealed})
	if err == nil || !strings.Contains(err.Error(), "--layers host") || strings.Count(err.Error(), "sealed") != 1 {
		t.Errorf("an image that no guest can pull: %v", err)
	}
	s := settings(t)
	s.SetLayers(LayersVerity)
	r, err := generate(t, pod, Options{Images: sealed, Settings: s})
	if err != nil {
		t.Fatal(err)
	}
	options := dataOf(t, r.Policy).Containers[1].Storages[0].Options
	for _, o := range []string{"X-kata.dmverity.hashoffset=4096", "X-cloister.sealed.key-id=kbs:///default/image-key/a"} {
		if !slices.Contains(options, o) {
			t.Errorf("the layer's options lack %s: %q", o, options)
		}
	}
	sealed["registry.example/app:1"].Layers[0].HashOffset = 0
	if _, err := generate(t, pod, Options{Images: sealed, Settings: s}); err == nil {
		t.Error("a layer without a hash offset is bound")
	}
}

// TestImageTexts: what the image says is as it stands; a text that would let the host choose is refused.
func TestImageTexts(t *testing.T) {
	const pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: a, image: x%s}]}\n"
	for name, c := range map[string]struct {
		config imagesource.Config
		more   string
		ok     bool
	}{
		"variable":           {imagesource.Config{Entrypoint: []string{"/a"}, Env: []string{"A=$(todo-annotation)"}}, "", false},
		"part of a variable": {imagesource.Config{Entrypoint: []string{"/a"}, Env: []string{"A=x-$(host-name)-y"}}, "", false},
		"program":            {imagesource.Config{Entrypoint: []string{"$(node-name)"}}, "", false},
		"argument":           {imagesource.Config{Entrypoint: []string{"/a"}, Cmd: []string{"$$(pod-uid)"}}, "", false},
		"zero byte":          {imagesource.Config{Entrypoint: []string{"/a"}, Env: []string{"A=\x00"}}, "", false},
		"not UTF-8":          {imagesource.Config{Entrypoint: []string{"/a\xff"}}, "", false},
		"replaced":           {imagesource.Config{Entrypoint: []string{"$(node-name)"}, Cmd: []string{"$(node-name)"}}, ", command: [/b]", true},
		"variable replaced":  {imagesource.Config{Entrypoint: []string{"/b"}, Env: []string{"A=$(host-name)"}}, ", env: [{name: A, value: x}]", true},
		"Kubernetes's own":   {imagesource.Config{Entrypoint: []string{"/a", "$(X)"}, Env: []string{"A=$(B)", "C=$$"}}, "", true},
	} {
		c.config.WorkingDir = "/"
		_, err := generate(t, fmt.Sprintf(pod, c.more), Options{Images: oneConfig(c.config)})
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestImageVolumes: the guest makes the volumes of images. Where the settings say that the host fills them, who generates a policy hears of it.
func TestImageVolumes(t *testing.T) {
	const pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: a, image: x%s}], volumes: [{name: v, emptyDir: {}}]}\n"
	images := oneConfig(imagesource.Config{Entrypoint: []string{"/a"}, Volumes: []string{"/var/www/html"}})
	hosts := settings(t)
	v := hosts.Volumes["image_volume"]
	v.MountSource = "$(sfprefix)" // as in the settings of Kata's generator
	hosts.Volumes["image_volume"] = v
	for _, c := range []struct {
		settings     *Settings
		more, source string
		warned       bool
	}{
		{nil, "", `^$(cpath)/$(bundle-id)-imagevolume[0-9]{5}-html$`, false},
		{hosts, "", "$(sfprefix)html$", true},
		{nil, ", volumeMounts: [{name: v, mountPath: /var/www/html}]", "", false},
		{hosts, ", volumeMounts: [{name: v, mountPath: /var/www/html}]", "", false},
	} {
		r, err := generate(t, fmt.Sprintf(pod, c.more), Options{Images: images, Settings: c.settings})
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(fmt.Sprint(r.Warnings), "/var/www/html"); got != c.warned {
			t.Errorf("%q: %v", c.more, r.Warnings)
		}
		entry := dataOf(t, r.Policy).Containers[1]
		i := slices.IndexFunc(entry.OCI.Mounts, func(m mount) bool { return m.Destination == "/var/www/html" })
		if i < 0 || entry.OCI.Mounts[i].Source != c.source {
			t.Errorf("%q: mounts %+v", c.more, entry.OCI.Mounts)
		}
		if got := slices.ContainsFunc(entry.Files, func(f fileMount) bool { return f.Destination == "/var/www/html" && f.Kind == "image" }); got != c.warned {
			t.Errorf("%q: files %+v", c.more, entry.Files)
		}
	}
}

// oneConfig is every image.
type oneConfig imagesource.Config

func (c oneConfig) Image(context.Context, string, imagesource.Need) (*imagesource.Image, error) {
	return &imagesource.Image{Digest: "sha256:" + strings.Repeat("a", 64), Config: imagesource.Config(c)}, nil
}

// TestIDs: a number that is no user or group does not become another one.
func TestIDs(t *testing.T) {
	const pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {securityContext: {%s}, containers: [{name: a, image: x, command: [/a]}]}\n"
	for text, ok := range map[string]bool{
		"supplementalGroups: [4294967297]": false, "supplementalGroups: [5, -1]": false, "fsGroup: 4294967297": false, "runAsUser: -1": false,
		"runAsGroup: 2147483648": false, "runAsUser: 2147483647, supplementalGroups: [2147483647]": true,
	} {
		if _, err := generate(t, fmt.Sprintf(pod, text), Options{Images: oneConfig{}}); (err == nil) != ok {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// TestSubPathModes has the modes of the directories that the kubelet makes for sub-paths of emptyDirs: those of the volume.
func TestSubPathModes(t *testing.T) {
	for _, c := range []struct {
		volume, security string
		want             []string
	}{
		{"{}", "{}", []string{"mode=0777"}},
		{"{medium: Memory}", "{}", []string{"mode=01777"}},
		{"{}", "{fsGroup: 2000}", []string{"mode=02777", "fsgid=2000"}},
		{"{medium: Memory}", "{fsGroup: 2000}", []string{"mode=03777", "fsgid=2000"}},
	} {
		got, _ := one(t, "securityContext: "+c.security+"\n  volumes: [{name: v, emptyDir: "+c.volume+"}]", "volumeMounts: [{name: v, mountPath: /v, subPath: x}]", Options{})
		if list := got.Directories; len(list) != 1 || !slices.Equal(list[0].Options, c.want) {
			t.Errorf("emptyDir %s, %s: %+v, want %q", c.volume, c.security, list, c.want)
		}
	}
}
