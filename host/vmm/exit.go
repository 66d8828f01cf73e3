package vmm

import (
	"cmp"
	"fmt"
	"strings"
)

// ExitError says how a VM ended that nobody asked to end.
type ExitError struct {
	// Name is the name of the VM.
	Name string
	// Monitor is what the messages call the monitor; empty means QEMU.
	Monitor string
	// Reason is what the guest said before it ended (its fatal error or a kernel panic), or "".
	Reason string
	// Shutdown is the cause that the monitor reported, for example guest-shutdown, or "".
	Shutdown string
	// Status is how the monitor's process ended, for example "exit status 1"; "" means exit status 0.
	Status string
	// Messages are the last lines the monitor itself printed.
	Messages []string
	// Console is the end of the guest's console.
	Console []string
}

func (e *ExitError) Error() string {
	var b strings.Builder
	monitor := cmp.Or(e.Monitor, "QEMU")
	fmt.Fprintf(&b, "virtual machine %s ended: ", e.Name)
	switch {
	case e.Reason != "":
		b.WriteString(e.Reason)
	case e.Status != "":
		fmt.Fprintf(&b, "%s stopped with %s", monitor, e.Status)
	case e.Shutdown == "guest-shutdown":
		b.WriteString("the guest powered off without giving a reason")
	case e.Shutdown != "":
		b.WriteString(monitor + " reported " + e.Shutdown)
	default:
		b.WriteString(monitor + " stopped without giving a reason")
	}
	section := func(title string, lines []string) {
		if len(lines) > 0 {
			fmt.Fprintf(&b, "\n%s:\n  %s", title, strings.Join(lines, "\n  "))
		}
	}
	section("messages of "+monitor, e.Messages)
	section("end of the console", e.Console)
	return b.String()
}
