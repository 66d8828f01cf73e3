package sizing

import (
	"fmt"
	"strings"
)

// Overhead is what a sandbox needs besides its containers.
type Overhead struct {
	TEE string `json:"tee"`
	// MilliCPU is added to the processors of the VM, in thousandths.
	MilliCPU int64 `json:"milli_cpu"`
	// FixedMiB is what kernel, firmware and services of an idle guest have, whatever the size of the VM.
	FixedMiB int `json:"fixed_mib"`
	// BouncePercent of the VM is kept for exchanging data with devices, from BounceMinMiB to BounceMaxMiB; 0 is none.
	BouncePercent int `json:"bounce_percent,omitempty"`
	BounceMinMiB  int `json:"bounce_min_mib,omitempty"`
	BounceMaxMiB  int `json:"bounce_max_mib,omitempty"`
	// HostMiB and HostMilliCPU are for VMM, shim and helpers, outside of the VM.
	HostMiB      int   `json:"host_mib"`
	HostMilliCPU int64 `json:"host_milli_cpu"`
	// Source says how the figures were found.
	Source string `json:"source"`
}

// structPages is the part of a VM's memory that its kernel needs to describe each page: 64 bytes for 4096.
const structPages = 64

// VM is the memory of a VM, in MiB, whose containers shall have net MiB.
func (o Overhead) VM(net int64) int64 {
	grown := func(n int64) int64 { return (n*structPages + structPages - 2) / (structPages - 1) }
	size := grown(net + int64(o.FixedMiB))
	if o.BouncePercent == 0 {
		return size
	}
	// The kernel takes its share of the whole: a part of the size between two bounds.
	p := int64(o.BouncePercent)
	part := grown((net + int64(o.FixedMiB)) * 100 / (100 - p))
	bounce := min(max(part*p/100+1, int64(o.BounceMinMiB)), int64(o.BounceMaxMiB))
	return grown(net + int64(o.FixedMiB) + bounce)
}

// Replace is the overhead with the values of a configuration; 0 keeps what was measured.
func (o Overhead) Replace(vcpus float64, memoryMiB int) Overhead {
	if vcpus > 0 {
		o.MilliCPU, o.Source = int64(vcpus*1000), "the configuration"
	}
	if memoryMiB > 0 {
		o.FixedMiB, o.BouncePercent, o.Source = memoryMiB, 0, "the configuration"
	}
	return o
}

// Emulated is the overhead of a VM without the processor's help: the monitor keeps up to translatedMiB of the guest's code in the host's
// form, and half as much about it.
func (o Overhead) Emulated(translatedMiB int) Overhead {
	o.HostMiB += translatedMiB * 3 / 2
	o.Source += fmt.Sprintf("; %d MiB of the host's part are for emulation", translatedMiB*3/2)
	return o
}

// PodFixed is the overhead of a RuntimeClass: what a pod whose VM has vmMiB in all costs besides its containers.
func (o Overhead) PodFixed(vmMiB int) (milliCPU int64, memoryMiB int) {
	net := vmMiB
	for low := 0; low < net; { // the largest net size that fits
		mid := (low + net + 1) / 2
		if o.VM(int64(mid)) <= int64(vmMiB) {
			low = mid
		} else {
			net = mid - 1
		}
	}
	return o.MilliCPU + o.HostMilliCPU, vmMiB - net + o.HostMiB
}

// The figures that were measured (`make bench`, 2 processors, 2 GiB, software TPM): kernel and all services of an idle guest have 104 MiB,
// firmware and kernel reserve 78 MiB, of which the description of 2 GiB of pages is 32.
const (
	idleMiB     = 104
	reservedMiB = 78
	pagesMiB    = 2048 / structPages
)

// Overheads is the table, by TEE.
func Overheads() []Overhead {
	measured := Overhead{TEE: "tpm", FixedMiB: idleMiB + reservedMiB - pagesMiB, HostMiB: 128, HostMilliCPU: 250,
		Source: "guest measured (idle guest 104 MiB, reserved 78 MiB of 2 GiB, of which 32 MiB grow with the VM); host assumed"}
	as := func(tee, why string, bounce bool) Overhead {
		o := measured
		o.TEE, o.Source = tee, why
		if bounce {
			o.BouncePercent, o.BounceMinMiB, o.BounceMaxMiB = 6, 64, 1024
		}
		return o
	}
	kernel := "guest as measured with tpm, plus the bounce buffers of a confidential guest's kernel " +
		"(6 %, 64 MiB to 1 GiB); not measured on hardware"
	return []Overhead{
		as("none", "guest as measured with tpm; host assumed", false), measured, as("snp", kernel, true), as("tdx", kernel, true),
		as("se", kernel, true), as("cca", kernel, true),
	}
}

// OverheadOf is the row of a TEE; "auto" is the largest of them.
func OverheadOf(tee string) (Overhead, error) {
	var names []string
	for _, o := range Overheads() {
		if o.TEE == tee || tee == "auto" && o.BouncePercent > 0 {
			return o, nil
		}
		names = append(names, o.TEE)
	}
	return Overhead{}, fmt.Errorf("there is no overhead for TEE %q, want one of %s", tee, strings.Join(names, ", "))
}
