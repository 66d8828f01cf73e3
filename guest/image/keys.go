package image

import (
	"context"
	"errors"
	"io"
)

type unwrapFunc func(ctx context.Context, annotations map[string]string) (func(io.Reader) (io.Reader, error), error)

func newUnwrapper(keys KeyProvider) unwrapFunc {
	return func(ctx context.Context, annotations map[string]string) (func(io.Reader) (io.Reader, error), error) {
		return nil, errors.New("not yet")
	}
}
