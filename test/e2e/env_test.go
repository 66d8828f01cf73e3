// Package e2e drives the built programs as a user or an attacker would: whole VMs, a real broker, a real registry.
package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloister/cloister/internal/testregistry"
	"github.com/cloister/cloister/test/vmtest"
)

// deadline bounds one command; a boot rarely takes a minute on a busy machine.
const deadline = 10 * time.Minute

// env is a broker, a registry with an encrypted and signed image, and a pod that is expected by the broker.
type env struct {
	bin, dir string
	registry *testregistry.Registry
	host, vm string // the registry's name outside and inside the guest
}

// newEnv builds the programs and sets everything up. Tests share one.
func newEnv(t *testing.T) *env {
	t.Helper()
	vmtest.Need(t)
	e := &env{bin: t.TempDir(), dir: t.TempDir()}
	build := exec.Command("go", "build", "-trimpath", "-o", e.bin+"/", "./cmd/cloister", "./cmd/cloister-broker")
	build.Dir = "../.."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building: %v\n%s", err, out)
	}
	var err error
	if e.registry, err = testregistry.Start(testregistry.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.registry.Close() })
	e.host = e.registry.Addr()
	e.vm = strings.Replace(e.host, "127.0.0.1", "10.0.2.2", 1)

	e.ok(t, "guest", "build", "--source", mustAbs(t, "../.."))
	e.ok(t, "doctor", "--tpm-ca", "tpm-ca.pem")
	e.startBroker(t)
	e.write(t, "message", "out of an encrypted layer\n")
	e.ok(t, "image", "build", "--file", "/bin/sh", "--file", "/bin/cat", "--file", "message:/message", e.host+"/team/app:plain")
	e.ok(t, "key", "new", "image.key")
	e.ok(t, "key", "new", "--type", "signing", "signing.key")
	e.ok(t, "image", "encrypt", "--key", "image.key", "--key-id", "kbs:///default/kek/app", e.host+"/team/app:plain", e.host+"/team/app:1")
	e.ok(t, "image", "sign", "--key", "signing.key", "--identity", e.vm+"/team/app", e.host+"/team/app:1")
	e.write(t, "image-policy.json", `{"default":[{"type":"reject"}],"transports":{"docker":{"`+e.vm+
		`/team":[{"type":"sigstoreSigned","keyPath":"kbs:///default/cosign/app","signedIdentity":{"type":"matchRepository"}}]}}}`)
	e.ok(t, "secret", "put", "kbs:///default/kek/app", "image.key")
	e.ok(t, "secret", "put", "kbs:///default/cosign/app", "signing.key.pub")
	e.ok(t, "secret", "put", "kbs:///default/policy/app", "image-policy.json")
	e.expect(t, "pod", pod("pod", e.host+"/team/app:1", "cat /message; exit 3"))
	return e
}

// pod is a manifest with one container.
func pod(name, image, script string) string {
	return "apiVersion: v1\nkind: Pod\nmetadata: {name: " + name + "}\nspec:\n  restartPolicy: Never\n  containers:\n" +
		"    - name: main\n      image: " + image + "\n      command: [\"/bin/sh\", \"-c\", \"" + script + "\"]\n"
}

// expect writes a pod, makes its initdata with more flags, and registers what a boot of it has to show.
func (e *env) expect(t *testing.T, name, manifest string, more ...string) {
	t.Helper()
	e.write(t, name+".yaml", manifest)
	e.ok(t, append([]string{"initdata", "new", "--guest-kbs", e.guestKBS(t), "--image-policy", "kbs:///default/policy/app", "-o", name + ".toml", name + ".yaml"}, append(e.flags(), more...)...)...)
	e.ok(t, append([]string{"refvalue", "compute", "--initdata", name + ".toml", "-o", name + ".json", name + ".yaml"}, e.flags()...)...)
	e.ok(t, "refvalue", "add", name+".json")
}

func (e *env) flags() []string {
	return []string{"--insecure-registry", e.host, "--guest-registry", e.host + "=" + e.vm}
}

// run is `cloister run` of a pod with an initdata document.
func (e *env) run(t *testing.T, name, initdata string, more ...string) (string, int) {
	t.Helper()
	return e.try(t, append(append([]string{"run", name + ".yaml", "--initdata", initdata}, e.flags()...), more...)...)
}

// refused runs a pod that must be refused for a reason that names all of why, and checks that nothing is left.
func (e *env) refused(t *testing.T, out string, code int, why ...string) {
	t.Helper()
	if code == 0 {
		t.Errorf("exit code 0, this had to be refused:\n%s", out)
	}
	for _, w := range why {
		if !strings.Contains(out, w) {
			t.Errorf("the reason does not name %q:\n%s", w, out)
		}
	}
	e.nothingLeft(t)
}

func (e *env) guestKBS(t *testing.T) string {
	t.Helper()
	url, err := os.ReadFile(filepath.Join(e.dir, "broker", "url"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Replace(strings.TrimSpace(string(url)), "127.0.0.1", "10.0.2.2", 1)
}

func (e *env) startBroker(t *testing.T) {
	t.Helper()
	cmd := exec.Command(filepath.Join(e.bin, "cloister-broker"), "serve", "--data", "broker", "--listen", "127.0.0.1:0", "--tpm-ek-roots", "tpm-ca.pem")
	cmd.Dir = e.dir
	log, err := os.Create(filepath.Join(e.dir, "broker.log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = log
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
		log.Close()
	})
	if !bufio.NewScanner(out).Scan() {
		t.Fatal("the broker did not start")
	}
}

// try runs one command.
func (e *env) try(t *testing.T, args ...string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(e.bin, "cloister"), args...)
	cmd.Dir = e.dir
	cmd.Env = append(os.Environ(), "CLOISTER_BROKER_DIR="+filepath.Join(e.dir, "broker"), "CLOISTER_HOME="+vmtest.Home(t))
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 30 * time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("cloister %s: %v\n%s", strings.Join(args, " "), err, out.String())
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

func (e *env) ok(t *testing.T, args ...string) string {
	t.Helper()
	out, code := e.try(t, args...)
	if code != 0 {
		t.Fatalf("cloister %s: exit code %d\n%s", strings.Join(args, " "), code, out)
	}
	return out
}

func (e *env) jsonOK(t *testing.T, into any, args ...string) {
	t.Helper()
	out := e.ok(t, append(args, "--json")...)
	if err := json.Unmarshal([]byte(out), into); err != nil {
		t.Fatalf("cloister %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func (e *env) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(e.dir, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (e *env) read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(e.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// nothingLeft looks for pods and for processes of this user's VMs. No other test has a VM whose name begins with "pod".
func (e *env) nothingLeft(t *testing.T) {
	t.Helper()
	var pods []struct{ Name string }
	e.jsonOK(t, &pods, "ps")
	for _, p := range pods {
		if strings.HasPrefix(p.Name, "pod") { // tests of other packages have theirs
			t.Errorf("pod %s is left", p.Name)
		}
	}
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		if line, err := os.ReadFile(p); err == nil && bytes.Contains(line, []byte("guest=pod")) {
			t.Errorf("a VM is left: %s", bytes.ReplaceAll(line, []byte{0}, []byte{' '}))
		}
	}
}

func mustAbs(t *testing.T, path string) string {
	t.Helper()
	abs, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return abs
}
