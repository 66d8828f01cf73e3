package trace

import (
	"context"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/containerd/ttrpc"
)

// header is the name of the trace context in metadata (W3C Trace Context, section 3.2).
const header = "traceparent"

// Traceparent is the W3C trace context of the step in ctx; empty when its trace goes to no collector.
func Traceparent(ctx context.Context) string {
	s := fromContext(ctx)
	if s == nil || s.r.exporter == nil {
		return ""
	}
	return fmt.Sprintf("00-%x-%x-%02x", s.r.traceID, s.id, s.r.flags)
}

// Incoming is the W3C trace context that came with a ttrpc request, for Config.Traceparent; empty when there is none.
func Incoming(ctx context.Context) string {
	value, _ := ttrpc.GetMetadataValue(ctx, header)
	return value
}

// Interceptor gives the trace context of a request's step to the peer, as metadata. It is for ttrpc.WithUnaryClientInterceptor.
func Interceptor(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, _ *ttrpc.UnaryClientInfo, call ttrpc.Invoker) error {
	if value := Traceparent(ctx); value != "" {
		req.Metadata = append(req.Metadata, &ttrpc.KeyValue{Key: header, Value: value})
	}
	return call(ctx, req, resp)
}

// parseTraceparent reads version 00, and of later versions the part that they must share with it.
func parseTraceparent(s string) (id [16]byte, parent [8]byte, flags byte, ok bool) {
	p := strings.Split(s, "-")
	if len(s) > 256 || len(p) < 4 || len(p[0]) != 2 || p[0] == "ff" || p[0] == "00" && len(p) != 4 ||
		len(p[1]) != 32 || len(p[2]) != 16 || len(p[3]) != 2 || strings.ToLower(s) != s {
		return id, parent, 0, false
	}
	var version, f [1]byte
	for _, x := range []struct {
		to   []byte
		from string
	}{{version[:], p[0]}, {id[:], p[1]}, {parent[:], p[2]}, {f[:], p[3]}} {
		if _, err := hex.Decode(x.to, []byte(x.from)); err != nil {
			return [16]byte{}, [8]byte{}, 0, false
		}
	}
	if id == [16]byte{} || parent == [8]byte{} {
		return [16]byte{}, [8]byte{}, 0, false
	}
	return id, parent, f[0] & 1, true
}
