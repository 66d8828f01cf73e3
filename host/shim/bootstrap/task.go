package bootstrap

import (
	"context"

	task "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/ttrpc"
)

// RegisterTask adds the task service under both names that containerd calls: containerd.task.v3.Task by 2.x, and containerd.task.v2.Task by
// 1.x, CRI-O, and 2.x where it got a plain address. The messages of both versions have the same fields, so that one implementation
// and one set of types serve both; a test compares them.
func RegisterTask(srv *ttrpc.Server, svc task.TTRPCTaskService) {
	task.RegisterTTRPCTaskService(srv, svc)
	srv.RegisterService("containerd.task.v2.Task", &ttrpc.ServiceDesc{Methods: map[string]ttrpc.Method{
		"State":      method(svc.State),
		"Create":     method(svc.Create),
		"Start":      method(svc.Start),
		"Delete":     method(svc.Delete),
		"Pids":       method(svc.Pids),
		"Pause":      method(svc.Pause),
		"Resume":     method(svc.Resume),
		"Checkpoint": method(svc.Checkpoint),
		"Kill":       method(svc.Kill),
		"Exec":       method(svc.Exec),
		"ResizePty":  method(svc.ResizePty),
		"CloseIO":    method(svc.CloseIO),
		"Update":     method(svc.Update),
		"Wait":       method(svc.Wait),
		"Stats":      method(svc.Stats),
		"Connect":    method(svc.Connect),
		"Shutdown":   method(svc.Shutdown),
	}})
}

func method[Request, Response any](f func(context.Context, *Request) (*Response, error)) ttrpc.Method {
	return func(ctx context.Context, unmarshal func(any) error) (any, error) {
		var r Request
		if err := unmarshal(&r); err != nil {
			return nil, err
		}
		return f(ctx, &r)
	}
}
