// Package shim is containerd's runtime service for pods in virtual machines: the task service (versions 2 and 3) and the sandbox
// service, both on top of package sandbox.
//
// One process serves one pod. containerd starts it with the pod's first container (package bootstrap), and asks it for everything
// else over one socket:
//
//	service.go   requests on containers: delete, state, pause, stats, shutdown
//	create.go    a container is made
//	start.go     the sandbox is made, and removed
//	process.go   a process of a container: start, wait, signals, streams, exit
//	pod.go       the sandbox service of containerd 2
//	errors.go    what containerd is told when something fails
//
// What happens is published as events (package events) in the order in which it happened to a container. The exit of a process is
// published as soon as the guest tells it, with the guest's exact code; when the VM ends, its processes end with 255.
package shim
