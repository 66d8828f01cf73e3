package policy_test

import (
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/guest/gate"
	"github.com/cloister/cloister/test/kubepod"
	"github.com/cloister/cloister/wire/agent"
	"github.com/cloister/cloister/wire/policyinput"
)

func BenchmarkKubernetes(b *testing.B) {
	data, last := kubepod.Large(30)
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
	// From here as a pod is in its life: without the ids that the benchmark above has retired.
	e = kubeEngine(b, data)
	mustAllow(b, e, kubepod.Sandbox())
	mustAllow(b, e, kubepod.Pause().Request(kubepod.SandboxID))
	id := kubepod.ID(9999)
	asks := append([]kubepod.Ask{{Name: "create, taken back", Request: last.Request(id)}}, kubepod.Asks(last, id)...)
	for i, x := range asks {
		if i == 1 {
			mustAllow(b, e, last.Request(id))
		}
		b.Run(x.Name, func(b *testing.B) {
			b.ReportAllocs()
			used := cpu()
			for b.Loop() { // a start is allowed once: it is taken back
				undo, err := e.Begin(b.Context(), policyinput.RuleName(x.Request), x.Request)
				if err != nil {
					b.Fatal(err)
				}
				if err := undo(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(cpu()-used)/float64(b.N), "cpu-ns/op")
		})
	}
}

func BenchmarkKubernetesLoad(b *testing.B) {
	data, _ := kubepod.Large(30)
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
