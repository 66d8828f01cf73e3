package nvidia

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/cloister/cloister/tee/nvgpu"
)

// Protected PCIe is eight GPUs behind four switches, all in one guest.
const (
	ppcieGPUs     = 8
	ppcieSwitches = 4

	claimGPUSwitches = "x-nvidia-gpu-switch-pdis"
	claimSwitchPDI   = "x-nvidia-switch-pdi"
	claimSwitchGPUs  = "x-nvidia-switch-gpu-pdis"
	noPDI            = "0000000000000000"
)

// wiring adds what the device tells of its neighbours, in the names and the form of NVIDIA's service: upper-case hex,
// sorted, each once. GPUs write identities in the byte order opposite to that of switches.
func (s *subject) wiring(claims map[string]any) error {
	own, err := s.report.PDIs(nvgpu.SwitchPDI)
	if err != nil {
		return fmt.Errorf("reading the report: %w", err)
	}
	if !s.isSwitch() {
		if own != nil {
			claims[claimGPUSwitches] = pdiList(own, true)
		}
		return nil
	}
	if len(own) > 1 {
		return fmt.Errorf("reading the report: %s has %d identities, a switch has one", nvgpu.SwitchPDI, len(own))
	}
	if len(own) == 1 {
		claims[claimSwitchPDI] = strings.ToUpper(hex.EncodeToString(own[0]))
	}
	gpus, err := s.report.PDIs(nvgpu.SwitchGPUPDIs)
	if err != nil {
		return fmt.Errorf("reading the report: %w", err)
	}
	if gpus != nil {
		claims[claimSwitchGPUs] = pdiList(gpus, false)
	}
	return nil
}

func pdiList(pdis [][]byte, reversed bool) []any {
	var texts []string
	for _, p := range pdis {
		p = slices.Clone(p)
		if reversed {
			slices.Reverse(p)
		}
		texts = append(texts, strings.ToUpper(hex.EncodeToString(p)))
	}
	slices.Sort(texts)
	out := []any{}
	for _, t := range slices.Compact(texts) {
		out = append(out, t)
	}
	return out
}

// isPPCIE tells whether the devices are one protected PCIe topology. Upstream counts identities; here the switches that
// every GPU names must be the very switches present, every switch must name the same eight GPUs, and no device may be in
// the list twice.
func isPPCIE(devices []Result) bool {
	if len(devices) != ppcieGPUs+ppcieSwitches {
		return false
	}
	present := map[string]bool{}
	ids := map[string]bool{}
	var gpuSwitches, switchGPUs [][]string
	for _, d := range devices {
		if d.id == "" || ids[d.id] {
			return false
		}
		ids[d.id] = true
		switch d.Class {
		case ClassGPU:
			gpuSwitches = append(gpuSwitches, nonZero(d.Claims[claimGPUSwitches]))
		case ClassSwitch:
			pdi, ok := d.Claims[claimSwitchPDI].(string)
			if !ok || pdi == noPDI || present[strings.ToUpper(pdi)] {
				return false
			}
			present[strings.ToUpper(pdi)] = true
			switchGPUs = append(switchGPUs, nonZero(d.Claims[claimSwitchGPUs]))
		}
	}
	if len(gpuSwitches) != ppcieGPUs || len(switchGPUs) != ppcieSwitches {
		return false
	}
	for _, names := range gpuSwitches {
		if len(names) != ppcieSwitches {
			return false
		}
		for _, n := range names {
			if !present[n] {
				return false
			}
		}
	}
	for _, names := range switchGPUs {
		if len(names) != ppcieGPUs || !slices.Equal(names, switchGPUs[0]) {
			return false
		}
	}
	return true
}

// nonZero are the identities of a claim, sorted, each once; nil when the claim is anything else.
func nonZero(claim any) []string {
	list, ok := claim.([]any)
	if !ok {
		return nil
	}
	var out []string
	for _, v := range list {
		text, ok := v.(string)
		if !ok {
			return nil
		}
		if text = strings.ToUpper(text); text != noPDI {
			out = append(out, text)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
