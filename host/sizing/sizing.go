// Package sizing decides how large the virtual machine of a pod is.
//
// There is one formula, for every TEE, for processors and for memory:
//
//	size = limit + overhead                     when the pod has a limit
//	size = max(default, request + overhead)     when it has none
//
// Processors are rounded up to whole ones; memory up to blocks, after the part that grows with the VM (a page table entry for each page)
// has been added. The overhead is that of Overheads, measured, unless the configuration has another one.
//
// Confidential sandboxes, and those with static sizing, keep that size. Others start with it, too, and can grow up to a maximum: Grow
// says by how much when a container comes or changes. They never shrink below what they started with.
//
// Nothing here trusts its input: sizes that are negative, that overflow, or that are more than the host has, are errors that name them.
package sizing

import (
	"errors"
	"fmt"
	"math"
)

// Formula is what Compute does, for people.
const Formula = "size = limit + overhead, or max(default, request + overhead) without a limit; " +
	"processors rounded up, memory rounded up to blocks after its part that grows with the VM"

// Request is what a pod asks for. Zero is nothing.
type Request struct {
	// Source says where it is from: "annotations", "spec", "pod" or "default".
	Source string `json:"source"`
	// Processors in thousandths, memory in bytes.
	CPULimit      int64 `json:"cpu_limit_milli"`
	CPURequest    int64 `json:"cpu_request_milli"`
	MemoryLimit   int64 `json:"memory_limit_bytes"`
	MemoryRequest int64 `json:"memory_request_bytes"`
}

// Host is what there is to give.
type Host struct {
	VCPUs     int `json:"vcpus"`
	MemoryMiB int `json:"memory_mib"`
}

// Input is everything that the size depends on.
type Input struct {
	Request Request
	// DefaultVCPUs and DefaultMemoryMiB are the size without limits.
	DefaultVCPUs     float64
	DefaultMemoryMiB int
	// MaxVCPUs and MaxMemoryMiB bound the sandbox; 0 is what the host has.
	MaxVCPUs, MaxMemoryMiB int
	Overhead               Overhead
	// Static sandboxes keep their size.
	Static bool
	// BlockMiB is the unit in which memory is plugged into sandboxes that are not static.
	BlockMiB int
	Host     Host
}

// staticBlockMiB is the unit of memory of sandboxes that keep their size: that of a huge page.
const staticBlockMiB = 2

// Plan is the size of a sandbox.
type Plan struct {
	// VCPUs and MemoryMiB are what the VM starts with, the others what it can grow to.
	VCPUs        int  `json:"vcpus"`
	MemoryMiB    int  `json:"memory_mib"`
	MaxVCPUs     int  `json:"max_vcpus"`
	MaxMemoryMiB int  `json:"max_memory_mib"`
	Static       bool `json:"static"`
	// BlockMiB is the unit of growth.
	BlockMiB int `json:"block_mib"`
	// HostMemoryMiB is what the sandbox may take of the host, VMM and helpers included: the limit of its cgroup.
	HostMemoryMiB int `json:"host_memory_mib"`

	in Input
}

// Compute sizes a sandbox.
func Compute(in Input) (Plan, error) {
	if err := in.check(); err != nil {
		return Plan{}, fmt.Errorf("sizing the sandbox: %w", err)
	}
	vcpus, memory, err := in.size(in.Request)
	if err != nil {
		return Plan{}, fmt.Errorf("sizing the sandbox: %w", err)
	}
	p := Plan{VCPUs: vcpus, MemoryMiB: memory, MaxVCPUs: vcpus, MaxMemoryMiB: memory, Static: in.Static, BlockMiB: in.block(), in: in}
	if !in.Static {
		p.MaxVCPUs = in.maxVCPUs()
		p.MaxMemoryMiB = max(memory, in.maxMemoryMiB()/in.block()*in.block())
	}
	p.HostMemoryMiB = p.MaxMemoryMiB
	if in.Static || in.Request.MemoryLimit > 0 {
		p.HostMemoryMiB = p.MemoryMiB // what grows later raises the limit then
	}
	p.HostMemoryMiB += in.Overhead.HostMiB
	return p, nil
}

// Change is what has to be plugged into a running sandbox.
type Change struct {
	VCPUs     int `json:"vcpus"`
	MemoryMiB int `json:"memory_mib"`
}

// Grow says what a sandbox that has vcpus and memoryMiB now needs for all of its containers. A static one needs nothing, as long as
// they fit; what does not fit is an error.
func (p Plan) Grow(vcpus, memoryMiB int, all Request) (Change, error) {
	wantVCPUs, wantMemory, err := p.in.size(all)
	if err != nil {
		return Change{}, fmt.Errorf("growing the sandbox: %w", err)
	}
	c := Change{VCPUs: max(0, wantVCPUs-vcpus), MemoryMiB: roundUp(max(0, wantMemory-memoryMiB), p.BlockMiB)}
	if p.Static && c != (Change{}) {
		return Change{}, fmt.Errorf("growing the sandbox: it has %d vCPUs and %d MiB, want %d and %d, and its size is fixed "+
			"(hint: give the pod its limits at the start)", vcpus, memoryMiB, wantVCPUs, wantMemory)
	}
	if memoryMiB+c.MemoryMiB > p.MaxMemoryMiB {
		return Change{}, fmt.Errorf("growing the sandbox: it would have %d MiB, want at most %d", memoryMiB+c.MemoryMiB, p.MaxMemoryMiB)
	}
	return c, nil
}

// size is the formula.
func (in Input) size(r Request) (vcpus, memoryMiB int, err error) {
	if err := r.check(); err != nil {
		return 0, 0, err
	}
	cpu := max(int64(math.Ceil(in.DefaultVCPUs*1000)), r.CPURequest+in.Overhead.MilliCPU)
	if r.CPULimit > 0 {
		cpu = r.CPULimit + in.Overhead.MilliCPU
	}
	vcpus = max(1, int((cpu+999)/1000))
	memory := int64(in.DefaultMemoryMiB)
	if r.MemoryRequest > 0 {
		memory = max(memory, in.Overhead.VM(toMiB(r.MemoryRequest)))
	}
	if r.MemoryLimit > 0 {
		memory = in.Overhead.VM(toMiB(r.MemoryLimit))
	}
	if memory > math.MaxInt32 {
		return 0, 0, fmt.Errorf("memory of %d MiB (%s): want at most what the host has, %d MiB", memory, r.Source, in.Host.MemoryMiB)
	}
	memoryMiB = roundUp(int(memory), in.block())
	var faults []error
	if most := in.maxVCPUs(); vcpus > most {
		faults = append(faults, fmt.Errorf("%d vCPUs (limit %s, request %s, overhead %s of a processor, from %s): want at most %d "+
			"(hint: ask for less; the bound is sandbox.max_vcpus, or what the node has)",
			vcpus, milli(r.CPULimit), milli(r.CPURequest), milli(in.Overhead.MilliCPU), r.Source, most))
	}
	if most := in.maxMemoryMiB(); memoryMiB > most {
		faults = append(faults, fmt.Errorf("%d MiB of memory (limit %d MiB, request %d MiB, overhead %d MiB, from %s): want at most %d MiB "+
			"(hint: ask for less; the bound is sandbox.max_memory_mib, or what the node has)",
			memoryMiB, toMiB(r.MemoryLimit), toMiB(r.MemoryRequest), memoryMiB-int(toMiB(max(r.MemoryLimit, r.MemoryRequest))), r.Source, most))
	}
	return vcpus, memoryMiB, errors.Join(faults...)
}

func (in Input) block() int {
	if in.Static {
		return staticBlockMiB
	}
	return in.BlockMiB
}

func (in Input) maxVCPUs() int     { return bound(in.MaxVCPUs, in.Host.VCPUs) }
func (in Input) maxMemoryMiB() int { return bound(in.MaxMemoryMiB, in.Host.MemoryMiB) }

// bound is the smaller of a wish and what there is; no wish is 0.
func bound(wish, have int) int {
	if wish > 0 && wish < have {
		return wish
	}
	return have
}

// Bounds of what is believed.
const (
	maxMilli = 4096 * 1000 // processors, in thousandths
	maxBytes = 1 << 50     // 1 PiB
)

func (r Request) check() error {
	var faults []error
	for _, x := range []struct {
		what string
		n    int64
		most int64
		unit string
	}{
		{"processor limit", r.CPULimit, maxMilli, "thousandths"}, {"processor request", r.CPURequest, maxMilli, "thousandths"},
		{"memory limit", r.MemoryLimit, maxBytes, "bytes"}, {"memory request", r.MemoryRequest, maxBytes, "bytes"},
	} {
		if x.n < 0 || x.n > x.most {
			faults = append(faults, fmt.Errorf("%s from %s is %d %s, want 0 to %d", x.what, r.Source, x.n, x.unit, x.most))
		}
	}
	return errors.Join(faults...)
}

func (in Input) check() error {
	var faults []error
	bad := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if in.Host.VCPUs < 1 || in.Host.MemoryMiB < 1 {
		bad("the host has %d processors and %d MiB, want at least 1", in.Host.VCPUs, in.Host.MemoryMiB)
	}
	if !(in.DefaultVCPUs > 0 && in.DefaultVCPUs <= 4096) {
		bad("the default is %g vCPUs, want more than 0 and at most 4096", in.DefaultVCPUs)
	}
	if in.DefaultMemoryMiB < 1 || in.DefaultMemoryMiB > math.MaxInt32 {
		bad("the default is %d MiB, want 1 to %d", in.DefaultMemoryMiB, math.MaxInt32)
	}
	if in.MaxVCPUs < 0 || in.MaxMemoryMiB < 0 {
		bad("the maximum is %d vCPUs and %d MiB, want 0 or more", in.MaxVCPUs, in.MaxMemoryMiB)
	}
	if !in.Static && (in.BlockMiB < 1 || in.BlockMiB > 1<<16) {
		bad("blocks have %d MiB, want 1 to %d", in.BlockMiB, 1<<16)
	}
	if o := in.Overhead; o.MilliCPU < 0 || o.FixedMiB < 0 || o.HostMiB < 0 ||
		o.MilliCPU > maxMilli || o.FixedMiB > 1<<20 || o.HostMiB > 1<<20 {
		bad("the overhead is %d thousandths of a processor, %d MiB and %d MiB, want 0 or more", o.MilliCPU, o.FixedMiB, o.HostMiB)
	}
	if o := in.Overhead; o.BouncePercent < 0 || o.BouncePercent > 50 || o.BounceMinMiB < 0 || o.BounceMaxMiB < o.BounceMinMiB {
		bad("the bounce buffers are %d %%, %d to %d MiB, want at most 50 %%", o.BouncePercent, o.BounceMinMiB, o.BounceMaxMiB)
	}
	return errors.Join(faults...)
}

// toMiB rounds up.
func toMiB(bytes int64) int64 { return (bytes + 1<<20 - 1) >> 20 }

func roundUp(n, block int) int { return (n + block - 1) / block * block }

// milli shows thousandths as a number of processors.
func milli(n int64) string { return fmt.Sprintf("%g", float64(n)/1000) }
