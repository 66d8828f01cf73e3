package cri

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cloister/cloister/internal/needs"
	"github.com/cloister/cloister/internal/testregistry"
	"github.com/cloister/cloister/test/containerd"
)

// critestEnv names the program critest of Kubernetes' cri-tools, which is no part of this repository.
const critestEnv = "CLOISTER_CRITEST"

// critestLimit is what one test of critest may take. Those that start several pods need minutes when processors are emulated.
const critestLimit = 15 * time.Minute

// TestConformance runs Kubernetes' own tests of CRI and compares each result with the one expected in testdata. It is for who has
// critest: the Go module proxy does not offer it, so that nothing here can get it.
func TestConformance(t *testing.T) {
	critest := os.Getenv(critestEnv)
	if critest == "" {
		needs.Optional(t, "%s names no critest program; build it from github.com/kubernetes-sigs/cri-tools", critestEnv)
	}
	handlers := []string{"runc", "cloister"}
	if only := os.Getenv(critestEnv + "_HANDLER"); only != "" {
		handlers = []string{only}
	}
	for _, handler := range handlers {
		t.Run(handler, func(t *testing.T) { conformance(t, critest, handler) })
	}
}

// conformance asks each test of critest in a process of its own, so that one that hangs or breaks something does not hide the others.
func conformance(t *testing.T, critest, handler string) {
	needSharedRoot(t)
	opts := containerd.Options{Version: containerd.V2}
	if handler != "runc" {
		opts = install(t).options(t, containerd.V2)
	}
	opts.Mirrors = conformanceImages(t)
	c := start(t, opts)
	args := []string{"--runtime-endpoint", "unix://" + c.Daemon.Address, "--nri-socket", c.Daemon.NRI()}
	if handler != "runc" {
		args = append(args, "--runtime-handler", handler)
	}
	all, err := critestRun(t, critest, append(args, "--ginkgo.dry-run"))
	if err != nil {
		t.Fatal(err)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].name() < all[j].name() })
	list := readExpected(t, filepath.Join("testdata", "conformance-"+handler+".txt"))
	focus := os.Getenv(critestEnv + "_FOCUS")
	for _, test := range all {
		if ok, err := regexp.MatchString(focus, test.name()); err != nil {
			t.Fatal(err)
		} else if !ok {
			continue
		}
		t.Run(test.name(), func(t *testing.T) {
			got, err := critestRun(t, critest, append(args, "--ginkgo.focus", regexp.QuoteMeta(test.text())+"$"))
			c.removePods(t)
			if err != nil {
				t.Fatal(err)
			}
			got = slices.DeleteFunc(got, func(r report) bool { return r.name() != test.name() })
			if len(got) != 1 {
				t.Fatalf("critest reports this test %d times", len(got))
			}
			t.Logf("%s after %s: %s", got[0].State, got[0].RunTime, got[0].Failure.Message)
			list.check(t, test.name(), got[0].State)
		})
	}
}

// needSharedRoot fails where the host's mounts are private, which they are on no node: systemd shares them, Kubernetes asks for it, and
// tests unmount volumes that a pod has still.
func needSharedRoot(t *testing.T) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 6 && f[4] == "/" && strings.HasPrefix(f[6], "shared:") {
			return
		}
	}
	t.Fatal("the root mount is private (hint: unshare -m sh -c 'mount --make-rshared / && exec go test …')")
}

// removePods removes what a test did not: the next one has the machine to itself.
func (c *Client) removePods(t *testing.T) {
	pods, err := c.ListPodSandbox(call(t), &runtime.ListPodSandboxRequest{})
	if err != nil {
		t.Error(err)
		return
	}
	for _, p := range pods.Items {
		t.Logf("the pod %s of the test is still there", p.Metadata.Name)
		if _, err := c.StopPodSandbox(call(t), &runtime.StopPodSandboxRequest{PodSandboxId: p.Id}); err != nil {
			t.Error(err)
		}
		if _, err := c.RemovePodSandbox(call(t), &runtime.RemovePodSandboxRequest{PodSandboxId: p.Id}); err != nil {
			t.Error(err)
		}
	}
}

// report is what critest reports of one of its tests.
type report struct {
	ContainerHierarchyTexts []string
	LeafNodeType            string
	LeafNodeText            string
	State                   string
	RunTime                 time.Duration
	Failure                 struct{ Message string }
}

func (r report) name() string {
	return strings.Join(append(r.ContainerHierarchyTexts, r.LeafNodeText), " / ")
}
func (r report) text() string {
	return strings.Join(append(r.ContainerHierarchyTexts, r.LeafNodeText), " ")
}

// critestRun is the report of one run. That tests of it fail is no error.
func critestRun(t *testing.T, critest string, args []string) ([]report, error) {
	t.Helper()
	dir := t.TempDir()
	name := filepath.Join(dir, "report.json")
	ctx, cancel := context.WithTimeout(t.Context(), critestLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, critest, append(args, "--ginkgo.no-color", "--ginkgo.json-report", name)...)
	cmd.Dir = dir
	cmd.WaitDelay = 10 * time.Second
	out, runErr := cmd.CombinedOutput()
	if logs := os.Getenv("CLOISTER_TEST_LOGS"); logs != "" {
		log := strings.ReplaceAll(t.Name(), "/", "_")
		_ = os.WriteFile(filepath.Join(logs, log[max(0, len(log)-200):]+".critest.log"), out, 0o644)
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("critest: %w, %w\n%s", runErr, err, out)
	}
	var suites []struct{ SpecReports []report }
	if err := json.Unmarshal(data, &suites); err != nil {
		return nil, fmt.Errorf("reading critest's report: %w", err)
	}
	var all []report
	for _, s := range suites {
		all = append(all, s.SpecReports...)
	}
	return slices.DeleteFunc(all, func(r report) bool { return r.LeafNodeType != "It" }), nil
}

// expected is a list of results. A line is "STATE | NAME" or "STATE | NAME | REASON"; what does not pass needs a reason.
type expected struct {
	name           string
	state, reasons map[string]string
}

func readExpected(t *testing.T, name string) *expected {
	t.Helper()
	e := &expected{name: name, state: map[string]string{}, reasons: map[string]string{}}
	data, err := os.ReadFile(name)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if fields := strings.SplitN(strings.TrimRight(line, "\n"), " | ", 3); len(fields) >= 2 {
			e.state[fields[1]] = fields[0]
			if len(fields) == 3 {
				e.reasons[fields[1]] = fields[2]
			}
		}
	}
	return e
}

// check fails the test when the state is not the listed one. With CLOISTER_UPDATE the list is written again instead, with the reasons
// that it has.
func (e *expected) check(t *testing.T, test, state string) {
	t.Helper()
	if os.Getenv("CLOISTER_UPDATE") == "" {
		if e.state[test] != state {
			t.Errorf("%s, expected %q", state, e.state[test])
		} else if state != "passed" && e.reasons[test] == "" {
			t.Errorf("%s without a reason in %s", state, e.name)
		}
		return
	}
	e.state[test] = state
	var lines []string
	for test, state := range e.state {
		line := state + " | " + test
		if state != "passed" {
			line += " | " + e.reasons[test]
		}
		lines = append(lines, line)
	}
	sort.Strings(lines)
	if err := os.WriteFile(e.name, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
		t.Fatal(err)
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
