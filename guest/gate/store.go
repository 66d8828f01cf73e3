package gate

import (
	"context"
	"fmt"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
)

// stateStore keeps the state of a policy, data.pstate. It is changed by transactions of OPA's store. Evaluations read it where
// it lies: the engine's lock keeps both apart. It implements storage.Store and topdown.BaseCache.
type stateStore struct {
	storage.Store
	now ast.Object // what the store has below pstate since the last commit
}

// reading is the transaction of evaluations.
type reading struct{}

// ID implements storage.Transaction.
func (reading) ID() uint64 { return 0 }

var (
	stateKey   = ast.StringTerm("pstate")
	errNoState = &storage.Error{Code: storage.NotFoundErr, Message: "there is no such document"}
)

func newStore() *stateStore {
	s := inmem.NewFromObjectWithOpts(map[string]any{"pstate": map[string]any{}},
		inmem.OptRoundTripOnWrite(false), inmem.OptReturnASTValuesOnRead(true))
	return &stateStore{Store: s, now: ast.NewObject()}
}

// Read implements storage.Store.
func (s *stateStore) Read(ctx context.Context, txn storage.Transaction, path storage.Path) (any, error) {
	if _, ok := txn.(reading); !ok {
		return s.Store.Read(ctx, txn, path)
	}
	if len(path) == 0 {
		return ast.NewObject(ast.Item(stateKey, ast.NewTerm(s.now))), nil
	}
	if path[0] != "pstate" {
		return nil, errNoState
	}
	var v ast.Value = s.now
	for _, key := range path[1:] {
		o, ok := v.(ast.Object)
		if !ok {
			return storage.ReadOne(ctx, s.Store, path) // it knows how arrays are addressed
		}
		t := o.Get(ast.StringTerm(key))
		if t == nil {
			return nil, errNoState
		}
		v = t.Value
	}
	return v, nil
}

// Get implements topdown.BaseCache: what is in the state needs no copy.
func (s *stateStore) Get(ref ast.Ref) ast.Value {
	if len(ref) < 2 || !ref[1].Equal(stateKey) {
		return nil
	}
	v, err := s.now.Find(ref[2:])
	if err != nil {
		return nil
	}
	return v
}

// Put implements topdown.BaseCache. Nothing is kept but the state.
func (*stateStore) Put(ast.Ref, ast.Value) {}

// Commit implements storage.Store.
func (s *stateStore) Commit(ctx context.Context, txn storage.Transaction) error {
	if err := s.Store.Commit(ctx, txn); err != nil {
		return err
	}
	v, err := storage.ReadOne(ctx, s.Store, storage.Path{"pstate"})
	if err != nil {
		return fmt.Errorf("reading policy state: %w", err)
	}
	now, ok := v.(ast.Object)
	if !ok {
		return fmt.Errorf("the policy's state is %T, expected an object", v)
	}
	s.now = now
	return nil
}
