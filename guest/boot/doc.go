// Package boot is the guest's start and end as PID 1.
//
// The order is the security argument, so Run reads as a list: file systems and modules, then the initdata is measured
// into PCR 8 before a byte of it is interpreted, then the policy it carries is loaded, and only then does anything
// listen to the host. A step that fails ends the machine with one line on the console that says why; nothing continues
// half configured.
package boot
