package asapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/cloister/cloister/broker/adminauth"
	"github.com/cloister/cloister/broker/outage"
	"github.com/cloister/cloister/broker/token"
	"github.com/cloister/cloister/wire/as"
	"github.com/cloister/cloister/wire/rvps"
)

// GRPC makes a server with the attestation service, the reference value service, or one of them, and the standard health service.
func (a *API) GRPC(opts ...grpc.ServerOption) *grpc.Server {
	s := grpc.NewServer(append([]grpc.ServerOption{
		grpc.MaxRecvMsgSize(MaxMessage), grpc.MaxSendMsgSize(maxAnswer),
		// Upstream's clients ask every 10 s whether the connection lives.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minKeepalive, PermitWithoutStream: true}),
		grpc.ChainUnaryInterceptor(a.survive),
	}, opts...)...)
	if a.offers(ServiceAttestation) {
		as.RegisterAttestationServiceServer(s, &attestationGRPC{api: a})
	}
	if a.offers(ServiceReferences) {
		rvps.RegisterReferenceValueProviderServiceServer(s, &referencesGRPC{api: a})
	}
	healthpb.RegisterHealthServer(s, health.NewServer())
	return s
}

func (a *API) offers(service string) bool {
	return a.Services == nil || slices.Contains(a.Services, service)
}

// survive turns a panic into an error. Without it one would end the whole broker: gRPC, other than HTTP, catches none.
func (a *API) survive(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (answer any, err error) {
	defer func() {
		if p := recover(); p != nil {
			a.Log.ErrorContext(ctx, "handler panicked", "method", info.FullMethod, "panic", p, "stack", string(debug.Stack()))
			answer, err = nil, status.Error(codes.Internal, "internal error")
		}
	}()
	return next(ctx, req)
}

const (
	// maxAnswer has room for the longest token.
	maxAnswer    = token.MaxSize + 64<<10
	minKeepalive = 5 * time.Second
)

type attestationGRPC struct {
	as.UnimplementedAttestationServiceServer
	api *API
}

// aborted is the one status upstream answers errors with. Here what may go away by itself, such as reference values that cannot be
// asked for now, has one of its own, so that a key broker does not take it for a no.
func aborted(err error) error {
	if errors.Is(err, outage.ErrUnavailable) {
		return status.Error(codes.Unavailable, err.Error())
	}
	return status.Error(codes.Aborted, err.Error())
}

func remote(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok {
		return p.Addr.String()
	}
	return ""
}

// call is an administrative gRPC call; the bearer token is in the metadata, as in HTTP.
func (a *API) call(ctx context.Context, method string) adminauth.Call {
	c := adminauth.Call{Method: "POST", Path: method}
	md, _ := metadata.FromIncomingContext(ctx)
	for _, v := range md.Get("authorization") {
		if scheme, bearer, ok := strings.Cut(v, " "); ok && strings.EqualFold(scheme, "bearer") {
			c.Bearer = bearer
		}
	}
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
			return c.With(&info.State, a.Clients)
		}
	}
	return c
}

func (s *attestationGRPC) AttestationEvaluate(ctx context.Context, req *as.AttestationRequest) (*as.AttestationResponse, error) {
	list := make([]evidence, 0, len(req.GetVerificationRequests()))
	for i, r := range req.GetVerificationRequests() {
		e, err := fromGRPC(r)
		if err != nil {
			return nil, aborted(fmt.Errorf("verification request %d: %w", i+1, err))
		}
		list = append(list, e)
	}
	signed, err := s.api.evaluate(ctx, remote(ctx), list, req.GetPolicyIds())
	if err != nil {
		return nil, aborted(err)
	}
	return &as.AttestationResponse{AttestationToken: signed}, nil
}

func fromGRPC(r *as.IndividualAttestationRequest) (evidence, error) {
	e := evidence{tee: r.GetTee(), hash: r.GetRuntimeDataHashAlgorithm()}
	var err error
	if e.text, err = unbase64(r.GetEvidence()); err != nil {
		return e, fmt.Errorf("reading evidence: %w", err)
	}
	switch d := r.GetRuntimeData().(type) {
	case *as.IndividualAttestationRequest_RawRuntimeData:
		if e.rawRuntime, err = unbase64(d.RawRuntimeData); err != nil {
			return e, fmt.Errorf("reading raw_runtime_data: %w", err)
		}
	case *as.IndividualAttestationRequest_StructuredRuntimeData:
		e.structured = json.RawMessage(d.StructuredRuntimeData)
	}
	switch d := r.GetInitData().(type) {
	case *as.IndividualAttestationRequest_InitDataDigest:
		if e.initDigest, err = unbase64(d.InitDataDigest); err != nil {
			return e, fmt.Errorf("reading init_data_digest: %w", err)
		}
	case *as.IndividualAttestationRequest_InitDataToml:
		e.initTOML = d.InitDataToml
	}
	return e, nil
}

func (s *attestationGRPC) SetAttestationPolicy(ctx context.Context, req *as.SetPolicyRequest) (*as.SetPolicyResponse, error) {
	c := s.api.call(ctx, as.AttestationService_SetAttestationPolicy_FullMethodName)
	if err := s.api.setPolicy(ctx, remote(ctx), c, req.GetPolicyId(), req.GetPolicy()); err != nil {
		return nil, aborted(err)
	}
	return &as.SetPolicyResponse{}, nil
}

func (s *attestationGRPC) GetAttestationChallenge(ctx context.Context, req *as.ChallengeRequest) (*as.ChallengeResponse, error) {
	text, err := s.api.challenge(ctx, req.GetInner()["tee"], req.GetInner()["tee_params"])
	if err != nil {
		return nil, aborted(err)
	}
	return &as.ChallengeResponse{AttestationChallenge: text}, nil
}

type referencesGRPC struct {
	rvps.UnimplementedReferenceValueProviderServiceServer
	api *API
}

func (s *referencesGRPC) QueryReferenceValue(ctx context.Context, req *rvps.ReferenceValueQueryRequest) (*rvps.ReferenceValueQueryResponse, error) {
	value, err := s.api.References.Lookup(ctx, req.GetReferenceValueId())
	if err != nil {
		return nil, aborted(err)
	}
	if value == nil {
		return &rvps.ReferenceValueQueryResponse{}, nil
	}
	text := string(value)
	return &rvps.ReferenceValueQueryResponse{ReferenceValueResults: &text}, nil
}

func (s *referencesGRPC) RegisterReferenceValue(ctx context.Context, req *rvps.ReferenceValueRegisterRequest) (*rvps.ReferenceValueRegisterResponse, error) {
	c := s.api.call(ctx, rvps.ReferenceValueProviderService_RegisterReferenceValue_FullMethodName)
	if err := s.api.register(ctx, remote(ctx), c, req.GetMessage()); err != nil {
		return nil, aborted(err)
	}
	return &rvps.ReferenceValueRegisterResponse{}, nil
}
