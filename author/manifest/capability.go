package manifest

import (
	"slices"
	"strings"

	"github.com/cloister/cloister/author/kubernetes"
)

// defaultCapabilities are those of containerd.
var defaultCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// allCapabilities in kernel order.
var allCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
	"CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT",
	"CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
	"CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
	"CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND",
	"CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

// capability returns the kernel's name of a capability written with or without CAP_.
func capability(name string) (string, bool) {
	name = strings.ToUpper(name)
	if name == "ALL" {
		return name, true
	}
	name = "CAP_" + strings.TrimPrefix(name, "CAP_")
	return name, slices.Contains(allCapabilities, name)
}

// capabilities applies drop, then add, to the default set.
func capabilities(c kubernetes.Capabilities) []string {
	set := slices.Clone(defaultCapabilities)
	for _, d := range c.Drop {
		switch name, _ := capability(d); name {
		case "ALL":
			set = nil
		default:
			set = slices.DeleteFunc(set, func(s string) bool { return s == name })
		}
	}
	for _, a := range c.Add {
		switch name, _ := capability(a); {
		case name == "ALL":
			set = slices.Clone(allCapabilities)
		case !slices.Contains(set, name):
			set = append(set, name)
		}
	}
	return set
}
