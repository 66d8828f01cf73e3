package policy_test

import (
	"errors"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/guest/gate"
	"github.com/cloister/cloister/wire/agent"
	"github.com/cloister/cloister/wire/launch"
)

// step changes a request that would be allowed.
type step[T proto.Message] struct {
	name   string
	change func(T)
	want   []string // parts of the reason
	never  []string // must not appear
}

func denied(t *testing.T, err error, want, never []string) {
	t.Helper()
	var d *gate.DeniedError
	if !errors.As(err, &d) {
		t.Fatalf("got %v, expected a denial", err)
	}
	text := err.Error()
	t.Log(text)
	if len(text) > 2048 {
		t.Errorf("the message has %d bytes", len(text))
	}
	if !strings.HasPrefix(text, d.Rule+" is blocked by policy: ") {
		t.Errorf("unexpected start: %s", text)
	}
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("the reason lacks %q", w)
		}
	}
	for _, n := range never {
		if strings.Contains(text, n) {
			t.Errorf("the reason shows %q", n)
		}
	}
}

func TestCreateContainerDenials(t *testing.T) {
	const secret = "correct-horse-battery"
	const closest = `closest is container "web" of the policy: `
	for _, tc := range []step[*agent.CreateContainerRequest]{
		{"cwd", func(r *agent.CreateContainerRequest) { r.OCI.Process.Cwd = "/root" },
			[]string{closest, `OCI.Process.Cwd: got "/root", expected "/srv"`}, nil},
		{"argument", func(r *agent.CreateContainerRequest) { r.OCI.Process.Args[2] = "--name=evil" },
			[]string{closest, "OCI.Process.Args[2]"}, []string{"evil", "--name"}},
		{"more arguments", func(r *agent.CreateContainerRequest) { r.OCI.Process.Args = append(r.OCI.Process.Args, "evil") },
			[]string{"OCI.Process.Args[3]"}, []string{"evil"}},
		{"env value", func(r *agent.CreateContainerRequest) { setEnv(r, "PASSWORD", "hunter22") },
			[]string{closest, "OCI.Process.Env", "variable PASSWORD has another value"}, []string{secret, "hunter22"}},
		{"env added", func(r *agent.CreateContainerRequest) {
			r.OCI.Process.Env = append(r.OCI.Process.Env, "LD_PRELOAD=/evil.so")
		}, []string{"got variable LD_PRELOAD, expected nothing"}, []string{"/evil.so"}},
		{"env dropped", func(r *agent.CreateContainerRequest) { r.OCI.Process.Env = r.OCI.Process.Env[:2] },
			[]string{"got nothing, expected variable"}, []string{secret}},
		{"user", func(r *agent.CreateContainerRequest) { r.OCI.Process.User.UID = 0 },
			[]string{"OCI.Process.User.UID: got 0, expected 1000"}, nil},
		{"capability", func(r *agent.CreateContainerRequest) {
			r.OCI.Process.Capabilities.Effective = append(r.OCI.Process.Capabilities.Effective, "CAP_SYS_ADMIN")
		}, []string{`OCI.Process.Capabilities.Effective[1]: got "CAP_SYS_ADMIN", expected nothing`}, nil},
		{"writable root", func(r *agent.CreateContainerRequest) { r.OCI.Root.Readonly = false },
			[]string{"OCI.Root.Readonly: got false, expected true"}, nil},
		{"root elsewhere", func(r *agent.CreateContainerRequest) { r.OCI.Root.Path = "/" },
			[]string{`OCI.Root.Path`, `"/"`}, nil},
		{"image by other digest", func(r *agent.CreateContainerRequest) { r.Storages[0].Source = "evil@sha256:00" },
			[]string{`storages[0].source: got "evil@sha256:00"`}, nil},
		{"image by tag", func(r *agent.CreateContainerRequest) { r.Storages[0].Source = "registry.example/web:1" },
			[]string{`storages[0].source: got "registry.example/web:1"`}, nil},
		{"storage dropped", func(r *agent.CreateContainerRequest) { r.Storages = r.Storages[:1] },
			[]string{"count(storages): got", "count(i) == count(p)"}, nil},
		{"storage twice", func(r *agent.CreateContainerRequest) { r.Storages[1] = r.Storages[0] },
			[]string{"storages[1]"}, nil},
		{"foreign storage", func(r *agent.CreateContainerRequest) {
			r.Storages = append(r.Storages, &agent.Storage{Driver: "blk", Source: "02/01", Fstype: "ext4", MountPoint: "/etc"})
		}, []string{"count(storages): got", "count(i) == count(p)"}, nil},
		{"mount over hosts", func(r *agent.CreateContainerRequest) {
			r.OCI.Mounts = append(r.OCI.Mounts, &agent.Mount{Destination: "/etc/hosts", Source: "/run/kata-containers/shared/containers/evil", Type: "bind"})
		}, []string{"OCI.Mounts[", "expected nothing"}, nil},
		{"mount source", func(r *agent.CreateContainerRequest) { r.OCI.Mounts[6].Source = "/etc/shadow" },
			[]string{`OCI.Mounts[6].source: got "/etc/shadow"`}, nil},
		{"hook", func(r *agent.CreateContainerRequest) {
			r.OCI.Hooks = &agent.Hooks{CreateRuntime: []*agent.Hook{{Path: "/evil"}}}
		}, []string{"OCI.Hooks: got an object of 6 members, expected null"}, nil},
		{"device", func(r *agent.CreateContainerRequest) {
			r.Devices = []*agent.Device{{Id: "02", Type: "blk", ContainerPath: "/dev/x"}}
		}, []string{"devices[0]"}, nil},
		{"namespace path", func(r *agent.CreateContainerRequest) { r.OCI.Linux.Namespaces[2].Path = "/proc/1/ns/mnt" },
			[]string{`OCI.Linux.Namespaces[2].Path: got "/proc/1/ns/mnt", expected ""`}, nil},
		{"unmasked", func(r *agent.CreateContainerRequest) { r.OCI.Linux.MaskedPaths = nil },
			[]string{"OCI.Linux.MaskedPaths[0]: got nothing"}, nil},
		{"sysctl", func(r *agent.CreateContainerRequest) { r.OCI.Linux.Sysctl["kernel.msgmax"] = "1" },
			[]string{`OCI.Linux.Sysctl["kernel.msgmax"]: got "1", expected nothing`}, nil},
		{"memory limit", func(r *agent.CreateContainerRequest) { r.OCI.Linux.Resources.Memory.Limit = -1 },
			[]string{"OCI.Linux.Resources.Memory.Limit: got -1, expected 134217728"}, nil},
		{"shared mount", func(r *agent.CreateContainerRequest) { r.SharedMounts = []*agent.SharedMount{{Name: "x"}} },
			[]string{"shared_mounts[0]"}, nil},
		{"string user", func(r *agent.CreateContainerRequest) { r.StringUser = &agent.StringUser{Uid: "0"} },
			[]string{"string_user"}, nil},
		{"process id space", func(r *agent.CreateContainerRequest) { r.SandboxPidns = true },
			[]string{"sandbox_pidns: got true, expected false"}, nil},
		{"unknown id", func(r *agent.CreateContainerRequest) { r.ContainerId = strings.Repeat("0", 64) },
			[]string{`0000", expected "`}, nil},
		{"huge", func(r *agent.CreateContainerRequest) { r.OCI.Process.Cwd = strings.Repeat("A", 1<<20) },
			[]string{`OCI.Process.Cwd`}, nil},
		{"not UTF-8", func(r *agent.CreateContainerRequest) { r.OCI.Process.Cwd = "/srv\xff" },
			[]string{`OCI.Process.Cwd`}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e, plan := full(t)
			mustAllow(t, e, plan.Sandbox)
			sendFiles(t, e, plan)
			mustAllow(t, e, plan.Containers[0].Create)
			mustAllow(t, e, &agent.StartContainerRequest{ContainerId: plan.Containers[0].Create.ContainerId})
			exited(t, e, plan.Containers[0].Create.ContainerId, 0)
			req := proto.Clone(plan.Containers[1].Create).(*agent.CreateContainerRequest)
			tc.change(req)
			denied(t, ask(e, req), tc.want, append(tc.never, secret))
			mustAllow(t, e, plan.Containers[1].Create) // a refusal leaves no trace
		})
	}
}

func setEnv(r *agent.CreateContainerRequest, name, value string) {
	for i, v := range r.OCI.Process.Env {
		if strings.HasPrefix(v, name+"=") {
			r.OCI.Process.Env[i] = name + "=" + value
		}
	}
}

func TestExecDenials(t *testing.T) {
	for _, tc := range []step[*agent.ExecProcessRequest]{
		{"shell", func(r *agent.ExecProcessRequest) { r.Process.Args = []string{"/bin/sh", "-c", "cat /sealed/token"} },
			[]string{`process.Args[0]: got "/bin/sh"`}, []string{"cat /sealed"}},
		{"more arguments", func(r *agent.ExecProcessRequest) { r.Process.Args = append(r.Process.Args, "--all") },
			[]string{"process.Args[2]"}, []string{"--all"}},
		{"merged arguments", func(r *agent.ExecProcessRequest) { r.Process.Args = []string{"/bin/healthy --quick"} },
			[]string{"process.Args"}, nil},
		{"terminal", func(r *agent.ExecProcessRequest) { r.Process.Terminal = true }, []string{"process.Terminal: got true, expected false"}, nil},
		{"user", func(r *agent.ExecProcessRequest) { r.Process.User.UID = 0 }, []string{"process.User.UID: got 0, expected 1000"}, nil},
		{"no user", func(r *agent.ExecProcessRequest) { r.Process.User = nil }, []string{"process.User: got null"}, nil},
		{"cwd", func(r *agent.ExecProcessRequest) { r.Process.Cwd = "/" }, []string{"process.Cwd"}, nil},
		{"env", func(r *agent.ExecProcessRequest) { r.Process.Env = append(r.Process.Env, "LD_PRELOAD=/x.so") },
			[]string{"process.Env[8]: got variable LD_PRELOAD, expected nothing"}, []string{"/x.so", "correct-horse"}},
		{"capabilities", func(r *agent.ExecProcessRequest) {
			r.Process.Capabilities = &agent.LinuxCapabilities{Ambient: []string{"CAP_SYS_ADMIN"}}
		}, []string{"apabilities"}, nil},
		{"new privileges", func(r *agent.ExecProcessRequest) { r.Process.NoNewPrivileges = false }, []string{"process.NoNewPrivileges"}, nil},
		{"selinux", func(r *agent.ExecProcessRequest) { r.Process.SelinuxLabel = "x" }, []string{"process.SelinuxLabel"}, nil},
		{"apparmor", func(r *agent.ExecProcessRequest) { r.Process.ApparmorProfile = "unconfined" }, []string{"process.ApparmorProfile"}, nil},
		{"string user", func(r *agent.ExecProcessRequest) { r.StringUser = &agent.StringUser{Uid: "0"} }, []string{"string_user"}, nil},
		{"container's own process id", func(r *agent.ExecProcessRequest) { r.ExecId = r.ContainerId }, []string{"exec_id"}, nil},
		{"no process id", func(r *agent.ExecProcessRequest) { r.ExecId = "" }, nil, nil},
		{"odd process id", func(r *agent.ExecProcessRequest) { r.ExecId = "../x" }, nil, nil},
		{"port", func(r *agent.ExecProcessRequest) { r.StdinPort = 1 }, []string{"stdin_port: got 1, expected 0"}, nil},
		{"unknown container", func(r *agent.ExecProcessRequest) { r.ContainerId = strings.Repeat("1", 64) }, []string{"undefined"}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e, plan := running(t)
			good := execOf(plan.Containers[1], "exec-1", false, "/bin/healthy", "--quick")
			mustAllow(t, e, good)
			tc.change(good)
			denied(t, ask(e, good), tc.want, tc.never)
		})
	}
	t.Run("command of another container", func(t *testing.T) {
		e, plan := running(t)
		denied(t, ask(e, execOf(plan.Containers[2], "exec-1", false, "/bin/healthy", "--quick")), nil, nil)
	})
	t.Run("after removal", func(t *testing.T) {
		e, plan := running(t)
		mustAllow(t, e, &agent.RemoveContainerRequest{ContainerId: plan.Containers[1].Create.ContainerId})
		denied(t, ask(e, execOf(plan.Containers[1], "exec-1", false, "/bin/healthy", "--quick")), nil, nil)
	})
}

// running is the pod with all containers started.
func running(t testing.TB) (*gate.Engine, *launch.Plan) {
	t.Helper()
	e, plan := full(t)
	mustAllow(t, e, plan.Sandbox)
	sendFiles(t, e, plan)
	for _, c := range plan.Containers {
		mustAllow(t, e, c.Create)
		mustAllow(t, e, &agent.StartContainerRequest{ContainerId: c.Create.ContainerId})
		exited(t, e, c.Create.ContainerId, 0)
	}
	return e, plan
}
