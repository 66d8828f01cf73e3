// Package hypervisor is the contract between a shim and a remote hypervisor that
// keeps pods in cloud machines, spoken over ttrpc.
package hypervisor
