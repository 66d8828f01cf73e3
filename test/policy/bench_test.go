package policy_test

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/author/policy"
	"github.com/cloister/cloister/guest/gate"
	"github.com/cloister/cloister/wire/agent"
	"github.com/cloister/cloister/wire/launch"
)

// large is a plan of n containers with env variables each.
func large(t testing.TB, n, env int) *launch.Plan {
	t.Helper()
	plan, _ := loadPlan(t, "testdata/full.yaml")
	web := plan.Containers[1]
	plan.Containers = nil
	for i := range n {
		c := web
		c.Name = fmt.Sprintf("c%d", i)
		c.Create = proto.Clone(web.Create).(*agent.CreateContainerRequest)
		c.Create.ContainerId = strings.ReplaceAll(fmt.Sprintf("%64x", i), " ", "0")
		c.Create.ExecId = c.Create.ContainerId
		c.Create.OCI.Annotations["io.kubernetes.cri.container-name"] = c.Name
		withID(c.Create, c.Create.ContainerId)
		for k := range env {
			c.Create.OCI.Process.Env = append(c.Create.OCI.Process.Env, fmt.Sprintf("SERVICE_%d_PORT=tcp://10.0.%d.%d:80", k, i, k))
		}
		plan.Containers = append(plan.Containers, c)
	}
	return plan
}

func BenchmarkDecision(b *testing.B) {
	plan := large(b, 30, 30)
	e := newEngine(b, plan, policy.Options{AllowExec: allowedExec})
	mustAllow(b, e, plan.Sandbox)
	sendFiles(b, e, plan)
	last := plan.Containers[29]
	b.Run("create, refused in the end", func(b *testing.B) {
		req := proto.Clone(last.Create).(*agent.CreateContainerRequest)
		req.Storages[1].Shared = true
		for b.Loop() {
			if ask(e, req) == nil {
				b.Fatal("allowed")
			}
		}
	})
	b.Run("create and remove", func(b *testing.B) {
		req := proto.Clone(last.Create).(*agent.CreateContainerRequest)
		id := req.ContainerId
		remove := &agent.RemoveContainerRequest{}
		for i := 0; b.Loop(); i++ {
			if i%100 == 0 {
				b.StopTimer()
				e = newEngine(b, plan, policy.Options{AllowExec: allowedExec})
				mustAllow(b, e, plan.Sandbox)
				sendFiles(b, e, plan)
				b.StartTimer()
			}
			req.ContainerId = fmt.Sprintf("%s-r%d", id, i%100+1)
			req.ExecId = req.ContainerId
			remove.ContainerId = req.ContainerId
			withID(req, req.ContainerId)
			mustAllow(b, e, req)
			mustAllow(b, e, remove)
		}
	})
	e = newEngine(b, plan, policy.Options{AllowExec: allowedExec, AllowExecStdin: true})
	mustAllow(b, e, plan.Sandbox)
	sendFiles(b, e, plan)
	withID(last.Create, last.Create.ContainerId)
	mustAllow(b, e, last.Create)
	small := map[string]proto.Message{
		"read":  &agent.ReadStreamRequest{ContainerId: last.Create.ContainerId, Len: 4096},
		"write": &agent.WriteStreamRequest{ContainerId: last.Create.ContainerId, ExecId: "x", Data: make([]byte, 64<<10)},
		"stats": &agent.StatsContainerRequest{ContainerId: last.Create.ContainerId},
		"exec":  execOf(last, "exec-1", false, "/bin/date", "-u"),
	}
	for name, req := range small {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				mustAllow(b, e, req)
			}
		})
	}
}

// withID puts an id where a restarted container has its own.
func withID(req *agent.CreateContainerRequest, id string) {
	for _, s := range req.Storages {
		if s.Driver == "image_guest_pull" {
			s.MountPoint = "/run/kata-containers/" + id + "/rootfs"
		}
	}
	req.OCI.Root.Path = "/run/kata-containers/" + id + "/rootfs"
	req.OCI.Linux.CgroupsPath = "/cloister/" + id
}

func BenchmarkLoad(b *testing.B) {
	text, err := policy.Generate(large(b, 30, 30), policy.Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(len(text))/1024, "KiB")
	for b.Loop() {
		if _, err := gate.New(text, gate.Options{}); err != nil {
			b.Fatal(err)
		}
	}
}
