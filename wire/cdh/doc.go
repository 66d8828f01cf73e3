// Package cdh is the contract of the confidential data hub's socket inside the
// guest: sealed secrets, resources, secure mounts and image pulls, spoken over
// ttrpc.
package cdh
