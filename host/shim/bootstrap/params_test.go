package bootstrap

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	taskv2 "github.com/containerd/containerd/api/runtime/task/v2"
	task "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
)

func env(m map[string]string) func(string) string { return func(k string) string { return m[k] } }

func TestParse(t *testing.T) {
	p, err := parse([]string{"-namespace", "k8s.io", "-address", "/run/c.sock", "-publish-binary", "/usr/bin/containerd", "-id", "abc", "-debug",
		"-bundle", "/b/../b", "delete"}, env(map[string]string{"TTRPC_ADDRESS": "/run/c.sock.ttrpc", "SCHED_CORE": "1"}), "/", io.Discard)
	if err != nil || p.Verb != VerbDelete || p.Bundle != "/b" || !p.Debug || !p.schedule || p.TTRPCAddress != "/run/c.sock.ttrpc" || p.ID != "abc" {
		t.Fatalf("%+v %v", p, err)
	}
	for _, bad := range [][]string{
		{"-namespace", "ns", "-id", "../x", "start"}, {"-namespace", "ns", "start"}, {"-id", "x", "start"}, {"-namespace", "ns", "-id", "x", "begin"},
		{"-nonsense"}, {"-namespace", "ns", "-id", strings.Repeat("x", 129)}, {"-namespace", ".ns", "-id", "x"},
	} {
		if p, err := parse(bad, env(nil), "/", io.Discard); err == nil {
			t.Errorf("%v was taken as %+v", bad, p)
		}
	}
}

func TestClassify(t *testing.T) {
	for name, c := range map[string]struct {
		annotations map[string]string
		kind        Kind
		sandbox     string
	}{
		"none":           {nil, KindSingle, "me"},
		"cri sandbox":    {map[string]string{"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": "me"}, KindSandbox, "me"},
		"cri container":  {map[string]string{"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "pod"}, KindContainer, "pod"},
		"crio container": {map[string]string{"io.kubernetes.cri-o.ContainerType": "container", "io.kubernetes.cri-o.SandboxID": "pod"}, KindContainer, "pod"},
		"crio sandbox":   {map[string]string{"io.kubernetes.cri-o.ContainerType": "sandbox"}, KindSandbox, "me"},
		"docker sandbox": {map[string]string{"io.kubernetes.docker.type": "podsandbox"}, KindSandbox, "me"},
	} {
		kind, sandbox, err := Classify("me", c.annotations)
		if err != nil || kind != c.kind || sandbox != c.sandbox {
			t.Errorf("%s: %s %s %v", name, kind, sandbox, err)
		}
	}
	for _, bad := range []map[string]string{
		{"io.kubernetes.cri.container-type": "container"},
		{"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "../../etc"},
		{"io.kubernetes.cri.container-type": "pod"},
	} {
		if _, _, err := Classify("me", bad); err == nil {
			t.Errorf("%v was taken", bad)
		}
	}
}

func TestStdinOfEachVersion(t *testing.T) {
	any1, _ := anypb.New(&runtimeoptions.Options{ConfigPath: "/c"})
	any1.TypeUrl = "runtimeoptions.v1.Options" // containerd writes the name without a host
	old, _ := proto.Marshal(any1)
	boot := &bootapi.BootstrapParams{InstanceID: "id", Namespace: "ns", LogLevel: bootapi.LogLevel_LOG_LEVEL_DEBUG, ContainerdTtrpcAddress: "/t"}
	if err := boot.AddExtension(any1); err != nil {
		t.Fatal(err)
	}
	recent, _ := proto.Marshal(boot)
	for name, data := range map[string][]byte{"1.6": old, "2.4": recent} {
		p := Params{ID: "id", Namespace: "ns"}
		var o runtimeoptions.Options
		if err := p.parseStdin(data); err != nil || p.Options == nil || p.Options.UnmarshalTo(&o) != nil || o.ConfigPath != "/c" {
			t.Errorf("%s: %+v %v", name, p, err)
		}
		if p.boot != (name == "2.4") || p.Debug != p.boot {
			t.Errorf("%s: taken for the other, %+v", name, p)
		}
	}
	p := Params{ID: "id", Namespace: "ns"}
	if err := p.parseStdin([]byte("nonsense")); err == nil {
		t.Error("nonsense was taken")
	}
	group, _ := anypb.New(&options.Options{ShimCgroup: "/g"})
	p.Options = group
	if p.shimCgroup() != "/g" {
		t.Error("ShimCgroup was not found")
	}
}

func TestAnswerOfEachVersion(t *testing.T) {
	for _, c := range []struct {
		p    Params
		want string
	}{
		{Params{}, "unix:///a"},
		{Params{maxShim: "2"}, "unix:///a"}, // 1.7 to 2.2, and CRI-O, which takes nothing but an address
		{Params{maxShim: "3"}, `{"version":3,"address":"unix:///a","protocol":"ttrpc"}`},
	} {
		if b, err := c.p.answer("unix:///a", nil); err != nil || string(b) != c.want {
			t.Errorf("%+v: %s %v", c.p, b, err)
		}
	}
	// containerd 2.3 takes for protobuf what parses as such, before it looks for an address.
	if proto.Unmarshal([]byte(SocketAddress("", "a", "b", "c")), &bootapi.BootstrapResult{}) == nil {
		t.Error("a plain address is a protobuf message")
	}
}

// TestTaskVersionsAreTheSame: RegisterTask serves version 2 with the messages of version 3.
func TestTaskVersionsAreTheSame(t *testing.T) {
	two, three := taskv2.File_runtime_task_v2_shim_proto, task.File_runtime_task_v3_shim_proto
	methods := two.Services().Get(0).Methods()
	if n := three.Services().Get(0).Methods().Len(); methods.Len() != n {
		t.Fatalf("%d methods and %d", methods.Len(), n)
	}
	for i := range methods.Len() {
		a := methods.Get(i)
		b := three.Services().Get(0).Methods().ByName(a.Name())
		if b == nil {
			t.Errorf("%s is new", a.Name())
			continue
		}
		sameFields(t, a.Input(), b.Input())
		sameFields(t, a.Output(), b.Output())
	}
}

func sameFields(t *testing.T, two, three protoreflect.MessageDescriptor) {
	for i := range two.Fields().Len() {
		a := two.Fields().Get(i)
		b := three.Fields().ByNumber(a.Number())
		if b == nil || a.Kind() != b.Kind() || a.Cardinality() != b.Cardinality() || a.Name() != b.Name() {
			t.Errorf("%s: field %s differs", two.FullName(), a.Name())
		}
	}
}

func TestCgroupAndScore(t *testing.T) {
	root := t.TempDir()
	for _, f := range []string{"memory/cgroup.procs", "memory/shims/cgroup.procs", "cpu/cgroup.procs", "1/oom_score_adj", "2/oom_score_adj"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, f)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, f), []byte("-999\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := joinCgroup(root, "../shims", 42); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(filepath.Join(root, "memory/shims/cgroup.procs")); string(b) != "42" {
		t.Errorf("cgroup has %q", b)
	}
	if err := joinCgroup(root, "/none", 42); err == nil {
		t.Error("a cgroup that does not exist was joined")
	}
	if err := adjustOOMScore(root, 1, 2); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(filepath.Join(root, "2/oom_score_adj")); !bytes.HasPrefix(b, []byte("-998")) {
		t.Errorf("score %q", b)
	}
}

func FuzzStdin(f *testing.F) {
	f.Add([]byte("\n\x02id\x12\x02ns"))
	f.Add([]byte("\n\x19runtimeoptions.v1.Options"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p := Params{ID: "id", Namespace: "ns"}
		if p.parseStdin(data) == nil {
			p.shimCgroup()
			if p.SocketDir != "" && !filepath.IsAbs(p.SocketDir) {
				t.Errorf("socket directory %q", p.SocketDir)
			}
		}
	})
}

func FuzzSpec(f *testing.F) {
	f.Add([]byte(`{"annotations":{"io.kubernetes.cri.container-type":"container","io.kubernetes.cri.sandbox-id":"pod"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, sandbox, err := parseSpec("id", data)
		if err == nil && checkID("sandbox", sandbox) != nil {
			t.Errorf("sandbox %q", sandbox)
		}
	})
}

// TestCalledByHand: a person who runs the program learns what it is for, and scripts tell wrong use from failures.
func TestCalledByHand(t *testing.T) {
	for name, c := range map[string]struct {
		args           []string
		status         int
		stdout, stderr string
	}{
		"nothing":       {nil, 2, "", "no namespace given\nhint: containerd or CRI-O start this program"},
		"a word":        {[]string{"status"}, 2, "", `unknown verb "status": want start, delete or none` + "\nhint: containerd or CRI-O"},
		"two words":     {[]string{"-namespace", "a", "-id", "b", "start", "now"}, 2, "", `unexpected argument "now"`},
		"unknown flag":  {[]string{"--nonsense"}, 2, "", "flag provided but not defined: -nonsense\nhint: containerd or CRI-O"},
		"no id":         {[]string{"-namespace", "a", "start"}, 2, "", "no id given\nhint:"},
		"no namespace":  {[]string{"delete"}, 2, "", "docs/howto/containerd.md"},
		"help":          {[]string{"--help"}, 0, "usage: containerd-shim-cloister-v2 [FLAGS] [start|delete]", ""},
		"short help":    {[]string{"-h"}, 0, "docs/howto/containerd.md", ""},
		"version":       {[]string{"-v"}, 0, "Version:  1.2.3", ""},
		"long version":  {[]string{"--version"}, 0, "Version:  1.2.3", ""},
		"not wrong use": {[]string{"-namespace", "a", "-id", "b", "start"}, 1, "", "neither bootstrap parameters"},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			std := IO{Stdin: strings.NewReader("nonsense"), Stdout: &stdout, Stderr: &stderr}
			status := Main(t.Context(), c.args, env(nil), std, Handlers{Name: "io.containerd.test.v2", Version: "1.2.3"})
			if status != c.status || !strings.Contains(stdout.String(), c.stdout) || !strings.Contains(stderr.String(), c.stderr) {
				t.Errorf("exit code %d, want %d\n%s\n%s", status, c.status, stdout.String(), stderr.String())
			}
			if c.stdout == "" && stdout.Len() > 0 || c.stderr == "" && stderr.Len() > 0 {
				t.Errorf("it says too much:\n%s\n%s", stdout.String(), stderr.String())
			}
		})
	}
}
