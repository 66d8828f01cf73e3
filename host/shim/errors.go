package shim

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cloister/cloister/host/agent"
	"github.com/cloister/cloister/host/sandbox"
)

// maxErrorText bounds what ends up in a pod's events; the end of the console is at the end of long ones.
const maxErrorText = 8 << 10

// answer turns an error into the status that containerd gets. Its text is what `kubectl describe pod` shows.
func answer(err error) error {
	if err == nil {
		return nil
	}
	code := codes.Unknown
	if st, ok := status.FromError(err); ok {
		code = st.Code()
	}
	var e *agent.Error
	switch {
	case errors.As(err, &e) && (e.Code == codes.PermissionDenied || e.Code == codes.NotFound || e.Code == codes.Unimplemented ||
		e.Code == codes.DeadlineExceeded):
		code = e.Code
	case errors.Is(err, sandbox.ErrExists):
		code = codes.AlreadyExists
	case errors.Is(err, context.DeadlineExceeded):
		code = codes.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		code = codes.Canceled
	case errors.Is(err, errors.ErrUnsupported):
		code = codes.Unimplemented
	}
	return status.Error(code, errorText(err))
}

// errorText is the text of an error as far as it fits, in the characters that a message may have: some of it may be from the guest.
func errorText(err error) string {
	text := err.Error()
	if st, ok := err.(interface{ GRPCStatus() *status.Status }); ok {
		text = st.GRPCStatus().Message() // without the words around it
	}
	if len(text) > maxErrorText {
		text = text[:maxErrorText] + "..."
	}
	return agent.Clean(text)
}

func notFound(format string, args ...any) error {
	return status.Errorf(codes.NotFound, format, args...)
}

func precondition(format string, args ...any) error {
	return status.Errorf(codes.FailedPrecondition, format, args...)
}

func invalid(format string, args ...any) error {
	return status.Errorf(codes.InvalidArgument, format, args...)
}
