package gate

import (
	"context"

	"github.com/open-policy-agent/opa/v1/ast"
)

// SealedFile is a file with a sealed secret in a volume that the host has copied.
type SealedFile struct {
	ContainerID string
	// Destination is where the container mounts the volume.
	Destination string
	// Name of the file in the volume, empty for a volume that is a single file.
	Name string
	// Path of the file as the host has copied it.
	Path string
	// SHA256 of the sealed text, 64 hexadecimal characters.
	SHA256 string
}

// AllowUnsealFile decides whether the guest opens a sealed secret in a file. The host chooses what it copies: without the
// policy's word it could have any secret of the pod's owner opened where it can read it. The rule is UnsealFileRequest with the
// input {container_id, destination, name, path, sha256}; a policy without it opens none.
func (e *Engine) AllowUnsealFile(ctx context.Context, f SealedFile) error {
	keys := []string{"container_id", "destination", "name", "path", "sha256"}
	return e.allowFact(ctx, "UnsealFileRequest", false, textInput(keys, f.ContainerID, f.Destination, f.Name, f.Path, f.SHA256))
}

// AllowUnsealVariable decides whether the guest opens a sealed secret in a variable (NAME=sealed…) of a process that the policy
// has allowed. The rule is UnsealVariableRequest with the input {container_id, variable}; it is for policies that allow variables
// by patterns, which a host can fill. A policy without it has all opened that it allows.
func (e *Engine) AllowUnsealVariable(ctx context.Context, containerID, variable string) error {
	return e.allowFact(ctx, "UnsealVariableRequest", true, textInput([]string{"container_id", "variable"}, containerID, variable))
}

// allowFact decides about something that the guest itself has found. unsaid is the answer of a policy that does not have the rule.
func (e *Engine) allowFact(ctx context.Context, rule string, unsaid bool, in *input) error {
	if err := e.acquire(ctx); err != nil {
		return &InternalError{Rule: rule, Err: err}
	}
	defer func() { <-e.lock }()
	if unsaid && !e.open && len(e.policy.compiler.GetRules(append(ast.MustParseRef(packagePath), ast.StringTerm(rule)))) == 0 {
		return nil
	}
	_, err := e.decideLocked(ctx, rule, in)
	return err
}

func textInput(keys []string, values ...string) *input {
	b := &termBuilder{}
	terms := make([]*ast.Term, len(values))
	for i, v := range values {
		terms[i] = b.String(v)
	}
	return &input{term: b.Object(keys, terms), secrets: &secrets{}}
}
