package gate

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/storage"
)

// Limits of the state changes of one decision.
const (
	maxOperations  = 256
	maxPointer     = 4096
	maxPointerPart = 16
)

// operation is one RFC 6902 operation on policy state.
type operation struct {
	op    storage.PatchOp
	path  storage.Path
	value any
}

// readOperations checks the member `ops` of an answer. Only add, remove and
// replace below /pstate are accepted: a policy changes its state, never its rules.
func readOperations(v ast.Value) ([]operation, error) {
	if v == nil || v.Compare(ast.NullValue) == 0 {
		return nil, nil
	}
	list, ok := v.(*ast.Array)
	if !ok {
		return nil, fmt.Errorf("policy answer member ops is of type %s, expected array", ast.ValueName(v))
	}
	if list.Len() > maxOperations {
		return nil, fmt.Errorf("policy asks for %d state changes, the limit is %d", list.Len(), maxOperations)
	}
	ops := make([]operation, 0, list.Len())
	for i := range list.Len() {
		o, ok := list.Elem(i).Value.(ast.Object)
		if !ok {
			return nil, fmt.Errorf("state change %d is not an object", i)
		}
		op, err := readOperation(o)
		if err != nil {
			return nil, fmt.Errorf("state change %d: %w", i, err)
		}
		ops = append(ops, op)
	}
	return ops, nil
}

func readOperation(o ast.Object) (operation, error) {
	kind, _ := member(o, "op").(ast.String)
	pointer, ok := member(o, "path").(ast.String)
	if !ok {
		return operation{}, errors.New("no string member path")
	}
	path, err := parsePointer(string(pointer))
	if err != nil {
		return operation{}, err
	}
	op := operation{path: path}
	switch kind {
	case "add":
		op.op = storage.AddOp
	case "replace":
		op.op = storage.ReplaceOp
	case "remove":
		op.op = storage.RemoveOp
		return op, nil
	default:
		return operation{}, fmt.Errorf("operation %.32q is not one of add, remove, replace", string(kind))
	}
	value := member(o, "value")
	if value == nil {
		return operation{}, fmt.Errorf("%s of %.64q has no value", kind, string(pointer))
	}
	op.value, err = ast.JSON(value)
	return op, err
}

// parsePointer reads an RFC 6901 pointer strictly below /pstate.
func parsePointer(s string) (storage.Path, error) {
	if len(s) > maxPointer || !strings.HasPrefix(s, "/pstate/") {
		return nil, fmt.Errorf("path %.64q is not below /pstate/", s)
	}
	parts := strings.Split(s[1:], "/")
	if len(parts) > maxPointerPart {
		return nil, fmt.Errorf("path %.64q has more than %d parts", s, maxPointerPart)
	}
	for i, part := range parts {
		if strings.Contains(strings.NewReplacer("~0", "", "~1", "").Replace(part), "~") {
			return nil, fmt.Errorf("path %.64q has a bad escape", s)
		}
		parts[i] = strings.ReplaceAll(strings.ReplaceAll(part, "~1", "/"), "~0", "~")
	}
	return parts, nil
}

// applyOps applies all operations or none.
func (p *policy) applyOps(ctx context.Context, ops []operation) error {
	if len(ops) == 0 {
		return nil
	}
	txn, err := p.store.NewTransaction(ctx, storage.WriteParams)
	if err != nil {
		return err
	}
	for i, op := range ops {
		if err := p.store.Write(ctx, txn, op.op, op.path, op.value); err != nil {
			p.store.Abort(ctx, txn)
			return fmt.Errorf("state change %d: %w", i, err)
		}
	}
	return p.store.Commit(ctx, txn)
}
