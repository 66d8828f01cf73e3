package stdio

import (
	"context"
	"fmt"
	"io"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/cloister/cloister/wire/agent"
)

// Agent are the calls of the guest's agent that streams need.
type Agent interface {
	ReadStdout(context.Context, *agent.ReadStreamRequest) (*agent.ReadStreamResponse, error)
	ReadStderr(context.Context, *agent.ReadStreamRequest) (*agent.ReadStreamResponse, error)
	WriteStdin(context.Context, *agent.WriteStreamRequest) (*agent.WriteStreamResponse, error)
	CloseStdin(context.Context, *agent.CloseStdinRequest) (*emptypb.Empty, error)
}

// FromAgent is a process in the guest as a Source. exec is the container's id for its first process.
func FromAgent(a Agent, container, exec string) Source { return &guestProcess{a, container, exec} }

type guestProcess struct {
	a               Agent
	container, exec string
}

func (p *guestProcess) ReadStdout(ctx context.Context, max int) ([]byte, error) {
	return p.read(ctx, p.a.ReadStdout, max)
}

func (p *guestProcess) ReadStderr(ctx context.Context, max int) ([]byte, error) {
	return p.read(ctx, p.a.ReadStderr, max)
}

// read maps the agent's ways to say the end: nothing, or a refusal because the process is gone. A broken connection is an error.
func (p *guestProcess) read(ctx context.Context, f func(context.Context, *agent.ReadStreamRequest) (*agent.ReadStreamResponse, error), max int) ([]byte, error) {
	r, err := f(ctx, &agent.ReadStreamRequest{ContainerId: p.container, ExecId: p.exec, Len: uint32(max)})
	if err != nil {
		if _, answered := status.FromError(err); answered && ctx.Err() == nil {
			return nil, io.EOF
		}
		return nil, err
	}
	switch data := r.GetData(); {
	case len(data) == 0:
		return nil, io.EOF
	case len(data) > max:
		return nil, fmt.Errorf("the guest sent %d bytes where it was asked for %d", len(data), max)
	default:
		return data, nil
	}
}

func (p *guestProcess) WriteStdin(ctx context.Context, b []byte) (int, error) {
	r, err := p.a.WriteStdin(ctx, &agent.WriteStreamRequest{ContainerId: p.container, ExecId: p.exec, Data: b})
	if err != nil {
		return 0, err
	}
	return int(r.GetLen()), nil
}

func (p *guestProcess) CloseStdin(ctx context.Context) error {
	_, err := p.a.CloseStdin(ctx, &agent.CloseStdinRequest{ContainerId: p.container, ExecId: p.exec})
	return err
}
