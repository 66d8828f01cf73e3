package shim

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	task "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/internal/needs"
	"github.com/cloister/cloister/test/fakeguest"
	"github.com/cloister/cloister/wire/initdata"
)

// TestBundles has bundles that are wrong, as the pod's first container and in a pod that runs: a clear error each, and the pod goes on.
func TestBundles(t *testing.T) {
	edit := func(f func(s *specs.Spec)) func(kind string) any {
		return func(kind string) any {
			s := specOf(kind)
			f(s)
			return s
		}
	}
	raw := func(text string) func(string) any { return func(string) any { return []byte(text) } }
	for name, c := range map[string]struct {
		spec func(kind string) any
		word string
	}{
		"empty":      {raw(""), "specification"},
		"no JSON":    {raw("{]"), "specification"},
		"other JSON": {raw(`[1]`), "specification"},
		"null":       {raw(`null`), "no process"},
		"20 MB":      {raw(`{"ociVersion":"` + strings.Repeat("x", 20<<20) + `"}`), "more than"},
		"deep":       {raw(strings.Repeat(`{"a":`, 100_000)), "specification"},
		"no process": {edit(func(s *specs.Spec) { s.Process = nil }), "no process"},
		"no linux":   {edit(func(s *specs.Spec) { s.Linux = nil }), "not for Linux"},
		"no root":    {edit(func(s *specs.Spec) { s.Root = nil }), "root"},
		"negative memory": {edit(func(s *specs.Spec) {
			s.Linux.Resources = memory(-5)
			s.Annotations["io.kubernetes.cri.sandbox-memory"] = "-5"
		}), "-5"},
		"all the memory": {edit(func(s *specs.Spec) {
			s.Linux.Resources, s.Annotations["io.kubernetes.cri.sandbox-memory"] = memory(1<<62), "4611686018427387904"
		}), "memory"},
		"too large to send": {edit(func(s *specs.Spec) { s.Process.Env = []string{"A=" + strings.Repeat("x", 6<<20)} }), "exceed"},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t)
			create := func(id, kind string) error {
				_, err := e.service.Create(testContext(t), &task.CreateTaskRequest{ID: id, Bundle: e.bundle(c.spec(kind))})
				return err
			}
			check := func(err error) {
				t.Helper()
				if err == nil || !strings.Contains(err.Error(), c.word) || len(err.Error()) > 2*maxErrorText {
					t.Errorf("error %.300v, want one with %q", err, c.word)
				}
			}
			check(create("pod", "sandbox"))
			e.pod()
			check(create("c1", "container"))
			e.run("c1", untilKilled)
		})
	}
	e := newEnv(t)
	pipe := filepath.Join(e.dir, "pipe")
	e.must(os.Mkdir(pipe, 0o700), unix.Mkfifo(filepath.Join(pipe, "config.json"), 0o600))
	for _, dir := range []string{"", "/", "/none", "a\x00b", "/proc/self/mem", pipe} {
		_, err := e.service.Create(testContext(t), &task.CreateTaskRequest{ID: "pod", Bundle: dir})
		wantCode(t, err, codes.Unknown, "reading the container's specification")
	}
}

func memory(n int64) *specs.LinuxResources {
	return &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &n}}
}

// TestUpdateTooLarge refuses a size that the host does not have, and forgets it.
func TestUpdateTooLarge(t *testing.T) {
	e := newEnv(t)
	vm := e.pod()
	e.run("c1", untilKilled)
	update := func(r any) error {
		text, err := json.Marshal(r)
		e.must(err)
		_, err = e.service.Update(testContext(t), &task.UpdateTaskRequest{ID: "c1", Resources: &anypb.Any{Value: text}})
		return err
	}
	wantCode(t, update(memory(1<<45)), codes.Unknown, "updating container c1")
	wantCode(t, update("x"), codes.InvalidArgument)
	_, err := e.service.Update(testContext(t), &task.UpdateTaskRequest{ID: "c1"})
	wantCode(t, err, codes.InvalidArgument)
	e.run("c2", untilKilled)
	e.must(update(memory(1 << 30)))
	_ = vm
}

// TestNode has nodes that lack something: the error says what, and nothing is left.
func TestNode(t *testing.T) {
	for name, c := range map[string]struct {
		lines, words []string
		vm           func(context.Context, vmm.Config) (vmm.Machine, error)
		annotation   string
		value        string // of it, else an absurd number
	}{
		"no configuration file": {words: []string{"none.toml"}},
		"unknown key":           {lines: []string{"guest.colour = 1"}, words: []string{"colour"}},
		"no confidential files": {lines: []string{`sandbox.tee = "snp"`}, words: []string{"snp"}},
		"no initdata":           {lines: []string{`sandbox.tee = "tpm"`}, words: []string{"initdata"}},
		"initdata for nothing": {
			annotation: "cloister.dev/initdata", words: []string{"initdata", "does not enforce", "hint:"},
			value: initdata.EncodeAnnotation([]byte("version = \"0.1.0\"\nalgorithm = \"sha384\"\n\n[data]\n\"policy.rego\" = \"package agent_policy\"\n")),
		},
		"no monitor": {words: []string{"creating sandbox pod", "qemu is not there"}, vm: func(context.Context, vmm.Config) (vmm.Machine, error) {
			return nil, errors.New("qemu is not there")
		}},
		"annotation not allowed": {annotation: "io.katacontainers.config.hypervisor.path", words: []string{"io.katacontainers.config.hypervisor.path"}},
		"absurd size":            {annotation: "io.katacontainers.config.hypervisor.default_memory", words: []string{"default_memory"}},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t, c.lines...)
			if name == "no configuration file" {
				t.Setenv("CLOISTER_RUNTIME_CONFIG", filepath.Join(e.dir, "none.toml"))
			}
			if c.vm != nil {
				e.service.cfg.StartVM = c.vm
			}
			spec := specOf("sandbox")
			if c.annotation != "" {
				spec.Annotations[c.annotation] = cmp.Or(c.value, "99999999999999999999")
			}
			_, err := e.service.Create(testContext(t), &task.CreateTaskRequest{ID: "pod", Bundle: e.bundle(spec)})
			wantCode(t, err, codes.Unknown, c.words...)
			e.wantEvents("")
		})
	}
	t.Run("unknown annotation", func(t *testing.T) {
		e := newEnv(t)
		spec := specOf("sandbox")
		spec.Annotations["example.com/anything"] = strings.Repeat("x", 100_000)
		_, err := e.service.Create(testContext(t), &task.CreateTaskRequest{ID: "pod", Bundle: e.bundle(spec)})
		e.must(err)
	})
}

// TestRoot has folders of sandboxes that cannot take any.
func TestRoot(t *testing.T) {
	t.Run("a file", func(t *testing.T) {
		e := newEnv(t)
		e.service.cfg.Root = filepath.Join(e.dir, "kernel")
		wantCode(t, e.create("pod"), codes.Unknown, "creating sandbox pod", "not a directory")
	})
	needs.Root(t, "mounts")
	for name, options := range map[string]string{"full": "size=4k", "without files": "nr_inodes=3", "read-only": "ro"} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t)
			if err := os.Mkdir(e.cfg.Root, 0o700); err != nil {
				t.Fatal(err)
			}
			var flags uintptr
			data := options
			if options == "ro" {
				flags, data = unix.MS_RDONLY, ""
			}
			if err := unix.Mount("tmpfs", e.cfg.Root, "tmpfs", flags, data); err != nil {
				needs.Missing(t, "the right to mount: %v", err)
			}
			t.Cleanup(func() { _ = unix.Unmount(e.cfg.Root, unix.MNT_DETACH) })
			if name == "full" {
				if err := os.WriteFile(filepath.Join(e.cfg.Root, "fill"), bytes.Repeat([]byte("x"), 4096), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			err := e.create("pod")
			if err == nil || !strings.Contains(err.Error(), "creating sandbox pod") {
				t.Errorf("error %v", err)
			}
			_ = os.Remove(filepath.Join(e.cfg.Root, "fill"))
			if left, _ := os.ReadDir(e.cfg.Root); len(left) != 0 {
				t.Errorf("%s was left", left[0].Name())
			}
			if err := unix.Unmount(e.cfg.Root, 0); err != nil {
				t.Error(err)
			}
			e.must(e.create("pod")) // as soon as there is room
		})
	}
}

// TestStreams has places of output that cannot be opened: the container is not made, and a second try works.
func TestStreams(t *testing.T) {
	e := newEnv(t)
	for _, r := range []*task.CreateTaskRequest{
		{Stdout: "/none/fifo"}, {Stdout: "relative"}, {Stderr: "gopher://x"}, {Stdin: "/none/fifo"}, {Stdout: "binary:///none/program"},
	} {
		r.ID, r.Bundle = "pod", e.bundle(specOf("sandbox"))
		if _, err := e.service.Create(testContext(t), r); err == nil || !strings.Contains(err.Error(), "std") && !strings.Contains(err.Error(), "logging") {
			t.Errorf("error %v", err)
		}
	}
	e.pod()
	e.run("c1", untilKilled)
	_, err := e.service.Exec(testContext(t), &task.ExecProcessRequest{ID: "c1", ExecID: "e", Spec: processSpec(t), Stdout: "/none/fifo"})
	wantCode(t, err, codes.Unknown, "opening stdout")
	_, err = e.service.Exec(testContext(t), &task.ExecProcessRequest{ID: "c1", ExecID: "e", Spec: &anypb.Any{Value: []byte("{]")}})
	wantCode(t, err, codes.InvalidArgument)
	e.guest.Exec = func(context.Context, *fakeguest.Process) int { return 0 }
	e.must(e.exec("c1", "e"), e.start("c1", "e"))
	if code := e.wait("c1", "e"); code != 0 {
		t.Errorf("exit code %d", code)
	}
}
