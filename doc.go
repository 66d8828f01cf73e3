// Package cloister is the root of the module. It carries what belongs to no zone: the lock file of the guest image.
// Start reading in docs/architecture.
package cloister

import _ "embed"

// GuestLock is guest.lock: the kernel package and the runc version that a guest image is made of.
//
//go:embed guest.lock
var GuestLock []byte
