package agent

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/cloister/cloister/wire/agent"
)

// GetMetrics returns the guest's state in the text form of Prometheus: the agent's own size, and the machine's memory,
// load and traffic.
func (a *Agent) GetMetrics(context.Context, *agent.GetMetricsRequest) (*agent.Metrics, error) {
	var b strings.Builder
	gauge(&b, "kata_agent_threads", "Threads of the agent.")
	fmt.Fprintf(&b, "kata_agent_threads %d\n", statusValue("/proc/self/status", "Threads"))
	gauge(&b, "kata_agent_total_rss", "Resident memory of the agent in bytes.")
	fmt.Fprintf(&b, "kata_agent_total_rss %d\n", statusValue("/proc/self/status", "VmRSS")<<10)
	gauge(&b, "kata_agent_total_vm", "Virtual memory of the agent in bytes.")
	fmt.Fprintf(&b, "kata_agent_total_vm %d\n", statusValue("/proc/self/status", "VmSize")<<10)
	gauge(&b, "cloister_guest_goroutines", "Goroutines of the guest.")
	fmt.Fprintf(&b, "cloister_guest_goroutines %d\n", runtime.NumGoroutine())

	gauge(&b, "kata_guest_meminfo", "Memory of the machine in bytes.")
	for _, item := range []string{"MemTotal", "MemFree", "MemAvailable", "Cached", "Shmem", "Slab", "AnonPages"} {
		fmt.Fprintf(&b, "kata_guest_meminfo{item=%q} %d\n", strings.ToLower(item), statusValue("/proc/meminfo", item)<<10)
	}
	gauge(&b, "kata_guest_load", "Load of the machine.")
	if text, err := os.ReadFile("/proc/loadavg"); err == nil {
		fields := strings.Fields(string(text))
		for i, item := range []string{"load1", "load5", "load15"} {
			if i < len(fields) {
				if v, err := strconv.ParseFloat(fields[i], 64); err == nil {
					fmt.Fprintf(&b, "kata_guest_load{item=%q} %g\n", item, v)
				}
			}
		}
	}
	gauge(&b, "kata_guest_netdev_stat", "Traffic of the machine.")
	for _, n := range networkStats("/sys/class/net") {
		fmt.Fprintf(&b, "kata_guest_netdev_stat{interface=%q,item=\"recv_bytes\"} %d\n", n.GetName(), n.GetRxBytes())
		fmt.Fprintf(&b, "kata_guest_netdev_stat{interface=%q,item=\"sent_bytes\"} %d\n", n.GetName(), n.GetTxBytes())
	}
	return &agent.Metrics{Metrics: b.String()}, nil
}

func gauge(b *strings.Builder, name, help string) {
	fmt.Fprintf(b, "# HELP %s %s\n# TYPE %s gauge\n", name, help, name)
}

// statusValue reads the number of a "Key:  number unit" line; a missing one is zero.
func statusValue(file, key string) uint64 {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, key+":"); ok {
			if f := strings.Fields(rest); len(f) > 0 {
				n, _ := strconv.ParseUint(f[0], 10, 64)
				return n
			}
		}
	}
	return 0
}
