// Package rvps is the contract of the reference value provider service, spoken
// over grpc. Only servers and their tools use it, never the guest.
package rvps
