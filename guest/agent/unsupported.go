package agent

import (
	"context"
	"fmt"

	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/cloister/cloister/wire/agent"
)

// The methods below are part of the protocol and outside the life of a pod in this guest. They answer UNIMPLEMENTED
// with the reason, after the policy has had its say like for every other method.

func unsupported(what, why string) error {
	return fmt.Errorf("%s: %s: %w", what, why, errUnsupported)
}

// GetIPTables is not supported: the image holds no packet filter tools.
func (*Agent) GetIPTables(context.Context, *agent.GetIPTablesRequest) (*agent.GetIPTablesResponse, error) {
	return nil, unsupported("reading packet filter rules", "the guest image has no packet filter tools")
}

// SetIPTables is not supported: the image holds no packet filter tools.
func (*Agent) SetIPTables(context.Context, *agent.SetIPTablesRequest) (*agent.SetIPTablesResponse, error) {
	return nil, unsupported("changing packet filter rules", "the guest image has no packet filter tools")
}

// MemAgentMemcgSet is not supported: there is no memory agent.
func (*Agent) MemAgentMemcgSet(context.Context, *agent.MemAgentMemcgConfig) (*emptypb.Empty, error) {
	return nil, unsupported("configuring memory reclaim", "the guest has no memory agent")
}

// MemAgentCompactSet is not supported: there is no memory agent.
func (*Agent) MemAgentCompactSet(context.Context, *agent.MemAgentCompactConfig) (*emptypb.Empty, error) {
	return nil, unsupported("configuring memory compaction", "the guest has no memory agent")
}

// MemHotplugByProbe is not supported: memory is added through ACPI.
func (*Agent) MemHotplugByProbe(context.Context, *agent.MemHotplugByProbeRequest) (*emptypb.Empty, error) {
	return nil, unsupported("adding memory by address", "memory is announced by ACPI")
}

// AddSwap is not supported: swap on a device of the host would hand out the pod's memory.
func (*Agent) AddSwap(context.Context, *agent.AddSwapRequest) (*emptypb.Empty, error) {
	return nil, unsupported("adding swap", "memory of the pod must not leave the guest")
}

// AddSwapPath is not supported: swap on a device of the host would hand out the pod's memory.
func (*Agent) AddSwapPath(context.Context, *agent.AddSwapPathRequest) (*emptypb.Empty, error) {
	return nil, unsupported("adding swap", "memory of the pod must not leave the guest")
}

// ResizeVolume is not supported: volumes are sized when they are made.
func (*Agent) ResizeVolume(context.Context, *agent.ResizeVolumeRequest) (*emptypb.Empty, error) {
	return nil, unsupported("resizing a volume", "volumes are sized when they are made")
}

// RemoveStaleVirtiofsShareMounts has nothing to do: no directory of the host is ever mounted.
func (*Agent) RemoveStaleVirtiofsShareMounts(context.Context, *agent.RemoveStaleVirtiofsShareMountsRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}
