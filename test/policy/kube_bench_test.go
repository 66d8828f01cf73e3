package policy_test

import (
	"fmt"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/guest/gate"
	"github.com/cloister/cloister/test/kubepod"
	"github.com/cloister/cloister/wire/agent"
)

// kubeLarge is a pod of n containers; the last one is returned.
func kubeLarge(n int) (kubepod.Object, *kubepod.Container) {
	list := []*kubepod.Container{kubepod.Pause()}
	for i := range n {
		c := kubepod.Workload(fmt.Sprintf("c%d", i))
		var names []string
		for k := range 20 {
			names = append(names, fmt.Sprintf("SETTING_%d", k))
			v := fmt.Sprintf("SETTING_%d=value-%d-%d", k, i, k)
			c.Env = append(c.Env, v)
			c.Process()["Env"] = append(c.Process()["Env"].([]string), v)
		}
		c.Entry["required_env"] = append([]string{"PATH", "MODE", "POD", "IP"}, names...)
		c.Entry["required_mounts"] = []string{"/var/run/secrets/kubernetes.io/serviceaccount"}
		for k := range 10 {
			c.Env = append(c.Env, fmt.Sprintf("APP%d_SERVICE_HOST=10.0.0.%d", k, k))
		}
		list = append(list, c)
	}
	return kubepod.Data(list...), list[n]
}

func BenchmarkKubernetes(b *testing.B) {
	data, last := kubeLarge(30)
	e := kubeEngine(b, data)
	mustAllow(b, e, kubepod.Sandbox())
	mustAllow(b, e, kubepod.Pause().Request(kubepod.SandboxID))
	b.Run("create and remove", func(b *testing.B) {
		reqs := make([]*agent.CreateContainerRequest, 256)
		for i := range reqs {
			reqs[i] = last.Request(kubepod.ID(i))
		}
		var used int64
		for i := 0; b.Loop(); i++ {
			if i%len(reqs) == 0 {
				b.StopTimer()
				e = kubeEngine(b, data)
				mustAllow(b, e, kubepod.Sandbox())
				mustAllow(b, e, kubepod.Pause().Request(kubepod.SandboxID))
				b.StartTimer()
			}
			r := reqs[i%len(reqs)]
			start := cpu()
			mustAllow(b, e, r)
			mustAllow(b, e, &agent.RemoveContainerRequest{ContainerId: r.ContainerId})
			used += cpu() - start
		}
		b.ReportMetric(float64(used)/float64(b.N), "cpu-ns/op")
	})
	id := kubepod.ID(9999)
	mustAllow(b, e, last.Request(id))
	exec := &agent.Process{Args: []string{"/bin/probe", last.Name}, Env: last.Env, Cwd: "/", NoNewPrivileges: true,
		User: &agent.User{UID: 1000, GID: 1000, AdditionalGids: []uint32{1000}}}
	for name, req := range map[string]proto.Message{
		"start":  &agent.StartContainerRequest{ContainerId: id},
		"read":   &agent.ReadStreamRequest{ContainerId: id, Len: 4096},
		"wait":   &agent.WaitProcessRequest{ContainerId: id},
		"stats":  &agent.StatsContainerRequest{ContainerId: id},
		"signal": &agent.SignalProcessRequest{ContainerId: id, Signal: 15},
		"exec":   &agent.ExecProcessRequest{ContainerId: id, ExecId: "x", Process: exec},
		"copy":   &agent.CopyFileRequest{Path: kubepod.SharedDir + kubepod.ID(5) + "-0123456789abcdef-hosts", FileMode: 0o100644, FileSize: 4, Data: []byte("text")},
		"route":  &agent.UpdateRoutesRequest{Routes: &agent.Routes{Routes: []*agent.Route{{Dest: "10.0.0.0/8", Gateway: "10.0.0.1", Device: "eth0"}}}},
	} {
		b.Run(name, func(b *testing.B) {
			used := cpu()
			for b.Loop() {
				mustAllow(b, e, req)
			}
			b.ReportMetric(float64(cpu()-used)/float64(b.N), "cpu-ns/op")
		})
	}
}

func BenchmarkKubernetesLoad(b *testing.B) {
	data, _ := kubeLarge(30)
	rules, err := os.ReadFile("../../author/genpolicy/rules.rego")
	if err != nil {
		b.Fatal(err)
	}
	text, err := kubepod.Policy(string(rules), data)
	if err != nil {
		b.Fatal(err)
	}
	var keep *gate.Engine
	before := heap()
	if keep, err = gate.New(text, gate.Options{}); err != nil {
		b.Fatal(err)
	}
	size := heap() - before
	runtime.KeepAlive(keep)
	for b.Loop() {
		if _, err := gate.New(text, gate.Options{}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(size)/(1<<20), "MiB/policy") // after the loop, which forgets what was reported before
	b.ReportMetric(float64(len(text))/1024, "KiB/text")
}

// heap is what is in use after a collection, in bytes.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// cpu is the processor time of this process, in nanoseconds: other processes do not change it.
func cpu() int64 {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return u.Utime.Nano() + u.Stime.Nano()
}
