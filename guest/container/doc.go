// Package container runs the containers of the pod with runc.
//
// A container's specification comes from the untrusted host. The policy has accepted it by the time it gets here, yet
// this package confines it once more: it builds the runtime's configuration field by field from what it knows, refuses
// what it does not know, keeps bind mounts below the pod's own directories even against symlinks that change meanwhile,
// and withholds devices that would open the guest itself. Hooks, which would be the host's programs running as root in
// the guest, do not exist.
//
// A container's life is a small state machine (state.go); its processes end only through guest/reap.
package container
