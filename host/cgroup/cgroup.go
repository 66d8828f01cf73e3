// Package cgroup is the control group of a sandbox on the host: it holds the VMM and its helpers, bounds and counts what they use, and is
// how none of them is left behind.
//
// Version 1, version 2 and hosts with both (version 1 controllers, and an empty version 2 tree) look the same from outside. The kernel's
// files are written by the library that runc uses; what differs here is the end of a sandbox: Destroy kills what is inside by a handle that
// cannot hit another process, and removes the directories, again and again until they are gone or the context ends. It needs nothing but
// the State that was written when the group was made, so that it works after the process that made the group was killed; State for a
// sandbox that was never made removes nothing and is no error.
package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/cgroups/systemd"
	"golang.org/x/sys/unix"
)

// Modes of a host.
const (
	ModeV1     = "v1"
	ModeV2     = "v2"
	ModeHybrid = "hybrid"
)

// Mode is how this host has its control groups.
func Mode() string {
	switch {
	case cgroups.IsCgroup2UnifiedMode():
		return ModeV2
	case cgroups.IsCgroup2HybridMode():
		return ModeHybrid
	}
	return ModeV1
}

// Limits are what a sandbox may use on the host; zero is no limit.
type Limits struct {
	// CPUQuota and CPUPeriod are microseconds, CPUShares a weight of 2 to 262144.
	CPUQuota  int64  `json:"cpu_quota,omitempty"`
	CPUPeriod uint64 `json:"cpu_period,omitempty"`
	CPUShares uint64 `json:"cpu_shares,omitempty"`
	// MemoryBytes is for everything: the guest's memory, VMM and helpers.
	MemoryBytes int64 `json:"memory_bytes,omitempty"`
	PIDs        int64 `json:"pids,omitempty"`
	// CPUs and MemoryNodes are lists such as 0-3,8.
	CPUs        string `json:"cpus,omitempty"`
	MemoryNodes string `json:"memory_nodes,omitempty"`
}

func (l Limits) resources() (*cgroups.Resources, error) {
	const minMemory = 1 << 20
	switch {
	case l.CPUQuota < 0 || l.CPUQuota > 0 && l.CPUQuota < 1000:
		return nil, fmt.Errorf("the processor quota is %d µs, want 0 or at least 1000", l.CPUQuota)
	case l.CPUPeriod != 0 && (l.CPUPeriod < 1000 || l.CPUPeriod > 1_000_000):
		return nil, fmt.Errorf("the processor period is %d µs, want 1000 to 1000000", l.CPUPeriod)
	case l.CPUShares != 0 && (l.CPUShares < 2 || l.CPUShares > 262144):
		return nil, fmt.Errorf("the processor shares are %d, want 2 to 262144", l.CPUShares)
	case l.MemoryBytes != 0 && l.MemoryBytes < minMemory:
		return nil, fmt.Errorf("the memory limit is %d bytes, want at least %d", l.MemoryBytes, minMemory)
	case l.PIDs < 0:
		return nil, fmt.Errorf("the limit of processes is %d, want 0 or more", l.PIDs)
	}
	r := &cgroups.Resources{SkipDevices: true, SkipFreezeOnSet: true, CpuQuota: l.CPUQuota, CpuPeriod: l.CPUPeriod, CpuShares: l.CPUShares,
		Memory: l.MemoryBytes, CpusetCpus: l.CPUs, CpusetMems: l.MemoryNodes}
	if l.CPUShares > 0 {
		r.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(l.CPUShares)
	}
	if l.PIDs > 0 {
		r.PidsLimit = &l.PIDs
	}
	return r, nil
}

// State is what Open needs; it can be kept in a file.
type State struct {
	Location Location `json:"location"`
	// Paths are the directories by controller; version 2 has one, under "".
	Paths map[string]string `json:"paths"`
}

// Group is the cgroup of one sandbox. Its methods may be called at the same time.
type Group struct {
	state   State
	manager cgroups.Manager
	systemd bool // it is a unit of systemd's
}

// Plan is the state of a group that does not exist yet: who keeps it before Create can clean up after a crash in the middle of it.
func Plan(l Location) (State, error) {
	g, err := open(State{Location: l})
	if err != nil {
		return State{}, err
	}
	return g.state, nil
}

// Create makes the group with its limits. One that is there already, left by a killed process, is taken over. When something fails,
// nothing is left. first is a process to put in, or 0 for none: systemd, which ends scopes that are empty, makes none without.
// After a failure it may still be inside, and is the caller's to end: then the error says that the group is busy, and Destroy removes it.
func Create(ctx context.Context, l Location, limits Limits, first int) (*Group, error) {
	r, err := limits.resources()
	if err != nil {
		return nil, fmt.Errorf("making cgroup %s: %w", l, err)
	}
	g, err := open(State{Location: l})
	if err != nil {
		return nil, err
	}
	if first < 0 || first == 0 && g.systemd {
		return nil, fmt.Errorf("making cgroup %s: the first process is %d, want one that runs", l, first)
	}
	if first == 0 {
		first = -1 // none, for the library
	}
	err = within(ctx, func() error {
		if err := g.manager.Apply(first); err != nil {
			return err
		}
		return g.manager.Set(r)
	})
	if err != nil {
		err = fmt.Errorf("making cgroup %s: %w", l, err)
		return nil, errors.Join(err, g.remove(context.WithoutCancel(ctx), oneTry))
	}
	g.state.Paths = g.paths()
	return g, nil
}

// Open is a group that was made before. It need not exist any more.
func Open(s State) (*Group, error) {
	if len(s.Paths) == 0 {
		return nil, fmt.Errorf("opening cgroup %s: its state has no paths", s.Location)
	}
	return open(s)
}

func open(s State) (*Group, error) {
	again, err := ParseLocation(s.Location.String()) // a state may come from a file that was damaged
	if err != nil || again != s.Location {
		return nil, fmt.Errorf("opening a cgroup: location %+v: %w", s.Location, errors.Join(err))
	}
	c := &cgroups.Cgroup{Resources: &cgroups.Resources{SkipDevices: true}}
	if s.Location.Systemd() && systemd.IsRunningSystemd() {
		c.Systemd, c.Parent, c.ScopePrefix, c.Name = true, s.Location.Slice, s.Location.Prefix, s.Location.Name
	} else if c.Path, err = s.Location.Dir(); err != nil {
		return nil, err
	}
	m, err := manager.New(c)
	if err != nil {
		return nil, fmt.Errorf("opening cgroup %s: %w", s.Location, err)
	}
	if paths := m.GetPaths(); paths["devices"] != "" {
		// Which devices the VMM may open is not bounded here: it keeps the group of the shim in that hierarchy.
		paths = maps.Clone(paths)
		delete(paths, "devices")
		if m, err = manager.NewWithPaths(c, paths); err != nil {
			return nil, fmt.Errorf("opening cgroup %s: %w", s.Location, err)
		}
	}
	g := &Group{state: s, manager: m, systemd: c.Systemd}
	if len(s.Paths) == 0 {
		g.state.Paths = g.paths()
		return g, nil
	}
	// What the state says must be what the location means: its paths are removed with everything in them.
	for controller, dir := range s.Paths {
		if want := g.manager.Path(controller); want != dir && want != "" {
			return nil, fmt.Errorf("opening cgroup %s: its state has %q for controller %q, want %q", s.Location, dir, controller, want)
		}
	}
	g.state.Paths = g.paths()
	return g, nil
}

func (g *Group) paths() map[string]string {
	return maps.Clone(g.manager.GetPaths())
}

// dirs are the directories, each once.
func (g *Group) dirs() []string {
	var out []string
	for _, dir := range g.state.Paths {
		if filepath.IsAbs(dir) && !slices.Contains(out, dir) {
			out = append(out, dir)
		}
	}
	slices.Sort(out)
	return out
}

// State is what has to be kept for Open.
func (g *Group) State() State { return g.state }

// Exists says whether any directory of the group is there.
func (g *Group) Exists() bool {
	return slices.ContainsFunc(g.dirs(), func(dir string) bool {
		_, err := os.Lstat(dir)
		return err == nil
	})
}

// Add puts a process and what it will start into the group. Its threads go with it.
func (g *Group) Add(ctx context.Context, pid int) error {
	if pid < 1 {
		return fmt.Errorf("adding process %d to cgroup %s: want a process id", pid, g.state.Location)
	}
	err := within(ctx, func() error {
		if !g.Exists() { // systemd would make it again
			return fs.ErrNotExist
		}
		return g.manager.AddPid("", pid)
	})
	if err != nil {
		return fmt.Errorf("adding process %d to cgroup %s: %w", pid, g.state.Location, err)
	}
	return nil
}

// Set changes the limits; a zero one stays as it is.
func (g *Group) Set(ctx context.Context, limits Limits) error {
	r, err := limits.resources()
	if err == nil {
		err = within(ctx, func() error { return g.manager.Set(r) })
	}
	if err != nil {
		return fmt.Errorf("setting the limits of cgroup %s: %w", g.state.Location, err)
	}
	return nil
}

// PIDs are the processes in the group and below it, in all hierarchies, in order.
func (g *Group) PIDs() ([]int, error) {
	var out []int
	for _, dir := range g.dirs() {
		pids, err := cgroups.GetAllPids(dir)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) { // below a file there is no group
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("listing the processes of cgroup %s: %w", g.state.Location, err)
		}
		out = append(out, pids...)
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// within runs what the library does without a context, and stops waiting for it when ours ends.
func within(ctx context.Context, do func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- do() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
