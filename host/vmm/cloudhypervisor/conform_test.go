package cloudhypervisor

import (
	"testing"

	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/host/vmm/vmmtest"
)

func TestConformance(t *testing.T) {
	base := func(t *testing.T) vmm.Config { return testConfig(t) }
	vmmtest.RunEach(t, Start, base, map[string]func(*vmm.Config){
		"fixed":     func(*vmm.Config) {},
		"pluggable": func(c *vmm.Config) { c.MaxVCPUs, c.MaxMemoryMiB = 2, 512 },
	})
}
