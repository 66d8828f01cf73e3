// Package guestimage builds the guest image: a stock distribution kernel and
// a deterministic initrd with the guest binary as /init, runc, and the few
// kernel modules a pod needs.
//
// The life of a build:
//
//  1. The lock file names the kernel package (name, version, SHA-256) and the
//     runc module (version, go.sum hash). A package already in the cache with
//     that digest needs no network.
//  2. Otherwise apt fetches it with a private configuration: its own source
//     list, state and cache. The signature check is apt's own, against the
//     distribution's keyring; the machine's apt state is not touched.
//  3. The kernel and its modules are unpacked, the dependencies of the wanted
//     modules are resolved from the modules themselves.
//  4. The guest binary and runc are built without anything of the machine in
//     them (paths, VCS state, build ids).
//  5. All of it becomes one cpio archive, sorted, with no times and no owners,
//     compressed by one thread. Two builds give the same bytes.
//
// Everything that goes in is part of a key; an image with the same key is
// taken from the cache. A directory appears by rename, so that it is complete
// or absent, and builders of one cache wait for each other.
package guestimage
