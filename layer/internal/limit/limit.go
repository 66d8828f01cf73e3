// Package limit is the error of all recipes for what is too large.
package limit

import "fmt"

// Error says which limit a stream exceeds.
type Error struct {
	What  string
	Limit int64
}

func (e *Error) Error() string { return fmt.Sprintf("%s exceeds the limit of %d", e.What, e.Limit) }
