// Package stats makes what containerd's Stats call answers: io.containerd.cgroups.v1.Metrics or v2, as the host's cgroups are.
//
// The figures of containers come from the guest, which is not trusted. It can say what it likes about itself; what it says must not hurt those who read
// it. containerd and the kubelet subtract and multiply these numbers without looking: memory that is available is limit minus working set,
// processor time is microseconds times thousand. So limits are never below usage, and no counter is so big that it overflows.
package stats

import (
	"fmt"
	"math"
	"strings"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/cloister/cloister/host/cgroup"
	"github.com/cloister/cloister/wire/agent"
)

const (
	// maxCounter is what any counter may be: 146 years of processor time in nanoseconds, 4 EiB.
	maxCounter = math.MaxUint64 >> 2
	// maxInterfaces is how many network interfaces of the guest are told; IFNAMSIZ-1 is the length of a name.
	maxInterfaces = 64
	maxName       = 15
)

// Container are the metrics of a container, as the guest tells them, for a host whose cgroups are in the given mode (cgroup.Mode). If host is
// not nil it has the figures of the whole sandbox as the host sees them: no processor time above is believed. ooms are the events of want of
// memory that the guest has told of the container; containerd looks here, too, for the reason of an end.
func Container(r *agent.StatsContainerResponse, host *cgroup.Stats, ooms uint64, mode string) (*anypb.Any, error) {
	s := cgroup.FromGuest(r.GetCgroupStats())
	s.OOMKills = max(s.OOMKills, ooms)
	if host != nil {
		s = s.Bounded(*host)
	}
	return encode(s, r.GetNetworkStats(), mode)
}

// Sandbox are the metrics of the sandbox container, with figures that the host has counted (cgroup.Sandbox). network is what the guest tells of
// the pod's interfaces; may be nil.
func Sandbox(s cgroup.Stats, network []*agent.NetworkStats, mode string) (*anypb.Any, error) {
	return encode(s, network, mode)
}

func encode(s cgroup.Stats, network []*agent.NetworkStats, mode string) (*anypb.Any, error) {
	s = sane(s)
	var m proto.Message
	switch metrics := s.Metrics(mode).(type) {
	case *v1.Metrics:
		for _, n := range interfaces(network) {
			metrics.Network = append(metrics.Network, &v1.NetworkStat{Name: n.Name, RxBytes: n.RxBytes, RxPackets: n.RxPackets, RxErrors: n.RxErrors,
				RxDropped: n.RxDropped, TxBytes: n.TxBytes, TxPackets: n.TxPackets, TxErrors: n.TxErrors, TxDropped: n.TxDropped})
		}
		m = metrics
	case *v2.Metrics:
		for _, n := range interfaces(network) {
			metrics.Network = append(metrics.Network, &v2.NetworkStat{Name: n.Name, RxBytes: n.RxBytes, RxPackets: n.RxPackets, RxErrors: n.RxErrors,
				RxDropped: n.RxDropped, TxBytes: n.TxBytes, TxPackets: n.TxPackets, TxErrors: n.TxErrors, TxDropped: n.TxDropped})
		}
		m = metrics
	default:
		return nil, fmt.Errorf("writing metrics: cgroup mode %q", mode)
	}
	b, err := proto.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("writing metrics: %w", err)
	}
	// containerd's type URL is the name alone.
	return &anypb.Any{TypeUrl: string(m.ProtoReflect().Descriptor().FullName()), Value: b}, nil
}

// sane are figures that others can calculate with.
func sane(s cgroup.Stats) cgroup.Stats {
	for _, c := range []*uint64{&s.CPU, &s.CPUUser, &s.CPUSystem, &s.Periods, &s.Throttled, &s.ThrottledFor, &s.Memory, &s.MemoryPeak, &s.InactiveFile,
		&s.Anon, &s.File, &s.Swap, &s.Kernel, &s.OOMKills, &s.PageFaults, &s.MajorFaults, &s.PIDs, &s.ReadBytes, &s.WriteBytes, &s.Reads, &s.Writes} {
		*c = min(*c, maxCounter)
	}
	s.InactiveFile = min(s.InactiveFile, s.Memory)
	if s.MemoryLimit == 0 || s.MemoryLimit > maxCounter {
		s.MemoryLimit = math.MaxUint64 // as cgroups say that there is none
	}
	s.MemoryLimit = max(s.MemoryLimit, s.Memory)
	return s
}

// interfaces are those with a name that may be printed, with counters in bounds.
func interfaces(in []*agent.NetworkStats) []*agent.NetworkStats {
	var out []*agent.NetworkStats
	for _, n := range in {
		if len(out) == maxInterfaces {
			break
		}
		name := n.GetName()
		if name == "" || len(name) > maxName || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '/' }) {
			continue
		}
		out = append(out, &agent.NetworkStats{Name: name,
			RxBytes: min(n.GetRxBytes(), maxCounter), RxPackets: min(n.GetRxPackets(), maxCounter),
			RxErrors: min(n.GetRxErrors(), maxCounter), RxDropped: min(n.GetRxDropped(), maxCounter),
			TxBytes: min(n.GetTxBytes(), maxCounter), TxPackets: min(n.GetTxPackets(), maxCounter),
			TxErrors: min(n.GetTxErrors(), maxCounter), TxDropped: min(n.GetTxDropped(), maxCounter)})
	}
	return out
}
