package cloudhypervisor

import (
	"context"
	"testing"

	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/host/vmm/vmmtest"
)

func TestConformance(t *testing.T) {
	start := func(ctx context.Context, cfg vmm.Config) (vmm.Machine, error) {
		v, err := Start(ctx, cfg)
		if err != nil {
			return nil, err // not a nil *VM in an interface
		}
		return v, nil
	}
	for name, edit := range map[string]func(*vmm.Config){
		"fixed":     func(*vmm.Config) {},
		"pluggable": func(c *vmm.Config) { c.MaxVCPUs, c.MaxMemoryMiB = 2, 512 },
	} {
		t.Run(name, func(t *testing.T) {
			vmmtest.Run(t, vmmtest.Monitor{Start: start, Config: func(t *testing.T) vmm.Config {
				cfg := testConfig(t)
				edit(&cfg)
				return cfg
			}})
		})
	}
}
