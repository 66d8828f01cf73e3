package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister/cloister/internal/paths"
	"github.com/cloister/cloister/internal/testregistry"
)

// folder is a working directory with a registry that has the image %REGISTRY%/app:1.
type folder struct {
	registry string
}

func newFolder(t *testing.T) *folder {
	t.Helper()
	t.Chdir(t.TempDir())
	t.Setenv("CLOISTER_HOME", filepath.Join(t.TempDir(), "home"))
	for _, name := range []string{envKBS, envCert, envToken, envDir} {
		t.Setenv(name, "")
	}
	dirs, err := paths.Default()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dirs.Run) }) // it lies outside of the home
	r, err := testregistry.Start(testregistry.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	f := &folder{registry: r.Addr()}
	f.write(t, "app", "#!/bin/sh\n")
	f.run(t, exitDone, "image", "build", "--file", "app:/app", "--insecure-registry", r.Addr(), r.Addr()+"/app:1")
	return f
}

func (f *folder) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(strings.ReplaceAll(text, "%REGISTRY%", f.registry)), 0o644); err != nil {
		t.Fatal(err)
	}
}

// run runs a command and returns all that it printed.
func (f *folder) run(t *testing.T, code int, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	if got := run(t.Context(), args, nil, &out, &out); got != code {
		t.Fatalf("cloister %s: exit code %d, want %d: %s", strings.Join(args, " "), got, code, out.String())
	}
	return out.String()
}

const secretPod = `
apiVersion: v1
kind: Secret
metadata: {name: db}
stringData: {password: hunter2, sealed: sealed.a.b.c}
---
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  restartPolicy: Never
  containers:
    - name: app
      image: %REGISTRY%/app:1
      command: [/app, ARGS]
      env: [ENV]
`

// TestSecretsInClear makes initdata of pods that take the values of Secrets in different ways.
func TestSecretsInClear(t *testing.T) {
	f := newFolder(t)
	const password = "{name: PW, valueFrom: {secretKeyRef: {name: db, key: password}}}"
	for _, tc := range []struct {
		name, env, args string
		mode            os.FileMode
		says            string
	}{
		{"none", "", "--quiet", 0o644, ""},
		{"sealed", "{name: PW, valueFrom: {secretKeyRef: {name: db, key: sealed}}}", "x", 0o644, ""},
		{"variable", password, "x", 0o600, "variable PW of container app holds a Secret"},
		{"derived", password + ", {name: URL, value: \"db://$(PW)@db\"}", "x", 0o600, "variable URL of container app holds a Secret"},
		{"argument", password, "--password=$(PW)", 0o600, "the arguments of container app holds a Secret"},
		{"replaced", password + ", {name: PW, value: other}", "$(PW)", 0o644, ""},
	} {
		f.write(t, "pod.yaml", strings.NewReplacer("ENV", tc.env, "ARGS", "\""+tc.args+"\"").Replace(secretPod))
		if err := os.RemoveAll("old.toml"); err != nil {
			t.Fatal(err)
		}
		f.write(t, "old.toml", "") // readable by all
		for _, args := range [][]string{{"initdata", "new", "-o", "old.toml"}, {"policy", "generate", "-o", tc.name + ".rego", "--for", "run"}} {
			out := f.run(t, exitDone, append(args, "--insecure-registry", f.registry, "pod.yaml")...)
			if !strings.Contains(out, tc.says) || strings.Contains(out, "holds a Secret") != (tc.says != "") || strings.Contains(out, "hunter2") {
				t.Errorf("%s: output %q, want %q", tc.name, out, tc.says)
			}
			info, err := os.Stat(args[3])
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode().Perm() != tc.mode {
				t.Errorf("%s: %s has mode %o, want %o", tc.name, args[3], info.Mode().Perm(), tc.mode)
			}
		}
		text, err := os.ReadFile("old.toml")
		if err != nil {
			t.Fatal(err)
		}
		if clear := strings.Contains(string(text), "hunter2"); clear != (tc.says != "") {
			t.Errorf("%s: the initdata holds the Secret: %v, and the warning is %q", tc.name, clear, tc.says)
		}
	}
	// A policy that only its owner may read gives initdata that only its owner may read.
	f.run(t, exitDone, "initdata", "new", "--policy", "variable.rego", "-o", "again.toml", "pod.yaml")
	if info, err := os.Stat("again.toml"); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("initdata of a private policy: %v, %v", info, err)
	}
}

// TestLoopbackBroker takes the broker's URL for the guest from where it is given.
func TestLoopbackBroker(t *testing.T) {
	f := newFolder(t)
	f.write(t, "pod.yaml", strings.NewReplacer("ENV", "", "ARGS", "x").Replace(secretPod))
	for _, tc := range []struct {
		args []string
		warn bool
	}{
		{[]string{"--kbs", "https://127.0.0.1:8080"}, true}, {[]string{"--kbs", "https://localhost:8080"}, true},
		{[]string{"--guest-kbs", "https://[::1]:8080"}, true}, {[]string{"--kbs", "https://kbs.example"}, false},
		{[]string{"--kbs", "https://127.0.0.1:8080", "--guest-kbs", "https://10.0.2.2:8080"}, false}, {nil, false},
	} {
		args := append([]string{"initdata", "new", "-o", "pod.toml", "--insecure-registry", f.registry, "pod.yaml"}, tc.args...)
		if out := f.run(t, exitDone, args...); strings.Contains(out, "which is the guest itself") != tc.warn {
			t.Errorf("%v: want a warning: %v: %s", tc.args, tc.warn, out)
		}
	}
}

func TestInsecureRegistryIsNamed(t *testing.T) {
	f := newFolder(t)
	f.write(t, "pod.yaml", strings.NewReplacer("ENV", "", "ARGS", "x").Replace(secretPod))
	if out := f.run(t, exitRefused, "policy", "generate", "--for", "run", "pod.yaml"); !strings.Contains(out, "hint: allow it by --insecure-registry "+f.registry) {
		t.Errorf("no hint: %s", out)
	}
}
