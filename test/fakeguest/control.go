package fakeguest

import (
	"context"

	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/cloister/cloister/wire/agent"
)

// The requests of a runtime on containers that run. They are recorded, and change nothing here.

func (s service) done(ctx context.Context, name string, container string) (*emptypb.Empty, error) {
	if err := s.guest.hold(ctx, name); err != nil {
		return nil, err
	}
	if _, err := s.process(container, ""); err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

func (s service) PauseContainer(ctx context.Context, r *agent.PauseContainerRequest) (*emptypb.Empty, error) {
	return s.done(ctx, "PauseContainerRequest", r.GetContainerId())
}

func (s service) ResumeContainer(ctx context.Context, r *agent.ResumeContainerRequest) (*emptypb.Empty, error) {
	return s.done(ctx, "ResumeContainerRequest", r.GetContainerId())
}

func (s service) UpdateContainer(ctx context.Context, r *agent.UpdateContainerRequest) (*emptypb.Empty, error) {
	return s.done(ctx, "UpdateContainerRequest", r.GetContainerId())
}

// TtyWinResize tells the process of its new size by the signal SIGWINCH.
func (s service) TtyWinResize(ctx context.Context, r *agent.TtyWinResizeRequest) (*emptypb.Empty, error) {
	if err := s.guest.hold(ctx, "TtyWinResizeRequest"); err != nil {
		return nil, err
	}
	p, err := s.process(r.GetContainerId(), r.GetExecId())
	if err != nil {
		return nil, err
	}
	const sigwinch = 28
	select {
	case p.Signals <- sigwinch:
	default:
	}
	return &emptypb.Empty{}, nil
}

// StatsContainer has one figure, so that a test can see that it arrives.
func (s service) StatsContainer(ctx context.Context, r *agent.StatsContainerRequest) (*agent.StatsContainerResponse, error) {
	if _, err := s.done(ctx, "StatsContainerRequest", r.GetContainerId()); err != nil {
		return nil, err
	}
	return &agent.StatsContainerResponse{CgroupStats: &agent.CgroupStats{PidsStats: &agent.PidsStats{Current: 7}}}, nil
}

func (s service) OnlineCPUMem(ctx context.Context, _ *agent.OnlineCPUMemRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, s.guest.hold(ctx, "OnlineCPUMemRequest")
}

func (s service) SetPolicy(ctx context.Context, _ *agent.SetPolicyRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, s.guest.hold(ctx, "SetPolicyRequest")
}

func (s service) LoadPolicyFragment(ctx context.Context, _ *agent.LoadPolicyFragmentRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, s.guest.hold(ctx, "LoadPolicyFragmentRequest")
}

func (s service) GetDiagnosticData(ctx context.Context, _ *agent.GetDiagnosticDataRequest) (*agent.GetDiagnosticDataResponse, error) {
	return &agent.GetDiagnosticDataResponse{}, s.guest.hold(ctx, "GetDiagnosticDataRequest")
}

func (s service) GetOOMEvent(ctx context.Context, _ *agent.GetOOMEventRequest) (*agent.OOMEvent, error) {
	if s.guest.denies("GetOOMEventRequest") {
		return nil, s.guest.hold(ctx, "GetOOMEventRequest")
	}
	select {
	case id := <-s.guest.OOM:
		return &agent.OOMEvent{ContainerId: id}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (g *Guest) denies(name string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, ok := g.Denied[name]
	return ok
}
