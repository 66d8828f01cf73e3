package agent

import (
	"context"
	"errors"
	"io"

	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/cloister/cloister/guest/container"
	"github.com/cloister/cloister/wire/agent"
)

// maxRead bounds one read; the transport's messages end at 4 MiB.
const maxRead = 1 << 20

// WriteStdin writes to a process; no data means the end of its input.
func (a *Agent) WriteStdin(ctx context.Context, req *agent.WriteStreamRequest) (*agent.WriteStreamResponse, error) {
	p, err := a.process(req.GetContainerId(), req.GetExecId())
	if err != nil {
		return nil, err
	}
	if len(req.GetData()) == 0 {
		return &agent.WriteStreamResponse{}, p.CloseStdin()
	}
	n, err := p.Write(ctx, req.GetData())
	if err != nil {
		return nil, err
	}
	return &agent.WriteStreamResponse{Len: uint32(n)}, nil
}

// CloseStdin ends a process's input.
func (a *Agent) CloseStdin(_ context.Context, req *agent.CloseStdinRequest) (*emptypb.Empty, error) {
	p, err := a.process(req.GetContainerId(), req.GetExecId())
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, p.CloseStdin()
}

// ReadStdout reads output.
func (a *Agent) ReadStdout(ctx context.Context, req *agent.ReadStreamRequest) (*agent.ReadStreamResponse, error) {
	return a.read(ctx, req, (*container.Process).ReadStdout)
}

// ReadStderr reads error output.
func (a *Agent) ReadStderr(ctx context.Context, req *agent.ReadStreamRequest) (*agent.ReadStreamResponse, error) {
	return a.read(ctx, req, (*container.Process).ReadStderr)
}

// read reads first and asks the policy afterwards: when it refuses, the output is consumed and the answer empty, so a
// process is not held up by output nobody may see, and the host cannot tell a refusal from the end of the stream.
func (a *Agent) read(ctx context.Context, req *agent.ReadStreamRequest, from func(*container.Process, context.Context, []byte) (int, error)) (*agent.ReadStreamResponse, error) {
	p, err := a.process(req.GetContainerId(), req.GetExecId())
	if err != nil {
		return nil, err
	}
	buf := make([]byte, min(max(req.GetLen(), 1), maxRead))
	n, err := from(p, ctx, buf)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	allowed, err := a.cfg.Gate.AllowRead(ctx, req)
	if err != nil {
		a.log.Warn("output withheld", "container", req.GetContainerId(), "error", err)
	}
	if err != nil || !allowed {
		return &agent.ReadStreamResponse{}, nil
	}
	return &agent.ReadStreamResponse{Data: buf[:n]}, nil
}

// TtyWinResize changes a terminal's size.
func (a *Agent) TtyWinResize(_ context.Context, req *agent.TtyWinResizeRequest) (*emptypb.Empty, error) {
	p, err := a.process(req.GetContainerId(), req.GetExecId())
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, p.Resize(req.GetRow(), req.GetColumn())
}
