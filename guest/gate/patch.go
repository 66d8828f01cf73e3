package gate

import (
	"context"
	"errors"
	"fmt"
	"slices"
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
	value ast.Value
	lasts bool // stays when the request fails
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
	lasts, _ := member(o, "lasts").(ast.Boolean)
	op := operation{path: path, lasts: bool(lasts)}
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
	op.value, err = copied(value)
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

// change is what a decision has done to one member of the state, as far as it may be taken back.
type change struct {
	key    string
	before ast.Value // nil when it was absent
	by, of uint64    // the decision, and the one that had written the member before
}

// writers tells which decision has written a member of the state last. Values do not tell: two decisions may write the same.
type writers struct {
	count uint64
	last  map[string]uint64
}

// applyOps applies all operations or none, and tells what they changed.
func (p *policy) applyOps(ctx context.Context, ops []operation) ([]change, error) {
	if len(ops) == 0 {
		return nil, nil
	}
	txn, err := p.store.NewTransaction(ctx, storage.WriteParams)
	if err != nil {
		return nil, err
	}
	changes, err := p.write(ctx, txn, ops)
	if err != nil {
		p.store.Abort(ctx, txn)
		return nil, err
	}
	if err := p.store.Commit(ctx, txn); err != nil {
		return nil, err
	}
	p.writers.count++
	for i := range changes {
		changes[i].by = p.writers.count
	}
	for _, op := range ops {
		p.writers.last[op.path[1]] = p.writers.count
	}
	return changes, nil
}

func (p *policy) write(ctx context.Context, txn storage.Transaction, ops []operation) ([]change, error) {
	var changes []change
	for _, op := range ops {
		key := op.path[1]
		lasting := func(other operation) bool { return other.lasts && other.path[1] == key }
		if slices.ContainsFunc(changes, func(c change) bool { return c.key == key }) || slices.ContainsFunc(ops, lasting) {
			continue
		}
		before, err := p.member(ctx, txn, key)
		if err != nil {
			return nil, err
		}
		changes = append(changes, change{key: key, before: before, of: p.writers.last[key]})
	}
	for i, op := range ops {
		if err := p.store.Write(ctx, txn, op.op, op.path, op.value); err != nil {
			return nil, fmt.Errorf("state change %d: %w", i, err)
		}
	}
	return changes, nil
}

// member reads a copy of one member of the state.
func (p *policy) member(ctx context.Context, txn storage.Transaction, key string) (ast.Value, error) {
	v, err := p.store.Read(ctx, txn, storage.Path{"pstate", key})
	if storage.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading policy state: %w", err)
	}
	av, ok := v.(ast.Value)
	if !ok {
		return ast.InterfaceToValue(v)
	}
	if av, err = copied(av); err != nil {
		return nil, fmt.Errorf("reading policy state: %w", err)
	}
	return av, nil
}

// copied is v as JSON has it, with none of its parts in common: the store changes values in place, and those of an answer may be
// constants of the policy.
func copied(v ast.Value) (ast.Value, error) {
	switch v := v.(type) {
	case ast.Null, ast.Boolean, ast.Number, ast.String:
		return v, nil
	case *ast.Array:
		terms := make([]*ast.Term, v.Len())
		for i := range terms {
			w, err := copied(v.Elem(i).Value)
			if err != nil {
				return nil, err
			}
			terms[i] = ast.NewTerm(w)
		}
		return ast.NewArray(terms...), nil
	case ast.Object:
		if plain, err := copiedObject(v); plain != nil || err != nil {
			return plain, err
		}
	}
	plain, err := ast.JSON(v) // sets become arrays, keys text
	if err != nil {
		return nil, err
	}
	return ast.InterfaceToValue(plain)
}

// copiedObject is nil for an object with keys that are no text.
func copiedObject(o ast.Object) (ast.Value, error) {
	items := make([][2]*ast.Term, 0, o.Len())
	for _, k := range o.Keys() {
		if _, text := k.Value.(ast.String); !text {
			return nil, nil
		}
		w, err := copied(o.Get(k).Value)
		if err != nil {
			return nil, err
		}
		items = append(items, ast.Item(k, ast.NewTerm(w)))
	}
	return ast.NewObject(items...), nil
}

// errStateMoved means that the changes of a decision were built upon and cannot be taken back.
var errStateMoved = errors.New("the policy's state has changed since")

// revert takes changes back, all or none, provided that no later decision has written what they touched.
func (p *policy) revert(ctx context.Context, changes []change) error {
	if len(changes) == 0 {
		return nil
	}
	for _, c := range changes {
		if p.writers.last[c.key] != c.by {
			return errStateMoved
		}
	}
	txn, err := p.store.NewTransaction(ctx, storage.WriteParams)
	if err != nil {
		return err
	}
	for _, c := range changes {
		if err := p.writeBack(ctx, txn, c); err != nil {
			p.store.Abort(ctx, txn)
			return err
		}
	}
	if err := p.store.Commit(ctx, txn); err != nil {
		return err
	}
	for _, c := range changes {
		p.writers.last[c.key] = c.of
	}
	return nil
}

func (p *policy) writeBack(ctx context.Context, txn storage.Transaction, c change) error {
	path := storage.Path{"pstate", c.key}
	if c.before != nil {
		return p.store.Write(ctx, txn, storage.AddOp, path, c.before)
	}
	err := p.store.Write(ctx, txn, storage.RemoveOp, path, nil)
	if storage.IsNotFound(err) {
		return nil // added and removed by the same decision
	}
	return err
}
