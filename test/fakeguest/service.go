package fakeguest

import (
	"context"
	"io"
	"strings"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/cloister/cloister/wire/agent"
)

// Process is a running program.
type Process struct {
	Args    []string
	Env     []string
	Stdin   io.Reader
	Stdout  io.Writer
	Stderr  io.Writer
	Signals chan uint32

	start          chan struct{}
	startOnce      sync.Once
	done           chan struct{}
	code           int
	cancel         context.CancelFunc
	stdin          *io.PipeWriter
	stdout, stderr *io.PipeReader
}

// newProcess makes a process that waits for its start.
func newProcess(prog Program, spec *agent.Process) *Process {
	ctx, cancel := context.WithCancel(context.Background())
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	errR, errW := io.Pipe()
	p := &Process{
		Args: spec.GetArgs(), Env: spec.GetEnv(), Stdin: inR, Stdout: outW, Stderr: errW, Signals: make(chan uint32, 16),
		start: make(chan struct{}), done: make(chan struct{}), cancel: cancel, stdin: inW, stdout: outR, stderr: errR,
	}
	// A kill ends a process that waits for somebody to take its output, too.
	context.AfterFunc(ctx, func() { outW.Close(); errW.Close() })
	go func() {
		defer close(p.done)
		defer outW.Close()
		defer errW.Close()
		defer inR.Close()
		select {
		case <-p.start:
		case <-ctx.Done():
		}
		if prog != nil && ctx.Err() == nil {
			p.code = prog(ctx, p)
		}
		if ctx.Err() != nil {
			p.code = 137
		}
	}()
	return p
}

// service answers the requests a host makes in the life of a pod; any other request is a bug in the test.
type service struct {
	agent.AgentServiceService
	guest *Guest
}

func (s service) process(container, exec string) (*Process, error) {
	if exec == "" {
		exec = container
	}
	s.guest.mu.Lock()
	defer s.guest.mu.Unlock()
	p := s.guest.processes[container+"/"+exec]
	if p == nil {
		return nil, status.Error(codes.NotFound, "no such process")
	}
	return p, nil
}

func (s service) add(container, exec string, prog Program, spec *agent.Process) *Process {
	if exec == "" {
		exec = container
	}
	p := newProcess(prog, spec)
	s.guest.mu.Lock()
	defer s.guest.mu.Unlock()
	if s.guest.processes == nil {
		s.guest.processes = map[string]*Process{}
	}
	s.guest.processes[container+"/"+exec] = p
	return p
}

func (s service) UpdateInterface(ctx context.Context, r *agent.UpdateInterfaceRequest) (*agent.Interface, error) {
	return r.GetInterface(), s.guest.enter(ctx, "UpdateInterfaceRequest", r)
}

func (s service) UpdateRoutes(ctx context.Context, r *agent.UpdateRoutesRequest) (*agent.Routes, error) {
	return r.GetRoutes(), s.guest.enter(ctx, "UpdateRoutesRequest", r)
}

func (s service) CreateSandbox(ctx context.Context, r *agent.CreateSandboxRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, s.guest.enter(ctx, "CreateSandboxRequest", r)
}

func (s service) DestroySandbox(ctx context.Context, r *agent.DestroySandboxRequest) (*emptypb.Empty, error) {
	if err := s.guest.enter(ctx, "DestroySandboxRequest", r); err != nil {
		return nil, err
	}
	s.guest.killAll()
	s.guest.Crash()
	return &emptypb.Empty{}, nil
}

func (s service) CopyFile(ctx context.Context, r *agent.CopyFileRequest) (*emptypb.Empty, error) {
	if err := s.guest.enter(ctx, "CopyFileRequest", r); err != nil {
		return nil, err
	}
	s.guest.mu.Lock()
	defer s.guest.mu.Unlock()
	if s.guest.files == nil {
		s.guest.files = map[string][]byte{}
	}
	have := s.guest.files[r.GetPath()]
	if r.GetOffset() != int64(len(have)) {
		return nil, status.Errorf(codes.InvalidArgument, "offset %d, expected %d", r.GetOffset(), len(have))
	}
	s.guest.files[r.GetPath()] = append(have, r.GetData()...)
	return &emptypb.Empty{}, nil
}

func (s service) CreateContainer(ctx context.Context, r *agent.CreateContainerRequest) (*emptypb.Empty, error) {
	if err := s.guest.enter(ctx, "CreateContainerRequest", r); err != nil {
		return nil, err
	}
	s.add(r.GetContainerId(), r.GetExecId(), s.guest.program(r.GetContainerId()), r.GetOCI().GetProcess())
	return &emptypb.Empty{}, nil
}

func (s service) StartContainer(ctx context.Context, r *agent.StartContainerRequest) (*emptypb.Empty, error) {
	if err := s.guest.enter(ctx, "StartContainerRequest", r); err != nil {
		return nil, err
	}
	p, err := s.process(r.GetContainerId(), "")
	if err != nil {
		return nil, err
	}
	p.startOnce.Do(func() { close(p.start) })
	return &emptypb.Empty{}, nil
}

func (s service) RemoveContainer(ctx context.Context, r *agent.RemoveContainerRequest) (*emptypb.Empty, error) {
	if err := s.guest.enter(ctx, "RemoveContainerRequest", r); err != nil {
		return nil, err
	}
	s.guest.mu.Lock()
	defer s.guest.mu.Unlock()
	for key := range s.guest.processes {
		if strings.HasPrefix(key, r.GetContainerId()+"/") {
			delete(s.guest.processes, key)
		}
	}
	return &emptypb.Empty{}, nil
}

func (s service) ExecProcess(ctx context.Context, r *agent.ExecProcessRequest) (*emptypb.Empty, error) {
	if err := s.guest.enter(ctx, "ExecProcessRequest", r); err != nil {
		return nil, err
	}
	p := s.add(r.GetContainerId(), r.GetExecId(), s.guest.Exec, r.GetProcess())
	p.startOnce.Do(func() { close(p.start) })
	return &emptypb.Empty{}, nil
}

func (s service) SignalProcess(ctx context.Context, r *agent.SignalProcessRequest) (*emptypb.Empty, error) {
	if err := s.guest.enter(ctx, "SignalProcessRequest", r); err != nil {
		return nil, err
	}
	p, err := s.process(r.GetContainerId(), r.GetExecId())
	if err != nil {
		return nil, err
	}
	if r.GetSignal() == 9 {
		p.cancel()
		return &emptypb.Empty{}, nil
	}
	select {
	case p.Signals <- r.GetSignal():
	default:
	}
	return &emptypb.Empty{}, nil
}

func (s service) WaitProcess(ctx context.Context, r *agent.WaitProcessRequest) (*agent.WaitProcessResponse, error) {
	if err := s.guest.judge(ctx, "WaitProcessRequest", r); err != nil {
		return nil, err
	}
	p, err := s.process(r.GetContainerId(), r.GetExecId())
	if err != nil {
		return nil, err
	}
	select {
	case <-p.done:
		if first := r.GetExecId() == "" || r.GetExecId() == r.GetContainerId(); first && s.guest.Gate != nil {
			if err := s.guest.Gate.Exited(ctx, r.GetContainerId(), p.code); err != nil {
				return nil, err
			}
		}
		return &agent.WaitProcessResponse{Status: int32(p.code)}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s service) read(ctx context.Context, r *agent.ReadStreamRequest, pick func(*Process) *io.PipeReader) (*agent.ReadStreamResponse, error) {
	if err := s.guest.judge(ctx, "ReadStreamRequest", r); err != nil {
		return nil, err
	}
	p, err := s.process(r.GetContainerId(), r.GetExecId())
	if err != nil {
		return nil, err
	}
	buf := make([]byte, min(r.GetLen(), 64<<10))
	n, err := pick(p).Read(buf)
	if err != nil && n == 0 {
		return &agent.ReadStreamResponse{}, nil
	}
	return &agent.ReadStreamResponse{Data: buf[:n]}, nil
}

func (s service) ReadStdout(ctx context.Context, r *agent.ReadStreamRequest) (*agent.ReadStreamResponse, error) {
	return s.read(ctx, r, func(p *Process) *io.PipeReader { return p.stdout })
}

func (s service) ReadStderr(ctx context.Context, r *agent.ReadStreamRequest) (*agent.ReadStreamResponse, error) {
	return s.read(ctx, r, func(p *Process) *io.PipeReader { return p.stderr })
}

func (s service) WriteStdin(_ context.Context, r *agent.WriteStreamRequest) (*agent.WriteStreamResponse, error) {
	p, err := s.process(r.GetContainerId(), r.GetExecId())
	if err != nil {
		return nil, err
	}
	n, err := p.stdin.Write(r.GetData())
	if err != nil {
		return nil, err
	}
	return &agent.WriteStreamResponse{Len: uint32(n)}, nil
}

func (s service) CloseStdin(_ context.Context, r *agent.CloseStdinRequest) (*emptypb.Empty, error) {
	p, err := s.process(r.GetContainerId(), r.GetExecId())
	if err != nil {
		return nil, err
	}
	p.stdin.Close()
	return &emptypb.Empty{}, nil
}

func (s service) GetGuestDetails(ctx context.Context, r *agent.GuestDetailsRequest) (*agent.GuestDetailsResponse, error) {
	if err := s.guest.enter(ctx, "GuestDetailsRequest", r); err != nil {
		return nil, err
	}
	return &agent.GuestDetailsResponse{AgentDetails: &agent.AgentDetails{ExtraFeatures: []string{agent.FeatureOutputKept, agent.FeatureImageVolumes}}}, nil
}
