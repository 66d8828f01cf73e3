package policy_test

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/author/manifest"
	"github.com/cloister/cloister/author/policy"
	"github.com/cloister/cloister/wire/agent"
)

func TestContainerIDs(t *testing.T) {
	e, plan := running(t)
	web := plan.Containers[1].Create
	denied(t, ask(e, web), []string{"live"}, nil) // a second create of a live container
	restart := func(id string) *agent.CreateContainerRequest {
		r := proto.Clone(web).(*agent.CreateContainerRequest)
		r.ContainerId, r.ExecId = id, id
		withID(r, id)
		return r
	}
	denied(t, ask(e, restart(web.ContainerId+"-r1")), nil, nil) // and under another id
	mustAllow(t, e, &agent.RemoveContainerRequest{ContainerId: web.ContainerId})
	denied(t, ask(e, web), []string{"retired"}, nil)
	denied(t, ask(e, &agent.RemoveContainerRequest{ContainerId: web.ContainerId}), nil, nil)
	for _, bad := range []string{"-r0", "-r01", "-r", "-r12345", "-r1x", "-R1", "-r1/../x", "x"} {
		denied(t, ask(e, restart(web.ContainerId+bad)), nil, nil)
	}
	mustAllow(t, e, restart(web.ContainerId+"-r1"))
	for _, req := range []proto.Message{
		&agent.StartContainerRequest{ContainerId: web.ContainerId},
		&agent.WaitProcessRequest{ContainerId: web.ContainerId},
		&agent.StatsContainerRequest{ContainerId: web.ContainerId},
		&agent.SignalProcessRequest{ContainerId: web.ContainerId, Signal: 9},
		&agent.ReadStreamRequest{ContainerId: web.ContainerId},
		&agent.TtyWinResizeRequest{ContainerId: web.ContainerId},
	} {
		denied(t, ask(e, req), []string{"undefined"}, nil)
	}
	// An id that was never admitted may be removed once, and is then spent.
	mustAllow(t, e, &agent.RemoveContainerRequest{ContainerId: "never-seen"})
	denied(t, ask(e, &agent.RemoveContainerRequest{ContainerId: "never-seen"}), nil, nil)
	denied(t, ask(e, &agent.RemoveContainerRequest{ContainerId: "../x"}), nil, nil)
	next := web.ContainerId + "-r2"
	mustAllow(t, e, &agent.RemoveContainerRequest{ContainerId: next})
	mustAllow(t, e, &agent.RemoveContainerRequest{ContainerId: web.ContainerId + "-r1"})
	denied(t, ask(e, restart(next)), []string{"retired"}, nil)
}

// TestFailedCreate creates a container that cannot be made at first, in a pod that restarts nothing.
func TestFailedCreate(t *testing.T) {
	plan, _ := loadPlan(t, "testdata/full.yaml")
	for i := range plan.Containers {
		plan.Containers[i].RestartPolicy = "Never"
	}
	e := newEngine(t, plan, policy.Options{})
	mustAllow(t, e, plan.Sandbox)
	sendFiles(t, e, plan)
	setup := plan.Containers[0].Create
	start := &agent.StartContainerRequest{ContainerId: setup.ContainerId}
	remove := &agent.RemoveContainerRequest{ContainerId: setup.ContainerId}
	begin := func() func() error {
		undo, err := e.Begin(t.Context(), "CreateContainerRequest", setup)
		if err != nil {
			t.Fatal(err)
		}
		return func() error { return undo(t.Context()) }
	}
	for range 2 {
		undo := begin()
		denied(t, ask(e, setup), []string{"live"}, nil)
		if err := undo(); err != nil {
			t.Fatal(err)
		}
		denied(t, ask(e, start), nil, nil)
	}
	// A host that has already gone on cannot win the id back.
	undo := begin()
	mustAllow(t, e, start)
	if err := undo(); err == nil {
		t.Error("a create was taken back after its container was started")
	}
	denied(t, ask(e, setup), []string{"live"}, nil)
	mustAllow(t, e, remove)
	if err := undo(); err == nil {
		t.Error("a create was taken back after its container was removed")
	}
	denied(t, ask(e, setup), []string{"retired"}, nil)
}

func TestNeverRestarts(t *testing.T) {
	plan, _ := loadPlan(t, "testdata/full.yaml")
	for i := range plan.Containers {
		plan.Containers[i].RestartPolicy = "Never"
	}
	e := newEngine(t, plan, policy.Options{})
	mustAllow(t, e, plan.Sandbox)
	sendFiles(t, e, plan)
	r := plan.Containers[0].Create
	r.ContainerId += "-r1"
	r.ExecId = r.ContainerId
	withID(r, r.ContainerId)
	denied(t, ask(e, r), nil, nil)
}

func TestOrder(t *testing.T) {
	e, plan := full(t)
	setup, web := plan.Containers[0].Create, plan.Containers[1].Create
	denied(t, ask(e, setup), []string{"pstate.sandbox is undefined"}, nil)
	mustAllow(t, e, plan.Sandbox)
	denied(t, ask(e, plan.Sandbox), []string{"data.pstate.sandbox"}, nil)
	sendFiles(t, e, plan)
	denied(t, ask(e, web), []string{"finished:0"}, nil)
	mustAllow(t, e, setup)
	exited(t, e, setup.ContainerId, 0) // it was never started
	denied(t, ask(e, web), []string{"finished:0"}, nil)
	// A start that was asked for may fail, and what was started may fail: only its success counts.
	mustAllow(t, e, &agent.StartContainerRequest{ContainerId: setup.ContainerId})
	denied(t, ask(e, web), []string{"finished:0"}, nil)
	exited(t, e, setup.ContainerId, 137)
	exited(t, e, "never-seen", 0)
	denied(t, ask(e, web), []string{"finished:0"}, nil)
	exited(t, e, setup.ContainerId, 0)
	mustAllow(t, e, web)
}

func TestStreams(t *testing.T) {
	e, plan := running(t)
	web, shell := plan.Containers[1].Create.ContainerId, plan.Containers[2].Create.ContainerId
	mustAllow(t, e, &agent.WriteStreamRequest{ContainerId: shell, ExecId: shell, Data: []byte("x")})
	denied(t, ask(e, &agent.WriteStreamRequest{ContainerId: web, Data: []byte("x")}), nil, nil)
	denied(t, ask(e, &agent.CloseStdinRequest{ContainerId: web}), nil, nil)
	denied(t, ask(e, &agent.WriteStreamRequest{ContainerId: shell, ExecId: "exec-1"}), nil, nil)
	quiet := newEngine(t, plan, policy.Options{DenyLogs: true, AllowExecStdin: true})
	mustAllow(t, quiet, plan.Sandbox)
	sendFiles(t, quiet, plan)
	for _, c := range plan.Containers {
		mustAllow(t, quiet, c.Create)
		mustAllow(t, quiet, &agent.StartContainerRequest{ContainerId: c.Create.ContainerId})
		exited(t, quiet, c.Create.ContainerId, 0)
	}
	if yes, err := quiet.AllowRead(t.Context(), &agent.ReadStreamRequest{ContainerId: web}); yes || err != nil {
		t.Errorf("logs: got %v, %v", yes, err)
	}
	mustAllow(t, quiet, &agent.WriteStreamRequest{ContainerId: web, ExecId: "exec-1"})
}

func TestFiles(t *testing.T) {
	e, plan := full(t)
	good := plan.Files[0].Request
	const root = "/run/kata-containers/shared/containers/"
	for _, path := range []string{
		root + "x", root + "../x", "/etc/passwd", "etc/passwd", good.Path + "/", root + "../../../etc/passwd",
		"/run/kata-containers/" + plan.Containers[1].Create.ContainerId + "/rootfs/bin/sh",
	} {
		for _, mode := range []uint32{0o100644, 0o120777, 0o040755, 0o140644} {
			r := proto.Clone(good).(*agent.CopyFileRequest)
			r.Path, r.FileMode = path, mode
			denied(t, ask(e, r), []string{"policy_data.files["}, nil)
		}
	}
	changed := proto.Clone(good).(*agent.CopyFileRequest)
	changed.Data = []byte(strings.Repeat("x", len(good.Data)))
	denied(t, ask(e, changed), []string{"data_sha256: got "}, nil)
	chunk := proto.Clone(good).(*agent.CopyFileRequest)
	chunk.Data = good.Data[:3]
	denied(t, ask(e, chunk), []string{"data_sha256: got null"}, nil)
}

// TestFilesLeftOut sends all files of the pod but one.
func TestFilesLeftOut(t *testing.T) {
	plan, m := loadPlan(t, "testdata/full.yaml")
	for _, missing := range plan.Files {
		path := missing.Request.GetPath()
		e := newEngine(t, plan, policy.Options{ExecCommands: manifest.ExecCommands(m)})
		mustAllow(t, e, plan.Sandbox)
		for _, f := range plan.Files {
			if f.Request != missing.Request {
				mustAllow(t, e, f.Request)
			}
		}
		for _, c := range plan.Containers {
			if strings.Contains(path, c.Create.ContainerId) {
				denied(t, ask(e, c.Create), []string{path}, nil)
				mustAllow(t, e, missing.Request)
			}
			mustAllow(t, e, c.Create)
			mustAllow(t, e, &agent.StartContainerRequest{ContainerId: c.Create.ContainerId})
			exited(t, e, c.Create.ContainerId, 0)
		}
	}
}

func TestNetwork(t *testing.T) {
	e, _ := full(t)
	nic := func(change func(*agent.Interface)) *agent.UpdateInterfaceRequest {
		i := &agent.Interface{Device: "eth0", Name: "eth0", HwAddr: "52:54:00:12:34:56", Mtu: 1500,
			IPAddresses: []*agent.IPAddress{{Address: "10.0.2.15", Mask: "24"}}}
		change(i)
		return &agent.UpdateInterfaceRequest{Interface: i}
	}
	mustAllow(t, e, nic(func(*agent.Interface) {}))
	mustAllow(t, e, nic(func(i *agent.Interface) { i.RawFlags = 128 }))
	for name, change := range map[string]func(*agent.Interface){
		"lo":       func(i *agent.Interface) { i.Name = "lo" },
		"lo dev":   func(i *agent.Interface) { i.Device = "lo" },
		"flags":    func(i *agent.Interface) { i.RawFlags = 8 },
		"hw":       func(i *agent.Interface) { i.HwAddr = "00:00:00:00:00:00" },
		"loopback": func(i *agent.Interface) { i.IPAddresses[0].Address = "127.0.0.2" },
		"v6":       func(i *agent.Interface) { i.IPAddresses[0].Address = "::1" },
		"mapped":   func(i *agent.Interface) { i.IPAddresses[0].Address = "::ffff:127.0.0.1" },
		"mapped 2": func(i *agent.Interface) { i.IPAddresses[0].Address = "::FFFF:7f00:1" },
	} {
		t.Run("interface "+name, func(t *testing.T) { denied(t, ask(e, nic(change)), nil, nil) })
	}
	denied(t, ask(e, &agent.UpdateInterfaceRequest{}), nil, nil)
	route := func(change func(*agent.Route)) *agent.UpdateRoutesRequest {
		r := &agent.Route{Gateway: "10.0.2.2", Device: "eth0"}
		change(r)
		return &agent.UpdateRoutesRequest{Routes: &agent.Routes{Routes: []*agent.Route{{Dest: "10.0.2.0/24", Device: "eth0"}, r}}}
	}
	mustAllow(t, e, route(func(*agent.Route) {}))
	for name, change := range map[string]func(*agent.Route){
		"device":    func(r *agent.Route) { r.Device = "lo" },
		"source":    func(r *agent.Route) { r.Source = "127.0.0.1" },
		"source v6": func(r *agent.Route) { r.Source = "0:0:0:0:0:0:0:1" },
		"dest":      func(r *agent.Route) { r.Dest = "127.0.0.0/8" },
	} {
		t.Run("route "+name, func(t *testing.T) { denied(t, ask(e, route(change)), nil, nil) })
	}
	arp := func(change func(*agent.ARPNeighbor)) *agent.AddARPNeighborsRequest {
		n := &agent.ARPNeighbor{ToIPAddress: &agent.IPAddress{Address: "10.0.2.2"}, Device: "eth0", Lladdr: "52:55:0a:00:02:02", State: 128}
		change(n)
		return &agent.AddARPNeighborsRequest{Neighbors: &agent.ARPNeighbors{ARPNeighbors: []*agent.ARPNeighbor{n}}}
	}
	mustAllow(t, e, arp(func(*agent.ARPNeighbor) {}))
	for name, change := range map[string]func(*agent.ARPNeighbor){
		"device":  func(n *agent.ARPNeighbor) { n.Device = "lo" },
		"mask":    func(n *agent.ARPNeighbor) { n.ToIPAddress.Mask = "24" },
		"address": func(n *agent.ARPNeighbor) { n.ToIPAddress.Address = "127.0.0.1" },
		"state":   func(n *agent.ARPNeighbor) { n.State = 4 },
		"flags":   func(n *agent.ARPNeighbor) { n.Flags = 1 },
		"no addr": func(n *agent.ARPNeighbor) { n.ToIPAddress = nil },
	} {
		t.Run("arp "+name, func(t *testing.T) { denied(t, ask(e, arp(change)), nil, nil) })
	}
}

func TestPolicyCannotBeReplaced(t *testing.T) {
	e, _ := full(t)
	denied(t, e.SetPolicy(t.Context(), "package agent_policy\ndefault CreateContainerRequest := true"), nil, nil)
	denied(t, ask(e, &agent.SetPolicyRequest{Policy: "x"}), nil, nil)
	if e.Insecure() {
		t.Error("a generated policy is insecure")
	}
}
