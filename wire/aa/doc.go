// Package aa is the contract of the attestation agent's socket inside the guest:
// evidence, tokens and runtime measurements, spoken over ttrpc.
package aa
