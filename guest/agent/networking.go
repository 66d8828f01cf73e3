package agent

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/cloister/cloister/wire/agent"
)

// UpdateInterface configures a network interface, waiting for it to appear.
func (a *Agent) UpdateInterface(ctx context.Context, req *agent.UpdateInterfaceRequest) (*agent.Interface, error) {
	ctx, cancel := context.WithTimeout(ctx, a.cfg.HotplugTimeout)
	defer cancel()
	if err := a.cfg.Network.UpdateInterface(ctx, req.GetInterface()); err != nil {
		return nil, err
	}
	return req.GetInterface(), nil
}

// UpdateRoutes adds routes and answers with the table.
func (a *Agent) UpdateRoutes(_ context.Context, req *agent.UpdateRoutesRequest) (*agent.Routes, error) {
	if err := a.cfg.Network.UpdateRoutes(req.GetRoutes().GetRoutes()); err != nil {
		return nil, err
	}
	return a.routes()
}

// ListInterfaces describes all interfaces.
func (a *Agent) ListInterfaces(context.Context, *agent.ListInterfacesRequest) (*agent.Interfaces, error) {
	list, err := a.cfg.Network.ListInterfaces()
	if err != nil {
		return nil, err
	}
	return &agent.Interfaces{Interfaces: list}, nil
}

// ListRoutes returns the main routing table.
func (a *Agent) ListRoutes(context.Context, *agent.ListRoutesRequest) (*agent.Routes, error) {
	return a.routes()
}

func (a *Agent) routes() (*agent.Routes, error) {
	list, err := a.cfg.Network.ListRoutes()
	if err != nil {
		return nil, err
	}
	return &agent.Routes{Routes: list}, nil
}

// AddARPNeighbors adds neighbour entries.
func (a *Agent) AddARPNeighbors(_ context.Context, req *agent.AddARPNeighborsRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, a.cfg.Network.AddNeighbors(req.GetNeighbors().GetARPNeighbors())
}

// networkStats counts the traffic of the pod's interfaces; class is normally /sys/class/net.
func networkStats(class string) []*agent.NetworkStats {
	entries, err := os.ReadDir(class)
	if err != nil {
		return nil
	}
	var out []*agent.NetworkStats
	for _, e := range entries {
		if e.Name() == "lo" {
			continue
		}
		count := func(name string) uint64 {
			text, err := os.ReadFile(filepath.Join(class, e.Name(), "statistics", name))
			if err != nil {
				return 0
			}
			n, _ := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
			return n
		}
		out = append(out, &agent.NetworkStats{
			Name:    e.Name(),
			RxBytes: count("rx_bytes"), RxPackets: count("rx_packets"), RxErrors: count("rx_errors"), RxDropped: count("rx_dropped"),
			TxBytes: count("tx_bytes"), TxPackets: count("tx_packets"), TxErrors: count("tx_errors"), TxDropped: count("tx_dropped"),
		})
	}
	return out
}
