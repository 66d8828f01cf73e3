package policy_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/guest/gate"
	"github.com/cloister/cloister/test/kubepod"
	"github.com/cloister/cloister/wire/agent"
)

func mustDeny(t testing.TB, e *gate.Engine, req proto.Message) {
	t.Helper()
	var d *gate.DeniedError
	if err := ask(e, req); !errors.As(err, &d) {
		t.Errorf("%T: got %v, expected a refusal", req, err)
	}
}

// ours makes data of Cloister's generator of it.
func ours(data kubepod.Object) kubepod.Object {
	data["cloister"] = kubepod.Object{"version": 1, "enforce_order": true, "bind_files": true}
	return data
}

func image(digest string) kubepod.Object {
	return kubepod.Object{"reference": "registry.example/web:1", "digest": digest, "digests": []string{digest}, "names": []string{"registry.example/web:1"}, "by_tag": false}
}

func TestKubernetesLife(t *testing.T) {
	p, setup, side, web := kubepod.Pause(), kubepod.Workload("setup"), kubepod.Workload("side"), kubepod.Workload("web")
	p.Entry["image"] = nil
	for n, c := range []*kubepod.Container{setup, side, web} {
		c.Entry["image"], c.Entry["order"], c.Entry["kind"] = image(kubepod.DigestOne), n+1, []string{"init", "sidecar", "container"}[n]
		c.Entry["must_run"], c.Entry["restarts"], c.Entry["signals"] = n < 2, n > 0, []int{15}
	}
	e := kubeEngine(t, ours(kubepod.Data(p, side, setup, web)))
	id := kubepod.ID
	for _, early := range []proto.Message{
		&agent.StartContainerRequest{ContainerId: id(1)}, &agent.StatsContainerRequest{ContainerId: id(1)}, &agent.WaitProcessRequest{ContainerId: id(1)},
		&agent.SignalProcessRequest{ContainerId: id(1), Signal: 15}, &agent.ReadStreamRequest{ContainerId: id(1)}, &agent.TtyWinResizeRequest{ContainerId: id(1)},
	} {
		mustDeny(t, e, early)
	}
	mustAllow(t, e, kubepod.Sandbox())
	mustDeny(t, e, kubepod.Sandbox())
	mustAllow(t, e, p.Request(kubepod.SandboxID))
	mustDeny(t, e, web.Request(id(1))) // before the init container
	mustDeny(t, e, side.Request(id(1)))
	mustAllow(t, e, setup.Request(id(1)))
	mustDeny(t, e, setup.Request(id(1)))
	mustDeny(t, e, setup.Request(id(2)))
	mustDeny(t, e, side.Request(id(3)))
	mustAllow(t, e, &agent.StartContainerRequest{ContainerId: id(1)})
	mustDeny(t, e, &agent.StartContainerRequest{ContainerId: id(1)})
	exited(t, e, id(1), 1)
	mustDeny(t, e, side.Request(id(3))) // it has failed
	mustAllow(t, e, &agent.RemoveContainerRequest{ContainerId: id(1)})
	mustDeny(t, e, setup.Request(id(4))) // and may not be tried again
	// One that is killed before its start has neither ended well nor run.
	e = kubeEngine(t, ours(kubepod.Data(p, side, setup, web)))
	mustAllow(t, e, kubepod.Sandbox())
	mustAllow(t, e, setup.Request(id(1)))
	exited(t, e, id(1), 0)
	mustDeny(t, e, &agent.StartContainerRequest{ContainerId: id(1)})
	mustDeny(t, e, side.Request(id(3)))
	e = kubeEngine(t, ours(kubepod.Data(p, side, setup, web)))
	mustAllow(t, e, kubepod.Sandbox())
	mustAllow(t, e, setup.Request(id(1)))
	mustAllow(t, e, &agent.StartContainerRequest{ContainerId: id(1)})
	exited(t, e, id(1), 0)
	mustAllow(t, e, side.Request(id(10)))
	exited(t, e, id(10), 137)
	mustDeny(t, e, &agent.StartContainerRequest{ContainerId: id(10)})
	mustDeny(t, e, web.Request(id(3))) // the sidecar has not run
	mustAllow(t, e, side.Request(id(2)))
	mustDeny(t, e, web.Request(id(3)))
	mustAllow(t, e, &agent.StartContainerRequest{ContainerId: id(2)})
	mustAllow(t, e, web.Request(id(3)))
	mustDeny(t, e, web.Request(id(4))) // a second of the same
	mustAllow(t, e, &agent.StartContainerRequest{ContainerId: id(3)})
	mustAllow(t, e, &agent.SignalProcessRequest{ContainerId: id(3), Signal: 15})
	mustDeny(t, e, &agent.SignalProcessRequest{ContainerId: id(3), Signal: 9})
	mustAllow(t, e, &agent.RemoveContainerRequest{ContainerId: id(3)})
	mustAllow(t, e, &agent.RemoveContainerRequest{ContainerId: id(3)}) // the guest may have failed
	mustDeny(t, e, &agent.StatsContainerRequest{ContainerId: id(3)})
	mustDeny(t, e, web.Request(id(3))) // the id is used up
	mustAllow(t, e, web.Request(id(5)))
	mustAllow(t, e, &agent.RemoveContainerRequest{ContainerId: id(77)}) // never there
	mustDeny(t, e, web.Request(id(77)))
	other := web.Request(id(6))
	other.OCI.Annotations["io.kubernetes.cri.sandbox-id"] = id(9)
	mustDeny(t, e, other)
	exited(t, e, id(5), 0) // not started
	mustDeny(t, e, &agent.SetPolicyRequest{Policy: "package agent_policy"})
}

func TestKubernetesExec(t *testing.T) {
	web, other := kubepod.Workload("web"), kubepod.Workload("other")
	e := kubeEngine(t, kubepod.Data(kubepod.Pause(), web, other))
	mustAllow(t, e, kubepod.Sandbox())
	mustAllow(t, e, web.Request(kubepod.ID(1)))
	mustAllow(t, e, other.Request(kubepod.ID(2)))
	honest := func() *agent.ExecProcessRequest {
		return &agent.ExecProcessRequest{ContainerId: kubepod.ID(1), ExecId: "probe", Process: &agent.Process{Args: []string{"/bin/probe", "web"},
			Env: slices.Clone(web.Env), Cwd: "/", NoNewPrivileges: true, User: &agent.User{UID: 1000, GID: 1000, AdditionalGids: []uint32{1000}},
			Capabilities: &agent.LinuxCapabilities{}}}
	}
	mustAllow(t, e, honest())
	named := honest()
	named.Process.Args, named.Process.Terminal, named.Process.Env = []string{"/bin/date", "-u"}, true, append(named.Process.Env, "TERM=xterm")
	mustAllow(t, e, named)
	for name, change := range map[string]func(*agent.ExecProcessRequest){
		"other program":        func(r *agent.ExecProcessRequest) { r.Process.Args = []string{"/bin/sh"} },
		"merged arguments":     func(r *agent.ExecProcessRequest) { r.Process.Args = []string{"/bin/probe web"} },
		"other container's":    func(r *agent.ExecProcessRequest) { r.Process.Args[1] = "other" },
		"terminal":             func(r *agent.ExecProcessRequest) { r.Process.Terminal = true },
		"capabilities":         func(r *agent.ExecProcessRequest) { r.Process.Capabilities.Bounding = []string{"CAP_CHOWN"} },
		"working directory":    func(r *agent.ExecProcessRequest) { r.Process.Cwd = "/tmp" },
		"new privileges":       func(r *agent.ExecProcessRequest) { r.Process.NoNewPrivileges = false },
		"user":                 func(r *agent.ExecProcessRequest) { r.Process.User.UID = 0 },
		"group":                func(r *agent.ExecProcessRequest) { r.Process.User.AdditionalGids = []uint32{0} },
		"user by name":         func(r *agent.ExecProcessRequest) { r.Process.User.Username = "root" },
		"user given as text":   func(r *agent.ExecProcessRequest) { r.StringUser = &agent.StringUser{} },
		"variable added":       func(r *agent.ExecProcessRequest) { r.Process.Env = append(r.Process.Env, "LD_PRELOAD=x") },
		"variable changed":     func(r *agent.ExecProcessRequest) { r.Process.Env[2] = "MODE=debug" },
		"SELinux label":        func(r *agent.ExecProcessRequest) { r.Process.SelinuxLabel = "x" },
		"AppArmor profile":     func(r *agent.ExecProcessRequest) { r.Process.ApparmorProfile = "x" },
		"unknown container":    func(r *agent.ExecProcessRequest) { r.ContainerId = kubepod.ID(3) },
		"as the first process": func(r *agent.ExecProcessRequest) { r.ExecId = r.ContainerId },
		"id that is a path":    func(r *agent.ExecProcessRequest) { r.ExecId = "../x" },
		"host's port":          func(r *agent.ExecProcessRequest) { r.StdinPort = 7 },
	} {
		t.Run(name, func(t *testing.T) {
			r := honest()
			change(r)
			mustDeny(t, e, r)
		})
	}
	mustAllow(t, e, &agent.RemoveContainerRequest{ContainerId: kubepod.ID(1)})
	mustDeny(t, e, honest())
}

const (
	modeFile = 0o100644
	modeDir  = 0o040755
	modeLink = 0o120777
)

func file(path, content string) *agent.CopyFileRequest {
	return &agent.CopyFileRequest{Path: path, FileMode: modeFile, FileSize: int64(len(content)), Data: []byte(content)}
}

func dir(path string) *agent.CopyFileRequest {
	return &agent.CopyFileRequest{Path: path, FileMode: modeDir}
}

func link(path, target string) *agent.CopyFileRequest {
	return &agent.CopyFileRequest{Path: path, FileMode: modeLink, Data: []byte(target)}
}

func TestKubernetesBoundFiles(t *testing.T) {
	web := kubepod.Workload("web", kubepod.SharedMount("/etc/app/conf", "rbind", "rprivate", "ro"), kubepod.SharedMount("/etc/app/one.txt", "rbind", "rprivate", "ro"))
	web.Entry["image"] = image(kubepod.DigestOne)
	web.Entry["files"] = []kubepod.Object{
		{"destination": "/etc/app/conf", "base": "conf", "volume": "conf", "kind": "configMap", "single": false, "bound": true, "entries": kubepod.Object{
			"mode":  kubepod.Object{"sha256": "8f434346648f6b96df89dda901c5176b10a6d83961dd3c1ac88b59b2dc327aa4", "size": 2, "mode": 420},   // hi
			"sub/x": kubepod.Object{"sha256": "486ea46224d1bb4fb680f34f7c9ad96a8f24ec88be73ea8e5a6c65260e9cb8a7", "size": 5, "mode": 420}}}, // world
		{"destination": "/etc/app/one.txt", "base": "one.txt", "volume": "one", "kind": "secret", "single": true, "bound": true, "entries": kubepod.Object{
			"": kubepod.Object{"sha256": "8f434346648f6b96df89dda901c5176b10a6d83961dd3c1ac88b59b2dc327aa4", "size": 2, "mode": 420}}},
	}
	p := kubepod.Pause()
	p.Entry["image"] = nil
	id := kubepod.ID(1)
	conf, one := kubepod.SharedDir+id+"-0123456789abcdef-conf", kubepod.SharedDir+id+"-0123456789abcdef-one.txt"
	honest := []*agent.CopyFileRequest{
		dir(conf), dir(conf + "/..2026_01_01"), file(conf+"/..2026_01_01/mode", "hi"), dir(conf + "/..2026_01_01/sub"), file(conf+"/..2026_01_01/sub/x", "world"),
		link(conf+"/..data", "..2026_01_01"), link(conf+"/mode", "..data/mode"), link(conf+"/sub", "..data/sub"), file(one, "hi"),
	}
	start := func() *gate.Engine {
		e := kubeEngine(t, ours(kubepod.Data(p, web)))
		mustAllow(t, e, kubepod.Sandbox())
		return e
	}
	e := start()
	for _, r := range []*agent.CopyFileRequest{
		file(conf+"/..2026_01_01/mode", "ho"), file(conf+"/..2026_01_01/other", "hi"), file(conf+"/mode/x", "hi"), file(conf, "hi"), file(conf+"/../conf/mode", "hi"),
		link(conf+"/..data", "../x"), link(conf+"/..data", "/etc"), link(conf+"/mode", "..data/sub/x"), link(conf+"/evil", "..data/evil"), link(conf, "x"),
		dir(conf + "/mode"), dir(conf + "/evil"), file(one, "ho"), file(one+"/x", "hi"), link(one, "x"),
		{Path: conf + "/..2026_01_01/mode", FileMode: modeFile, FileSize: 2, Data: []byte("h")},
		{Path: conf + "/..2026_01_01/mode", FileMode: modeFile | 0o4000, FileSize: 2, Data: []byte("hi")},
	} {
		mustDeny(t, e, r)
	}
	for i, r := range honest {
		mustDeny(t, e, web.Request(id)) // something is missing
		mustAllow(t, e, r)
		if i == 5 {
			mustDeny(t, e, link(conf+"/..data", "..2027_01_01")) // it leads elsewhere now
			mustDeny(t, e, dir(conf+"/..data"))
		}
	}
	mustAllow(t, e, file(kubepod.SharedDir+id+"-0123456789abcdef-hosts", "whatever"))
	mustAllow(t, e, web.Request(id))
	for _, r := range honest {
		mustDeny(t, e, r) // the container uses it
	}
	mustAllow(t, e, &agent.RemoveContainerRequest{ContainerId: id})
	state, err := e.State(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for key := range state {
		if key != "sandbox" && key != "pinned" && key != "used:1" && key != "retired:"+id && key != "removed" {
			t.Errorf("the state keeps %s", key)
		}
	}
	// A link takes nothing away that was copied before.
	e = start()
	for _, r := range []*agent.CopyFileRequest{dir(conf), file(conf+"/mode", "hi"), dir(conf + "/sub"), file(conf+"/sub/x", "world"), file(one, "hi")} {
		mustAllow(t, e, r)
	}
	mustDeny(t, e, link(conf+"/sub", "..data/sub"))
	mustAllow(t, e, web.Request(id))
	// Content for one container is not content for another.
	e = start()
	for _, r := range honest {
		mustAllow(t, e, r)
	}
	mustDeny(t, e, web.Request(kubepod.ID(2)))
}

func TestKubernetesFreeFiles(t *testing.T) {
	e := kubeEngine(t, kubepod.Data(kubepod.Pause(), kubepod.Workload("web")))
	base := kubepod.SharedDir + kubepod.ID(1) + "-0123456789abcdef-volume"
	for _, r := range []*agent.CopyFileRequest{file(base, "x"), dir(base), file(base+"/a/b", "x"), link(base+"/..data", "..2026"), link(base+"/a", "..data/a")} {
		mustAllow(t, e, r)
	}
	for _, r := range []*agent.CopyFileRequest{
		file("/etc/passwd", "x"), file("/run/kata-containers/"+kubepod.ID(1)+"/rootfs/bin/sh", "x"), file(kubepod.SharedDir+kubepod.ID(1)+"/rootfs/bin/sh", "x"),
		file(base+"/../../../x", "x"), file("../x", "x"), file(base+"/..", "x"), file("x"+base, "x"), link(base, "target"), link(base+"/a", "/etc/shadow"),
		link(base+"/a", "../../x"), link(base+"/a", "b/.."), link(kubepod.SharedDir+"x", "y"), {Path: base + "/s", FileMode: 0o140644}, {Path: base + "/b", FileMode: 0o060644},
	} {
		mustDeny(t, e, r)
	}
}

func TestKubernetesNetworkAndRest(t *testing.T) {
	data := kubepod.Data(kubepod.Pause(), kubepod.Workload("web"))
	data["request_defaults"].(kubepod.Object)["PortForwardRequest"] = kubepod.Object{"allowed_ports": []int{8080}}
	e := kubeEngine(t, data)
	route := func(r *agent.Route) proto.Message {
		return &agent.UpdateRoutesRequest{Routes: &agent.Routes{Routes: []*agent.Route{r}}}
	}
	iface := func(i *agent.Interface) proto.Message { return &agent.UpdateInterfaceRequest{Interface: i} }
	neighbor := func(device, address, mask string, state, flags int32) proto.Message {
		return &agent.AddARPNeighborsRequest{Neighbors: &agent.ARPNeighbors{ARPNeighbors: []*agent.ARPNeighbor{{Device: device, State: state, Flags: flags,
			ToIPAddress: &agent.IPAddress{Address: address, Mask: mask}}}}}
	}
	for _, r := range []proto.Message{
		route(&agent.Route{Dest: "10.0.0.0/8", Gateway: "10.0.0.1", Device: "eth0"}), iface(&agent.Interface{Name: "eth0", HwAddr: "02:00:00:00:00:01", RawFlags: 128}),
		neighbor("eth0", "10.0.0.1", "", 128, 8), neighbor("eth0", "10.0.0.1", "", 2, 0), &agent.DestroySandboxRequest{}, &agent.GuestDetailsRequest{},
	} {
		mustAllow(t, e, r)
	}
	for _, r := range []proto.Message{
		route(&agent.Route{Source: "127.0.0.1", Device: "eth0"}), route(&agent.Route{Source: "::1", Device: "eth0"}), route(&agent.Route{Source: "0:0:0:0:0:0:0:1", Device: "eth0"}),
		route(&agent.Route{Device: "lo"}), iface(&agent.Interface{Name: "lo"}), iface(&agent.Interface{Name: "eth0", Device: "lo"}), iface(&agent.Interface{Name: "e", HwAddr: "00:00:00:00:00:00"}),
		iface(&agent.Interface{Name: "e", RawFlags: 129}), neighbor("lo", "10.0.0.1", "", 2, 0), neighbor("eth0", "127.0.0.1", "", 2, 0),
		neighbor("eth0", "10.0.0.1", "24", 2, 0), neighbor("eth0", "10.0.0.1", "", 4, 0), neighbor("eth0", "10.0.0.1", "", 2, 1),
		&agent.CreateSandboxRequest{SandboxPidns: true}, &agent.CreateSandboxRequest{GuestHookPath: "/x"}, &agent.CreateSandboxRequest{KernelModules: []*agent.KernelModule{{Name: "x"}}},
		&agent.CreateSandboxRequest{Storages: []*agent.Storage{{Driver: "ephemeral", Source: "shm", Fstype: "tmpfs", MountPoint: "/etc"}}},
		&agent.CreateSandboxRequest{Storages: append(kubepod.Sandbox().Storages, kubepod.Sandbox().Storages...)},
		&agent.PauseContainerRequest{}, &agent.UpdateContainerRequest{}, &agent.SetGuestDateTimeRequest{}, &agent.ReseedRandomDevRequest{}, &agent.ListRoutesRequest{},
		&agent.SetIPTablesRequest{}, &agent.AddSwapRequest{}, &agent.MemHotplugByProbeRequest{}, &agent.GetMetricsRequest{}, &agent.GetDiagnosticDataRequest{},
		&agent.UpdateEphemeralMountsRequest{}, &agent.CloseStdinRequest{}, &agent.WriteStreamRequest{},
	} {
		mustDeny(t, e, r)
	}
	if err := e.AllowPort(t.Context(), 8080); err != nil {
		t.Error(err)
	}
	if err := e.AllowPort(t.Context(), 22); err == nil {
		t.Error("port 22 is reached")
	}
}

// TestKubernetesHostStorage: the guest asks once more before it uses what the host can read.
func TestKubernetesHostStorage(t *testing.T) {
	secret, open := kubepod.Workload("secret"), kubepod.Workload("open")
	diskVolume(secret, "/scratch")
	open.AddStorage(kubepod.Object{"driver": "", "source": "", "fstype": "ext4", "driver_options": []string{"create_filesystem"}, "options": []string{"discard"},
		"fs_group": nil, "shared": true, "mount_point": "$(spath)/$(b64_device_id)"}, &agent.Storage{Driver: "blk", Source: "02", Fstype: "ext4",
		DriverOptions: []string{"create_filesystem"}, Options: []string{"discard"}, Shared: true, MountPoint: "/run/kata-containers/sandbox/storage/MDI="})
	for _, tc := range []struct {
		of      *kubepod.Container
		allowed bool
	}{{secret, false}, {open, true}} {
		e := kubeEngine(t, kubepod.Data(kubepod.Pause(), tc.of))
		_, err := e.Begin(t.Context(), "HostStorageRequest", open.Storages[0])
		if (err == nil) != tc.allowed {
			t.Errorf("%s: got %v", tc.of.Name, err)
		}
		if _, err := e.Begin(t.Context(), "HostStorageRequest", &agent.Device{ContainerPath: "/dev/sda"}); err == nil {
			t.Errorf("%s: a device is allowed", tc.of.Name)
		}
		mustAllow(t, e, tc.of.Request(kubepod.ID(1)))
	}
}

// TestKubernetesPinnedImages has data of Cloister's generator, which names digests and says whether tags are good enough.
func TestKubernetesPinnedImages(t *testing.T) {
	for _, tc := range []struct {
		name, source  string
		byTag, pinned bool
		pull          bool
		allowed       bool
	}{
		{"digest", "any.example/x@" + kubepod.DigestOne, false, true, true, true},
		{"digest in capitals", "any.example/x@SHA256:" + kubepod.DigestOne[7:], false, true, true, true},
		{"other digest", "registry.example/web@" + kubepod.DigestTwo, true, false, true, false},
		{"digest as a tag", kubepod.DigestOne, true, false, true, false},
		{"tag", "registry.example/web:1", false, false, true, false},
		{"tag that is good enough", "registry.example/web:1", true, false, true, true},
		{"tag where digests are wanted", "registry.example/web:1", true, true, true, false},
		{"other tag", "registry.example/web:2", true, false, true, false},
		{"no guest pull", "any.example/x@" + kubepod.DigestOne, false, true, false, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			web, p := kubepod.Workload("web"), kubepod.Pause()
			img := image(kubepod.DigestOne)
			img["by_tag"] = tc.byTag
			web.Entry["image"], p.Entry["image"] = img, nil
			web.Image = tc.source
			data := ours(kubepod.Data(p, web))
			data["common"].(kubepod.Object)["require_pinned_image_digests"] = tc.pinned
			data["common"].(kubepod.Object)["allow_guest_pull_images"] = tc.pull
			e := kubeEngine(t, data)
			if err := ask(e, web.Request(kubepod.ID(1))); (err == nil) != tc.allowed {
				t.Errorf("got %v", err)
			}
		})
	}
}
