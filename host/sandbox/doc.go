// Package sandbox is the life of one pod in its virtual machine, as a container runtime needs it.
//
//	Create      state file → control group → network → shared directory → VM → guest answers → network and sandbox in the guest
//	container   CreateContainer, StartContainer, Exec, Wait, Signal …: one file with the requests to the guest's agent
//	Stop        the guest ends, then the VM; then everything that was made for it goes, in the opposite order
//
// A sandbox has a directory, ROOT/NAMESPACE/ID. What is made on the host is written there first, so that Cleanup can remove it after a
// crash at any point: the processes end with the process that started them, the rest is found through the directory.
//
// The host is not trusted by the guest, and the guest is not trusted here either: what it answers is bounded in size, its texts are
// cleaned, and every call to it ends at a deadline, with its process, or with the VM.
package sandbox
