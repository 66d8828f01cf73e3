package qemu

import (
	"testing"

	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/host/vmm/vmmtest"
)

func TestConformance(t *testing.T) {
	vmmtest.RunEach(t, Start, testConfig, map[string]func(*vmm.Config){
		"measured":  func(*vmm.Config) {},
		"pluggable": func(c *vmm.Config) { c.TPM, c.MaxVCPUs, c.MaxMemoryMiB = nil, 2, 512 },
	})
}
