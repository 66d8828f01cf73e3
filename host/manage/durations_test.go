package manage

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/containerd/ttrpc"
)

func TestInterceptor(t *testing.T) {
	var d Durations
	failed := errors.New("failed")
	call := func(method string) error {
		return d.Interceptor()(t.Context(), &ttrpc.Request{Service: "grpc.AgentService", Method: method}, &ttrpc.Response{}, nil,
			func(context.Context, *ttrpc.Request, *ttrpc.Response) error { return failed })
	}
	for _, method := range append([]string{"StartContainer", "StartContainer", "Check"}, waits...) {
		if err := call(method); !errors.Is(err, failed) {
			t.Errorf("got %v", err)
		}
	}
	var b strings.Builder
	d.write(&b)
	for _, want := range []string{`_count{action="grpc.StartContainerRequest"} 2`, `_count{action="grpc.CheckRequest"} 1`} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%s\nhas no %s", b.String(), want)
		}
	}
	if strings.Contains(b.String(), "WaitProcess") {
		t.Error("waits are counted")
	}
}
