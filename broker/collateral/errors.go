package collateral

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

var (
	// ErrNotCovered says that a source never has documents of the kind that was asked for.
	ErrNotCovered = errors.New("not covered by this source")
	// ErrNotFound says that a source does not have the document.
	ErrNotFound = errors.New("not found")
)

// BusyError says that a source is down or overloaded: asking it for another document would not help either.
type BusyError struct {
	Err error
	// Wait is how long the source asked to be left alone; zero when it did not say.
	Wait time.Duration
}

// Error is part of error.
func (e *BusyError) Error() string {
	if e.Wait > 0 {
		return fmt.Sprintf("%v (asks to wait %s)", e.Err, e.Wait.Round(time.Second))
	}
	return e.Err.Error()
}

// Unwrap is part of error.
func (e *BusyError) Unwrap() error { return e.Err }

// Attempt is one source's failure.
type Attempt struct {
	Source string
	Err    error
}

// FetchError says that no source delivered a document, and why, in the order they were asked.
type FetchError struct {
	Key      Key
	Attempts []Attempt
}

// Error names each source with its reason.
func (e *FetchError) Error() string {
	if len(e.Attempts) == 0 {
		return fmt.Sprintf("collateral %s: no configured source has documents of this kind", e.Key)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "collateral %s: no source delivered it: ", e.Key)
	for i, a := range e.Attempts {
		if i > 0 {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, "%s: %v", a.Source, a.Err)
	}
	return b.String()
}

// Unwrap lists the reasons.
func (e *FetchError) Unwrap() []error {
	errs := make([]error, 0, len(e.Attempts))
	for _, a := range e.Attempts {
		errs = append(errs, a.Err)
	}
	return errs
}

// missing tells whether every source that was asked answered that there is no such document.
func (e *FetchError) missing() bool {
	for _, a := range e.Attempts {
		if !errors.Is(a.Err, ErrNotFound) {
			return false
		}
	}
	return true
}

// waitingError stands for a source that is not asked for a while.
type waitingError struct {
	left     time.Duration
	failures int
	last     error
}

func (e *waitingError) Error() string {
	return fmt.Sprintf("not asked again for %s after %d failure(s), the last: %v", e.left.Round(time.Second), e.failures, e.last)
}

func (e *waitingError) Unwrap() error { return e.last }

// deferredError is a failure of a moment ago, repeated without asking.
type deferredError struct {
	err  error
	left time.Duration
}

func (e *deferredError) Error() string {
	return fmt.Sprintf("%v (failed a moment ago, asked again in %s)", e.err, e.left.Round(time.Second))
}

func (e *deferredError) Unwrap() error { return e.err }
