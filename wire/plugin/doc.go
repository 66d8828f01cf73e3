// Package plugin is the contract with external plugins of the key broker,
// kbs.plugin.v1, spoken over grpc. Only the broker and plugins use it, never
// the guest.
package plugin
