package qemu

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

// cpuThread is a virtual CPU as QEMU lists it.
type cpuThread struct {
	Index  int `json:"cpu-index"`
	Thread int `json:"thread-id"`
}

// VCPUThreads are the host's threads that run the virtual CPUs, in the order of their numbers. With emulation one thread runs all: then
// it is there once.
func (v *VM) VCPUThreads(ctx context.Context) ([]int, error) {
	ctx, cancel := bounded(ctx, qmpTimeout)
	defer cancel()
	var cpus []cpuThread
	if err := v.qmp.run(ctx, "query-cpus-fast", nil, &cpus); err != nil {
		return nil, fmt.Errorf("asking for the threads of virtual machine %s: %w", v.name, err)
	}
	slices.SortFunc(cpus, func(a, b cpuThread) int { return a.Index - b.Index })
	var threads []int
	for _, c := range cpus {
		// What is no thread of the monitor is none to touch.
		if _, err := os.Stat(filepath.Join("/proc", strconv.Itoa(v.PID()), "task", strconv.Itoa(c.Thread))); err != nil {
			return nil, fmt.Errorf("asking for the threads of virtual machine %s: %d is none of them: %w", v.name, c.Thread, err)
		}
		if !slices.Contains(threads, c.Thread) {
			threads = append(threads, c.Thread)
		}
	}
	return threads, nil
}

// Messages are the last lines that QEMU itself printed.
func (v *VM) Messages(n int) []string { return v.qemu.Output.Lines(n) }
