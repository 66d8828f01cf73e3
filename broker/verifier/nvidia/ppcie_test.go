package nvidia

import (
	"fmt"
	"testing"
)

// topology is the results of eight GPUs and four switches that name each other.
func topology() []Result {
	var gpus, switches []any
	for i := range ppcieGPUs {
		gpus = append(gpus, fmt.Sprintf("%016X", 0xA0+i))
	}
	for i := range ppcieSwitches {
		switches = append(switches, fmt.Sprintf("%016X", 0xB0+i))
	}
	var out []Result
	for i := range ppcieGPUs {
		out = append(out, Result{Class: ClassGPU, id: fmt.Sprint("g", i), Claims: map[string]any{
			claimGPUSwitches: append([]any{noPDI}, switches...)}})
	}
	for i, s := range switches {
		out = append(out, Result{Class: ClassSwitch, id: fmt.Sprint("s", i), Claims: map[string]any{
			claimSwitchPDI: s, claimSwitchGPUs: gpus}})
	}
	return out
}

func TestPPCIE(t *testing.T) {
	if !isPPCIE(topology()) {
		t.Fatal("a good topology is none")
	}
	for name, change := range map[string]func([]Result) []Result{
		"eleven":         func(r []Result) []Result { return r[1:] },
		"thirteen":       func(r []Result) []Result { return append(r, r[0]) },
		"device twice":   func(r []Result) []Result { r[0].id = r[1].id; return r },
		"unknown device": func(r []Result) []Result { r[0].id = ""; return r },
		"nine GPUs":      func(r []Result) []Result { r[8].Class, r[8].Claims = ClassGPU, r[0].Claims; return r },
		"switch twice":   func(r []Result) []Result { r[8].Claims[claimSwitchPDI] = r[9].Claims[claimSwitchPDI]; return r },
		"no PDI":         func(r []Result) []Result { delete(r[8].Claims, claimSwitchPDI); return r },
		"zero PDI":       func(r []Result) []Result { r[8].Claims[claimSwitchPDI] = noPDI; return r },
		"foreign switch": func(r []Result) []Result { r[8].Claims[claimSwitchPDI] = "00000000000000FF"; return r },
		"three switches": func(r []Result) []Result {
			c := r[3].Claims
			c[claimGPUSwitches] = c[claimGPUSwitches].([]any)[:4]
			return r
		},
		"no list":         func(r []Result) []Result { delete(r[3].Claims, claimGPUSwitches); return r },
		"list of numbers": func(r []Result) []Result { r[3].Claims[claimGPUSwitches] = []any{1, 2, 3, 4}; return r },
		"seven GPUs": func(r []Result) []Result {
			c := r[9].Claims
			c[claimSwitchGPUs] = c[claimSwitchGPUs].([]any)[:7]
			return r
		},
		"one GPU of another": func(r []Result) []Result { return otherGPU(r) },
	} {
		if isPPCIE(change(topology())) {
			t.Errorf("%s: it is a topology", name)
		}
	}
}

func otherGPU(r []Result) []Result {
	list := append([]any{"00000000000000EE"}, r[9].Claims[claimSwitchGPUs].([]any)[1:]...)
	r[9].Claims[claimSwitchGPUs] = list
	return r
}

// TestByteOrder uses a real pair: the GPU's entry and the switch's own identity.
func TestByteOrder(t *testing.T) {
	// The first is what the GPU of nv-hopper-invalid-signature lists, the second the identity of nv-ls10.
	gpu := pdiList([][]byte{{0x08, 0x00, 0xED, 0xD9, 0x1A, 0xB3, 0x3E, 0x20}}, true)
	own := pdiList([][]byte{{0x20, 0x3E, 0xB3, 0x1A, 0xD9, 0xED, 0x00, 0x08}}, false)
	if gpu[0] != own[0] || own[0] != "203EB31AD9ED0008" {
		t.Errorf("got %v and %v", gpu, own)
	}
}
