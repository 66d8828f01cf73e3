package container

import (
	"errors"
	"fmt"
)

// State is where a container is in its life.
type State int

// A container is made, waits for its start, runs, may be paused, ends and is deleted.
const (
	Creating State = iota
	Created
	Running
	Paused
	Stopped
	Deleted
)

func (s State) String() string {
	names := [...]string{"creating", "created", "running", "paused", "stopped", "deleted"}
	if s < 0 || int(s) >= len(names) {
		return fmt.Sprintf("state %d", int(s))
	}
	return names[s]
}

// ErrState means that a container is not in a state that allows what was asked.
var ErrState = errors.New("container is in the wrong state")

// allowed tells whether a life may go from one state to the next. Everything may end, and what has ended is only deleted.
func (s State) allowed(next State) bool {
	switch next {
	case Created:
		return s == Creating
	case Running:
		return s == Created || s == Paused
	case Paused:
		return s == Running
	case Stopped:
		return s == Creating || s == Created || s == Running || s == Paused
	case Deleted:
		return s == Creating || s == Stopped
	}
	return false
}

// transitionError names what was tried.
func transitionError(id string, from, to State) error {
	return fmt.Errorf("container %s is %s and cannot become %s: %w", id, from, to, ErrState)
}
