package adminauth

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// AnyOf admits whom one of its authorities admits; none admits nobody.
type AnyOf []Authority

// Admit is part of Authority.
func (a AnyOf) Admit(ctx context.Context, c Call) (string, error) {
	var why []error
	for _, one := range a {
		name, err := one.Admit(ctx, c)
		if err == nil {
			return name, nil
		}
		why = append(why, err)
	}
	if len(why) == 0 {
		return "", fmt.Errorf("%w: there is no way to become administrator", ErrDenied)
	}
	return "", errors.Join(why...)
}

// AllOf admits whom all of its authorities admit; none admits nobody.
type AllOf []Authority

// Admit is part of Authority.
func (a AllOf) Admit(ctx context.Context, c Call) (string, error) {
	if len(a) == 0 {
		return "", fmt.Errorf("%w: there is no way to become administrator", ErrDenied)
	}
	var names []string
	for _, one := range a {
		name, err := one.Admit(ctx, c)
		if err != nil {
			return "", err
		}
		names = append(names, name)
	}
	return strings.Join(names, ", "), nil
}
