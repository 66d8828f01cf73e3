package guestimage

import (
	"slices"

	wire "github.com/cloister/cloister/wire/guestimage"
)

// newManifest describes a finished image.
func newManifest(in inputs, tree *kernelTree, mods *moduleSet, guest, runc, initrd, plain []byte) *wire.Manifest {
	// Boot modules first, in their load order; the others as they are listed.
	modules := slices.Clone(mods.Boot)
	for _, p := range mods.paths() {
		if !slices.Contains(modules, p) {
			modules = append(modules, p)
		}
	}
	return &wire.Manifest{
		Schema: wire.Schema,
		Kernel: wire.Kernel{
			Path: "vmlinuz", SHA256: hexSHA256(tree.Kernel), Size: int64(len(tree.Kernel)),
			Version: tree.Release, Package: in.lock.Kernel.Package,
		},
		Initrd: wire.File{Path: "initrd.img", SHA256: hexSHA256(initrd), Size: int64(len(initrd))},
		Plain:  &wire.File{Path: "initrd.cpio", SHA256: hexSHA256(plain), Size: int64(len(plain))},
		Firmware: wire.Firmware{
			CodePath: in.code.path, VarsPath: in.vars.path, CodeSHA256: in.code.sha256, VarsSHA256: in.vars.sha256,
		},
		Cmdline: in.cmdline,
		Binaries: wire.Binaries{
			GuestSHA256: hexSHA256(guest), GuestSize: int64(len(guest)),
			RuncSHA256: hexSHA256(runc), RuncVersion: in.lock.Runc.Version,
		},
		Modules: modules,
		Packages: []wire.Package{
			{Name: in.lock.Kernel.Package, Version: in.lock.Kernel.Version, SHA256: in.lock.Kernel.SHA256},
			{Name: runcModule, Version: in.lock.Runc.Version, SHA256: hexSHA256(runc)},
		},
	}
}
