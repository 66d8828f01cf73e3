package cgroup

import (
	"context"
	"fmt"
	"math"
	"strings"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/opencontainers/cgroups"

	"github.com/cloister/cloister/wire/agent"
)

// groupPIDs are the processes in one directory and below.
func groupPIDs(dir string) ([]int, error) { return cgroups.GetAllPids(dir) }

// Stats are the figures that the CRI asks for: those of a group on the host, of a container in the guest, or of both together.
type Stats struct {
	// Processor time in nanoseconds.
	CPU, CPUUser, CPUSystem          uint64
	Periods, Throttled, ThrottledFor uint64
	// Memory in bytes. InactiveFile is the part of Memory that can be given back at once.
	Memory, MemoryLimit, MemoryPeak, InactiveFile, Anon, File uint64
	Swap, Kernel                                              uint64
	PageFaults, MajorFaults                                   uint64
	// OOMKills are processes that the kernel has killed for want of memory.
	OOMKills        uint64
	PIDs, PIDsLimit uint64
	// Bytes and operations of block devices.
	ReadBytes, WriteBytes, Reads, Writes uint64
}

// Stats are the figures of the group: VMM and helpers, and so the whole sandbox as the host sees it.
func (g *Group) Stats(ctx context.Context) (Stats, error) {
	var s *cgroups.Stats
	err := within(ctx, func() (err error) {
		s, err = g.manager.GetStats()
		return err
	})
	if err != nil {
		return Stats{}, fmt.Errorf("reading the figures of cgroup %s: %w", g.state.Location, err)
	}
	cpu, mem := s.CpuStats, s.MemoryStats
	out := Stats{
		CPU: cpu.CpuUsage.TotalUsage, CPUUser: cpu.CpuUsage.UsageInUsermode, CPUSystem: cpu.CpuUsage.UsageInKernelmode,
		Periods: cpu.ThrottlingData.Periods, Throttled: cpu.ThrottlingData.ThrottledPeriods, ThrottledFor: cpu.ThrottlingData.ThrottledTime,
		Memory: mem.Usage.Usage, MemoryLimit: mem.Usage.Limit, MemoryPeak: mem.Usage.MaxUsage, Swap: mem.SwapOnlyUsage.Usage,
		Kernel: max(mem.KernelUsage.Usage, mem.Stats["kernel"]), // version 1 and 2
		PIDs:   s.PidsStats.Current, PIDsLimit: s.PidsStats.Limit,
	}
	out.memoryStat(mem.Stats)
	for _, e := range s.BlkioStats.IoServiceBytesRecursive {
		add(e.Op, e.Value, &out.ReadBytes, &out.WriteBytes)
	}
	for _, e := range s.BlkioStats.IoServicedRecursive {
		add(e.Op, e.Value, &out.Reads, &out.Writes)
	}
	return out, nil
}

// FromGuest are the figures of a container, as the guest tells them. The guest is not trusted: nothing here overflows or is kept.
func FromGuest(s *agent.CgroupStats) Stats {
	cpu, mem := s.GetCpuStats(), s.GetMemoryStats()
	out := Stats{
		CPU: cpu.GetCpuUsage().GetTotalUsage(), CPUUser: cpu.GetCpuUsage().GetUsageInUsermode(),
		CPUSystem: cpu.GetCpuUsage().GetUsageInKernelmode(),
		Periods:   cpu.GetThrottlingData().GetPeriods(), Throttled: cpu.GetThrottlingData().GetThrottledPeriods(),
		ThrottledFor: cpu.GetThrottlingData().GetThrottledTime(),
		Memory:       mem.GetUsage().GetUsage(), MemoryLimit: mem.GetUsage().GetLimit(), MemoryPeak: mem.GetUsage().GetMaxUsage(),
		Kernel: mem.GetKernelUsage().GetUsage(), OOMKills: mem.GetStats()["oom_kill"],
		PIDs: s.GetPidsStats().GetCurrent(), PIDsLimit: s.GetPidsStats().GetLimit(),
	}
	if swap, usage := mem.GetSwapUsage().GetUsage(), out.Memory; swap > usage { // memory and swap together
		out.Swap = swap - usage
	}
	out.memoryStat(mem.GetStats())
	for _, e := range s.GetBlkioStats().GetIoServiceBytesRecursive() {
		add(e.GetOp(), e.GetValue(), &out.ReadBytes, &out.WriteBytes)
	}
	for _, e := range s.GetBlkioStats().GetIoServicedRecursive() {
		add(e.GetOp(), e.GetValue(), &out.Reads, &out.Writes)
	}
	return out
}

// memoryStat takes what it needs from memory.stat of either version.
func (s *Stats) memoryStat(m map[string]uint64) {
	first := func(keys ...string) uint64 {
		for _, k := range keys {
			if v, ok := m[k]; ok {
				return v
			}
		}
		return 0
	}
	s.InactiveFile = first("total_inactive_file", "inactive_file")
	s.Anon, s.File = first("total_rss", "anon", "rss"), first("total_cache", "file", "cache")
	s.PageFaults, s.MajorFaults = first("total_pgfault", "pgfault"), first("total_pgmajfault", "pgmajfault")
}

func add(op string, value uint64, read, write *uint64) {
	switch strings.ToLower(op) {
	case "read":
		*read = plus(*read, value)
	case "write":
		*write = plus(*write, value)
	}
}

func plus(a, b uint64) uint64 {
	if a > math.MaxUint64-b {
		return math.MaxUint64
	}
	return a + b
}

func minus(a, b uint64) uint64 {
	if b > a {
		return 0
	}
	return a - b
}

// Sandbox are the figures of the sandbox container: what the host counts and the containers do not. Added to those of the containers they
// are what the pod costs, once. A guest that tells more than the host has seen gets nothing for it: the sandbox then has zero, and no
// container more than the host's figure.
func Sandbox(host Stats, containers []Stats) Stats {
	out := host
	for _, c := range containers {
		out.CPU, out.CPUUser, out.CPUSystem = minus(out.CPU, c.CPU), minus(out.CPUUser, c.CPUUser), minus(out.CPUSystem, c.CPUSystem)
		out.Memory, out.InactiveFile = minus(out.Memory, c.Memory), minus(out.InactiveFile, c.InactiveFile)
		out.Anon, out.File, out.Kernel = minus(out.Anon, c.Anon), minus(out.File, c.File), minus(out.Kernel, c.Kernel)
		out.ReadBytes, out.WriteBytes = minus(out.ReadBytes, c.ReadBytes), minus(out.WriteBytes, c.WriteBytes)
		out.Reads, out.Writes = minus(out.Reads, c.Reads), minus(out.Writes, c.Writes)
	}
	return out
}

// Bounded are the figures of a container with none above what the host has seen of the sandbox.
func (s Stats) Bounded(host Stats) Stats {
	s.CPU, s.CPUUser, s.CPUSystem = min(s.CPU, host.CPU), min(s.CPUUser, host.CPU), min(s.CPUSystem, host.CPU)
	return s
}

// Metrics is the message for containerd in the form that belongs to the mode of the host: *stats.Metrics of version 1 or 2.
func (s Stats) Metrics(mode string) any {
	if mode == ModeV2 {
		return s.version2()
	}
	return s.version1()
}

func (s Stats) version1() *v1.Metrics {
	return &v1.Metrics{
		CPU: &v1.CPUStat{
			Usage:      &v1.CPUUsage{Total: s.CPU, User: s.CPUUser, Kernel: s.CPUSystem},
			Throttling: &v1.Throttle{Periods: s.Periods, ThrottledPeriods: s.Throttled, ThrottledTime: s.ThrottledFor},
		},
		Memory: &v1.MemoryStat{
			Usage: &v1.MemoryEntry{Usage: s.Memory, Limit: s.MemoryLimit, Max: s.MemoryPeak},
			Swap:  &v1.MemoryEntry{Usage: plus(s.Memory, s.Swap)}, Kernel: &v1.MemoryEntry{Usage: s.Kernel},
			Cache: s.File, RSS: s.Anon, TotalCache: s.File, TotalRSS: s.Anon, InactiveFile: s.InactiveFile, TotalInactiveFile: s.InactiveFile,
			PgFault: s.PageFaults, PgMajFault: s.MajorFaults, TotalPgFault: s.PageFaults, TotalPgMajFault: s.MajorFaults,
		},
		MemoryOomControl: &v1.MemoryOomControl{OomKill: s.OOMKills},

		Pids: &v1.PidsStat{Current: s.PIDs, Limit: s.PIDsLimit},
		Blkio: &v1.BlkIOStat{
			IoServiceBytesRecursive: []*v1.BlkIOEntry{{Op: "Read", Value: s.ReadBytes}, {Op: "Write", Value: s.WriteBytes}},
			IoServicedRecursive:     []*v1.BlkIOEntry{{Op: "Read", Value: s.Reads}, {Op: "Write", Value: s.Writes}},
		},
	}
}

func (s Stats) version2() *v2.Metrics {
	const ns = 1000 // version 2 counts microseconds
	return &v2.Metrics{
		CPU: &v2.CPUStat{UsageUsec: s.CPU / ns, UserUsec: s.CPUUser / ns, SystemUsec: s.CPUSystem / ns,
			NrPeriods: s.Periods, NrThrottled: s.Throttled, ThrottledUsec: s.ThrottledFor / ns},
		Memory: &v2.MemoryStat{Usage: s.Memory, UsageLimit: s.MemoryLimit, MaxUsage: s.MemoryPeak, SwapUsage: s.Swap, Anon: s.Anon, File: s.File,
			InactiveFile: s.InactiveFile, Pgfault: s.PageFaults, Pgmajfault: s.MajorFaults},
		MemoryEvents: &v2.MemoryEvents{OomKill: s.OOMKills},

		Pids: &v2.PidsStat{Current: s.PIDs, Limit: s.PIDsLimit},
		Io:   &v2.IOStat{Usage: []*v2.IOEntry{{Rbytes: s.ReadBytes, Wbytes: s.WriteBytes, Rios: s.Reads, Wios: s.Writes}}},
	}
}
