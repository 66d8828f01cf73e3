// Package zones holds no code: its tests keep the trust boundaries between the top folders, and the reviewed list of
// everything that is linked into the guest.
package zones
