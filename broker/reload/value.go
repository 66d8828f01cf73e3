package reload

import (
	"context"
	"sync/atomic"
)

// Value is something that is parsed from files and replaced as a whole.
type Value[T any] struct {
	parse   func(ctx context.Context) (T, error)
	current atomic.Pointer[T]
}

// NewValue parses for the first time, which must succeed.
func NewValue[T any](ctx context.Context, parse func(ctx context.Context) (T, error)) (*Value[T], error) {
	v := &Value[T]{parse: parse}
	return v, v.Reload(ctx)
}

// Get returns the current value. It is shared by all callers, who must not change it.
func (v *Value[T]) Get() T { return *v.current.Load() }

// Reload parses again; after an error the old value is still there. It fits Item.Load.
func (v *Value[T]) Reload(ctx context.Context) error {
	fresh, err := v.parse(ctx)
	if err != nil {
		return err
	}
	v.current.Store(&fresh)
	return nil
}
