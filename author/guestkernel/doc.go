// Package guestkernel builds a small kernel for guests from the distribution's source package.
//
// The stock kernel is made for any machine: it finds out at each boot what it runs on, and loads drivers from files. A guest's machine is
// known beforehand. The small kernel has what such a machine has, what the guest needs, and nothing that can be loaded later.
//
// The life of a build:
//
//  1. guest.lock names the source package with its digest; apt fetches it and checks the distribution's signature
//     (guestimage.FetchSource).
//  2. The fragments in config/ are all that is switched on, beside what those options need: every other option is off (allnoconfig).
//     When the kernel does not take one of them, the build fails and names it.
//  3. The kernel is compiled in a folder of its own, in an environment of our own, with fixed names and times.
//     The same compiler makes the same bytes.
//  4. The result goes into the cache under a key of everything that went in.
//
// The image is packed by guestimage with Options.KernelDir.
package guestkernel
