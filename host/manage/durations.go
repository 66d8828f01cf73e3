package manage

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
)

// maxActions bounds the kinds of calls that are counted.
const maxActions = 128

// bounds are the upper bounds of the histogram in milliseconds, as upstream has them.
var bounds = [...]float64{1, 2, 4, 8, 16, 32, 64, 128, 256, 512}

// Durations counts how long the calls of the agent take. The zero value is ready; its methods may be called at the same time.
type Durations struct {
	mu      sync.Mutex
	actions map[string]*histogram
}

type histogram struct {
	buckets [len(bounds)]uint64 // not cumulative; what took longer is in count only
	count   uint64
	sum     float64
}

// Observe counts one call. The name of an action is that of the request's message, for example grpc.StartContainerRequest.
func (d *Durations) Observe(action string, took time.Duration) {
	ms := float64(took) / float64(time.Millisecond)
	d.mu.Lock()
	defer d.mu.Unlock()
	h := d.actions[action]
	if h == nil {
		if len(d.actions) == maxActions {
			return
		}
		if d.actions == nil {
			d.actions = map[string]*histogram{}
		}
		h = &histogram{}
		d.actions[action] = h
	}
	h.count++
	h.sum += ms
	if i, _ := slices.BinarySearch(bounds[:], ms); i < len(bounds) {
		h.buckets[i]++
	}
}

// waits are the calls that last as long as a process does; how long says nothing about the guest.
var waits = []string{"WaitProcess", "ReadStdout", "ReadStderr", "GetOOMEvent"}

// Interceptor counts the calls of a client: ttrpc.NewClient(conn, ttrpc.WithUnaryClientInterceptor(d.Interceptor())).
func (d *Durations) Interceptor() ttrpc.UnaryClientInterceptor {
	return func(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, _ *ttrpc.UnaryClientInfo, invoke ttrpc.Invoker) error {
		begin := time.Now()
		err := invoke(ctx, req, resp)
		if !slices.Contains(waits, req.Method) {
			d.Observe("grpc."+req.Method+"Request", time.Since(begin))
		}
		return err
	}
}

// write writes the histograms in the text form of Prometheus.
func (d *Durations) write(b *strings.Builder) {
	const name = "kata_shim_agent_rpc_durations_histogram_milliseconds"
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.actions) == 0 {
		return
	}
	fmt.Fprintf(b, "# HELP %s How long calls of the agent took.\n# TYPE %s histogram\n", name, name)
	for _, action := range slices.Sorted(maps.Keys(d.actions)) {
		h := d.actions[action]
		var below uint64
		for i, bound := range bounds {
			below += h.buckets[i]
			fmt.Fprintf(b, "%s_bucket{action=%q,le=\"%g\"} %d\n", name, action, bound, below)
		}
		fmt.Fprintf(b, "%s_bucket{action=%q,le=\"+Inf\"} %d\n", name, action, h.count)
		fmt.Fprintf(b, "%s_sum{action=%q} %g\n%s_count{action=%q} %d\n", name, action, h.sum, name, action, h.count)
	}
}
