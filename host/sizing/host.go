package sizing

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
)

// ThisHost is what this machine has: its processors, and all of its memory.
func ThisHost() (Host, error) {
	raw, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return Host{}, fmt.Errorf("asking for the memory of this host: %w", err)
	}
	for line := range strings.Lines(string(raw)) {
		rest, ok := strings.CutPrefix(line, "MemTotal:")
		if !ok {
			continue
		}
		fields := strings.Fields(rest)
		if len(fields) == 0 {
			break
		}
		kib, err := strconv.ParseUint(fields[0], 10, 50)
		if err != nil {
			break
		}
		return Host{VCPUs: runtime.NumCPU(), MemoryMiB: int(kib >> 10)}, nil
	}
	return Host{}, fmt.Errorf("asking for the memory of this host: /proc/meminfo has no MemTotal")
}
