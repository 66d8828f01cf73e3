// Package mux is the guest's side of the channel to the host.
//
// Where the host has vsock, each service listens on its own vsock port. Elsewhere one virtio-serial port carries
// everything: the guest runs a yamux server on it and each stream starts with the number of the port it wants, four
// bytes, big endian. Services see only a net.Listener per port and cannot tell the two apart.
package mux
