// Package cri is a small kubelet for tests: it drives containerd through CRI's gRPC API and its streaming server as the kubelet does,
// with volumes at the kubelet's paths. The tests beside it are scenarios which run for each version of containerd and each runtime
// handler: with runc they show that the scenarios are right, with Cloister's handlers that a user notices no difference.
//
// It is a module of its own so that Kubernetes' client libraries are no dependency of anything that is shipped.
package cri
