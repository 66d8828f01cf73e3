// Package containerd runs private containerd daemons for tests: each with its own root, state, socket, configuration, CNI network and
// CNI records, so that the machine's own containerd, if there is one, is left alone.
//
// Version "1.6" is the distribution's package. Version "2" is the release that tools/go.mod names, built from the Go module proxy once
// and kept below the user's CLOISTER_HOME. Any release from 1.6 on is built in the same way when a suite is asked for it:
//
//	CLOISTER_CONTAINERD_VERSIONS=1.7.35,2.1.9 go test ./test/containerd ./test/snapshotter
//
// When a test ends, what its daemon left behind is listed and fails the test: processes,
// mounts, network interfaces, addresses, cgroups and files.
package containerd
