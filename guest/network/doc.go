// Package network sets up the guest's interfaces, routes and neighbours as the host asks.
//
// The containers of a pod share the network of the machine, so there is one namespace and everything happens in it.
// Nothing here is trusted to be true: the network belongs to the host, and whatever must be private is protected above it.
package network
