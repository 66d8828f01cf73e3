package need

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cloister/cloister/broker/collateral"
	"github.com/cloister/cloister/broker/collateral/nvidia"
	verifier "github.com/cloister/cloister/broker/verifier/nvidia"
)

// parallel bounds how many documents are asked for at once.
const parallel = 4

// Fetch gets everything and returns it by kind and name. It gets as much as it can; the error names all that is missing.
func Fetch(ctx context.Context, cache collateral.Getter, n *Needs, now time.Time) ([]collateral.Item, error) {
	r := &recorder{from: cache, items: map[collateral.Key]collateral.Item{}}
	errs := make([]error, len(n.Keys))
	slots := make(chan struct{}, parallel)
	var wg sync.WaitGroup
	for i, key := range n.Keys {
		slots <- struct{}{}
		wg.Go(func() {
			_, errs[i] = r.Get(ctx, collateral.Query{Key: key})
			<-slots
		})
	}
	wg.Wait()
	for _, d := range n.Devices {
		errs = append(errs, r.devices(ctx, d, now))
	}
	return r.list(), errors.Join(errs...)
}

// recorder remembers what a verifier asked for.
type recorder struct {
	from collateral.Getter

	mu     sync.Mutex
	items  map[collateral.Key]collateral.Item
	failed []error
}

// Get is part of collateral.Getter. What is good only once is handed on and not remembered.
func (r *recorder) Get(ctx context.Context, q collateral.Query) (collateral.Item, error) {
	it, err := r.from.Get(ctx, q)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err != nil:
		r.failed = append(r.failed, err)
	case !q.NoStore:
		r.items[q.Key] = it
	}
	return it, err
}

// devices lets the verifier look at evidence of devices, for what it asks on the way. A document that it could not get is a claim to
// the verifier, and an error here.
func (r *recorder) devices(ctx context.Context, evidence json.RawMessage, now time.Time) error {
	r.failed = nil
	_, err := verifier.Verify(ctx, evidence, verifier.Options{Offline: true, Now: now, Collateral: nvidia.Collateral{Cache: r}})
	return errors.Join(append(r.failed, err)...)
}

func (r *recorder) list() []collateral.Item {
	out := make([]collateral.Item, 0, len(r.items))
	for _, it := range r.items {
		out = append(out, it)
	}
	slices.SortFunc(out, func(a, b collateral.Item) int {
		return cmp.Or(strings.Compare(string(a.Key.Kind), string(b.Key.Kind)), strings.Compare(a.Key.Name, b.Key.Name))
	})
	return out
}
