package hub

import (
	"context"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cloister/cloister/wire/cdh"
	"github.com/cloister/cloister/wire/keyprovider"
)

// Register adds the hub's five ttrpc services to a server.
func (h *Hub) Register(s *ttrpc.Server) {
	a := service{h}
	cdh.RegisterSealedSecretServiceService(s, a)
	cdh.RegisterGetResourceServiceService(s, a)
	cdh.RegisterSecureMountServiceService(s, a)
	cdh.RegisterImagePullServiceService(s, a)
	keyprovider.RegisterKeyProviderServiceService(s, a)
}

// service is the ttrpc face of a Hub.
type service struct{ h *Hub }

func (s service) fail(what string, err error) error {
	s.h.log.Warn("data hub: "+what, "error", err)
	return status.Error(codes.Internal, "[CDH] [ERROR]: "+brief(what, err))
}

func (s service) UnsealSecret(ctx context.Context, r *cdh.UnsealSecretInput) (*cdh.UnsealSecretOutput, error) {
	b, err := s.h.UnsealSecret(ctx, r.GetSecret())
	if err != nil {
		return nil, s.fail("Unseal Secret failed", err)
	}
	return &cdh.UnsealSecretOutput{Plaintext: b}, nil
}

func (s service) GetResource(ctx context.Context, r *cdh.GetResourceRequest) (*cdh.GetResourceResponse, error) {
	b, err := s.h.Resource(ctx, r.GetResourcePath())
	if err != nil {
		return nil, s.fail("Get Resource failed", err)
	}
	return &cdh.GetResourceResponse{Resource: b}, nil
}

// SecureMount is not offered: the guest mounts what its measured configuration
// says, not what a request says.
func (s service) SecureMount(_ context.Context, r *cdh.SecureMountRequest) (*cdh.SecureMountResponse, error) {
	return nil, status.Errorf(codes.Unimplemented, "[CDH] [ERROR]: Secure Mount failed: this guest has no secure mount (volume type %.60q)", r.GetVolumeType())
}

// PullImage answers with the reason of a refusal, which the user needs and
// which holds nothing that the image's name does not.
func (s service) PullImage(ctx context.Context, r *cdh.ImagePullRequest) (*cdh.ImagePullResponse, error) {
	digest, err := s.h.PullImage(ctx, r.GetImageUrl(), r.GetBundlePath())
	if err != nil {
		s.h.log.Warn("data hub: image pull failed", "error", err)
		return nil, status.Error(codes.Internal, "[CDH] [ERROR]: Image Pull error: "+err.Error())
	}
	return &cdh.ImagePullResponse{ManifestDigest: digest}, nil
}

func (s service) UnWrapKey(ctx context.Context, r *keyprovider.KeyProviderKeyWrapProtocolInput) (*keyprovider.KeyProviderKeyWrapProtocolOutput, error) {
	packet, err := parseKeyRequest(r.GetKeyProviderKeyWrapProtocolInput())
	if err != nil {
		s.h.log.Warn("data hub: key request refused", "error", err)
		return nil, status.Error(codes.Internal, "[ERROR] UnwrapKey Parse request failed")
	}
	out, err := s.h.unwrapKey(ctx, packet)
	if err != nil {
		return nil, s.fail("Decrypt Image (UnwrapKey) failed", err)
	}
	return &keyprovider.KeyProviderKeyWrapProtocolOutput{KeyProviderKeyWrapProtocolOutput: out}, nil
}

// WrapKey is answered as upstream does: keys are wrapped by image authors.
func (s service) WrapKey(context.Context, *keyprovider.KeyProviderKeyWrapProtocolInput) (*keyprovider.KeyProviderKeyWrapProtocolOutput, error) {
	return nil, status.Error(codes.NotFound, "/keyprovider.KeyProviderService/WrapKey is not supported")
}
