package vmmtest

import (
	"context"
	"testing"

	"github.com/cloister/cloister/host/vmm"
)

// RunEach is Run for configurations that are a base and a change to it. S is the monitor's own type of machine.
func RunEach[S vmm.Machine](t *testing.T, start func(context.Context, vmm.Config) (S, error), base func(*testing.T) vmm.Config, edits map[string]func(*vmm.Config)) {
	for name, edit := range edits {
		t.Run(name, func(t *testing.T) {
			Run(t, Monitor{
				Start: func(ctx context.Context, cfg vmm.Config) (vmm.Machine, error) {
					m, err := start(ctx, cfg)
					if err != nil {
						return nil, err // not a nil S in an interface
					}
					return m, nil
				},
				Config: func(t *testing.T) vmm.Config {
					cfg := base(t)
					edit(&cfg)
					return cfg
				},
			})
		})
	}
}
