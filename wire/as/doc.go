// Package as is the contract of the attestation service: evidence in, token out,
// spoken over grpc. Only servers and their tools use it, never the guest.
package as
