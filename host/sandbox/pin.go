package sandbox

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxCPU is the highest number of a CPU of the host, plus one, that the kernel's masks of a fixed size have.
const maxCPU = 1024

// pinner is a machine that knows its virtual CPUs' threads.
type pinner interface {
	VCPUThreads(ctx context.Context) ([]int, error)
}

// pin gives each virtual CPU a CPU of its own, as long as the pod's CPU set has exactly as many as the VM; otherwise all may run on the
// whole set. A pod without a set is left alone. It is a matter of speed: what cannot be done is a line in the log.
func (s *Sandbox) pin(ctx context.Context) {
	if !s.runtime.Cgroup.PinVCPUs {
		return
	}
	if err := s.tryPin(ctx); err != nil {
		s.log.Warn("virtual CPUs are not pinned", "sandbox", s.cfg.ID, "error", err)
	}
}

func (s *Sandbox) tryPin(ctx context.Context) error {
	s.pinning.Lock()
	defer s.pinning.Unlock()
	cpus, err := parseCPUs(s.cpuset())
	if err != nil || len(cpus) == 0 {
		return err
	}
	m, ok := s.vm.(pinner)
	if !ok {
		return fmt.Errorf("this virtual machine monitor does not name its threads: %w", errors.ErrUnsupported)
	}
	threads, err := m.VCPUThreads(ctx)
	if err != nil {
		return err
	}
	s.mu.Lock()
	vcpus := s.vcpus
	s.mu.Unlock()
	one := len(cpus) == vcpus && len(threads) == vcpus
	if !one && !s.pinned {
		return nil
	}
	s.pinned = one
	for i, thread := range threads {
		mine := cpus
		if one {
			mine = cpus[i : i+1]
		}
		var set unix.CPUSet
		for _, c := range mine {
			set.Set(c)
		}
		if err := unix.SchedSetaffinity(thread, &set); err != nil {
			return fmt.Errorf("binding thread %d to processors %v: %w", thread, mine, err)
		}
	}
	return nil
}

// cpuset is the CPU set of the pod: its own, or those of its containers together, where kubelet's static CPU manager puts them.
func (s *Sandbox) cpuset() string {
	if l := s.cfg.Spec.Linux; l != nil && l.Resources != nil && l.Resources.CPU != nil && l.Resources.CPU.Cpus != "" {
		return l.Resources.CPU.Cpus
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []string
	for _, c := range s.containers {
		if c.cpus != "" {
			all = append(all, c.cpus)
		}
	}
	return strings.Join(all, ",")
}

// parseCPUs reads a list such as 0-3,8 into the numbers, each once, in their order.
func parseCPUs(list string) ([]int, error) {
	var there [maxCPU]bool
	for part := range strings.SplitSeq(list, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		a, aerr := strconv.Atoi(first)
		b, berr := strconv.Atoi(last)
		if aerr != nil || berr != nil || a < 0 || b < a || b >= maxCPU {
			return nil, fmt.Errorf("CPU set %.100q: want numbers and ranges below %d, such as 0-3,8", list, maxCPU)
		}
		for i := a; i <= b; i++ {
			there[i] = true
		}
	}
	var cpus []int
	for i, yes := range there {
		if yes {
			cpus = append(cpus, i)
		}
	}
	return cpus, nil
}
