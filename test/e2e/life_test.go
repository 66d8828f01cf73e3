package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/test/ended"

	"github.com/cloister/cloister/test/vmtest"
)

// waiting is a pod that stays up: its containers read a standard input that nobody writes to.
func waiting(name, image string) string {
	return "apiVersion: v1\nkind: Pod\nmetadata: {name: " + name + "}\nspec:\n  restartPolicy: Never\n  terminationGracePeriodSeconds: 1\n" +
		"  volumes: [{name: shared, emptyDir: {}}]\n" +
		"  initContainers:\n    - name: first\n      image: " + image + "\n      command: [\"/bin/sh\", \"-c\", \"echo made by init > /shared/note\"]\n" +
		"      volumeMounts: [{name: shared, mountPath: /shared}]\n" +
		"  containers:\n" +
		"    - name: main\n      image: " + image + "\n      stdin: true\n      command: [\"/bin/sh\", \"-c\", \"cat /shared/note; read line\"]\n" +
		"      volumeMounts: [{name: shared, mountPath: /shared}]\n" +
		"    - name: side\n      image: " + image + "\n      stdin: true\n      env: [{name: WHO, value: sidecar}]\n      command: [\"/bin/sh\", \"-c\", \"echo $WHO; read line\"]\n"
}

type podState struct {
	Name       string
	Phase      string
	Supervisor int
	Containers []struct {
		Name, State string
		ExitCode    *int `json:"exit_code"`
	}
}

// state is what `ps` says of a pod, or nil.
func (e *env) state(t *testing.T, name string, more ...string) *podState {
	t.Helper()
	var pods []podState
	e.jsonOK(t, &pods, append([]string{"ps"}, more...)...)
	for i := range pods {
		if pods[i].Name == name {
			return &pods[i]
		}
	}
	return nil
}

// TestPodLife takes pods through what their owner and what a crash can do to them.
func TestPodLife(t *testing.T) {
	e := newEnv(t)
	e.expect(t, "pod-life", waiting("pod-life", e.host+"/team/app:1"), "--allow-exec", "/bin/cat /shared/note")

	t.Run("detached, looked at, entered and stopped", func(t *testing.T) {
		if out, code := e.run(t, "pod-life", "pod-life.toml", "--detach"); code != 0 {
			t.Fatalf("exit code %d\n%s", code, out)
		}
		s := e.state(t, "pod-life")
		if s == nil || len(s.Containers) != 3 {
			t.Fatalf("ps shows %+v, want a running pod of three containers", s)
		}
		for _, c := range s.Containers {
			want := "running"
			if c.Name == "first" {
				want = "exited"
			}
			if c.State != want {
				t.Errorf("container %s is %s, want %s", c.Name, c.State, want)
			}
		}
		if out := e.ok(t, "exec", "pod-life", "--", "/bin/cat", "/shared/note"); !strings.Contains(out, "made by init") {
			t.Errorf("the allowed exec printed %q", out)
		}
		out, code := e.try(t, "exec", "pod-life", "--", "/bin/cat", "/shared/../etc/passwd")
		if code == 0 || !strings.Contains(out, "ExecProcessRequest is blocked by policy") {
			t.Errorf("exit code %d for an exec that the policy does not have:\n%s", code, out)
		}
		if out := e.ok(t, "logs", "pod-life", "-c", "side"); !strings.Contains(out, "sidecar") || strings.Contains(out, "made by init") {
			t.Errorf("logs of side: %q", out)
		}
		if out, code := e.run(t, "pod-life", "pod-life.toml"); code == 0 || !strings.Contains(out, "running") {
			t.Errorf("a second pod of the same name: exit code %d\n%s", code, out)
		}
		e.ok(t, "stop", "pod-life")
		e.nothingLeft(t)
		if s := e.state(t, "pod-life", "--all"); s == nil || s.Phase == "running" {
			t.Errorf("ps --all shows %+v after the stop", s)
		}
	})

	t.Run("kill -9 of the supervisor", func(t *testing.T) {
		vmtest.Alone(t)
		if out, code := e.run(t, "pod-life", "pod-life.toml", "--detach"); code != 0 {
			t.Fatalf("exit code %d\n%s", code, out)
		}
		s := e.state(t, "pod-life")
		if s == nil || s.Supervisor <= 1 {
			t.Fatalf("ps shows %+v", s)
		}
		kill(t, s.Supervisor)
		if out := e.ok(t, "ps"); !strings.Contains(out, "cleaned up after pod pod-life") {
			t.Errorf("the next command does not say that it cleaned up:\n%s", out)
		}
		e.nothingLeft(t)
		left, err := filepath.Glob(filepath.Join(runDir(t), "*", "pod-life*"))
		if err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	})
}

// TestBadImages runs pods whose image or key the owner did not mean.
func TestBadImages(t *testing.T) {
	e := newEnv(t)

	t.Run("one flipped bit in a layer", func(t *testing.T) {
		var image struct {
			Platforms []struct {
				Layers []struct{ Digest string }
			}
		}
		e.jsonOK(t, &image, "image", "inspect", e.host+"/team/app:1")
		layer := image.Platforms[0].Layers[0].Digest
		e.registry.Tamper(layer, func(b []byte) []byte {
			b = append([]byte(nil), b...)
			b[len(b)/2] ^= 0x10
			return b
		})
		defer e.registry.Tamper(layer, nil)
		out, code := e.run(t, "pod", "pod.toml")
		e.refused(t, out, code, "digest", layer)
	})

	t.Run("the key is not in the broker", func(t *testing.T) {
		e.ok(t, "secret", "rm", "kbs:///default/kek/app")
		out, code := e.run(t, "pod", "pod.toml")
		e.refused(t, out, code, "kek/app")
		e.ok(t, "secret", "put", "kbs:///default/kek/app", "image.key")
	})

	t.Run("the broker holds another key", func(t *testing.T) {
		e.ok(t, "key", "new", "wrong.key")
		e.ok(t, "secret", "put", "kbs:///default/kek/app", "wrong.key")
		out, code := e.run(t, "pod", "pod.toml")
		e.refused(t, out, code, "layer")
		if strings.Contains(out, string(e.read(t, "wrong.key"))) {
			t.Error("the key is in the error")
		}
	})
}

// kill ends a process that is not a child of ours and waits until it has ended, its files and locks included.
func kill(t *testing.T, pid int) {
	t.Helper()
	if err := ended.Kill(pid, 2*time.Minute); err != nil {
		t.Fatal(err)
	}
}

func runDir(t *testing.T) string {
	t.Helper()
	if os.Getuid() == 0 {
		return "/run/cloister"
	}
	return filepath.Join(vmtest.Home(t), "run")
}
