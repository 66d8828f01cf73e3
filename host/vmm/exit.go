package vmm

import (
	"fmt"
	"strings"
)

// ExitError says how a VM ended that nobody asked to end.
type ExitError struct {
	// Name is the name of the VM.
	Name string
	// Reason is what the guest said before it ended (its fatal error or a kernel panic), or "".
	Reason string
	// Shutdown is the cause that QEMU reported, for example guest-shutdown, or "".
	Shutdown string
	// Status is how the QEMU process ended, for example "exit status 1"; "" means exit status 0.
	Status string
	// Messages are the last lines QEMU itself printed.
	Messages []string
	// Console is the end of the guest's console.
	Console []string
}

func (e *ExitError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "virtual machine %s ended: ", e.Name)
	switch {
	case e.Reason != "":
		b.WriteString(e.Reason)
	case e.Status != "":
		fmt.Fprintf(&b, "QEMU stopped with %s", e.Status)
	case e.Shutdown == "guest-shutdown":
		b.WriteString("the guest powered off without giving a reason")
	case e.Shutdown != "":
		b.WriteString("QEMU reported " + e.Shutdown)
	default:
		b.WriteString("QEMU stopped without giving a reason")
	}
	section := func(title string, lines []string) {
		if len(lines) > 0 {
			fmt.Fprintf(&b, "\n%s:\n  %s", title, strings.Join(lines, "\n  "))
		}
	}
	section("messages of QEMU", e.Messages)
	section("end of the console", e.Console)
	return b.String()
}
