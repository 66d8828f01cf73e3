// Package cri is a small kubelet for tests: it drives containerd through CRI's gRPC API and its streaming server as the kubelet does,
// with volumes at the kubelet's paths. The tests beside it are scenarios which run for each version of containerd and each runtime
// handler: with runc they show that the scenarios are right, with Cloister's handlers that a user notices no difference.
//
// CLOISTER_CONTAINERD_VERSIONS names other versions of containerd than the standard ones, separated by commas: 1.6 (the distribution's
// package), 2 (the release of test/containerd/tools), or any release, such as 1.7.35 or 2.1.9, which is built from the Go module proxy and
// kept. TestVersions needs no virtual machine and is the first to ask of a new one:
//
//	CLOISTER_CONTAINERD_VERSIONS=2.2.9 go test -run TestVersions -v .
//
// It is a module of its own so that Kubernetes' client libraries are no dependency of anything that is shipped.
package cri
