package hub

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cloister/cloister/wire/cdh"
	"github.com/cloister/cloister/wire/imagecrypt"
	"github.com/cloister/cloister/wire/keyprovider"
)

// puller pulls images; guest/image's client is one.
type puller interface {
	PullImage(ctx context.Context, ref, bundlePath string) (manifestDigest string, err error)
}

// service answers the data hub's ttrpc methods. Callers sit inside the guest, so that they get the whole reason.
type service struct {
	hub    *Hub
	images puller
}

func failed(brief string, err error) error {
	return status.Errorf(codes.Internal, "[CDH] [ERROR]: %s: %v", brief, err)
}

func (s *service) UnsealSecret(ctx context.Context, in *cdh.UnsealSecretInput) (*cdh.UnsealSecretOutput, error) {
	b, err := s.hub.UnsealSecret(ctx, in.GetSecret())
	if err != nil {
		return nil, failed("Unseal Secret failed", err)
	}
	return &cdh.UnsealSecretOutput{Plaintext: b}, nil
}

func (s *service) GetResource(ctx context.Context, in *cdh.GetResourceRequest) (*cdh.GetResourceResponse, error) {
	b, err := s.hub.Resource(ctx, in.GetResourcePath())
	if err != nil {
		return nil, failed("Get Resource failed", err)
	}
	return &cdh.GetResourceResponse{Resource: b}, nil
}

func (s *service) SecureMount(context.Context, *cdh.SecureMountRequest) (*cdh.SecureMountResponse, error) {
	return nil, failed("Secure Mount failed", errors.New("this guest has no encrypted volumes; nothing was formatted or mounted"))
}

func (s *service) PullImage(ctx context.Context, in *cdh.ImagePullRequest) (*cdh.ImagePullResponse, error) {
	digest, err := s.images.PullImage(ctx, in.GetImageUrl(), in.GetBundlePath())
	if err != nil {
		return nil, failed("Image Pull error", err)
	}
	return &cdh.ImagePullResponse{ManifestDigest: digest}, nil
}

func (s *service) WrapKey(context.Context, *keyprovider.KeyProviderKeyWrapProtocolInput) (*keyprovider.KeyProviderKeyWrapProtocolOutput, error) {
	return nil, status.Error(codes.NotFound, "/keyprovider.KeyProviderService/WrapKey is not supported")
}

// UnWrapKey opens the key of an image layer (cdh-and-images.md section 5.4).
func (s *service) UnWrapKey(ctx context.Context, in *keyprovider.KeyProviderKeyWrapProtocolInput) (*keyprovider.KeyProviderKeyWrapProtocolOutput, error) {
	out, err := s.hub.unwrap(ctx, in.GetKeyProviderKeyWrapProtocolInput())
	if err != nil {
		return nil, failed("Decrypt Image (UnwrapKey) failed", err)
	}
	return &keyprovider.KeyProviderKeyWrapProtocolOutput{KeyProviderKeyWrapProtocolOutput: out}, nil
}

func (h *Hub) unwrap(ctx context.Context, input []byte) ([]byte, error) {
	var request struct {
		Op     string `json:"op"`
		Params struct {
			Annotation string `json:"annotation"`
		} `json:"keyunwrapparams"`
	}
	if len(input) > maxSealed {
		return nil, fmt.Errorf("request has %d bytes, at most %d are read", len(input), maxSealed)
	}
	if err := json.Unmarshal(input, &request); err != nil {
		return nil, fmt.Errorf("reading the request: %w", err)
	}
	if request.Op != "keyunwrap" {
		return nil, fmt.Errorf("operation is %.32q, want keyunwrap", request.Op)
	}
	annotation, err := base64.StdEncoding.DecodeString(request.Params.Annotation)
	if err != nil {
		return nil, fmt.Errorf("reading the annotation: %w", err)
	}
	packet, err := imagecrypt.ParsePacket(annotation)
	if err != nil {
		return nil, err
	}
	kek, err := h.Resource(ctx, packet.KID)
	if err != nil {
		return nil, err
	}
	opened, err := imagecrypt.UnwrapPLBCO(packet, kek)
	if err != nil {
		return nil, err
	}
	plain, err := json.Marshal(opened)
	if err != nil {
		return nil, fmt.Errorf("encoding the layer key: %w", err)
	}
	// Upstream clients read the bytes as an array of numbers, not as base64.
	numbers := make([]int, len(plain))
	for i, b := range plain {
		numbers[i] = int(b)
	}
	return json.Marshal(map[string]any{"keyunwrapresults": map[string]any{"optsdata": numbers}})
}
