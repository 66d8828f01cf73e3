package shim

import (
	"context"
	"errors"
	"regexp"

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
	text := errorText(err)
	if e != nil && e.Denied() {
		text += " (hint: " + denialHint(e.Message) + ")"
	}
	return status.Error(code, text)
}

// denial is how a guest's agent words a refusal by the pod's policy. Its protocol has nothing else that names the rule.
var denial = regexp.MustCompile(`^([A-Za-z]+) is blocked by policy`)

// denialHint says what helps the pod's owner, who reads it among the pod's events.
func denialHint(text string) string {
	rule := ""
	if m := denial.FindStringSubmatch(text); m != nil {
		rule = m[1]
	}
	switch rule {
	case "CreateContainerRequest":
		return "`cloister policy generate` makes a policy of the manifest as it is now; `cloister policy explain` shows what one has"
	case "CopyFileRequest":
		return "`cloister policy generate` with the ConfigMaps and Secrets as they are now, or with --any-files; a change of those that the" +
			" policy binds needs a new pod"
	case "ExecProcessRequest":
		return "the policy has the commands of probes and hooks; `cloister policy generate --allow-exec COMMAND` adds one"
	}
	return "`cloister policy explain` of the pod's manifest shows what its policy allows"
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
