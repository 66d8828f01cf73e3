// Package agent is the contract between a host and the agent in a pod's virtual
// machine: the Kata agent protocol, spoken over ttrpc. Its messages come from the
// protobuf packages "grpc" (requests, OCI types, volume statistics, health) and
// "types" (network types).
package agent
