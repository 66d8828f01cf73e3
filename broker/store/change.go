package store

import (
	"errors"
	"fmt"
)

// Change is one write of Swap.
type Change struct {
	// Absent says that the key must have no value yet; otherwise its value must have the Version.
	Absent  bool
	Version int64
	// Value is what the key has afterwards; nil removes it.
	Value []byte
}

// CheckChange refuses changes that no back end makes.
func CheckChange(ns, key string, c Change) error {
	err := errors.Join(Check(ns, key), CheckValue(c.Value))
	if c.Absent && c.Value == nil {
		err = errors.Join(err, fmt.Errorf("%s/%s is to be removed and to be absent", ns, key))
	}
	return err
}
