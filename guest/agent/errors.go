package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cloister/cloister/guest/container"
	"github.com/cloister/cloister/guest/crypt"
	"github.com/cloister/cloister/guest/device"
	"github.com/cloister/cloister/guest/ext4"
	"github.com/cloister/cloister/guest/gate"
	"github.com/cloister/cloister/guest/network"
	"github.com/cloister/cloister/layer/sealed"
)

var (
	//lint:ignore ST1005 callers of this protocol know the text
	errNoContainer = errors.New("Invalid container id")
	errInvalid     = errors.New("invalid argument")
	errUnsupported = errors.New("not supported by this guest")
	errEnded       = errors.New("the sandbox has been destroyed")
)

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errInvalid, fmt.Sprintf(format, args...))
}

// wireError chooses the protocol's code for an error, once, at the edge.
func wireError(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codeOf(err), err.Error())
}

func codeOf(err error) codes.Code {
	var denied *gate.DeniedError
	var policy *gate.PolicyError
	var fragment *gate.FragmentError
	switch {
	case errors.As(err, &denied):
		return codes.PermissionDenied
	case errors.As(err, &policy), errors.As(err, &fragment), errors.Is(err, errInvalid), errors.Is(err, errNoContainer), errors.Is(err, container.ErrSpec),
		errors.Is(err, network.ErrNoInterface), errors.Is(err, device.ErrLocator), errors.Is(err, ext4.ErrSize), errors.Is(err, crypt.ErrVerity),
		errors.Is(err, sealed.ErrKey):
		return codes.InvalidArgument
	case errors.Is(err, container.ErrNoProcess), errors.Is(err, fs.ErrNotExist):
		return codes.NotFound
	case errors.Is(err, container.ErrExists), errors.Is(err, fs.ErrExist):
		return codes.AlreadyExists
	case errors.Is(err, container.ErrState), errors.Is(err, container.ErrStdinClosed):
		return codes.FailedPrecondition
	case errors.Is(err, container.ErrNoTTY):
		return codes.Unavailable
	case errors.Is(err, errUnsupported):
		return codes.Unimplemented
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		return codes.Canceled
	}
	return codes.Internal
}
