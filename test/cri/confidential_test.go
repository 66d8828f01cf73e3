package cri

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cloister/cloister/internal/testregistry"
	"github.com/cloister/cloister/test/containerd"
	"github.com/cloister/cloister/test/vmtest"
)

// secretPod is the world of confidential pods: measured into a software TPM, with images that the guest pulls by digest.
type secretPod struct {
	*Client
	cli     string            // the program
	config  string            // of the runtime
	dir     string            // for files of the test
	images  map[string]string // by the name that other scenarios use: the name with a digest, as host and guest know it
	address string            // of the registry, as the guest reaches it
	broker  string            // its folder
	kbs     string            // its URL, as the guest reaches it
	admin   []string          // flags that name it to administrators
}

const theSecret = "only for the measured pod"

// handlerTPM is the runtime handler of confidential pods.
const handlerTPM = "cloister-tpm"

func newSecretPod(t testing.TB, version string, flags ...string) *secretPod {
	vmtest.Need(t)
	containerd.Need(t)
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	w := &secretPod{dir: t.TempDir(), images: map[string]string{}}
	in := install(t)
	w.cli, w.config = filepath.Join(in.bin, "cloister"), in.config
	text, err := os.ReadFile(w.config)
	if err != nil {
		t.Fatal(err)
	}
	text = append(text, "create_container = \"2m\"\nrequest = \"2m\"\n[sandbox]\ntee = \"tpm\"\n"...)
	if err := os.WriteFile(w.config, text, 0o644); err != nil {
		t.Fatal(err)
	}
	// The bridge, by whose address the guest knows the registry, comes with the first pod: so it listens on all addresses.
	registry, err := testregistry.Start(testregistry.Options{Addr: "0.0.0.0:0", Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = registry.Close() })
	_, port, err := net.SplitHostPort(registry.Addr())
	if err != nil {
		t.Fatal(err)
	}
	opts := in.handler(t, version, handlerTPM, flags...)
	opts.Mirrors = map[string]string{"_default": "http://127.0.0.1:" + port}
	w.Client = start(t, opts)
	w.address = fmt.Sprint(w.Daemon.Network.Gateway(), ":", port)
	for _, image := range []containerd.Image{containerd.Busybox(t, BusyboxImage), containerd.Program(ProgramImage, containerd.GoProgram(t, ".", "./testprog")), volumesImage(t)} {
		image.Config.Labels = map[string]string{"from": "the registry"} // else it is the daemon's own image, under two names
		if err := containerd.Push(t.Context(), "127.0.0.1:"+port, image); err != nil {
			t.Fatal(err)
		}
		built, err := image.Build()
		if err != nil {
			t.Fatal(err)
		}
		digest, err := built.Digest()
		if err != nil {
			t.Fatal(err)
		}
		path := strings.TrimPrefix(image.Name, "registry.cloister.test")
		path, _, _ = strings.Cut(path, ":")
		ref := w.address + path + "@" + digest.String()
		w.images[image.Name] = ref
		if _, err := w.Images.PullImage(call(t), &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: ref}}); err != nil {
			t.Fatalf("pulling %s on the host, as the kubelet does: %v", ref, err)
		}
	}
	w.startBroker(t, root)
	return w
}

// startBroker starts a broker that believes this host's software TPMs, with one secret.
func (w *secretPod) startBroker(t testing.TB, root string) {
	t.Helper()
	program := filepath.Join(w.dir, "cloister-broker")
	if err := os.WriteFile(program, containerd.GoProgram(t, root, "./cmd/cloister-broker"), 0o755); err != nil {
		t.Fatal(err)
	}
	gateway := w.Daemon.Network.Gateway()
	config := w.file(t, "broker.toml", fmt.Sprintf("[server]\ntls_hosts = [\"127.0.0.1\", %q]\n", gateway))
	w.run(t, "doctor", "--tpm-ca", "tpm-ca.pem")
	w.broker = filepath.Join(w.dir, "broker")
	cmd := exec.Command(program, "serve", "--data", w.broker, "--config", config, "--listen", "0.0.0.0:0", "--tpm-ek-roots", "tpm-ca.pem")
	cmd.Dir = w.dir
	ready, out := newExpect(t), newExpect(t)
	cmd.Stdout, cmd.Stderr = ready, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("the broker said:\n%s", out.text())
		}
	})
	ready.wait("\n")
	text, err := os.ReadFile(filepath.Join(w.broker, "url"))
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	w.kbs = fmt.Sprint("https://", gateway, ":", u.Port())
	w.admin = []string{"--broker-dir", w.broker, "--kbs", "https://127.0.0.1:" + u.Port()}
	w.run(t, append([]string{"secret", "put", "kbs:///default/pod/secret", w.file(t, "secret", theSecret)}, w.admin...)...)
}

// run runs the user's program and returns what it printed.
func (w *secretPod) run(t testing.TB, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), w.cli, args...)
	cmd.Dir = w.dir
	cmd.Env = append(os.Environ(), "CLOISTER_HOME=/var/lib/cloister") // where the shim's software TPMs have their authority
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("cloister %s: %v\n%s", strings.Join(args, " "), err, errs.String())
	}
	return string(out)
}

func (w *secretPod) file(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(w.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// listed is what the policy of docs/howto wants to know of a container.
type listed struct {
	Image   string   `json:"image"`
	Program []string `json:"program"`
	Env     []string `json:"env"`
	UID     int      `json:"uid"`
	Cwd     string   `json:"cwd"`
	Files   []string `json:"files"`
	Scratch []string `json:"scratch"`
}

// entry lists a container as it is.
func (w *secretPod) entry(config *runtime.ContainerConfig, files, scratch []string) listed {
	return listed{Image: config.Image.Image, Program: append(config.Command, config.Args...), Env: []string{"PATH=/bin", "FROM_IMAGE=busybox"}, Cwd: "/",
		Files: append([]string{}, files...), Scratch: append([]string{}, scratch...)}
}

// policy is that of docs/howto with other containers.
func (w *secretPod) policy(t *testing.T, containers map[string]listed) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/howto/pod-policy.rego")
	if err != nil {
		t.Fatal(err)
	}
	table, err := json.Marshal(containers)
	if err != nil {
		t.Fatal(err)
	}
	old := regexp.MustCompile(`(?s)\ncontainers := \{.*?\n\}\}\n`)
	if len(old.FindAll(text, -1)) != 1 {
		t.Fatal("the policy of docs/howto has not one table of containers")
	}
	return old.ReplaceAllLiteralString(string(text), "\ncontainers := "+string(table)+"\n")
}

// manifest is the pod as its owner writes it, of a size of its own.
const manifest = `apiVersion: v1
kind: Pod
metadata: {name: secret, annotations: {cloister.dev/initdata: "%s"}}
spec:
  runtimeClassName: cloister-tpm
  containers:
  - name: main
    image: the policy names it
    resources: {limits: {cpu: "1", memory: 192Mi}}
`

// resources are what the kubelet makes of the pod's size.
func resources() *runtime.LinuxContainerResources {
	return &runtime.LinuxContainerResources{CpuPeriod: 100_000, CpuQuota: 100_000, CpuShares: 1024, MemoryLimitInBytes: 192 << 20}
}

// initdata is the annotation with a policy, and the path of the pod's manifest with it.
func (w *secretPod) initdata(t testing.TB, policy string) (annotation, pod string) {
	t.Helper()
	pod = w.file(t, "pod.yaml", fmt.Sprintf(manifest, ""))
	annotation = strings.TrimSpace(w.run(t, append([]string{"initdata", "new", "--policy", w.file(t, "policy.rego", policy), "--insecure-registry", w.address,
		"--guest-kbs", w.kbs, "--annotation", pod}, w.admin...)...))
	return annotation, w.file(t, "pod.yaml", fmt.Sprintf(manifest, annotation))
}

// Shell is a container of the registry's busybox.
func (w *secretPod) Shell(name, script string) *runtime.ContainerConfig {
	config := Shell(name, script)
	w.from(config, BusyboxImage)
	return config
}

// from gives a container another image, in the words of the kubelet.
func (w *secretPod) from(config *runtime.ContainerConfig, image string) {
	config.Image = &runtime.ImageSpec{Image: w.images[image], UserSpecifiedImage: w.images[image]}
}

// TestConfidential runs pods whose guest trusts nothing of this host but what the measured policy allows.
func TestConfidential(t *testing.T) { each(t, containerd.V16, confidentialPods) }

func confidentialPods(t *testing.T, version string) {
	w := newSecretPod(t, version)
	t.Run("without initdata", func(t *testing.T) {
		err := w.NewPod(t, handlerTPM, "bare").TryRun()
		refused(t, err, "brings no initdata", "hint: `cloister initdata new`", "cloister.dev/initdata")
	})
	t.Run("pod", func(t *testing.T) { confidential(t, w) })
	t.Run("generated policy", func(t *testing.T) { generated(t, w, w.images[VolumesImage], "guest", "") })
	t.Run("other policy", func(t *testing.T) { otherPolicy(t, w) })
}

// refused expects an error with parts of a text.
func refused(t *testing.T, err error, want ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("it was allowed, expected an error with %q", want)
		return
	}
	for _, part := range want {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the error has no %q: %v", part, err)
		}
	}
	t.Log(err)
}

// attempt starts a container that is not expected to start, and takes it away.
func attempt(t *testing.T, p *Pod, config *runtime.ContainerConfig) error {
	t.Helper()
	k, err := p.TryCreate(t, config)
	if err != nil {
		return err
	}
	defer k.Remove()
	return k.TryStart()
}

// fetch is a command that asks the guest for the secret.
const fetch = "wget -q -O - http://127.0.0.1:8006/cdh/resource/default/pod/secret"

// confidential is the life of one pod.
func confidential(t *testing.T, w *secretPod) {
	main := w.Shell("main", `echo "uid $(id -u)"
echo "the secret is $(`+fetch+`)"
echo note > /scratch/note && cat /scratch/note
echo quick > /fast/note && cat /fast/note
awk '$2 == "/scratch" || $2 == "/fast" {print $2, "is", $3}' /proc/mounts
while [ "$(cat /config/color)" = red ]; do sleep 0.2; done
echo "now $(cat /config/color) and $(cat /config/size)"
echo "the last words" > /dev/termination-log
exit 3`)
	policy := w.policy(t, map[string]listed{"main": w.entry(main, []string{"/config"}, []string{"/scratch", "/fast"})})
	for _, rule := range []string{"GetOOMEventRequest", "StatsContainerRequest"} {
		policy = strings.Replace(policy, "default "+rule+" := true", "default "+rule+" := false", 1)
	}
	annotation, manifest := w.initdata(t, policy)
	w.run(t, "refvalue", "compute", "--runtime-config", w.config, "-o", "values.json", manifest)
	w.run(t, append([]string{"refvalue", "add", "values.json"}, w.admin...)...)
	p := w.NewPod(t, handlerTPM, "secret")
	p.Config.Annotations["cloister.dev/initdata"] = annotation
	p.Config.Linux.Resources = resources()
	p.Run()
	settings := p.Volume(t, "configmap", "settings")
	WriteAtomically(t, settings, map[string]string{"color": "red"})
	disk := p.Volume(t, "empty-dir", "scratch")
	memory := p.Volume(t, "empty-dir", "fast")
	Tmpfs(t, memory, "size=16m,mode=0777")
	last := p.File(t, "containers/main/0a1b2c3d", "")
	hosts := p.File(t, "etc-hosts", HostsFile(p.IP(), "secret"))
	main.Mounts = []*runtime.Mount{ReadOnly(settings, "/config"), Mount(disk, "/scratch"), Mount(memory, "/fast"), Mount(hosts, "/etc/hosts"),
		Mount(last, "/dev/termination-log")}
	main.Annotations = map[string]string{"io.kubernetes.container.terminationMessagePath": "/dev/termination-log"}

	t.Run("refused", func(t *testing.T) {
		other := w.Shell("main", main.Command[2])
		w.from(other, ProgramImage)
		refused(t, attempt(t, p, other), "CreateContainerRequest is blocked by policy", "storages")
		refused(t, attempt(t, p, w.Shell("stranger", "true")), "CreateContainerRequest is blocked by policy")
		shared := w.Shell("main", main.Command[2])
		shared.Mounts = []*runtime.Mount{Mount(t.TempDir(), "/scratch")}
		refused(t, attempt(t, p, shared), "hostPath cannot be mounted into a confidential pod", "hint: use emptyDir")
	})

	k := p.RunContainer(t, main)
	k.Says("note\nquick\n")
	_, err := k.TryExec(60, "cat", "/scratch/note")
	refused(t, err, "ExecProcessRequest is blocked by policy")
	if _, err := w.ContainerStats(call(t), &runtime.ContainerStatsRequest{ContainerId: k.ID}); err != nil {
		t.Logf("stats of a container whose policy keeps them: %v", err)
	}
	WriteAtomically(t, settings, map[string]string{"color": "blue", "size": "big"})
	k.Says("now blue and big")
	k.ExpectExit(3)
	out := k.Output()
	t.Log(out)
	for _, want := range []string{"uid 0", "the secret is " + theSecret, "/fast is tmpfs"} {
		if !strings.Contains(out, want) {
			t.Errorf("the container did not say %q", want)
		}
	}
	if data, err := os.ReadFile(last); string(data) != "the last words\n" {
		t.Errorf("the termination message is on the host %q, %v", data, err)
	}
	k.Remove()
	unmount(memory)
	p.Remove()
}

// otherPolicy is a host that gives the pod a policy of its own: it may do what that says, and the pod is another one for the broker.
func otherPolicy(t *testing.T, w *secretPod) {
	main := w.Shell("main", Sleeper)
	policy := w.policy(t, map[string]listed{"main": w.entry(main, nil, nil)})
	annotation, _ := w.initdata(t, strings.Replace(policy, "default ExecProcessRequest := false", "default ExecProcessRequest := true", 1))
	p := w.NewPod(t, handlerTPM, "changed")
	p.Config.Annotations["io.katacontainers.config.hypervisor.cc_init_data"] = annotation
	p.Config.Linux.Resources = resources()
	p.Run()
	k := p.RunContainer(t, main)
	r := k.Exec("sh", "-c", fetch)
	if r.Code == 0 || strings.Contains(r.Stdout, theSecret) {
		t.Errorf("a pod under another policy got the secret: %+v", r)
	}
	t.Log(r)
	said := w.run(t, append([]string{"explain", "latest"}, w.admin...)...)
	if !strings.Contains(said, "tpm_init_data") {
		t.Errorf("the broker does not name the initdata as the reason:\n%s", said)
	}
	for _, pcr := range []string{"pcr00", "pcr04", "pcr07", "pcr09"} { // the rest of the boot is the same
		if strings.Contains(said, "tpm_"+pcr) {
			t.Errorf("the broker refuses %s:\n%s", pcr, said)
		}
	}
	k.Stop(60)
	k.ExpectExit(0)
	p.Remove()
}
