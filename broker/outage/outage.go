// Package outage has the one error by which "a service elsewhere cannot be asked now" differs from "it said no".
//
// Both refuse the guest. The first is worth another try, and is answered with status 503; the second is not.
package outage

import "errors"

// ErrUnavailable is wrapped by errors that may go away by themselves: a service that is down, slow, or overloaded.
var ErrUnavailable = errors.New("a service that is needed cannot be reached")

// RetryAfter is what clients are told to wait, in seconds.
const RetryAfter = "5"
