package sandbox

import (
	"context"
	"fmt"
	"os"
	"slices"

	"github.com/cloister/cloister/host/cgroup"
)

// planCgroup writes down where the control group will be; it is made with its first process.
func (s *Sandbox) planCgroup(context.Context) error {
	where := ""
	if s.cfg.Spec.Linux != nil {
		where = s.cfg.Spec.Linux.CgroupsPath
	}
	if where == "" {
		where = "/cloister/" + s.cfg.Namespace + "-" + s.cfg.ID
	}
	location, err := cgroup.ParseLocation(where)
	if err != nil {
		return err
	}
	plan, err := cgroup.Plan(location)
	if err == nil {
		err = ownGroup(plan)
	}
	if err != nil {
		return fmt.Errorf("planning the control group: %w", err)
	}
	s.mu.Lock()
	s.state.Cgroup = &plan
	s.mu.Unlock()
	return s.writeState()
}

// ownGroup refuses a control group that has processes of others: it would get this sandbox's limits, and at the end all in it are killed.
// Nothing is left in it of an earlier sandbox of this name, and this program leaves it by itself.
func ownGroup(plan cgroup.State) error {
	group, err := cgroup.Open(plan)
	if err != nil {
		return err
	}
	pids, err := group.PIDs()
	if err != nil {
		return err
	}
	pids = slices.DeleteFunc(pids, func(pid int) bool { return pid == os.Getpid() })
	if len(pids) > 0 {
		return fmt.Errorf("%s has processes already, %v: want a group of the sandbox's own (hint: the specification's cgroupsPath names it)",
			plan.Location, pids[:min(len(pids), 10)])
	}
	return nil
}

// enterCgroup puts a process of the sandbox into its control group.
func (s *Sandbox) enterCgroup(pid int) error {
	ctx, cancel := context.WithTimeout(s.background, downTimeout)
	defer cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.group != nil {
		return s.group.Add(ctx, pid)
	}
	var err error
	s.group, err = cgroup.Create(ctx, s.state.Cgroup.Location, s.limits(), pid)
	return err
}

// limits are those of the whole sandbox on the host. Without a memory limit of the pod there is none: then the node's own applies.
func (s *Sandbox) limits() cgroup.Limits {
	var l cgroup.Limits
	if s.plan.Static || s.hasMemoryLimit() {
		l.MemoryBytes = int64(s.plan.HostMemoryMiB) << 20
	}
	if s.cfg.Spec.Linux != nil && s.cfg.Spec.Linux.Resources != nil && s.cfg.Spec.Linux.Resources.CPU != nil {
		cpu := s.cfg.Spec.Linux.Resources.CPU
		l.CPUShares, l.CPUs, l.MemoryNodes = value(cpu.Shares), cpu.Cpus, cpu.Mems
	}
	return l
}

func (s *Sandbox) hasMemoryLimit() bool {
	r, err := s.request()
	return err == nil && r.MemoryLimit > 0
}
