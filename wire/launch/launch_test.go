package launch

import (
	"bytes"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/wire/agent"
)

func plan() *Plan {
	return &Plan{
		APIVersion: APIVersion, Name: "web", Namespace: "default", Hostname: "web-0",
		Sandbox: &agent.CreateSandboxRequest{SandboxId: "sid", Hostname: "web-0", Dns: []string{"nameserver 10.0.2.3"}},
		Files:   []File{{&agent.CopyFileRequest{Path: "/run/kata-containers/shared/containers/x", FileMode: 0o100644, FileSize: 3, Data: []byte{0, 0xff, '<'}}}},
		Containers: []Container{
			{Name: "prepare", Init: true, Image: "r/i@sha256:0", Create: &agent.CreateContainerRequest{ContainerId: "c0"}, RestartPolicy: RestartNever},
			{Name: "app", Image: "r/i@sha256:1", TTY: true, Stdin: true, RestartPolicy: RestartAlways, Create: &agent.CreateContainerRequest{
				ContainerId: "c1",
				Storages:    []*agent.Storage{{Driver: "image_guest_pull", DriverOptions: []string{`image_guest_pull={"metadata":{}}`}}},
				OCI: &agent.Spec{
					Version: "1.1.0", Annotations: map[string]string{"b": "2", "a": "1"},
					Process: &agent.Process{Args: []string{"/bin/app", "a<b&c"}, OOMScoreAdj: -1 << 62},
					Linux: &agent.Linux{Seccomp: &agent.LinuxSeccomp{Syscalls: []*agent.LinuxSyscall{
						{Names: []string{"clone"}, ErrnoRet: &agent.LinuxSyscall_Errnoret{Errnoret: 38}},
					}}},
				},
			}},
		},
		Resources: Resources{VCPUs: 2, MemoryMiB: 512},
	}
}

func equal(a, b *Plan) bool {
	x, y := *a, *b
	ok := proto.Equal(x.Sandbox, y.Sandbox) && len(x.Files) == len(y.Files) && len(x.Containers) == len(y.Containers)
	for i := range min(len(x.Files), len(y.Files)) {
		ok = ok && proto.Equal(x.Files[i].Request, y.Files[i].Request)
	}
	for i := range min(len(x.Containers), len(y.Containers)) {
		c, d := x.Containers[i], y.Containers[i]
		ok = ok && proto.Equal(c.Create, d.Create)
		c.Create, d.Create = nil, nil
		ok = ok && c == d
	}
	x.Sandbox, x.Files, x.Containers = nil, nil, nil
	y.Sandbox, y.Files, y.Containers = nil, nil, nil
	return ok && reflect.DeepEqual(x, y)
}

func TestRoundTrip(t *testing.T) {
	text, err := plan().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for range 20 { // protojson varies its white space; a plan must not
		if again, err := plan().Marshal(); err != nil || !bytes.Equal(again, text) {
			t.Fatalf("written differently: %s, %v", again, err)
		}
	}
	for _, name := range []string{`"container_id": "c1"`, `"driver_options"`, `"Seccomp"`, `"a<b&c"`} {
		if !strings.Contains(string(text), name) {
			t.Errorf("no %s in %s", name, text)
		}
	}
	back, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	if !equal(back, plan()) {
		t.Errorf("another plan came back: %+v", back)
	}
}

func TestValidate(t *testing.T) {
	for name, f := range map[string]func(*Plan){
		"apiVersion":     func(p *Plan) { p.APIVersion = "v0" },
		"name":           func(p *Plan) { p.Name = "" },
		"sandbox":        func(p *Plan) { p.Sandbox = nil },
		"containers":     func(p *Plan) { p.Containers = nil },
		"container name": func(p *Plan) { p.Containers[0].Name = "app" },
		"no create":      func(p *Plan) { p.Containers[0].Create = nil },
		"same id":        func(p *Plan) { p.Containers[0].Create.ContainerId = "c1" },
		"restart policy": func(p *Plan) { p.Containers[0].RestartPolicy = "Sometimes" },
		"file":           func(p *Plan) { p.Files[0].Request = nil },
		"resources":      func(p *Plan) { p.Resources.VCPUs = -1 },
	} {
		p := plan()
		f(p)
		if _, err := p.Marshal(); err == nil {
			t.Errorf("%s: written", name)
		}
	}
	p := plan()
	p.Name, p.Sandbox = "", nil
	if err := p.Validate(); err == nil || !strings.Contains(err.Error(), "name is missing") || !strings.Contains(err.Error(), "sandbox is missing") {
		t.Errorf("not every fault is reported: %v", err)
	}
}

func TestParseRefuses(t *testing.T) {
	good, err := plan().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]string{
		"empty":               "",
		"null":                "null",
		"trailing":            string(good) + "{}",
		"unknown member":      strings.Replace(string(good), `"name"`, `"more": 1, "name"`, 1),
		"unknown in request":  strings.Replace(string(good), `"sandbox_id"`, `"more": 1, "sandbox_id"`, 1),
		"unknown in a file":   strings.Replace(string(good), `"request"`, `"more": 1, "request"`, 1),
		"unknown in a contai": strings.Replace(string(good), `"init"`, `"more": 1, "init"`, 1),
		"type":                strings.Replace(string(good), `"vcpus": 2`, `"vcpus": "2"`, 1),
	} {
		if _, err := Parse([]byte(bad)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := Parse(make([]byte, maxPlanSize+1)); err == nil {
		t.Error("too large: accepted")
	}
}

func FuzzParse(f *testing.F) {
	text, err := plan().Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := Parse(text)
		if err != nil {
			return
		}
		again, err := p.Marshal()
		if err != nil {
			t.Fatalf("%q was read and cannot be written: %v", text, err)
		}
		if q, err := Parse(again); err != nil || !equal(p, q) {
			t.Fatalf("%q became %q: %v", text, again, err)
		}
	})
}
