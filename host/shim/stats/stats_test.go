package stats

import (
	"math"
	"strings"
	"testing"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/host/cgroup"
	"github.com/cloister/cloister/wire/agent"
)

func example() *agent.StatsContainerResponse {
	return &agent.StatsContainerResponse{
		CgroupStats: &agent.CgroupStats{
			CpuStats: &agent.CpuStats{CpuUsage: &agent.CpuUsage{TotalUsage: 5_000_000, UsageInUsermode: 3_000_000}},
			MemoryStats: &agent.MemoryStats{Usage: &agent.MemoryData{Usage: 100, Limit: 1000},
				KernelUsage: &agent.MemoryData{Usage: 7}, Stats: map[string]uint64{"inactive_file": 30, "anon": 50, "oom_kill": 1}},
			PidsStats: &agent.PidsStats{Current: 4},
		},
		NetworkStats: []*agent.NetworkStats{{Name: "eth0", RxBytes: 9}, {Name: "bad\x1b[name"}, {Name: strings.Repeat("x", 99)}},
	}
}

func TestBothVersions(t *testing.T) {
	a, err := Container(example(), nil, 0, cgroup.ModeV2)
	var two v2.Metrics
	if err != nil || a.TypeUrl != "io.containerd.cgroups.v2.Metrics" || proto.Unmarshal(a.Value, &two) != nil {
		t.Fatalf("%v %v", a, err)
	}
	if two.CPU.UsageUsec != 5000 || two.Memory.Usage != 100 || two.Memory.InactiveFile != 30 || two.Pids.Current != 4 || len(two.Network) != 1 ||
		two.MemoryEvents.OomKill != 1 {
		t.Errorf("version 2: %v", &two)
	}
	a, err = Container(example(), &cgroup.Stats{CPU: 4_000_000}, 3, cgroup.ModeV1)
	var one v1.Metrics
	if err != nil || a.TypeUrl != "io.containerd.cgroups.v1.Metrics" || proto.Unmarshal(a.Value, &one) != nil {
		t.Fatalf("%v %v", a, err)
	}
	if one.CPU.Usage.Total != 4_000_000 || one.Memory.TotalInactiveFile != 30 || one.Network[0].RxBytes != 9 ||
		one.Memory.Kernel.Usage != 7 || one.MemoryOomControl.OomKill != 3 {
		t.Errorf("version 1, with no more processor time than the host has seen: %v", &one)
	}
}

func TestLies(t *testing.T) {
	r := example()
	r.CgroupStats.CpuStats.CpuUsage.TotalUsage = math.MaxUint64
	r.CgroupStats.MemoryStats.Usage = &agent.MemoryData{Usage: math.MaxUint64, Limit: 1}
	r.CgroupStats.MemoryStats.Stats["inactive_file"] = math.MaxUint64
	for range 1000 {
		r.NetworkStats = append(r.NetworkStats, &agent.NetworkStats{Name: "x"})
	}
	a, err := Container(r, nil, 0, cgroup.ModeV2)
	var m v2.Metrics
	if err != nil || proto.Unmarshal(a.Value, &m) != nil {
		t.Fatal(err)
	}
	if m.Memory.UsageLimit < m.Memory.Usage || m.Memory.InactiveFile > m.Memory.Usage || m.CPU.UsageUsec*1000/1000 != m.CPU.UsageUsec || len(m.Network) != 64 {
		t.Errorf("%v", &m)
	}
	if a, err := Container(nil, nil, 0, cgroup.ModeV2); err != nil || proto.Unmarshal(a.Value, &m) != nil || m.Memory.UsageLimit != math.MaxUint64 {
		t.Errorf("nothing told: %v %v", &m, err)
	}
}

func FuzzContainer(f *testing.F) {
	b, _ := proto.Marshal(example())
	f.Add(b)
	f.Fuzz(func(t *testing.T, data []byte) {
		var r agent.StatsContainerResponse
		if proto.Unmarshal(data, &r) != nil {
			return
		}
		for _, mode := range []string{cgroup.ModeV1, cgroup.ModeV2} {
			a, err := Container(&r, nil, 0, mode)
			if err != nil || len(a.Value) > 16<<10 {
				t.Fatalf("%d bytes, %v", len(a.GetValue()), err)
			}
		}
	})
}
