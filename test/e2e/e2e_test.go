package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister/cloister/test/vmtest"
)

// TestDemo runs what the README's first line runs.
func TestDemo(t *testing.T) {
	vmtest.Need(t)
	bin := mustAbs(t, "../../bin") // inside the source tree, where the guest is built from
	build := exec.Command("go", "build", "-trimpath", "-o", bin+"/", "./cmd/cloister", "./cmd/cloister-broker", "./demo")
	build.Dir = "../.."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building: %v\n%s", err, out)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "demo"), "-bin", bin)
	cmd.Dir = "../.."
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("the demo failed: %v\n%s", err, out)
	}
}

// TestPods runs a pod, compares what it proved with what was computed, and then changes one artefact after the other.
func TestPods(t *testing.T) {
	e := newEnv(t)

	t.Run("the pod runs and proves what was computed", func(t *testing.T) {
		out, code := e.run(t, "pod", "pod.toml")
		if code != 3 || !strings.Contains(out, "out of an encrypted layer") {
			t.Fatalf("exit code %d, want the container's 3\n%s", code, out)
		}
		e.nothingLeft(t)
		var record struct {
			Decision string
			Parts    []struct {
				Status   string
				Evidence struct {
					TPM map[string]any
				}
			}
		}
		e.jsonOK(t, &record, "attest")
		if record.Decision != "allow" || len(record.Parts) != 1 || record.Parts[0].Status != "affirming" {
			t.Fatalf("the attestation was not affirming: %+v", record)
		}
		var computed map[string][]string
		if err := json.Unmarshal(e.read(t, "pod.json"), &computed); err != nil {
			t.Fatal(err)
		}
		for pcr, name := range map[string]string{"pcr00": "tpm_pcr00", "pcr04": "tpm_pcr04", "pcr07": "tpm_pcr07", "pcr08": "tpm_init_data", "pcr09": "tpm_pcr09"} {
			got, _ := record.Parts[0].Evidence.TPM[pcr].(string)
			if len(got) != 64 || !strings.Contains(strings.Join(computed[name], " "), got) {
				t.Errorf("%s is %q, computed were %v", pcr, got, computed[name])
			}
		}
	})

	t.Run("no secret in any log", func(t *testing.T) {
		key := e.read(t, "image.key")
		forms := [][]byte{key, []byte(hex.EncodeToString(key)), []byte(base64.StdEncoding.EncodeToString(key)), []byte(base64.RawURLEncoding.EncodeToString(key))}
		files, err := filepath.Glob(filepath.Join(vmtest.Home(t), "pods", "pod", "*"))
		if err != nil || len(files) == 0 {
			t.Fatalf("the pod left no logs to look at: %v", err)
		}
		files = append(files, filepath.Join(e.dir, "broker.log"), filepath.Join(e.dir, "broker", "audit.jsonl"), filepath.Join(e.dir, "broker", "store.db"))
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			for _, form := range forms {
				if bytes.Contains(b, form) {
					t.Errorf("%s holds the image key", f)
				}
			}
		}
	})

	t.Run("a changed kernel", func(t *testing.T) {
		// A letter of the version text in the boot header: the kernel still boots.
		dir := e.copyImage(t, func(kernel []byte) []byte {
			i := bytes.Index(kernel, []byte("(debian-kernel@"))
			if i < 0 {
				t.Fatal("the kernel has no version text")
			}
			kernel[i+1] ^= 1
			return kernel
		}, nil)
		out, code := e.run(t, "pod", "pod.toml", "--guest", dir)
		e.refused(t, out, code, "tpm_pcr04", "request ")
	})

	t.Run("a changed initrd", func(t *testing.T) {
		dir := e.copyImage(t, nil, func(initrd []byte) []byte { return append(initrd, 0, 0, 0, 0) })
		out, code := e.run(t, "pod", "pod.toml", "--guest", dir)
		e.refused(t, out, code, "tpm_pcr09", "request ")
	})

	t.Run("an initdata with a malformed policy stops the guest", func(t *testing.T) {
		e.write(t, "broken.toml", "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"policy.rego\" = \"package\"\n")
		out, code := e.run(t, "pod", "broken.toml")
		e.refused(t, out, code, "policy")
	})

	t.Run("an image signed with another key", func(t *testing.T) {
		e.ok(t, "key", "new", "--type", "signing", "other.key")
		e.ok(t, "image", "encrypt", "--key", "image.key", "--key-id", "kbs:///default/kek/app", e.host+"/team/app:plain", e.host+"/team/other:1")
		e.ok(t, "image", "sign", "--key", "other.key", "--identity", e.vm+"/team/other", e.host+"/team/other:1")
		e.expect(t, "pod-other", pod("pod-other", e.host+"/team/other:1", "cat /message"))
		out, code := e.run(t, "pod-other", "pod-other.toml")
		e.refused(t, out, code, "sigstoreSigned")
	})

	t.Run("a pod that is not the one of the policy", func(t *testing.T) {
		e.write(t, "pod-changed.yaml", pod("pod", e.host+"/team/app:1", "cat /etc/shadow; exit 3"))
		out, code := e.run(t, "pod-changed", "pod.toml")
		e.refused(t, out, code, "is blocked by policy")
	})
}

// TestInvalidManifest needs no VM: what is wrong is said before one is started.
func TestInvalidManifest(t *testing.T) {
	e := newEnv(t)
	e.write(t, "bad.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: bad}\nspec:\n  hostNetwork: true\n  containers:\n    - name: a\n      image: x\n      privilege: 1\n")
	out, code := e.run(t, "bad", "pod.toml")
	e.refused(t, out, code, "hostNetwork", "privilege")
}

// copyImage copies the guest image and changes its parts; the manifest keeps the digests of the originals.
func (e *env) copyImage(t *testing.T, kernel, initrd func([]byte) []byte) string {
	t.Helper()
	var image struct{ Dir string }
	e.jsonOK(t, &image, "guest", "inspect")
	dir := t.TempDir()
	entries, err := os.ReadDir(image.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		b, err := os.ReadFile(filepath.Join(image.Dir, entry.Name()))
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case entry.Name() == "vmlinuz" && kernel != nil:
			b = kernel(b)
		case entry.Name() == "initrd.img" && initrd != nil:
			b = initrd(b)
		}
		if err := os.WriteFile(filepath.Join(dir, entry.Name()), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
