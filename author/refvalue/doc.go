// Package refvalue predicts, from artefacts alone, the TPM registers of a
// guest that boots with OVMF and a directly loaded kernel. Nobody types a
// measurement in, and nobody copies one from a machine that has to be trusted.
//
// What is predicted (SHA-256 bank), and from what:
//
//	PCR 0  firmware version string, the two firmware volumes OVMF unpacks
//	       itself into memory, separator. The first volume is run in place,
//	       so what is measured holds a few variables that depend on the
//	       machine: number of CPUs, memory, sleep states (see platform.go).
//	PCR 4  the kernel as a PE image (Authenticode digest), the boot action,
//	       separator. QEMU before version 10 patches the header of the kernel
//	       it hands over (see bzimage.go); both forms are predicted.
//	PCR 7  secure boot state and its (absent) keys, separator.
//	PCR 8  the digest of the initdata document, extended by the guest.
//	PCR 9  the command line and the initrd, measured by the kernel's EFI stub.
//
// What is not, and why: PCR 1 holds the boot order that the firmware makes up
// on each boot, and the host's view of its configuration; PCR 2 and 3 measure
// option ROMs, which the host adds or leaves out without an effect on what the
// guest executes (it runs none); PCR 5 partition tables and boot services
// exit; PCR 6 is for the platform's maker; PCR 10 is the running kernel's own
// integrity log. None of them identifies what a guest runs.
package refvalue
