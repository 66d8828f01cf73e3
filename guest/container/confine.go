package container

import (
	"errors"
	"fmt"
	"path"
	"strings"
)

// ErrSpec means that a container specification is invalid or asks for more than a container of this guest may have.
var ErrSpec = errors.New("container specification refused")

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrSpec, fmt.Sprintf(format, args...))
}

// maxID keeps ids usable as file names.
const maxID = 128

// ValidID accepts ids of at least two characters that start with a letter or digit and go on with those and ". - _".
func ValidID(id string) error {
	if len(id) < 2 || len(id) > maxID {
		return refuse("id %q must have 2 to %d characters", clip(id), maxID)
	}
	for i, r := range []byte(id) {
		alnum := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !alnum && (i == 0 || r != '.' && r != '-' && r != '_') {
			return refuse("id %q has the character %q at position %d", id, r, i)
		}
	}
	return nil
}

// clip shortens foreign text for an error message.
func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "..."
	}
	return s
}

// cleanAbs checks that p is an absolute path without tricks and returns it cleaned.
func cleanAbs(p string) (string, error) {
	if !path.IsAbs(p) || strings.ContainsRune(p, 0) {
		return "", refuse("path %q is not absolute", clip(p))
	}
	for part := range strings.SplitSeq(p, "/") {
		if part == ".." {
			return "", refuse("path %q contains ..", clip(p))
		}
	}
	return path.Clean(p), nil
}

// below reports whether p is strictly inside dir; both are clean.
func below(p, dir string) bool { return strings.HasPrefix(p, dir+"/") }

// procMounts are the files below /proc that something other than proc may cover.
func procMountAllowed(dest string) bool {
	switch dest {
	case "/proc/cpuinfo", "/proc/diskstats", "/proc/meminfo", "/proc/stat", "/proc/swaps", "/proc/uptime", "/proc/loadavg", "/proc/net/dev":
		return true
	}
	return false
}

// kernelFS are the file systems a container may mount that show no files of the guest or the host.
func kernelFS(fstype string) bool {
	switch fstype {
	case "proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2":
		return true
	}
	return false
}

// checkSysctl accepts settings that belong to a namespace of the container. The network is the guest's only one: what a
// container changes there holds for the guest's services and for all others, so of those only the settings are accepted
// that Kubernetes calls safe, which cannot forward, redirect or open anything.
func checkSysctl(key string) error {
	for part := range strings.SplitSeq(strings.ReplaceAll(key, "/", "."), ".") {
		if part == "" {
			return refuse("sysctl %q is not a name", clip(key))
		}
	}
	switch key {
	case "kernel.domainname", "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax",
		"kernel.shmmni", "kernel.shm_rmid_forced":
		return nil
	case "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start", "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range",
		"net.ipv4.ip_local_reserved_ports", "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl",
		"net.ipv4.tcp_keepalive_probes":
		return nil
	}
	switch {
	case strings.HasPrefix(key, "fs.mqueue."):
		return nil
	case strings.HasPrefix(key, "net."):
		return refuse("sysctl %s would change the network of the whole pod, expected one that Kubernetes calls safe", clip(key))
	}
	return refuse("sysctl %s is not of a namespace of the pod", clip(key))
}

// forbiddenChar reports character devices that would open the guest itself: its memory, its I/O ports and its TPM,
// with which a container could speak in the guest's name.
func forbiddenChar(major, minor int64, reserved func(major, minor int64) bool) bool {
	const memMajor, miscMajor, tpmMinor = 1, 10, 224
	switch {
	case major == memMajor && (minor == 1 || minor == 2 || minor == 4 || minor == 11):
		return true // mem, kmem, port, kmsg
	case major == miscMajor && minor == tpmMinor:
		return true
	}
	return reserved != nil && reserved(major, minor)
}
