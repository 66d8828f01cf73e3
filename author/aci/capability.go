package aci

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Capabilities that the service gives to containers, unless they are privileged.
var unprivileged = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD", "CAP_NET_BIND_SERVICE",
	"CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

// Capabilities of privileged containers: all that Linux has.
var privileged = slices.Sorted(slices.Values(slices.Concat(unprivileged, []string{
	"CAP_AUDIT_CONTROL", "CAP_AUDIT_READ", "CAP_BLOCK_SUSPEND", "CAP_BPF", "CAP_CHECKPOINT_RESTORE", "CAP_DAC_READ_SEARCH", "CAP_IPC_LOCK",
	"CAP_IPC_OWNER", "CAP_LEASE", "CAP_LINUX_IMMUTABLE", "CAP_MAC_ADMIN", "CAP_MAC_OVERRIDE", "CAP_NET_ADMIN", "CAP_NET_BROADCAST",
	"CAP_PERFMON", "CAP_SYSLOG", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_MODULE", "CAP_SYS_NICE", "CAP_SYS_PACCT", "CAP_SYS_PTRACE",
	"CAP_SYS_RAWIO", "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_WAKE_ALARM",
})))

// capabilities are those of a process. The ambient set is always empty.
type capabilities struct {
	Ambient     []string `json:"ambient"`
	Bounding    []string `json:"bounding"`
	Effective   []string `json:"effective"`
	Inheritable []string `json:"inheritable"`
	Permitted   []string `json:"permitted"`
}

func (s Security) capabilities() (capabilities, error) {
	set := unprivileged
	if s.Privileged {
		set = privileged
	}
	set = slices.Clone(set)
	drop, err := capNames(s.CapDrop)
	if err != nil {
		return capabilities{}, err
	}
	add, err := capNames(s.CapAdd)
	if err != nil {
		return capabilities{}, err
	}
	for _, c := range drop {
		if c == "CAP_ALL" {
			set = nil
		}
		set = slices.DeleteFunc(set, func(have string) bool { return have == c })
	}
	for _, c := range add {
		if c == "CAP_ALL" {
			set = append(set, privileged...)
			continue
		}
		if !slices.Contains(drop, c) {
			set = append(set, c)
		}
	}
	slices.Sort(set)
	set = slices.Compact(set)
	if set == nil {
		set = []string{}
	}
	out := capabilities{Ambient: []string{}, Bounding: set, Effective: set, Inheritable: []string{}, Permitted: set}
	if s.Privileged {
		out.Inheritable = set
	}
	return out, nil
}

// capNames writes capabilities as Linux does, whether or not they have the prefix.
func capNames(names []string) ([]string, error) {
	out := make([]string, 0, len(names))
	for _, n := range names {
		c := strings.ToUpper(n)
		if !strings.HasPrefix(c, "CAP_") {
			c = "CAP_" + c
		}
		if c != "CAP_ALL" && !slices.Contains(privileged, c) {
			return nil, fmt.Errorf("%.40q is no capability of Linux", n)
		}
		out = append(out, c)
	}
	return out, nil
}

// maxSeccompBytes bounds a seccomp profile.
const maxSeccompBytes = 1 << 20

// SeccompDigest is the SHA-256 of a seccomp profile (JSON) in hexadecimal, as the guest measures it: of the JSON that hcsshim
// writes of the members that the OCI runtime specification has, in its order.
func SeccompDigest(profile []byte) (string, error) {
	if len(profile) > maxSeccompBytes {
		return "", fmt.Errorf("measuring a seccomp profile: it has %d bytes, the limit is %d", len(profile), maxSeccompBytes)
	}
	var s specs.LinuxSeccomp
	if err := json.Unmarshal(profile, &s); err != nil {
		return "", fmt.Errorf("measuring a seccomp profile: %w", err)
	}
	text, err := json.Marshal(s)
	if err != nil {
		return "", fmt.Errorf("measuring a seccomp profile: %w", err)
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:]), nil
}
