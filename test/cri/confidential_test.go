package cri

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cloister/cloister/internal/testregistry"
	"github.com/cloister/cloister/test/containerd"
	"github.com/cloister/cloister/test/vmtest"
	"github.com/cloister/cloister/wire/initdata"
)

// TestConfidential runs a pod as the handbook says, with the policy from there, on a software TPM: the guest pulls the images by their
// digests, and refuses what the policy does not list.
func TestConfidential(t *testing.T) {
	t.Parallel()
	vmtest.Need(t)
	containerd.Need(t)
	in := install(t)
	in.confidential(t)
	registry, err := testregistry.Start(testregistry.Options{Addr: "0.0.0.0:0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { registry.Close() })
	_, port, err := net.SplitHostPort(registry.Addr())
	if err != nil {
		t.Fatal(err)
	}
	opts := in.options(t, containerd.V2)
	opts.Mirrors = map[string]string{"registry.cloister.test": "http://127.0.0.1:" + port}
	c := start(t, opts)
	w := &world{Client: c, handler: "cloister"}
	i := containerd.Busybox(t, BusyboxImage)
	if err := containerd.Push(t.Context(), "127.0.0.1:"+port, i); err != nil {
		t.Fatal(err)
	}
	built, err := i.Build()
	if err != nil {
		t.Fatal(err)
	}
	digest, err := built.Digest()
	if err != nil {
		t.Fatal(err)
	}
	image := "registry.cloister.test/busybox@" + digest.String()
	if _, err := c.Images.PullImage(call(t), &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: image}}); err != nil {
		t.Fatal(err)
	}
	confidentialPod(t, w, image, net.JoinHostPort(c.Daemon.Network.Gateway().String(), port))
}

// confidential makes the installation's configuration one of confidential pods.
func (in installation) confidential(t *testing.T) {
	t.Helper()
	data, err := os.ReadFile(in.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(in.config, append([]byte("[sandbox]\ntee = \"tpm\"\n[storage]\nguest_pull = true\n"), data...), 0o644); err != nil {
		t.Fatal(err)
	}
}

// initdataOf is the annotation with the handbook's policy for these containers, one command that may be run in them, and where the
// guest finds the registry.
func initdataOf(t *testing.T, image, registry string, commands map[string][]string) string {
	t.Helper()
	policy, err := os.ReadFile("../../docs/howto/pod-policy.rego")
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for name, command := range commands {
		words := make([]string, len(command))
		for n, w := range command {
			words[n] = fmt.Sprintf("%q", w)
		}
		list = append(list, fmt.Sprintf("%q: {\"image\": %q, \"command\": [%s]}", name, image, strings.Join(words, ", ")))
	}
	block := regexp.MustCompile(`(?s)containers := \{.*?\n\}\}\n`)
	if !block.Match(policy) {
		t.Fatal("the handbook's policy has no list of containers")
	}
	text := block.ReplaceAllLiteralString(string(policy), "containers := {"+strings.Join(list, ",\n")+"}\n")
	text += "\nExecProcessRequest if input.process.Args == [\"cat\", \"/config/color\"]\n"
	doc := initdata.Document{Version: "0.1.0", Algorithm: "sha256", Data: map[string]string{"policy.rego": text, "cdh.toml": fmt.Sprintf(`
[image.registry_config]
unqualified-search-registries = ["docker.io"]
[[image.registry_config.registry]]
prefix = "registry.cloister.test"
location = %q
insecure = true
`, registry)}}
	data, err := doc.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return initdata.EncodeAnnotation(data)
}

// confidentialPod is what a confidential pod can do, and what it refuses.
func confidentialPod(t *testing.T, w *world, image, registry string) {
	script := `echo "color $(cat /config/color)"; echo secret > /scratch/x; while [ "$(cat /config/color)" = red ]; do sleep 0.5; done; echo "color $(cat /config/color)"; ` + Sleeper
	p := w.NewPod(t, w.handler, "confidential")
	p.Config.Annotations["cloister.dev/initdata"] = initdataOf(t, image, registry, map[string][]string{"main": {"sh", "-c", script}})
	p.Run()
	settings := p.Volume(t, "configmap", "settings")
	WriteAtomically(t, settings, map[string]string{"color": "red"})
	scratch := p.Volume(t, "empty-dir", "scratch")
	config := Shell("main", script)
	config.Image = &runtime.ImageSpec{Image: image, UserSpecifiedImage: image}
	config.Mounts = []*runtime.Mount{ReadOnly(settings, "/config"), Mount(scratch, "/scratch")}
	k := p.RunContainer(t, config)
	k.Says("color red\n")
	if got := k.Exec("cat", "/config/color"); got.Stdout != "red" {
		t.Errorf("the command that the policy lists: %+v", got)
	}
	if r, err := k.TryExec(30, "cat", "/etc/passwd"); err == nil || !strings.Contains(err.Error(), "policy") {
		t.Errorf("a command that the policy does not list: %+v, %v", r, err)
	}
	WriteAtomically(t, settings, map[string]string{"color": "blue"})
	k.Says("color blue\n")
	if files, err := os.ReadDir(scratch); err == nil {
		for _, f := range files {
			if data, _ := os.ReadFile(filepath.Join(scratch, f.Name())); strings.Contains(string(data), "secret") {
				t.Errorf("the host reads what was written to an emptyDir of a confidential pod, in %s", f.Name())
			}
		}
	}

	other := Shell("other", "echo not listed")
	other.Image = config.Image
	o, err := p.TryCreate(t, other)
	if err == nil {
		err = o.TryStart()
	}
	if err == nil || !strings.Contains(err.Error(), "policy") {
		t.Errorf("a container that the policy does not list: %v", err)
	}
	host := Shell("main", script)
	host.Metadata.Attempt = 1
	host.Image = config.Image
	host.Mounts = []*runtime.Mount{ReadOnly(settings, "/config"), Mount(t.TempDir(), "/scratch")}
	h, err := p.TryCreate(t, host)
	if err == nil {
		err = h.TryStart()
	}
	if err == nil || !strings.Contains(err.Error(), "hostPath") && !strings.Contains(err.Error(), "host") {
		t.Errorf("a directory of the host in a confidential pod: %v", err)
	} else {
		t.Log("a directory of the host:", err)
	}
	k.Stop(20)
	k.ExpectExit(0)
	p.Remove()
}
