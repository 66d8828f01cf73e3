package qemu

import (
	"context"
	"errors"
	"fmt"
	"sort"

	"github.com/cloister/cloister/host/vmm"
)

// memorySlots is how many times memory can be added. Few, because vhost-user servers take few regions of memory.
const memorySlots = 16

// A guest takes memory in whole blocks: 128 MiB, and up to 2 GiB when it starts with 64 GiB and more (Linux, probe_memory_block_size).
const (
	memoryBlock      = 128
	largeMemoryBlock = 2048
	largeMemory      = 64 << 10
)

func memoryStep(c *vmm.Config) int {
	if c.MemoryMiB >= largeMemory {
		return largeMemoryBlock
	}
	return memoryBlock
}

// pluggableMemory is how many MiB can be added, in whole blocks.
func pluggableMemory(c *vmm.Config) int {
	if whyNoPlug(c) != nil || c.MaxMemoryMiB <= c.MemoryMiB {
		return 0
	}
	step := memoryStep(c)
	return (c.MaxMemoryMiB - c.MemoryMiB) / step * step
}

// Resize brings the VM to at least this many processors and this much memory, as far as it was made with room for, and returns what it
// has now, also with an error. Memory comes in blocks of 128 MiB, at most 16 times in the life of a VM.
func (v *VM) Resize(ctx context.Context, vcpus, memoryMiB int) (haveVCPUs, haveMemoryMiB int, err error) {
	haveVCPUs, haveMemoryMiB, err = v.resize(ctx, vcpus, memoryMiB)
	if err != nil {
		return haveVCPUs, haveMemoryMiB, fmt.Errorf("resizing virtual machine %s to %d processors and %d MiB: %w", v.name, vcpus, memoryMiB, err)
	}
	return haveVCPUs, haveMemoryMiB, nil
}

func (v *VM) resize(ctx context.Context, vcpus, memoryMiB int) (int, int, error) {
	if v.noPlug != nil {
		return v.cfg.VCPUs, v.cfg.MemoryMiB, v.noPlug
	}
	ctx, cancel := bounded(ctx, qmpTimeout)
	defer cancel()
	select {
	case v.plug.resize <- struct{}{}:
		defer func() { <-v.plug.resize }()
	case <-ctx.Done():
		return 0, 0, ctx.Err()
	}
	haveMiB, err := v.memory(ctx)
	if err != nil {
		return 0, 0, err
	}
	free, have, err := v.freeCPUs(ctx)
	if err != nil {
		return 0, haveMiB, err
	}
	var errs []error
	if vcpus > have+len(free) {
		errs = append(errs, fmt.Errorf("at most %d processors are possible", have+len(free)))
	}
	if room := v.cfg.MemoryMiB + pluggableMemory(&v.cfg); memoryMiB > room {
		errs = append(errs, fmt.Errorf("at most %d MiB of memory are possible", room))
	}
	if len(errs) > 0 {
		return have, haveMiB, errors.Join(errs...)
	}
	for ; have < vcpus; have++ {
		if err := v.addCPU(ctx, free[0]); err != nil {
			return have, haveMiB, err
		}
		free = free[1:]
	}
	if memoryMiB > haveMiB {
		step := memoryStep(&v.cfg)
		add := (memoryMiB - haveMiB + step - 1) / step * step
		if err := v.addMemory(ctx, add); err != nil {
			return have, haveMiB, err
		}
		haveMiB += add
	}
	return have, haveMiB, nil
}

// memory is how much the VM has, in MiB.
func (v *VM) memory(ctx context.Context) (int, error) {
	var m struct {
		Base    int64 `json:"base-memory"`
		Plugged int64 `json:"plugged-memory"`
	}
	if err := v.qmp.run(ctx, "query-memory-size-summary", nil, &m); err != nil {
		return 0, err
	}
	return int((m.Base + m.Plugged) >> 20), nil
}

// hotCPU is a place for a processor.
type hotCPU struct {
	Type  string         `json:"type"`
	Props map[string]any `json:"props"`
	Path  string         `json:"qom-path"` // of the processor that is there
}

// freeCPUs lists the places for processors that are free, the lowest first, and counts the others.
func (v *VM) freeCPUs(ctx context.Context) (free []hotCPU, have int, err error) {
	var all []hotCPU
	if err := v.qmp.run(ctx, "query-hotpluggable-cpus", nil, &all); err != nil {
		return nil, 0, err
	}
	for _, c := range all {
		if c.Path == "" {
			free = append(free, c)
		} else {
			have++
		}
	}
	at := func(c hotCPU, key string) float64 {
		n, _ := c.Props[key].(float64)
		return n
	}
	sort.SliceStable(free, func(i, j int) bool {
		for _, key := range []string{"socket-id", "die-id", "core-id", "thread-id"} {
			if a, b := at(free[i], key), at(free[j], key); a != b {
				return a < b
			}
		}
		return false
	})
	return free, have, nil
}

func (v *VM) addCPU(ctx context.Context, c hotCPU) error {
	v.plug.mu.Lock()
	v.plug.next++
	id := fmt.Sprintf("processor%d", v.plug.next)
	v.plug.mu.Unlock()
	args := map[string]any{"driver": c.Type, "id": id}
	for k, val := range c.Props {
		args[k] = val
	}
	return v.qmp.run(ctx, "device_add", args, nil)
}

// addMemory adds one module of memory.
func (v *VM) addMemory(ctx context.Context, mib int) error {
	v.plug.mu.Lock()
	v.plug.next++
	n := v.plug.next
	v.plug.mu.Unlock()
	backend := map[string]any{"qom-type": "memory-backend-ram", "id": fmt.Sprintf("memory%d", n), "size": int64(mib) << 20}
	switch {
	case v.cfg.Hugepages:
		if err := checkHugepages(hugepages, mib); err != nil {
			return err
		}
		backend["qom-type"], backend["mem-path"], backend["prealloc"], backend["share"] = "memory-backend-file", hugepages, true, v.cfg.Share != nil
	case v.cfg.Share != nil:
		// The server of the shared directory has to reach all of the guest's memory.
		backend["qom-type"], backend["share"] = "memory-backend-memfd", true
	}
	if err := v.qmp.run(ctx, "object-add", backend, nil); err != nil {
		return err
	}
	err := v.qmp.run(ctx, "device_add", map[string]any{"driver": "pc-dimm", "id": fmt.Sprintf("module%d", n), "memdev": backend["id"]}, nil)
	if err != nil {
		dctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), quitTimeout)
		defer cancel()
		_ = v.qmp.run(dctx, "object-del", map[string]any{"id": backend["id"]}, nil)
	}
	return err
}
