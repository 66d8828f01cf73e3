package sizing

import (
	"encoding/json"
	"fmt"
	"math/bits"
	"strconv"
)

// Annotations of the CRI by which containerd 1.6 and later says what a pod needs (specification of the runtime, section 4).
const (
	annotationQuota  = "io.kubernetes.cri.sandbox-cpu-quota"
	annotationPeriod = "io.kubernetes.cri.sandbox-cpu-period"
	annotationShares = "io.kubernetes.cri.sandbox-cpu-shares"
	annotationMemory = "io.kubernetes.cri.sandbox-memory"
)

// Default is the request of a pod about which nothing is known.
func Default() Request { return Request{Source: "default"} }

// FromAnnotations reads the request of a sandbox; without such annotations it is Default.
func FromAnnotations(annotations map[string]string) (Request, error) {
	value := map[string]int64{}
	for _, name := range []string{annotationQuota, annotationPeriod, annotationShares, annotationMemory} {
		text, there := annotations[name]
		if !there {
			continue
		}
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return Request{}, fmt.Errorf("annotation %s is %.40q, want a whole number", name, text)
		}
		value[name] = n
	}
	if len(value) == 0 {
		return Default(), nil
	}
	return cgroupRequest("annotations", value[annotationQuota], value[annotationPeriod], value[annotationShares], value[annotationMemory])
}

// FromSpec reads the request of a single container from its OCI specification (config.json).
func FromSpec(config []byte) (Request, error) {
	var spec struct {
		Linux *struct {
			Resources *struct {
				CPU *struct {
					Quota  *int64  `json:"quota"`
					Period *uint64 `json:"period"`
					Shares *uint64 `json:"shares"`
				} `json:"cpu"`
				Memory *struct {
					Limit *int64 `json:"limit"`
				} `json:"memory"`
			} `json:"resources"`
		} `json:"linux"`
	}
	if err := json.Unmarshal(config, &spec); err != nil {
		return Request{}, fmt.Errorf("reading the resources of the container: %w", err)
	}
	if spec.Linux == nil || spec.Linux.Resources == nil {
		return Default(), nil
	}
	var quota, period, shares, memory int64
	if c := spec.Linux.Resources.CPU; c != nil {
		quota, period, shares = value(c.Quota), int64(min(value(c.Period), 1<<62)), int64(min(value(c.Shares), 1<<62))
	}
	if m := spec.Linux.Resources.Memory; m != nil {
		memory = value(m.Limit)
	}
	return cgroupRequest("spec", quota, period, shares, memory)
}

func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// cgroupRequest turns the numbers of cgroups into a request. Quota and memory of -1 are no limit, as are those of 0.
func cgroupRequest(source string, quota, period, shares, memory int64) (Request, error) {
	const defaultPeriod = 100_000
	r := Request{Source: source}
	if period == 0 {
		period = defaultPeriod
	}
	switch {
	case quota < -1 || period < 0 || shares < 0 || memory < -1:
		return Request{}, fmt.Errorf("reading the size of the pod from %s: quota %d, period %d, shares %d and memory %d, want none below 0 "+
			"(-1 for no quota and no memory limit)", source, quota, period, shares, memory)
	case quota > 0:
		high, low := bits.Mul64(uint64(quota), 1000)
		if high != 0 || low/uint64(period) > maxMilli {
			return Request{}, fmt.Errorf("reading the size of the pod from %s: quota %d in a period of %d, want at most %d processors",
				source, quota, period, maxMilli/1000)
		}
		r.CPULimit = max(1, int64((low+uint64(period)-1)/uint64(period)))
	}
	if shares > 2 { // the least there can be, which is no request
		if shares > maxMilli*1024/1000 {
			return Request{}, fmt.Errorf("reading the size of the pod from %s: shares %d, want at most %d", source, shares, maxMilli*1024/1000)
		}
		r.CPURequest = (shares*1000 + 1023) / 1024
	}
	if memory > 0 {
		r.MemoryLimit = memory
	}
	if err := r.check(); err != nil {
		return Request{}, fmt.Errorf("reading the size of the pod: %w", err)
	}
	return r, nil
}

// Sum is the request of containers that run together: it has a limit only when each of them has.
func Sum(source string, all ...Request) (Request, error) {
	out := Request{Source: source}
	cpuLimited, memoryLimited := len(all) > 0, len(all) > 0
	for _, r := range all {
		if err := r.check(); err != nil { // keeps the sums below from overflowing
			return Request{}, err
		}
		cpuLimited, memoryLimited = cpuLimited && r.CPULimit > 0, memoryLimited && r.MemoryLimit > 0
		out.CPULimit += r.CPULimit
		out.MemoryLimit += r.MemoryLimit
		// A container without a request is asked for with its limit, as the scheduler does.
		out.CPURequest += or(r.CPURequest, r.CPULimit)
		out.MemoryRequest += or(r.MemoryRequest, r.MemoryLimit)
	}
	// Limits that are there count as requests when others have none: those containers may use as much.
	if !cpuLimited {
		out.CPURequest, out.CPULimit = max(out.CPURequest, out.CPULimit), 0
	}
	if !memoryLimited {
		out.MemoryRequest, out.MemoryLimit = max(out.MemoryRequest, out.MemoryLimit), 0
	}
	return out, out.check()
}

func or(a, b int64) int64 {
	if a > 0 {
		return a
	}
	return b
}

// Max is the request of containers that run one after another and of what runs when they are done.
func (r Request) Max(o Request) Request {
	limit := func(a, b int64) int64 {
		if a == 0 || b == 0 {
			return 0
		}
		return max(a, b)
	}
	m := Request{Source: r.Source, CPULimit: limit(r.CPULimit, o.CPULimit), MemoryLimit: limit(r.MemoryLimit, o.MemoryLimit),
		CPURequest:    max(or(r.CPURequest, r.CPULimit), or(o.CPURequest, o.CPULimit)),
		MemoryRequest: max(or(r.MemoryRequest, r.MemoryLimit), or(o.MemoryRequest, o.MemoryLimit))}
	if m.CPULimit == 0 {
		m.CPURequest = max(m.CPURequest, r.CPULimit, o.CPULimit)
	}
	if m.MemoryLimit == 0 {
		m.MemoryRequest = max(m.MemoryRequest, r.MemoryLimit, o.MemoryLimit)
	}
	return m
}
