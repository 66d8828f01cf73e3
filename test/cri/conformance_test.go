package cri

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/cloister/cloister/internal/testregistry"
	"github.com/cloister/cloister/test/containerd"
)

// critestEnv names the program critest of Kubernetes' cri-tools, which is no part of this repository.
const critestEnv = "CLOISTER_CRITEST"

// TestConformance runs Kubernetes' own tests of CRI and compares each result with the one expected in testdata. It is for who has
// critest: the Go module proxy does not offer it, so that nothing here can get it.
func TestConformance(t *testing.T) {
	critest := os.Getenv(critestEnv)
	if critest == "" {
		t.Skipf("%s names no critest program; build it from github.com/kubernetes-sigs/cri-tools", critestEnv)
	}
	handlers := []string{"runc", "cloister"}
	if only := os.Getenv(critestEnv + "_HANDLER"); only != "" {
		handlers = []string{only}
	}
	for _, handler := range handlers {
		t.Run(handler, func(t *testing.T) { conformance(t, critest, handler) })
	}
}

func conformance(t *testing.T, critest, handler string) {
	opts := containerd.Options{Version: containerd.V2}
	if handler != "runc" {
		opts = install(t).options(t, containerd.V2)
	}
	opts.Mirrors = conformanceImages(t)
	c := start(t, opts)
	dir := t.TempDir()
	args := []string{"--runtime-endpoint", "unix://" + c.Daemon.Address, "--ginkgo.no-color", "--ginkgo.json-report", filepath.Join(dir, "report.json")}
	if handler != "runc" {
		args = append(args, "--runtime-handler", handler)
	}
	if focus := os.Getenv(critestEnv + "_FOCUS"); focus != "" {
		args = append(args, "--ginkgo.focus", focus)
	}
	cmd := exec.CommandContext(t.Context(), critest, args...)
	cmd.Dir = dir
	out, runErr := cmd.CombinedOutput()
	got, err := results(filepath.Join(dir, "report.json"))
	if err != nil {
		t.Fatalf("critest: %v, %v\n%s", runErr, err, out)
	}
	if logs := os.Getenv("CLOISTER_TEST_LOGS"); logs != "" {
		_ = os.WriteFile(filepath.Join(logs, "critest-"+handler+".log"), out, 0o644)
	}
	compare(t, filepath.Join("testdata", "conformance-"+handler+".txt"), got)
}

// results are the states of critest's tests by their names.
func results(name string) (map[string]string, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var suites []struct {
		SpecReports []struct {
			ContainerHierarchyTexts []string
			LeafNodeType            string
			LeafNodeText            string
			State                   string
		}
	}
	if err := json.Unmarshal(data, &suites); err != nil {
		return nil, fmt.Errorf("reading critest's report: %w", err)
	}
	got := map[string]string{}
	for _, s := range suites {
		for _, r := range s.SpecReports {
			if r.LeafNodeType == "It" {
				got[strings.Join(append(r.ContainerHierarchyTexts, r.LeafNodeText), " / ")] = r.State
			}
		}
	}
	return got, nil
}

// compare fails for each test that is not listed with its state. A line is "STATE | NAME" or "STATE | NAME | REASON"; what does not
// pass needs a reason. With CLOISTER_UPDATE the list is written again, reasons are kept.
func compare(t *testing.T, name string, got map[string]string) {
	t.Helper()
	want, reasons := map[string]string{}, map[string]string{}
	if f, err := os.Open(name); err == nil {
		defer f.Close()
		for s := bufio.NewScanner(f); s.Scan(); {
			if fields := strings.SplitN(s.Text(), " | ", 3); len(fields) >= 2 {
				want[fields[1]] = fields[0]
				if len(fields) == 3 {
					reasons[fields[1]] = fields[2]
				}
			}
		}
	}
	if os.Getenv("CLOISTER_UPDATE") != "" {
		var lines []string
		for test, state := range got {
			line := state + " | " + test
			if state != "passed" {
				line += " | " + reasons[test]
			}
			lines = append(lines, line)
		}
		sort.Strings(lines)
		if err := os.WriteFile(name, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	for test, state := range got {
		switch {
		case want[test] == "" && state == "skipped": // by the focus
		case want[test] != state:
			t.Errorf("%s: %s, expected %q", test, state, want[test])
		case state != "passed" && reasons[test] == "":
			t.Errorf("%s: %s without a reason in %s", test, state, name)
		}
	}
}

// conformanceImages serves images under the names that critest asks for, all made here: what they are based on upstream is not what
// the tests are about. The mirrors are for containerd's configuration.
func conformanceImages(t *testing.T) map[string]string {
	t.Helper()
	registry, err := testregistry.Start(testregistry.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { registry.Close() })
	root, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	program := containerd.GoProgram(t, root, "./testprog")
	image := func(name string, config func(*v1.Config), files ...containerd.File) {
		t.Helper()
		i := containerd.Busybox(t, name)
		i.Files = append(i.Files, files...)
		if config != nil {
			config(&i.Config)
		}
		if err := containerd.Push(t.Context(), registry.Addr(), i); err != nil {
			t.Fatal(err)
		}
	}
	const staging, e2e = "gcr.io/k8s-staging-cri-tools/", "registry.k8s.io/e2e-test-images/"
	users := containerd.File{Path: "etc/passwd", Mode: 0o644, Data: []byte("root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/:/bin/sh\ndefault-user:x:1000:1000::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")}
	groups := containerd.File{Path: "etc/group", Mode: 0o644, Data: []byte("root:x:0:\nwww-data:x:33:\ndefault-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n")}
	for name, user := range map[string]string{"test-image-user-uid": "1002", "test-image-user-username": "www-data", "test-image-user-uid-group": "1003:users",
		"test-image-user-username-group": "www-data:100", "test-image-predefined-group": "1000"} {
		image(staging+name+":latest", func(c *v1.Config) { c.User = user }, users, groups)
	}
	for _, name := range []string{"latest:latest", "tag:test", "tag:all", "1:latest", "2:latest", "3:latest"} {
		image(staging+"test-image-"+name, nil, containerd.File{Path: "which", Mode: 0o644, Data: []byte(name)})
	}
	for _, tag := range []string{"1", "2", "3"} {
		image(staging+"test-image-tags:"+tag, nil, containerd.File{Path: "which", Mode: 0o644, Data: []byte("all the same")})
	}
	serve := func(name string, port int) func(*v1.Config) {
		return func(c *v1.Config) {
			c.Cmd = []string{"/bin/sh", "-c", fmt.Sprintf("mkdir -p /var/run; echo $$ > /var/run/nginx.pid; echo %s starts; exec /bin/%[1]s web %d 'master process'", name, port)}
		}
	}
	as := func(name string, mode int64) containerd.File {
		return containerd.File{Path: "bin/" + name, Mode: mode, Data: program}
	}
	image(e2e+"nginx:1.14-2", serve("nginx", 80), as("nginx", 0o755))
	image(e2e+"httpd:2.4.39-4", serve("httpd-foreground", 80), as("httpd-foreground", 0o755))
	image(staging+"hostnet-nginx-amd64:latest", serve("nginx", 12003), as("nginx", 0o755))
	image(e2e+"nonewprivs:1.3", func(c *v1.Config) { c.Cmd = []string{"/bin/nnp", "euid"} }, as("nnp", 0o4755))
	// The distribution's busybox has not all that upstream's image has; ls is one file with the others there, too, but no link.
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	script := func(name, text string) containerd.File {
		return containerd.File{Path: "bin/" + name, Mode: 0o755, Data: []byte("#!/bin/sh\n" + text + "\n")}
	}
	image(e2e+"busybox:1.29-2", nil, users, containerd.File{Path: "bin/ls", Mode: 0o755, Data: busybox},
		script("pgrep", `pidof "$1"`), script("ipcs", "cat /proc/sysvipc/shm"))
	image("registry.k8s.io/pause:3.9", nil, containerd.File{Path: "which", Mode: 0o644, Data: []byte("pause")})
	return map[string]string{"gcr.io": "http://" + registry.Addr(), "registry.k8s.io": "http://" + registry.Addr(), "k8s.gcr.io": "http://" + registry.Addr()}
}
