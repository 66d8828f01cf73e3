// Package podnet tests the network of pods between its two ends, without a virtual machine.
//
// A node is a network namespace in which the distribution's CNI plugins make pods, so that the machine's own network stays as it is.
// host/network joins a pod's namespace with taps, as the shim does. The guest is one more namespace: the frames of the taps are
// carried to a card in it, which guest/network configures with the very messages the agent would get. What answers pings and serves
// HTTP behind that is the kernel.
package podnet
